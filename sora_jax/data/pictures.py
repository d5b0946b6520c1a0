"""Photographs and animated pictures, read through Pillow as they are meant to be seen."""

import contextlib
import os
import re
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sora_jax.data.writing import GIF_FPS

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
"""Pillow's readers that may see a file; none of them starts another program."""
BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)
"""What Pillow raises at data that is cut or damaged."""
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
_BACKGROUND = (0, 0, 0)
"""What shows through transparent pixels, as on a player's black screen."""


class MediaError(ValueError):
  """A file that cannot be used; the message is one line that says why."""


def is_picture(head: bytes) -> bool:
  """Whether a file that starts with these bytes (32 are enough) is one that Pillow reads here."""
  return (
    head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*"))
    or (head[:2] == b"BM" and head[6:10] == bytes(4))
    or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
    or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
  )


@contextlib.contextmanager
def open_picture(path: str | os.PathLike, max_pixels: int) -> Iterator[Image.Image]:
  """Opens a picture's header; decodes no pixel. Raises: MediaError if too large or unreadable."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
      image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
      raise MediaError(f"more than max_pixels={max_pixels}: {error}") from error
    except (UnidentifiedImageError, *BROKEN) as error:
      raise MediaError(f"not a readable picture: {one_line(error, path)}") from error
  with image:
    width, height = image.size
    if width * height > max_pixels:
      raise MediaError(f"{width}x{height} is more than max_pixels={max_pixels}")
    yield image


def displayed_size(image: Image.Image) -> tuple[int, int]:
  """(width, height) after the EXIF orientation."""
  turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
  return (image.height, image.width) if turned else image.size


def count_frames(image: Image.Image) -> int:
  """Frames of an animation; 1 for any other picture, multi-page ones too.

  Raises: MediaError where the data ends early.
  """
  if image.format not in ANIMATED:
    return 1
  try:
    return getattr(image, "n_frames", 1)
  except BROKEN as error:
    raise MediaError(f"the data ends early or is damaged: {one_line(error)}") from error


def told_rate(image: Image.Image) -> float | None:
  """The frames per second that a GIF's comment tells ("12 fps"), as `writing` leaves it there.

  The format counts hundredths of a second and merges equal frames, so its durations do not tell it.
  None without one, or where the first frame does not stand for a whole number of such frames.
  """
  if image.format != "GIF":
    return None
  found = re.fullmatch(rb"(\d+(?:\.\d+)?) fps", image.info.get("comment", b""))
  if found is None or not 0 < float(found[1]) <= GIF_FPS:
    return None
  rate, duration = float(found[1]), image.info.get("duration", 0) / 1000
  whole = max(1, round(duration * rate)) / rate
  return rate if abs(duration - whole) < 0.006 else None


def frames(image: Image.Image) -> Iterator[tuple[float, float, np.ndarray]]:
  """Yields (start, duration in seconds, uint8 [H, W, 3]) of each frame, upright and composited.

  Where a GIF tells its rate, a frame that stands longer is repeated.
  Raises: MediaError where the data ends early or a mode cannot be shown.
  """
  rate = told_rate(image)
  start, shown = 0.0, 0
  for k in range(count_frames(image)):
    try:
      image.seek(k)
      frame_HWC = _rgb(ImageOps.exif_transpose(image))
    except BROKEN as error:
      if isinstance(error, MediaError):
        raise
      raise MediaError(one_line(error)) from error
    duration = image.info.get("duration", 0) / 1000 or 0.1
    end = start + duration
    if rate is None:
      yield start, duration, frame_HWC
    else:
      for _ in range(max(1, round(end * rate) - shown)):
        yield shown / rate, 1 / rate, frame_HWC
        shown += 1
    start = end


def composite(rgba_HWC: np.ndarray) -> np.ndarray:
  """uint8 RGBA with straight alpha, over the background."""
  alpha = rgba_HWC[..., 3:].astype(np.float32) / 255
  background = np.array(_BACKGROUND, np.float32)
  return np.rint(rgba_HWC[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8)


def one_line(error: BaseException, path: str | os.PathLike = "") -> str:
  """An error's text on one line, without the file's own path."""
  text = " ".join(str(getattr(error, "strerror", None) or error).split())
  text = text.replace(str(path), "the file") if str(path) else text
  return text[:200] or type(error).__name__


def _rgb(image: Image.Image) -> np.ndarray:
  if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
    grey = np.asarray(image).astype(np.float32)
    grey = np.rint(np.clip(grey, 0, 65535) / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if image.mode == "F":
    raise MediaError("pixels are floating point; convert the picture to 8 or 16 bits")
  if image.has_transparency_data:
    return composite(np.asarray(image.convert("RGBA")))
  return np.array(image.convert("RGB"))
