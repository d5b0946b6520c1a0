"""Writes frames as files that appear under their name only once they are whole."""

import fractions
import os
import pathlib

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

EXTENSIONS = (".mp4", ".mkv", ".png", ".gif")
"""What the name of a file to write may end in."""
GIF_SECONDS = 655
"""For how long a .gif can show one picture, or several in a row that are equal."""
GIF_FPS = 50
"""Frames per second that a .gif can show: players take a shorter time than 1/50 s for 1/10 s."""
LONGEST_SIDE = {".mp4": 16384, ".gif": 65535}
"""Pixels of a side that a file can hold, by extension: x264's limit, and the .gif's own."""
_ROUNDING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def check_extension(path: str | os.PathLike) -> str:
  """The extension in lower case. Raises: ValueError, naming those allowed."""
  extension = pathlib.Path(path).suffix.lower()
  if extension not in EXTENSIONS:
    raise ValueError(
      f"{path}: cannot write {extension or 'a name without an extension'}; use "
      ".mp4 (H.264, plays everywhere), .mkv (lossless), .gif, or .png for one frame"
    )
  return extension


def check_size(path: str | os.PathLike, width: int, height: int) -> None:
  """Raises: ValueError for a size that a file of this name cannot hold."""
  longest = LONGEST_SIDE.get(pathlib.Path(path).suffix.lower())
  if longest is not None and max(width, height) > longest:
    raise ValueError(
      f"{path}: {width}x{height}, and such a file takes at most {longest} pixels a side; use .mkv"
    )


def check_rate(path: str | os.PathLike, fps: float | int) -> None:
  """Raises: ValueError for frames per second that a file of this name cannot have."""
  if not 0.001 <= fps <= 1000:  # a file counts in thousandths
    raise ValueError(f"fps {fps}; expected a rate of at least 0.001, at most 1000")
  if pathlib.Path(path).suffix.lower() == ".gif" and fps > GIF_FPS:
    raise ValueError(
      f"{path}: fps {fps:g}, and a .gif shows at most {GIF_FPS} frames per second; give a lower "
      "rate, or use .mp4 or .mkv"
    )


def write_video(
  path: str | os.PathLike, video_THWC: np.ndarray, fps: float | int | None = 24.0, quality: int = 16
) -> None:
  """Writes uint8 [T, H, W, 3] by the extension of `path`.

  `.mp4`: H.264; 4:2:0, which plays everywhere, for even sizes, and 4:4:4 for odd ones, so that the
  size asked is the size written. `.mkv`: FFV1, bit for bit what was given. `.gif`: loops,
  256 colours; at most 50 frames per second. `.png`: one frame.

  Args: fps: frames per second; not used by `.png`, and None (pictures) means 24.
    quality: of H.264, its constant rate factor: 0 best, 51 worst.
  Raises: ValueError for another extension, type, shape or rate, a side that is too long (16384
    pixels of `.mp4`, 65535 of `.gif`), or a `.png` of several frames.
  """
  extension = check_extension(path)
  _check(video_THWC, 4)
  check_size(path, video_THWC.shape[2], video_THWC.shape[1])
  if extension == ".png" and len(video_THWC) != 1:
    raise ValueError(f"{path}: {len(video_THWC)} frames do not fit a .png; use .mp4, .mkv or .gif")
  if extension == ".gif" and fps is not None:
    check_rate(path, fps)
  if extension in (".png", ".gif"):
    _write_picture(pathlib.Path(path), video_THWC, 24.0 if fps is None else fps)
    return
  with VideoWriter(path, 24.0 if fps is None else fps, quality=quality) as writer:
    for frame_HWC in video_THWC:
      writer.write(frame_HWC)


class VideoWriter:
  """Writes a `.mp4` or `.mkv` frame by frame, in constant memory. A context manager.

  The file gets its name when it is closed; an error inside the context leaves none. Arguments and
  errors are those of `write_video`.
  """

  _mp4_options: dict[str, str] = {"movflags": "+faststart"}
  _mkv_options: dict[str, str] = {}
  _h264_options: dict[str, str] = {}

  def __init__(self, path: str | os.PathLike, fps: float | int = 24.0, *, quality: int = 16):
    if check_extension(path) not in (".mp4", ".mkv"):
      raise ValueError(f"{path}: frame by frame only .mp4 and .mkv can be written")
    check_rate(path, fps)
    if not 0 <= quality <= 51:
      raise ValueError(f"quality {quality}; expected 0 (best) to 51")
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._written = _temporary(self.path)
    self._rate = fractions.Fraction(fps).limit_denominator(1001)
    self._quality, self._size, self._container = quality, None, None

  def write(self, frame_HWC: np.ndarray) -> None:
    """Appends one uint8 [H, W, 3].

    Raises: ValueError if its size is not that of the first, or a side is too long.
    """
    _check(frame_HWC, 3)
    if self._container is None:
      check_size(self.path, frame_HWC.shape[1], frame_HWC.shape[0])
      self._open(*frame_HWC.shape[:2])
    if frame_HWC.shape[:2] != self._size:
      raise ValueError(f"a frame of {frame_HWC.shape[:2]} in a video of {self._size}")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
    if self._stream.codec_context.name == "libx264":
      frame = frame.reformat(
        format=self._stream.pix_fmt,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_ROUNDING,
      )
      frame.color_trc, frame.color_primaries = ColorTrc.BT709, ColorPrimaries.BT709
    frame.pts = None
    self._container.mux(self._stream.encode(frame))

  def close(self) -> None:
    """Finishes the file. Raises: ValueError if it has no frame."""
    if self._container is None:
      raise ValueError(f"{self.path}: no frame was written")
    self._container.mux(self._stream.encode())
    self._container.close()
    os.replace(self._written, self.path)

  def __enter__(self) -> "VideoWriter":
    return self

  def __exit__(self, error_type, error, trace) -> None:
    try:
      if error_type is None:
        self.close()
      elif self._container is not None:
        self._container.close()
    finally:
      self._written.unlink(missing_ok=True)

  def _open(self, height: int, width: int) -> None:
    self._size = height, width
    if self.path.suffix.lower() == ".mkv":
      options = dict(self._mkv_options)
      self._container = av.open(str(self._written), "w", format="matroska", options=options)
      self._stream = self._container.add_stream("ffv1", rate=self._rate)
      self._stream.pix_fmt = "bgr0"
    else:
      options = dict(self._mp4_options)
      self._container = av.open(str(self._written), "w", format="mp4", options=options)
      self._stream = self._container.add_stream("libx264", rate=self._rate)
      self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
      self._stream.options = {
        "crf": str(self._quality), "preset": "medium", **self._h264_options,
      }  # fmt: skip
      context = self._stream.codec_context
      context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
      context.color_trc, context.color_primaries = ColorTrc.BT709, ColorPrimaries.BT709
    self._stream.width, self._stream.height = width, height


class GrowingWriter(VideoWriter):
  """Writes a `.mp4` or `.mkv` that can be played at any time, the last second perhaps missing.

  The file has its name from the first frame on, and stays, whatever happens: an error inside the
  context finishes it, and what a killed process leaves plays as far as it got. A `.mp4` is
  fragmented, a fragment a second, and H.264 holds no frame back for it (`zerolatency`).
  """

  _mp4_options = {
    "movflags": "+frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000",
    "flush_packets": "1",
  }  # fmt: skip
  _mkv_options = {"cluster_time_limit": "1000", "flush_packets": "1"}
  _h264_options = {"tune": "zerolatency", "g": "48"}

  def __init__(self, path: str | os.PathLike, fps: float | int = 24.0, *, quality: int = 16):
    super().__init__(path, fps, quality=quality)
    self._written = self.path

  def rename(self, path: str | os.PathLike) -> None:
    """Gives the file another name in its file system, at once, and goes on writing to it."""
    os.replace(self.path, path)
    self.path = self._written = pathlib.Path(path)

  def __exit__(self, error_type, error, trace) -> None:
    if error_type is None or self._container is not None:
      self.close()


def _write_picture(path: pathlib.Path, video_THWC: np.ndarray, fps: float | int) -> None:
  images = [Image.fromarray(np.ascontiguousarray(frame_HWC)) for frame_HWC in video_THWC]
  options = {}
  if path.suffix.lower() == ".gif":
    # The format counts hundredths of a second: frames end at the nearest one, so that the rate is
    # kept on the whole. Pillow writes equal frames as one; `pictures` repeats it by the rate told.
    ends = np.rint(100 / fps * np.arange(len(images) + 1)).astype(int)
    milliseconds = (10 * np.diff(ends)).tolist()
    options = {"save_all": True, "append_images": images[1:], "duration": milliseconds, "loop": 0}
    options |= {"comment": f"{fps:.9g} fps"} if len(images) > 1 else {}
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = _temporary(path)
  try:
    images[0].save(temporary, format=path.suffix[1:].upper(), **options)
    os.replace(temporary, path)
  except OverflowError as error:  # frames that are equal are written as one
    raise ValueError(
      f"{path}: at fps {fps} a picture stands longer than the {GIF_SECONDS} s of a .gif; give a "
      "higher rate, or use .mp4 or .mkv"
    ) from error
  finally:
    temporary.unlink(missing_ok=True)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _check(pixels: np.ndarray, ndim: int) -> None:
  if pixels.dtype != np.uint8 or pixels.ndim != ndim or pixels.shape[-1] != 3 or 0 in pixels.shape:
    layout = "[T, H, W, 3]" if ndim == 4 else "[H, W, 3]"
    raise ValueError(f"got {pixels.dtype} {pixels.shape}; expected uint8 {layout}")
