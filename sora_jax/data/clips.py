"""Videos and pictures as uint8 frames, the way a player shows them, in bounded memory.

`decode` returns a whole clip, `Reader` streams frames of any length; both refuse frames that are
too large before one is allocated. `write_video` and `VideoWriter` (from `writing`) make files.
Followed: rotation and mirroring, edit lists, pixel aspect, 10 bits and HDR, transparency, variable
rates (their average), tags that are not UTF-8.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from sora_jax.data import hdr, pictures, transforms
from sora_jax.data.pictures import MediaError
from sora_jax.data.writing import VideoWriter, write_video

__all__ = [
  "Decoded", "MediaError", "Reader", "TooLargeError", "VideoWriter", "decode", "fit_short",
  "write_video",
]  # fmt: skip

MAX_PIXELS = 4096 * 4096
"""Pixels of one frame that a file may have unless told otherwise."""
MAX_BYTES = 2 << 30
"""Frames that `decode` holds at once, in bytes, unless told otherwise."""
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNSPECIFIED = 2  # a frame's colorspace, ISO/IEC 23091-2
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # how a Matroska file and its body begin
_RAW_JPEG = (".mjpeg", ".mjpg")  # names of films that are JPEG after JPEG, without a container
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones drop the alpha


class TooLargeError(MediaError):
  """More frames than are held at once.  frames: how many of the first ones would be."""

  def __init__(self, message: str, frames: int = 0):  # pickled, it comes back from its message
    super().__init__(message)
    self.frames = frames


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """A decoded file.

  Attributes:
    video_THWC: uint8 [T, H, W, 3] with square pixels, resized if that was asked.
    fps: average frames per second; None for pictures.
    size: (width, height) upright, in pixels as stored: before any resizing, perhaps not square.
    damage: None, or why a salvaged file ended early.
  """

  video_THWC: np.ndarray
  fps: float | None
  size: tuple[int, int]
  damage: str | None = None


def decode(
  path: str | os.PathLike,
  *,
  short_side: int | None = None,
  cover: transforms.Size | None = None,
  max_frames: int | None = None,
  max_pixels: int = MAX_PIXELS,
  max_bytes: int = MAX_BYTES,
  salvage: bool = False,
) -> Decoded:
  """Reads a video, an animation or a picture (one frame).

  Args: short_side: shrinks while decoding; see `fit_short`.  cover: scales frames of more
    pixels than this size to cover it as they are decoded, see `transforms.cover`.
    max_frames: stops there.  salvage: keeps the frames before the damage of a file.
  Raises: FileNotFoundError; MediaError for what cannot be decoded ("46 of 150 frames decode") or is
  larger than `max_pixels`; TooLargeError for what would hold more than `max_bytes`.
  """
  with Reader(path, short_side=short_side, max_pixels=max_pixels) as reader:
    held, size = [], 0
    for _, frame_HWC in reader.frames():
      if cover is not None and math.prod(cover) < math.prod(frame_HWC.shape[:2]):
        frame_HWC = transforms.cover(frame_HWC[None], cover)[0]
      size += frame_HWC.nbytes
      if size > max_bytes:
        raise TooLargeError(
          f"the first {len(held)} frames fill max_bytes={max_bytes}; "
          "give max_frames or short_side, or stream them with Reader",
          len(held),
        )
      held.append(frame_HWC)
      if max_frames is not None and len(held) >= max_frames:
        break
    if reader.damage and not salvage:
      raise MediaError(reader.damage)
    return Decoded(np.stack(held), reader.fps, reader.size, reader.damage)


def fit_short(width: int, height: int, short_side: int | None, aspect: float = 1.0):
  """(width, height) with square pixels and a short side of at most `short_side`; never higher.

  Args: short_side: None = any.  aspect: width / height of one pixel; the width makes it square.
  """
  true_width = width * aspect
  scale = min(1.0, short_side / min(true_width, height)) if short_side is not None else 1.0
  return max(1, round(true_width * scale)), max(1, round(height * scale))


class Reader:
  """Streams one file's frames; holds one at a time. A context manager.

  Attributes, known once the first frame is out: `size` (width, height) upright, as stored, and
  `rate` (frames per second that the file declares; None for pictures). Once all are out:
  `num_frames`, `fps` (the average) and `damage` (None, or a line saying where decoding stopped).

  Raises: FileNotFoundError; MediaError if the file holds nothing to show or is too large.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
  ):
    self.path = pathlib.Path(path)
    self.short_side, self.max_pixels = short_side, max_pixels
    self.size: tuple[int, int] | None = None
    self.rate: float | None = None
    self.damage: str | None = None
    self.num_frames = 0
    self._span = [0.0, 0.0, 0.0]  # first and last time, duration of the last frame
    self._container = None
    with open(self.path, "rb") as file:
      head = file.read(4096)
      size = os.fstat(file.fileno()).st_size
    if not head:
      raise MediaError("the file is empty")
    self._is_cut = size < _matroska_bytes(head)
    self.is_picture = pictures.is_picture(head[:32])
    if self.is_picture and self.path.suffix.lower() in _RAW_JPEG and head[:2] == b"\xff\xd8":
      self.is_picture = False
      self._open_video("mjpeg")
    elif not self.is_picture:
      self._open_video()

  @property
  def fps(self) -> float | None:
    """Average rate of the frames read so far: as declared where that agrees, else as measured."""
    if self.rate is None:
      return None
    first, last, duration = self._span
    if self.num_frames < 2 or last <= first:
      return self.rate
    mean_gap = (last - first) / (self.num_frames - 1)
    tail = duration if 0 < duration < 4 * mean_gap else mean_gap
    measured = self.num_frames / (last + tail - first)
    return self.rate if abs(measured / self.rate - 1) < 0.01 else measured

  def frames(self) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time in seconds from the first frame, uint8 [H, W, 3]). Call it once.

    Raises: MediaError if no frame at all can be decoded.
    """
    for time, duration, frame_HWC in (
      self._picture_frames() if self.is_picture else self._video_frames()
    ):
      if not self.num_frames:
        self._span[0] = time
      self._span[1:] = time, duration
      self.num_frames += 1
      yield time - self._span[0], frame_HWC
    if not self.num_frames:
      raise MediaError(self.damage or "no frames")

  def close(self) -> None:
    """Closes the file."""
    if self._container is not None:
      self._container.close()

  def __enter__(self) -> "Reader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _picture_frames(self):
    with pictures.open_picture(self.path, self.max_pixels) as image:
      self.size = pictures.displayed_size(image)
      told = pictures.told_rate(image)
      total = pictures.count_frames(image)
      size = fit_short(*self.size, self.short_side)
      if image.format in ("JPEG", "MPO") and size != self.size:
        image.draft("RGB", (4 * max(size), 4 * max(size)))  # decodes large photos at a fraction
      try:
        for time, duration, frame_HWC in pictures.frames(image):
          if self.rate is None and (told or total > 1):
            self.rate = told or 1 / duration
          yield time, duration, transforms.resize(frame_HWC[None], size)[0]
      except MediaError as error:
        if total == 1:
          raise
        of = "" if told else f" of {total}"  # where equal frames are stored as one
        self.damage = f"{self.num_frames}{of} frames decode, then: {error}"

  def _open_video(self, format: str | None = None) -> None:
    # the limit also holds while FFmpeg probes; the slack is for codecs that pad their frames
    limit = self.max_pixels + (1 << 18)
    try:
      self._container = av.open(
        str(self.path),
        format=format,
        metadata_errors="replace",
        options={"max_pixels": str(limit)},
      )
    except (av.FFmpegError, ValueError, UnicodeError) as error:
      raise MediaError(f"not a readable video: {pictures.one_line(error, self.path)}") from error
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in self._container.streams.video if not s.disposition & attached]
    if not streams:
      kinds = sorted({s.type for s in self._container.streams}) or ["nothing"]
      self.close()
      raise MediaError(f"no video stream (the file holds {', '.join(kinds)})")
    if any(s.disposition & av.stream.Disposition.dependent for s in streams):
      self.close()  # FFmpeg gives each tile as a stream, and neither their places nor the rotation
      raise MediaError("a tiled HEIC; convert it to JPEG or PNG")
    self._stream = max(streams, key=lambda s: s.codec_context.width or 0)
    self._check_size(self._stream.codec_context.width, self._stream.codec_context.height)
    rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
    self.rate = float(rate) if rate else 25.0

  def _check_size(self, width: int, height: int) -> None:
    if width * height > self.max_pixels:
      self.close()
      raise MediaError(f"{width}x{height} is more than max_pixels={self.max_pixels}")

  def _decoder(self):
    """The stream's decoder, or libvpx where a VP8 or VP9 stream carries transparency."""
    context = self._stream.codec_context
    name = _ALPHA_DECODERS.get(context.name)
    if name is None or self._stream.metadata.get("alpha_mode") != "1":
      context.options = {"max_pixels": str(self.max_pixels + (1 << 18))}
      return context
    decoder = av.CodecContext.create(name, "r")
    decoder.extradata = context.extradata
    return decoder

  def _video_frames(self):
    stream, packets, discarded, reason = self._stream, 0, 0, None
    try:
      decoder = self._decoder()
      for packet in self._container.demux(stream):
        packets += packet.size > 0
        discarded += packet.is_discard
        for frame in decoder.decode(packet if packet.size else None):
          if frame.is_corrupt:
            raise MediaError("a damaged frame")
          self._check_size(frame.width, frame.height)
          time = self.num_frames / self.rate  # raw streams carry no times
          if frame.pts is not None:
            time = float(frame.pts * stream.time_base)
          yield time, float((frame.duration or 0) * stream.time_base), self._show(frame)
    except (av.FFmpegError, ValueError) as error:
      reason = pictures.one_line(error, self.path)
    expected = max(0, stream.frames - discarded)
    if reason is None and packets < stream.frames and self.num_frames < expected:
      reason = "the data ends"
    if reason is None and self._is_cut and self.num_frames:
      reason = self._ends_early()
    if reason is not None:
      total = f" of {expected}" if expected else ""
      self.damage = f"{self.num_frames}{total} frames decode, then: {reason}"

  def _ends_early(self) -> str | None:
    """What to say of a cut Matroska file if frames are missing; None if only its end matter is."""
    gap = 1 / self.rate
    end = self._span[1] + (self._span[2] or gap)
    declared, slack = _seconds(self._stream.metadata), max(gap / 2, 0.002)
    if declared is None:  # of the longest stream, perhaps the sound
      declared = (self._container.duration or 0) / av.time_base
      slack = max(2 * gap, 0.05 * declared)
    return f"the data ends at {end:.2f} of {declared:.2f} s" if end + slack < declared else None

  def _show(self, frame: av.VideoFrame) -> np.ndarray:
    """One frame upright, in sRGB, at the size asked."""
    side = frame.side_data.get("DISPLAYMATRIX")
    matrix = None if side is None else np.frombuffer(bytes(side)[:36], "<i4")
    turned = transforms.orient(np.empty((2, 3, 1)), matrix).shape[0] == 3
    stored = frame.width, frame.height
    if self.size is None:
      self.size = stored[::-1] if turned else stored
      ratio = self._stream.sample_aspect_ratio
      aspect = float(ratio) if ratio and 0.1 < ratio < 10 else 1.0
      self._shown = fit_short(*self.size, self.short_side, 1 / aspect if turned else aspect)
      self._check_size(*self._shown)
    size = self._shown[::-1] if turned else self._shown
    options = {"interpolation": _SCALER, "threads": 1}
    if frame.colorspace == _UNSPECIFIED and max(stored) >= 1280:
      options["src_colorspace"] = Colorspace.ITU709  # as players guess
    if any(c.is_alpha for c in frame.format.components) or frame.format.has_palette:
      rgba_HWC = frame.reformat(format="rgba", **options).to_ndarray()
      shown_HWC = transforms.resize(pictures.composite(rgba_HWC)[None], size)[0]
    elif frame.color_trc in (hdr.PQ, hdr.HLG):
      wide = frame.reformat(*size, format="rgb48le", **options).to_ndarray()
      shown_HWC = hdr.to_screen(wide, int(frame.color_trc))
    else:
      shown_HWC = frame.reformat(*size, format="rgb24", **options).to_ndarray()
    return np.ascontiguousarray(transforms.orient(shown_HWC, matrix))


def _seconds(tags: Mapping[str, str]) -> float | None:
  """A Matroska stream's own duration by its tags ("00:00:02.400000000"), if it bears one."""
  for name, text in tags.items():
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text.strip())
    if match and name.partition("-")[0].upper() == "DURATION":  # "DURATION-eng" in some
      hours, minutes, seconds = map(float, match.groups())
      return 3600 * hours + 60 * minutes + seconds
  return None


def _matroska_bytes(head: bytes) -> int:
  """How long a Matroska or WebM file says it is; 0 for other files and where it does not say."""
  if not head.startswith(_EBML):
    return 0
  length, at = _ebml_size(head, len(_EBML))
  at += length
  if head[at : at + 4] != _SEGMENT:
    return 0
  length, start = _ebml_size(head, at + len(_SEGMENT))
  return start + length if length else 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
  """(the size that an EBML element declares at an offset, 0 if unknown; the offset behind it)."""
  width = 9 - data[at].bit_length() if at < len(data) else 9
  if width > 8:
    return 0, at
  ones = (1 << 7 * width) - 1
  value = int.from_bytes(data[at : at + width], "big") & ones
  return value if value != ones else 0, at + width
