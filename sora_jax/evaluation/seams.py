"""Does what was made join what was given? Steps between frames, brightness, motion, borders.

A video is uint8 [T, H, W, 3]; a seam `at` k lies between frames k - 1 and k. Sizes of steps are
mean absolute differences of pixels, in levels of 255, so a video's own median is their unit.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

STILL = 1e-3
"""Least median step, in levels, that anything is divided by: of a video that stands still."""


def steps(video_THWC: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "t"]:
  """Size of each of the T - 1 steps."""
  return np.abs(np.diff(video_THWC.astype(np.float32), axis=0)).mean((1, 2, 3))


def seams_of(known_THW: Bool[np.ndarray, "T H W"]) -> list[int]:
  """Where frames known as a whole meet frames that are not."""
  whole_T = known_THW.all((1, 2)).astype(int)
  return [int(k) + 1 for k in np.flatnonzero(np.diff(whole_T))]


def jump(video_THWC: UInt8[np.ndarray, "T H W 3"], at: int, unit: float) -> float:
  """Size of the step across a seam, in a unit such as the median step of what was given."""
  return float(steps(video_THWC[at - 1 : at + 1])[0]) / max(unit, STILL)


def brightness_step(video_THWC: UInt8[np.ndarray, "T H W 3"], at: int) -> float:
  """How far the mean level changes across a seam, as a share of 255."""
  before, after = video_THWC[at - 1 : at + 1].astype(np.float32).mean((1, 2, 3))
  return float(abs(after - before)) / 255.0


def motion(
  video_THWC: UInt8[np.ndarray, "T H W 3"], made_T: Bool[np.ndarray, "T"], unit: float
) -> float:
  """Median step between frames that were made, in a unit; NaN if no two of them are neighbours."""
  inside_t = made_T[1:] & made_T[:-1]
  if not inside_t.any():
    return float("nan")
  return float(np.median(steps(video_THWC)[inside_t])) / max(unit, STILL)


def paces(position_T2: Float[np.ndarray, "T 2"], frames_per_latent: int) -> tuple[float, float]:
  """How fast an object moves between frames of one latent, and from one latent to the next.

  A causal autoencoder's first latent holds one frame, each other `frames_per_latent`. A network
  that knows where things are in a latent, and less how they move in it, makes them halt and leap.

  Returns: mean steps along the way from the first to the last frame, in the positions' unit; NaN
    for one that has no steps, or if the object is lost in the first or last frame or stands still.
  """
  way_2 = position_T2[-1] - position_T2[0]
  length = float(np.linalg.norm(way_2))
  if not length > 0:
    return float("nan"), float("nan")
  step_t = np.diff(position_T2, axis=0) @ (way_2 / length)
  leaps_t = np.arange(len(step_t)) % frames_per_latent == 0
  return tuple(
    float(np.nanmean(step_t[some])) if np.isfinite(step_t[some]).any() else float("nan")
    for some in (~leaps_t, leaps_t)
  )


def evenness(
  paces_N2: Sequence[tuple[float, float]], resampled: int = 2000
) -> tuple[float, float, float]:
  """Median pace within latents over that from latent to latent: 1 = even, below = halting.

  Args: paces_N2: of `paces`, a pair for each video; those with a NaN are left out.  resampled: how
    often, for the interval.

  Returns: ratio, and the ends of its 95 % bootstrap interval; NaN if no pair is left.
  """
  pairs_N2 = np.asarray(paces_N2, float).reshape(-1, 2)
  pairs_N2 = pairs_N2[np.isfinite(pairs_N2).all(1)]
  if not len(pairs_N2):
    return float("nan"), float("nan"), float("nan")
  rng = np.random.default_rng(0)
  again = pairs_N2[rng.integers(0, len(pairs_N2), (resampled, len(pairs_N2)))]
  within, between = np.moveaxis(np.median(again, axis=1), -1, 0)
  low, high = np.quantile(within / between, (0.025, 0.975))
  whole = np.median(pairs_N2, axis=0)
  return float(whole[0] / whole[1]), float(low), float(high)


def border_ratio(
  video_THWC: UInt8[np.ndarray, "T H W 3"], known_HW: Bool[np.ndarray, "H W"]
) -> float:
  """Mean gradient across the border of a region against that one pixel further on either side.

  1 = the border cannot be told; a frame around the region gives much more.
  """
  video = video_THWC.astype(np.float32)
  across, beside = [], []
  for axis in (0, 1):
    gradient = np.abs(np.diff(video, axis=axis + 1)).mean((0, 3))
    edge = np.diff(known_HW.astype(int), axis=axis) != 0
    near = np.zeros_like(edge)
    for way in (-1, 1):
      shifted = np.roll(edge, way, axis=axis)
      np.moveaxis(shifted, axis, 0)[0 if way > 0 else -1] = False
      near |= shifted
    across.append(gradient[edge])
    beside.append(gradient[near & ~edge])
  across, beside = np.concatenate(across), np.concatenate(beside)
  if not across.size:
    raise ValueError("the region has no border: it is all of the frame, or nothing")
  return float(across.mean()) / max(float(beside.mean()), STILL)


def way(
  values_TC: Float[np.ndarray, "T C"],
  first_C: Float[np.ndarray, "C"],
  last_C: Float[np.ndarray, "C"],
) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
  """How far each value has come from a first one to a last one, and how far it lies off that line.

  Returns: (share [T], 0 at the first and 1 at the last; distance [T] in the values' unit). NaN
  where the value is.  Raises: ValueError if the two are the same.
  """
  span_C = np.asarray(last_C, float) - first_C
  if not span_C.any():
    raise ValueError("the first and the last value are the same: there is no way between them")
  share_T = (values_TC - first_C) @ span_C / (span_C @ span_C)
  off_T = np.linalg.norm(values_TC - first_C - share_T[:, None] * span_C, axis=1)
  return share_T, off_T


def monotone_share(values_T: Float[np.ndarray, "T"], slack: float = 0.0) -> float:
  """Share of steps that lead from the first value towards the last, or back by at most `slack`.

  Args: slack: in units of the way from the first to the last value.
  """
  way = float(values_T[-1] - values_T[0])
  if way == 0:
    return float((np.diff(values_T) == 0).mean())
  return float((np.diff(values_T) / way >= -slack - 1e-9).mean())


def changes(names: list) -> int:
  """How often a sequence of names changes; unknown ones (None) are passed over."""
  known = [name for name in names if name is not None]
  return sum(a != b for a, b in zip(known, known[1:]))
