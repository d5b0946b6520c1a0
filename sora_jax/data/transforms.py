"""Geometry, timing and range of pixels: the one owner of [-1, 1], frame rate and orientation.

Videos are numpy arrays [T, H, W, C]; a size is (width, height), as a user types it. Outside the
models pixels are uint8; inside they are float32 in [-1, 1].
"""

import math

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels."""


def to_float(video: np.ndarray) -> np.ndarray:
  """uint8 -> float32 in [-1, 1]: 0 becomes -1, 255 becomes 1. Raises: ValueError if not uint8."""
  if video.dtype != np.uint8:
    raise ValueError(f"got pixels of {video.dtype}; to_float expects uint8 in 0..255")
  return video.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)


def to_uint8(video: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8, rounded to nearest and clipped; the inverse of `to_float`.

  Raises: ValueError for integers, or for values that are not finite.
  """
  if not np.issubdtype(video.dtype, np.floating):
    raise ValueError(f"got pixels of {video.dtype}; to_uint8 expects floats in [-1, 1]")
  scaled = (video.astype(np.float32) + np.float32(1)) * np.float32(127.5)
  if not np.isfinite(scaled).all():
    raise ValueError("pixels are not finite; the model that made them has diverged")
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def orient(frame_HWC: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
  """Turns a stored frame upright by its container's display matrix.

  A matrix (a b u; c d v; x y w) shows the stored point (x, y) at (a x + c y, b x + d y). Quarter
  turns and mirrors are followed exactly; other angles and None leave the frame as it is.
  Source: ISO/IEC 14496-12, 6.2.2.
  """
  if matrix is None:
    return frame_HWC
  a, b, _, c, d = (int(n) for n in np.asarray(matrix).reshape(-1)[:5])
  if max(abs(b), abs(c)) < 64 and a and d:  # 64 / 65536: rounding of writers
    x_sign, y_sign = a, d
  elif max(abs(a), abs(d)) < 64 and b and c:
    frame_HWC = frame_HWC.swapaxes(0, 1)
    x_sign, y_sign = c, b
  else:
    return frame_HWC
  return frame_HWC[:: 1 if y_sign > 0 else -1, :: 1 if x_sign > 0 else -1]


def parse_size(text: str, flag: str = "size") -> Size:
  """(width, height) of a flag's "96x64".  Raises: ValueError that names the flag."""
  parts = [part.strip() for part in text.lower().split("x")]
  sides = [int(part) if part.isascii() and part.isdigit() else 0 for part in parts]
  if len(sides) != 2 or not all(sides):
    raise ValueError(f"--{flag}={text}; give WIDTHxHEIGHT in pixels, like 96x64")
  return sides[0], sides[1]


def resize(video: np.ndarray, size: Size) -> np.ndarray:
  """Resizes every frame of uint8 [T, H, W, 3] to (width, height), anti-aliased bicubic.

  The filter widens with the scale, so that shrinking averages all pixels it covers. Raises:
  ValueError for another layout or a size that is not positive.
  """
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
    raise ValueError(f"got {video.dtype} {video.shape}; resize expects uint8 [T, H, W, 3]")
  width, height = size
  if width < 1 or height < 1:
    raise ValueError(f"cannot resize to {width}x{height}; both must be positive")
  if video.shape[1:3] == (height, width):
    return video
  out = np.empty((len(video), height, width, 3), np.uint8)
  for k, frame_HWC in enumerate(video):
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    out[k] = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  return out


def fit_size(
  width: int, height: int, budget: int, multiple: int = 1, *, upscale: bool = False
) -> Size:
  """Largest size of nearly the aspect width:height with at most `budget` pixels a frame.

  Both sides are multiples of `multiple` (so a budget of n tokens of m x m pixels is n * m * m).
  Of the sizes around the exact one, the best balance of aspect and area is taken. Sides smaller
  than `multiple` are rounded up to it. `upscale` lets small clips grow to the budget.
  Raises: ValueError if the budget does not hold one cell.
  """
  if min(width, height, multiple) < 1:
    raise ValueError(f"got {width}x{height}, multiple {multiple}; all must be positive")
  cells = budget // (multiple * multiple)
  if cells < 1:
    raise ValueError(
      f"a budget of {budget} pixels holds no {multiple}x{multiple} cell; raise the budget"
    )
  scale = math.sqrt(budget / (width * height))
  if not upscale:
    scale = min(scale, 1.0)
  exact = (width * scale / multiple, height * scale / multiple)
  columns = {_inside(math.floor(exact[0]) + k, cells) for k in (-1, 0, 1)}
  rows = {_inside(math.floor(exact[1]) + k, cells) for k in (-1, 0, 1)}
  # a side that hits its bound of one cell frees cells for the other
  columns |= {_inside(min(cells // r, math.ceil(exact[0])), cells) for r in rows}
  rows |= {_inside(min(cells // c, math.ceil(exact[1])), cells) for c in columns}

  def cost(size):
    stretch = math.log(size[0] / size[1]) - math.log(width / height)
    area = math.log(size[0] * size[1]) - math.log(exact[0] * exact[1])
    return abs(stretch) + 0.5 * abs(area), size

  fitting = [(c, r) for c in sorted(columns) for r in sorted(rows) if c * r <= cells]
  if not upscale:
    within = [(c, r) for c, r in fitting if c <= max(1, exact[0]) and r <= max(1, exact[1])]
    fitting = within or fitting
  c, r = min(fitting, key=cost)
  return c * multiple, r * multiple


def center_crop(video: np.ndarray, size: Size) -> np.ndarray:
  """The centre of [T, H, W, C]. Raises: ValueError if the video is smaller than `size`."""
  width, height = size
  H, W = video.shape[1:3]
  if W < width or H < height:
    raise ValueError(f"cannot cut {width}x{height} out of {W}x{H}")
  top, left = (H - height) // 2, (W - width) // 2
  return video[:, top : top + height, left : left + width]


def cover(video: np.ndarray, size: Size) -> np.ndarray:
  """Resizes uint8 [T, H, W, 3] to cover (width, height) unstretched; cuts what sticks out."""
  width, height = size
  H, W = video.shape[1:3]
  scale = max(width / W, height / H)
  inner = max(width, round(W * scale)), max(height, round(H * scale))
  return center_crop(resize(video, inner), size)


def fit(video: np.ndarray, budget: int, multiple: int) -> np.ndarray:
  """Shrinks [T, H, W, 3] to the largest size within a pixel budget, unstretched; see `fit_size`."""
  H, W = video.shape[1:3]
  return cover(video, fit_size(W, H, budget, multiple))


def padded_frames(frames: int, temporal: int) -> int:
  """The smallest 1 + temporal * k that is at least `frames`."""
  if frames < 1 or temporal < 1:
    raise ValueError(f"got {frames} frames, temporal factor {temporal}; both must be positive")
  return 1 + temporal * math.ceil((frames - 1) / temporal)


def pad_frames(video: np.ndarray, temporal: int) -> np.ndarray:
  """Repeats the last frame until T is 1 + temporal * k; `video[:T]` undoes it."""
  extra = padded_frames(len(video), temporal) - len(video)
  return np.concatenate([video, np.repeat(video[-1:], extra, axis=0)]) if extra else video


def pad_size(video: np.ndarray, multiple: int) -> np.ndarray:
  """Repeats the last row and column up to multiples; `video[:, :H, :W]` undoes it."""
  H, W = video.shape[1:3]
  bottom, right = -H % multiple, -W % multiple
  if not bottom and not right:
    return video
  return np.pad(video, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")


def _inside(n: int, most: int) -> int:
  return max(1, min(n, most))
