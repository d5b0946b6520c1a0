"""A small true-3D world: textured boxes on a chequered floor under an orbiting pinhole camera.

World axes: x right, y up, z towards the first camera; the floor is y = 0. The camera at `eye` looks
at `TARGET`; a point p is seen at middle + FOCAL (right.d, -up.d) / (forward.d), d = p - eye, in
short sides. Rays are cast through the sub-pixels of every frame at once.
"""

import dataclasses

import numpy as np

from sora_jax.data.world import renderer, vocabulary
from sora_jax.data.world.scene import Brief, Scene, clip_truth, rounded

FOCAL = 1.1
TARGET = np.asarray([0.0, 0.35, 0.0])
SUBPIXELS = 2  # per side
TILE = 1.0  # side of a floor tile
FOG = (4.0, 9.0)  # distance at which the floor begins to fade, and is gone
RASTER = 32  # pixels on the short side when visibility is measured


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
  color: str
  low_3: np.ndarray
  high_3: np.ndarray

  def corners(self) -> np.ndarray:
    pick = np.indices((2, 2, 2)).reshape(3, 8).T
    return np.where(pick, self.high_3, self.low_3)


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
  """Poses over time: eye [T, 3] and rows right, up, forward [T, 3, 3]."""

  eye_T3: np.ndarray
  axes_T33: np.ndarray

  def project(self, point_3, extent) -> tuple[np.ndarray, np.ndarray]:
    """Screen position [T, 2] in short sides, and depth along the optical axis [T]."""
    seen_T3 = np.einsum("tij,tj->ti", self.axes_T33, point_3 - self.eye_T3)
    plane_T2 = FOCAL * seen_T3[:, :2] / seen_T3[:, 2:] * np.asarray([1.0, -1.0])
    return np.asarray(extent) / 2 + plane_T2, seen_T3[:, 2]


def camera_at(angle_T: np.ndarray, distance: float, height: float) -> Camera:
  """A camera on a circle about the vertical axis; angle 0 is on +z, angles grow towards +x."""
  circle = [np.sin(angle_T) * distance, np.full_like(angle_T, height), np.cos(angle_T) * distance]
  eye_T3 = np.stack(circle, 1)
  forward = TARGET - eye_T3
  forward /= np.linalg.norm(forward, axis=1, keepdims=True)
  right = np.cross(forward, [0.0, 1.0, 0.0])
  right /= np.linalg.norm(right, axis=1, keepdims=True)
  return Camera(eye_T3, np.stack([right, np.cross(right, forward), forward], 1))


def compose(brief: Brief) -> Scene:
  """One or two boxes; the camera goes round them to the right or to the left."""
  rng = brief.rng
  color, direction = brief.pick(brief.config.colors), brief.pick(("right", "left"))
  half = brief.radius(2.2)
  boxes = [_box(color, (0.0, 0.0), half, rng.uniform(0.8, 1.4))]
  if rng.uniform() < 0.5:
    where = rng.uniform(0, 2 * np.pi)
    far = 1.0 + rng.uniform(0, 0.15)
    spot = (far * np.cos(where), far * np.sin(where))
    boxes[0] = _box(color, (-spot[0] / 2, -spot[1] / 2), half, rng.uniform(0.8, 1.4))
    size = 2.2 * 0.8 * rng.uniform(*brief.config.radius)
    other = _box(brief.color([color]), (spot[0] / 2, spot[1] / 2), size, rng.uniform(0.8, 1.4))
    boxes.append(other)
  sign = vocabulary.DIRECTIONS[direction][0]
  turn = np.clip(rng.uniform(0.6, 1.0) * brief.duration, 0.5, 2 * np.pi)
  start, distance, height = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 3.0), rng.uniform(1.1, 1.6)

  def camera(times_T):
    return camera_at(start + sign * turn * times_T / brief.duration, distance, height)

  view = camera(brief.times_T)
  pose = [[*eye, *axes.ravel()] for eye, axes in zip(view.eye_T3, view.axes_T33)]
  about = {
    "kind": "orbit",
    "direction": direction,
    "pose": [rounded(np.asarray(row)) for row in pose],
    "focal": FOCAL,
    "target": TARGET.tolist(),
  }
  objects = _records(brief, boxes, camera)

  def draw(size):
    return _shade(boxes, view, size, brief)

  return Scene(clip_truth(brief, objects, camera=about), draw)


def _box(color: str, spot, half: float, tall: float) -> Box:
  x, z = spot
  return Box(
    color,
    np.asarray([x - half, 0.0, z - half]),
    np.asarray([x + half, 2 * half * tall, z + half]),
  )


def _records(brief: Brief, boxes: list[Box], camera) -> list[dict]:
  view, extent = camera(brief.times_T), brief.extent
  size = tuple(round(RASTER * side) for side in extent)
  whole, _, _ = _cast(boxes, view, size, 1)
  middles = [(box.low_3 + box.high_3) / 2 for box in boxes]
  depths = np.stack([view.project(middle, extent)[1] for middle in middles])
  nearest_KT = np.argsort(np.argsort(depths, axis=0), axis=0)
  tiny = 1e-4
  records = []
  for k, (box, middle) in enumerate(zip(boxes, middles)):
    alone, _, _ = _cast([box], view, size, 1)
    shown_T = (whole == k).sum((1, 2)) / np.maximum((alone == 0).sum((1, 2)), 1)
    after, before = (camera(brief.times_T + d).project(middle, extent)[0] for d in (tiny, -tiny))
    corners = np.stack([view.project(corner, extent)[0] for corner in box.corners()])
    edge = np.tile(np.asarray(extent), 2)
    cut_T4 = np.clip(np.concatenate([corners.min(0), corners.max(0)], 1), 0, edge)
    records.append(
      {
        "id": k,
        "role": "actor",
        "color": box.color,
        "shape": "box",
        "radius": float(box.high_3[0] - box.low_3[0]) / 2,
        "direction": None,
        "position": rounded(view.project(middle, extent)[0]),
        "velocity": rounded((after - before) / (2 * tiny)),
        "visibility": rounded(shown_T),
        "box": rounded(cut_T4),
        "depth": nearest_KT[k].tolist(),
        "world_position": rounded(middle),
        "world_box": rounded(np.concatenate([box.low_3, box.high_3])),
      }
    )
  return records


def _cast(boxes: list[Box], view: Camera, size: tuple[int, int], sub: int):
  """What each ray meets: index of the box, len(boxes) = floor, -1 = nothing.

  Returns: index [T, H', W'], distance along the ray, points of the hit [3, T, H', W'] as float32.
  """
  width, height = size
  unit, (middle_x, middle_y) = min(size) * sub, (size[0] * sub / 2, size[1] * sub / 2)
  x = (np.arange(width * sub, dtype=np.float32) + 0.5 - middle_x) / (unit * FOCAL)
  y = (middle_y - np.arange(height * sub, dtype=np.float32) - 0.5) / (unit * FOCAL)
  right, up, forward = (view.axes_T33[:, k].astype(np.float32) for k in range(3))
  ray = np.stack(
    [
      forward[:, k, None, None] + x * right[:, k, None, None] + y[:, None] * up[:, k, None, None]
      for k in range(3)
    ]
  )  # the axes of space lead: reductions over them are fast
  eye = view.eye_T3.astype(np.float32).T[..., None, None]
  with np.errstate(divide="ignore", invalid="ignore"):
    inverse = 1 / ray
    floor = -eye[1] * inverse[1]
    hit = np.where(floor > 0, floor, np.float32(np.inf))
    index = np.where(floor > 0, len(boxes), -1)
    for k, box in enumerate(boxes):
      low, high = (side.astype(np.float32)[:, None, None, None] for side in (box.low_3, box.high_3))
      to_low, to_high = (low - eye) * inverse, (high - eye) * inverse
      enter = np.minimum(to_low, to_high).max(0)
      leave = np.maximum(to_low, to_high).min(0)
      closer = (enter < leave) & (enter > 0) & (enter < hit)
      hit, index = np.where(closer, enter, hit), np.where(closer, k, index)
  reach = np.where(np.isfinite(hit), hit, np.float32(0))
  return index, reach, eye + reach * ray


def _shade(boxes: list[Box], view: Camera, size: tuple[int, int], brief: Brief) -> np.ndarray:
  """Colours every ray and averages the sub-pixels: uint8 [T, H, W, 3]."""
  index, reach, point = _cast(boxes, view, size, SUBPIXELS)
  sky = np.asarray(renderer.backdrop(brief.background, brief.style), np.float32)
  change = np.float32(46 if sky.mean() < 100 else -46)
  tile = (np.floor(point[0] / TILE) + np.floor(point[2] / TILE)) % 2
  fade = np.clip((FOG[1] - reach) / (FOG[1] - FOG[0]), 0, 1)
  light = np.where(index == len(boxes), change * (0.35 + 0.65 * tile) * fade, np.float32(0))
  picture = sky + light[..., None]
  for k, box in enumerate(boxes):
    mine = index == k
    picture[mine] = _face(box, point[:, mine], brief.style)
  sums = sum(
    picture[:, i::SUBPIXELS, j::SUBPIXELS] for i in range(SUBPIXELS) for j in range(SUBPIXELS)
  )
  return (sums / SUBPIXELS**2 + 0.5).clip(0, 255.5).astype(np.uint8)


def _face(box: Box, point_3N: np.ndarray, style: str) -> np.ndarray:
  """Colour of points on a box: faces differ in brightness, a frame runs along their edges."""
  middle, half = (box.low_3 + box.high_3) / 2, (box.high_3 - box.low_3) / 2
  local_3N = (point_3N - middle[:, None].astype(np.float32)) / half[:, None].astype(np.float32)
  x, y, z = np.abs(local_3N)
  highest = np.maximum(np.maximum(x, y), z)
  bright_N = np.where(x == highest, 0.72, np.where(y == highest, 1.0, 0.88))
  edge_N = np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z))  # the middle one of three
  if style == "outline":
    bright_N = np.where(edge_N > 0.76, 1.0, 0.25)
  else:
    bright_N = np.where(edge_N > 0.76, 0.55 * bright_N, bright_N)
  if style == "hatched":
    bright_N = np.where((local_3N.sum(0) * 2) % 1 < 0.5, 0.5 * bright_N, bright_N)
  return np.asarray(vocabulary.COLORS[box.color], np.float32) * bright_N[:, None]
