"""Reads colour, shape and direction of the main object off pixels alone.

Independent of the renderer: it knows the named colours, and the shapes as polygons; it uses colour
distance from the border, connected components, and correlation with area-normalised templates. The
thresholds are relative to the contrast that a video has, so that blurred frames read like sharp
ones.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Shaped
from scipy import ndimage

from sora_jax.data.world import vocabulary

CONTRAST = 34.0  # least RGB distance between an object and its background
EDGE = 0.45  # share of the contrast above which a pixel belongs to the object
AREA = 0.008  # least area of an object, in squares of the short side
PRESENT = 0.6  # share of frames that must show it
SINGLE = 1.25  # connected parts per frame below which nothing is seen beside the object
STILL = 0.07  # displacement over the clip below which nothing moves, in short sides
SHADED = 40.0  # RGB distance that the darkened form of a colour costs when colours are named
GRID = 29  # samples per side of a normalised silhouette
REACH = 1.15  # half side of that grid, in square roots of the silhouette's area


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
  """What a video shows; names are None where nothing is found.

  Attributes:
    present: whether an object is seen in enough of the frames.
    color, shape: names of the world's vocabulary.
    direction: of the motion over the whole clip; None for an object at rest.
    background: name of the background; night: whether it is the dimmed one.
    shape_scores: correlation with each shape's template, in [-1, 1].
    rgb: estimated colour of the object.
    present_T: bool [T].  centroid_T2: (x, y) in short sides, NaN where absent [T, 2].
    area_T: in squares of the short side.  velocity_2: short sides per frame, NaN if unknown.
    parts: connected parts seen per frame, on average.
    filling: "plain", "outline" or "hatched".
  """

  present: bool
  color: str | None
  shape: str | None
  direction: str | None
  background: str
  night: bool
  shape_scores: dict[str, float]
  rgb: tuple[float, float, float] | None
  present_T: np.ndarray
  centroid_T2: np.ndarray
  area_T: np.ndarray
  velocity_2: np.ndarray
  parts: float
  filling: str | None


def detect(video_THWC: Shaped[np.ndarray, "..."]) -> Detection:
  """Finds the largest object of a video.

  Args: video_THWC: uint8 [T, H, W, 3], sides of 24 pixels or more, any aspect ratio.
  Raises: ValueError for another dtype or shape.
  """
  if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[3] != 3:
    raise ValueError(
      f"got {video_THWC.dtype} {video_THWC.shape}; expected a uint8 video [T, H, W, 3]"
    )
  video = video_THWC.astype(np.float32)
  frames, unit = len(video), min(video.shape[1:3])
  border_3 = border_color(video)
  background, night = name_background(border_3)
  away_THW = np.linalg.norm(video - border_3, axis=-1)
  contrast = _contrast(away_THW, unit)
  present_T, parts = np.zeros(frames, bool), 0
  centroid_T2, area_T = np.full((frames, 2), np.nan), np.zeros(frames)
  masks, cores, insides = [], [], []
  if contrast >= CONTRAST:
    alpha_THW = np.minimum(away_THW / contrast, 1.0)
    for frame in range(frames):
      found = _largest(alpha_THW[frame], unit)
      if found is None:
        continue
      alpha_HW, count = found
      parts += count
      present_T[frame], masks = True, [*masks, alpha_HW]
      centroid_T2[frame], area_T[frame] = _moments(alpha_HW, unit)
      solid = (alpha_HW > EDGE) & (
        away_THW[frame] >= np.quantile(away_THW[frame][alpha_HW > EDGE], 0.5)
      )
      cores.append(video[frame][solid])
      insides.append(_inside(alpha_HW, away_THW[frame] / contrast, video[frame] / contrast))
  present = bool(present_T.mean() >= PRESENT)
  rgb = np.median(np.concatenate(cores), axis=0) if present else None
  scores = _shape_scores(masks) if present else {}
  velocity_2 = slope(centroid_T2)
  return Detection(
    present=present,
    color=name_color(rgb, border_3) if present else None,
    shape=max(scores, key=scores.get) if present else None,
    direction=name_direction(velocity_2, frames) if present else None,
    background=background,
    night=night,
    shape_scores=scores,
    rgb=tuple(rgb.tolist()) if present else None,
    present_T=present_T,
    centroid_T2=centroid_T2,
    area_T=area_T,
    velocity_2=velocity_2,
    parts=parts / max(int(present_T.sum()), 1),
    filling=name_filling(*np.mean(insides, axis=0)) if present else None,
  )


def border_color(video_THWC: Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "3"]:
  """Median RGB of the outermost two pixels over all frames: the background's colour."""
  rim = np.ones(video_THWC.shape[1:3], bool)
  rim[2:-2, 2:-2] = False
  return np.median(video_THWC[:, rim].reshape(-1, 3), axis=0)


def border_colors(video_THWC: Shaped[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T 3"]:
  """The background's colour of each frame."""
  return np.stack([border_color(frame_1HWC) for frame_1HWC in video_THWC[:, None].astype(float)])


def name_background(rgb_3: Float[np.ndarray, "3"]) -> tuple[str, bool]:
  """The nearest named background, and whether in its dimmed form for the night style."""
  best = []
  for name, color in vocabulary.BACKGROUNDS.items():
    day = np.asarray(color, float)
    best.append((float(np.linalg.norm(rgb_3 - day)), name, False))
    best.append((float(np.linalg.norm(rgb_3 - (0.35 * day + (4, 6, 18)))), name, True))
  return min(best)[1:]


def name_color(rgb_3: Float[np.ndarray, "3"], border_3: Float[np.ndarray, "3"]) -> str:
  """The named colour that explains an object's colour as a blend with the background.

  A blurred small object never reaches its full colour, so the share a of the colour is free at a
  price: |rgb - bg - a (color - bg)|^2 + (0.35 |color - bg| (1 - a))^2 is least. The dark stripes of
  a hatched object count as its colour too, at the price of SHADED.
  """
  cost = {}
  for name, color in vocabulary.COLORS.items():
    prices = []
    for light, price in ((1.0, 0.0), (0.5, SHADED)):
      span_3, seen_3 = light * np.asarray(color) - border_3, rgb_3 - border_3
      share = np.clip(seen_3 @ span_3 / max(span_3 @ span_3, 1e-6), 0.4, 1.1)
      miss_3 = seen_3 - share * span_3
      blend = 0.35 * np.linalg.norm(span_3) * (1 - share)
      prices.append(float(miss_3 @ miss_3 + blend**2 + price**2))
    cost[name] = min(prices)
  return min(cost, key=cost.get)


def name_filling(centre: float, disc: float, stripes: float) -> str:
  """How an object is filled: see `_inside` for the three figures.

  An outline is empty in the middle; that of a star, but for its centre, only shows a small hole.
  Stripes are told by their change along a circle, which outlines lack.
  """
  if disc < 0.35:
    return "outline"
  if stripes > 0.08:
    return "hatched"
  return "outline" if centre < 0.8 else "plain"


def slope(position_T2: Float[np.ndarray, "T 2"]) -> Float[np.ndarray, "2"]:
  """Velocity per frame: the median slope over all pairs of frames (Theil 1950, Sen 1968).

  Args: position_T2: NaN where unknown.  Returns: [2], NaN from fewer than two known frames.
  """
  known_T = np.flatnonzero(~np.isnan(position_T2[:, 0]))
  if len(known_T) < 2:
    return np.full(2, np.nan)
  i, j = np.triu_indices(len(known_T), 1)
  step = (known_T[j] - known_T[i])[:, None]
  return np.median((position_T2[known_T[j]] - position_T2[known_T[i]]) / step, axis=0)


def name_direction(velocity_2: Float[np.ndarray, "2"], frames: int) -> str | None:
  """The nearest of the eight directions; None where the clip shows no clear motion."""
  way = float(np.linalg.norm(velocity_2)) * (frames - 1)
  if not way >= STILL:
    return None
  return vocabulary.nearest_direction(velocity_2)


def score(detection: Detection, truth: dict) -> dict[str, bool]:
  """Whether each attribute of the main object is as a world clip's truth says.

  The direction of a motion that turns is that of the true path, read like the detected one; a
  picture counts as right where no direction is read. "single" asks that nothing else is seen, of
  clips with one object: of a second one, the other attributes would say nothing.
  """
  record = truth["objects"][0]
  direction = record["direction"]
  if truth["motion"] not in ("constant", "still"):
    direction = name_direction(slope(np.asarray(record["position"], float)), truth["frames"])
  found = {
    "present": detection.present,
    "color": detection.present and detection.color == record["color"],
    "shape": detection.present and detection.shape == record["shape"],
    "direction": detection.present and detection.direction == direction,
    "single": detection.present and (detection.parts < SINGLE or len(truth["objects"]) > 1),
    "background": detection.background == truth["background"],
  }
  return found | {"all": all(found.values())}


def _contrast(away_THW: np.ndarray, unit: int) -> float:
  """How far the object's pixels lie from the background: the median over frames of the median
  distance among as many farthest pixels as a small object has."""
  count = max(int(0.02 * unit * unit), 6)
  flat = away_THW.reshape(len(away_THW), -1)
  top = np.partition(flat, flat.shape[1] - count, axis=1)[:, -count:]
  return float(np.median(np.median(top, axis=1)))


def _largest(alpha_HW: np.ndarray, unit: int) -> tuple[np.ndarray, int] | None:
  """Soft silhouette of the largest connected part, holes filled; None if all are too small."""
  mask = alpha_HW > EDGE
  labels, count = ndimage.label(mask, np.ones((3, 3)))
  if not count:
    return None
  sizes = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
  large = int((sizes >= AREA * unit * unit).sum())
  if not large:
    return None
  reach = max(1, round(unit / 32))
  part = labels == 1 + int(sizes.argmax())
  part = ndimage.binary_fill_holes(np.pad(part, 2 * reach))
  part = ndimage.binary_closing(part, iterations=reach)
  part = ndimage.binary_fill_holes(part)[2 * reach : -2 * reach, 2 * reach : -2 * reach]
  near = ndimage.binary_dilation(part, iterations=reach)
  soft = np.where(part & ~mask, 1.0, alpha_HW)
  return np.where(near, soft, 0.0), large


def _inside(
  alpha_HW: np.ndarray, away_HW: np.ndarray, rgb_HW3: np.ndarray
) -> tuple[float, float, float]:
  """Distance from the background at a silhouette's centre and over a disc about it, and the
  deviation of colour along a ring; all in units of the contrast, radii in roots of the area."""
  (x, y), area = _moments(alpha_HW, 1)
  rows, columns = np.indices(alpha_HW.shape) + 0.5
  radius_HW = np.hypot(columns - x, rows - y)
  root = np.sqrt(area)
  near_HW = radius_HW <= max(0.08 * root, 1.0)
  ring_HW = np.abs(radius_HW - 0.22 * root) <= max(0.05 * root, 0.75)
  disc_HW = radius_HW <= max(0.2 * root, 1.0)
  if not near_HW.any() or not ring_HW.any():  # the centre lies outside of the frame
    return 1.0, 1.0, 0.0
  stripes = float(rgb_HW3[ring_HW].std(0).max())
  return float(away_HW[near_HW].mean()), float(away_HW[disc_HW].mean()), stripes


def _moments(alpha_HW: np.ndarray, unit: int) -> tuple[np.ndarray, float]:
  """Centroid (x, y) and area of a soft silhouette, in short sides."""
  mass = float(alpha_HW.sum())
  x = float(alpha_HW.sum(0) @ (np.arange(alpha_HW.shape[1]) + 0.5)) / mass
  y = float(alpha_HW.sum(1) @ (np.arange(alpha_HW.shape[0]) + 0.5)) / mass
  return np.asarray([x, y]) / unit, mass / unit**2


def _shape_scores(masks: list[np.ndarray]) -> dict[str, float]:
  """Correlation of the mean normalised silhouette with each shape, at its best blur."""
  mean = np.mean([_normalised(alpha_HW) for alpha_HW in masks], axis=0)
  unit = (mean - mean.mean()).ravel()
  unit = unit / max(float(np.linalg.norm(unit)), 1e-6)
  return {name: float((bank @ unit).max()) for name, bank in _templates().items()}


def _normalised(alpha_HW: np.ndarray) -> np.ndarray:
  """A silhouette resampled about its centroid with its area as the unit: [GRID, GRID]."""
  (x, y), area = _moments(alpha_HW, 1)
  steps = np.linspace(-REACH, REACH, GRID) * np.sqrt(area)
  rows, columns = np.meshgrid(y - 0.5 + steps, x - 0.5 + steps, indexing="ij")
  return ndimage.map_coordinates(alpha_HW, [rows, columns], order=1, mode="constant")


def _polygon(corners: int, waist: float | None = None) -> np.ndarray:
  """Vertices (x, y) of a regular polygon, or of a star with an inner radius; one corner up."""
  count = corners if waist is None else 2 * corners
  angles = 2 * np.pi * np.arange(count) / count
  radii = np.ones(count) if waist is None else np.where(np.arange(count) % 2, waist, 1.0)
  return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], 1)


@functools.lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
  """For each shape, unit vectors [blurs, GRID^2] of its silhouette at several blurs."""
  turn = np.asarray([[1, -1], [1, 1]]) / np.sqrt(2)
  outlines = {
    "circle": _polygon(96),
    "square": _polygon(4) @ turn.T,
    "triangle": _polygon(3),
    "star": _polygon(5, 0.41),
  }
  banks = {}
  for name, corners in outlines.items():
    fill = _fill(corners)
    blurred = [ndimage.gaussian_filter(fill, sigma * GRID / (2 * REACH)) for sigma in _BLURS]
    flat = np.stack([picture.ravel() - picture.mean() for picture in blurred])
    banks[name] = flat / np.linalg.norm(flat, axis=1, keepdims=True)
  return banks


_BLURS = (0.04, 0.08, 0.13)  # standard deviations, in square roots of the area


def _fill(corners: np.ndarray, sub: int = 8) -> np.ndarray:
  """Coverage of a polygon of area 1 about its centroid, by counting crossings at sub-samples."""
  x, y = corners.T
  next_x, next_y = np.roll(x, -1), np.roll(y, -1)
  cross = x * next_y - next_x * y
  area = cross.sum() / 2
  middle = np.asarray([(x + next_x) @ cross, (y + next_y) @ cross]) / (6 * area)
  points = (corners - middle) / np.sqrt(abs(area))
  cell = 2 * REACH / (GRID - 1)
  steps = (np.arange(GRID * sub) + 0.5) / sub * cell - REACH - cell / 2
  px, py = np.meshgrid(steps, steps)
  inside = np.zeros(px.shape, bool)
  for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
    if y0 != y1:
      spans = (py >= min(y0, y1)) & (py < max(y0, y1))
      inside ^= spans & (px < x0 + (py - y0) / (y1 - y0) * (x1 - x0))
  return inside.reshape(GRID, sub, GRID, sub).mean((1, 3))
