"""Signed distances, areas and extents of the four shapes, of radius 1 about their centre.

Distances are measured to the nearest edge line (mitred at corners), negative inside, in radii; this
is exact within half a pixel of an edge, which is all that anti-aliasing reads. Coordinates may be
broadcastable, e.g. x [T, 1, W] against y [T, H, 1]: work is done on the small axes where possible.
"""

import math
from collections.abc import Callable

import numpy as np

SQUARE = 0.88  # half side
TRIANGLE = 1.18  # circumradius, one corner up
STAR = 1.16  # circumradius, one tip up
STAR_WAIST = 0.48  # inner radius

_T30 = (math.cos(math.radians(30)), math.sin(math.radians(30)))


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.sqrt(x * x + y * y) - 1


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.maximum(np.abs(x), np.abs(y)) - SQUARE


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  inner = TRIANGLE / 2
  return np.maximum(np.abs(x) * _T30[0] - (y * _T30[1] + inner), y - inner)


def _ray(degrees: int) -> tuple[float, float]:
  """Unit vector at an angle clockwise from straight up (y points down)."""
  return math.sin(math.radians(degrees)), -math.cos(math.radians(degrees))


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Five tips: folds the plane by its mirror lines into one 36-degree wedge with one edge."""
  x = np.abs(x)
  for mirror in (108, 36):
    nx, ny = _ray(mirror + 90)
    beyond = np.maximum(x * nx + y * ny, 0)
    x, y = x - (2 * nx) * beyond, y - (2 * ny) * beyond
  x = np.abs(x)
  tip_x, tip_y = 0.0, -STAR
  notch_x, notch_y = _ray(36)[0] * STAR_WAIST, _ray(36)[1] * STAR_WAIST
  length = math.hypot(notch_x - tip_x, notch_y - tip_y)
  nx, ny = (notch_y - tip_y) / length, (tip_x - notch_x) / length
  return x * nx + (y - tip_y) * ny


DISTANCE: dict[str, Callable] = {
  "circle": circle, "square": square, "triangle": triangle, "star": star,
}  # fmt: skip
# left, top, right, bottom of the bounding box
EXTENT = {
  "circle": (1.0, 1.0, 1.0, 1.0),
  "square": (SQUARE,) * 4,
  "triangle": (TRIANGLE * _T30[0], TRIANGLE, TRIANGLE * _T30[0], TRIANGLE / 2),
  "star": (STAR * _ray(72)[0], STAR, STAR * _ray(72)[0], STAR * _ray(144)[1]),
}
AREA = {
  "circle": math.pi,
  "square": 4 * SQUARE**2,
  "triangle": 0.75 * math.sqrt(3) * TRIANGLE**2,
  "star": 5 * STAR * STAR_WAIST * math.sin(math.radians(36)),
}
STROKE = 0.34  # width of the outline style
