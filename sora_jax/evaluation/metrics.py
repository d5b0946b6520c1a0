"""Figures of merit: peak signal-to-noise ratio, and intervals for shares of successes."""

import math

import numpy as np
from jaxtyping import Bool, Shaped


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
  """Wilson's score interval for a share.

  (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n); Wilson 1927, J. Am. Stat. Assoc.
  22:209. Its coverage stays near nominal at shares close to 0 and 1, where p -+ z sigma does not.

  Args: z: normal quantile; 1.96 gives 95 %.  Raises: ValueError unless 0 <= successes <= count.
  """
  if count < 1 or not 0 <= successes <= count:
    raise ValueError(
      f"{successes} successes of {count}; expected 0 <= successes <= count, count > 0"
    )
  share, square = successes / count, z * z / count
  middle = share + square / 2
  half = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
  low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
  return (0.0 if successes == 0 else low), (1.0 if successes == count else high)


def psnr(
  reference: Shaped[np.ndarray, "..."],
  other: Shaped[np.ndarray, "..."],
  mask: Bool[np.ndarray, "..."] | None = None,
) -> float:
  """Peak signal-to-noise ratio of uint8 pictures or videos in dB: 10 log10(255^2 / mean error^2).

  Args: reference, other: uint8 [..., H, W, 3].  mask: bool [..., H, W] of the pixels that count.
  Returns: dB; infinite where equal.  Raises: ValueError for other shapes or dtypes, empty masks.
  """
  if reference.shape != other.shape or reference.dtype != np.uint8 or other.dtype != np.uint8:
    raise ValueError(
      f"got {reference.dtype} {reference.shape} and {other.dtype} {other.shape}; "
      "expected two uint8 arrays of one shape"
    )
  error = (reference.astype(np.float32) - other.astype(np.float32)) ** 2
  if mask is not None:
    if mask.shape != reference.shape[:-1] or not mask.any():
      raise ValueError(f"mask {mask.shape} with {int(mask.sum())} pixels for {reference.shape}")
    error = error[mask]
  mean = float(error.mean(dtype=np.float64))
  return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def object_mask(truth: dict) -> Bool[np.ndarray, "T H W"]:
  """Pixels inside the boxes of a world clip's objects: bool [T, H, W].

  A pixel counts if any part of it is in the box of an object that is visible in that frame.
  """
  width, height = truth["size"]
  unit = min(width, height)
  x, y = np.arange(width), np.arange(height)  # left and top edges of the pixels
  mask_THW = np.zeros((truth["frames"], height, width), bool)
  for record in truth["objects"]:
    for frame, (box, seen) in enumerate(zip(record["box"], record["visibility"])):
      if box is not None and seen > 0:
        left, top, right, bottom = (side * unit for side in box)
        rows, columns = (y + 1 > top) & (y < bottom), (x + 1 > left) & (x < right)
        mask_THW[frame] |= rows[:, None] & columns[None, :]
  return mask_THW
