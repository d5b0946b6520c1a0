"""Draws layers, far to near, into anti-aliased uint8 frames of any size.

Coverage of a pixel is the signed distance in pixels, shifted by a half and clipped to [0, 1]. A
layer is drawn only inside a window around it, so the cost follows the area of the objects.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sora_jax.data.world import outline, vocabulary

GLOW = 2.4  # reach of the night style's glow, in radii
NIGHT = 0.35  # how much of the background's light is left at night
RASTER = 64  # pixels on the short side when visibility is measured
RIM = 0.2  # width of the bright rim of the hatched style, in radii
HATCH = (0.75, 0.5)  # period in radii, brightness of the dark stripes

Rgb = Sequence[float | int]


class Canvas:
  """Frames being painted: `pixels_THWC` float32 in [0, 255]; `unit` pixels per short side."""

  def __init__(self, frames: int, size: tuple[int, int], background: Rgb):
    self.frames = frames
    self.width, self.height = size
    self.unit = min(size)
    self.pixels_THWC = np.empty((frames, self.height, self.width, 3), np.float32)
    self.pixels_THWC[:] = background
    self.weights: list[tuple[np.ndarray, np.ndarray]] = []  # (visible [T, H, W], whole area [T])

  def track(self, area_T: np.ndarray) -> np.ndarray:
    """Starts to measure how much of a layer stays visible; returns its [T, H, W] map."""
    weight_THW = np.zeros(self.pixels_THWC.shape[:3], np.float32)
    self.weights.append((weight_THW, area_T))
    return weight_THW

  def visibility(self) -> list[np.ndarray]:
    """Visible share [T] of each tracked layer, in the order of painting."""
    return [
      np.minimum(weight_THW.sum((1, 2), dtype=float) / np.maximum(area_T, 1e-6), 1.0)
      for weight_THW, area_T in self.weights
    ]

  def blend(self, frame: int, window, cover_hw: np.ndarray, color, weight_THW=None):
    """Paints a colour (or an [h, w, 3] picture) through a coverage mask into one frame."""
    target = self.pixels_THWC[frame][window]
    target += cover_hw[..., None] * (color - target)
    for other_THW, _ in self.weights:
      if other_THW is not weight_THW:
        other_THW[frame][window] *= 1 - cover_hw
    if weight_THW is not None:
      weight_THW[frame][window] = np.maximum(weight_THW[frame][window], cover_hw)

  def finish(self) -> np.ndarray:
    return (self.pixels_THWC + 0.5).clip(0, 255.5).astype(np.uint8)


class Layer(Protocol):
  def paint(self, canvas: Canvas) -> None: ...


def windows(canvas: Canvas, center_T2: np.ndarray, reach: float):
  """Equal windows of `reach` pixels about moving centres, cut to the frame.

  Args: center_T2: (x, y) in pixels.  reach: half size in pixels.
  Returns: local pixel-centre coordinates x [T, 1, K], y [T, K, 1] relative to the centre in pixels;
  for each frame the (rows, columns) slices into the frame and into the window, None if outside.
  """
  low_T2 = np.floor(center_T2 - reach).astype(np.int64)
  size = int(np.ceil(2 * reach)) + 2
  steps_K = np.arange(size, dtype=np.float32) + 0.5
  offset_T2 = (low_T2 - center_T2).astype(np.float32)
  x = (offset_T2[:, :1] + steps_K)[:, None, :]
  y = (offset_T2[:, 1:] + steps_K)[:, :, None]
  slices = []
  for left, top in low_T2.tolist():
    x0, x1 = max(left, 0), min(left + size, canvas.width)
    y0, y1 = max(top, 0), min(top + size, canvas.height)
    if x0 >= x1 or y0 >= y1:
      slices.append(None)
    else:
      frame = (slice(y0, y1), slice(x0, x1))
      slices.append((frame, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))))
  return x, y, slices


def coverage(distance: np.ndarray, radius_T: np.ndarray) -> np.ndarray:
  """Signed distance in radii, radius in pixels -> share of the pixel inside, in [0, 1]."""
  return np.minimum(np.maximum(0.5 - distance * radius_T, 0), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Sprite:
  """One shape that moves: centre [T, 2] and radius [T] in short sides."""

  shape: str
  rgb: Rgb
  center_T2: np.ndarray
  radius_T: np.ndarray
  style: str = "plain"
  tracked: bool = False  # measures its visibility
  present_T: np.ndarray | None = None  # drawn where true; None = always
  bites: tuple = ()  # (first frame, x, y, radius) of discs cut out from that frame on

  def paint(self, canvas: Canvas) -> None:
    center_T2, radius_T = self.center_T2 * canvas.unit, self.radius_T * canvas.unit
    if self.style == "night" and self.present_T is None:
      self._glow(canvas, center_T2, radius_T)
    x, y, slices = windows(canvas, center_T2, 1.2 * float(radius_T.max()) + 1)
    radius = radius_T.astype(np.float32)[:, None, None]
    x, y = x / radius, y / radius
    distance = outline.DISTANCE[self.shape](x, y)
    if self.style == "outline":
      half = outline.STROKE / 2
      distance = np.abs(distance + half) - half
    cover = coverage(distance, radius)
    color = np.asarray(self.rgb, np.float32)
    if self.style == "hatched":
      color = color * _stripes(x, y, distance, radius)[..., None]
    weight_THW = canvas.track(cover.sum((1, 2), dtype=float)) if self.tracked else None
    for first, *bite in self.bites:
      self._bite(cover[first:], x[first:], y[first:], radius[first:], bite, canvas.unit)
    for frame, cut in enumerate(slices):
      if cut is not None and (self.present_T is None or self.present_T[frame]):
        paint = color[frame][cut[1]] if color.ndim == 4 else color
        canvas.blend(frame, cut[0], cover[frame][cut[1]], paint, weight_THW)

  def _bite(self, cover, x, y, radius, bite, unit) -> None:
    """Cuts one disc out of the coverage of a shape that does not move."""
    own = self.center_T2[0]
    scale = unit / radius
    dx, dy = x - (bite[0] - own[0]) * scale, y - (bite[1] - own[1]) * scale
    inside = np.sqrt(dx * dx + dy * dy) - bite[2] * scale
    cover *= 1 - coverage(inside, radius)

  def _glow(self, canvas: Canvas, center_T2, radius_T) -> None:
    x, y, slices = windows(canvas, center_T2, GLOW * float(radius_T.max()) + 1)
    radius = radius_T.astype(np.float32)[:, None, None]
    fade = np.maximum(1 - np.sqrt(x * x + y * y) / (GLOW * radius), 0)
    light = np.asarray(self.rgb, np.float32) * 0.55
    for frame, cut in enumerate(slices):
      if cut is not None:
        soft = fade[frame][cut[1]] ** 2
        target = canvas.pixels_THWC[frame][cut[0]]
        target += soft[..., None] * np.maximum(light - target, 0)


def _stripes(x, y, distance: np.ndarray, radius: np.ndarray) -> np.ndarray:
  """Brightness of diagonal stripes that move with the object, inside a bright rim."""
  period, dark = HATCH
  phase = ((x + y) * np.float32(np.sqrt(0.5)) / period) % 1
  edge = (0.25 - np.abs(phase - 0.5)) * period  # how far inside a bright stripe, in radii
  edge = np.maximum(edge, distance + RIM)
  return dark + (1 - dark) * np.clip(0.5 + edge * radius, 0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rectangle:
  """A box with sides along the frame, left, top, right, bottom [T, 4] in short sides."""

  rgb: Rgb
  box_T4: np.ndarray
  tracked: bool = False

  def paint(self, canvas: Canvas) -> None:
    box_T4 = (self.box_T4 * canvas.unit).astype(np.float32)
    spans = []
    for axis, length in ((0, canvas.width), (1, canvas.height)):
      edge = np.arange(length, dtype=np.float32)
      low, high = box_T4[:, axis : axis + 1], box_T4[:, axis + 2 : axis + 3]
      spans.append(np.clip(np.minimum(edge + 1, high) - np.maximum(edge, low), 0, 1))
    size_T2 = box_T4[:, 2:] - box_T4[:, :2]
    weight_THW = canvas.track(size_T2.prod(1).astype(float)) if self.tracked else None
    color = np.asarray(self.rgb, np.float32)
    for frame in range(canvas.frames):
      columns, rows = (np.flatnonzero(span[frame]) for span in spans)
      if columns.size and rows.size:
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        cover = spans[1][frame][window[0], None] * spans[0][frame][None, window[1]]
        canvas.blend(frame, window, cover, color, weight_THW)


@dataclasses.dataclass(frozen=True, eq=False)
class Trail:
  """A line of paint that stays: stretches of a path, each shown from its frame on."""

  rgb: Rgb
  stretches: tuple  # (first frame, x0, y0, x1, y1) in short sides
  width: float  # in short sides

  def paint(self, canvas: Canvas) -> None:
    unit, half = canvas.unit, self.width * canvas.unit / 2
    cover_HW = np.zeros((canvas.height, canvas.width), np.float32)
    color = np.asarray(self.rgb, np.float32)
    everything = (slice(None), slice(None))
    x = np.arange(canvas.width, dtype=np.float32)[None] + 0.5
    y = np.arange(canvas.height, dtype=np.float32)[:, None] + 0.5
    for frame in range(canvas.frames):
      for first, *ends in self.stretches:
        if first == frame:
          distance = _capsule(x, y, np.asarray(ends) * unit) - half
          np.maximum(cover_HW, np.clip(0.5 - distance, 0, 1), out=cover_HW)
      canvas.blend(frame, everything, cover_HW, color)


def _capsule(x, y, ends) -> np.ndarray:
  """Distance of points to the stretch between two ends (x0, y0, x1, y1)."""
  x0, y0, x1, y1 = (float(value) for value in ends)
  dx, dy = x1 - x0, y1 - y0
  along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
  return np.sqrt((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)


def backdrop(background: str, style: str) -> tuple[float, ...]:
  """RGB of the background in a style."""
  rgb = np.asarray(vocabulary.BACKGROUNDS[background], np.float32)
  if style == "night":
    rgb = rgb * NIGHT + np.asarray((4, 6, 18), np.float32)
  return tuple(rgb.tolist())


def paint(layers, frames: int, size: tuple[int, int], background: str, style: str) -> Canvas:
  """Paints layers far to near on a canvas of (width, height) pixels."""
  canvas = Canvas(frames, size, backdrop(background, style))
  for layer in layers:
    layer.paint(canvas)
  return canvas


def render(layers, frames: int, size: tuple[int, int], background: str, style: str) -> np.ndarray:
  """Paints layers far to near.

  Args: size: (width, height) in pixels.  Returns: uint8 [T, H, W, 3].
  """
  return paint(layers, frames, size, background, style).finish()


def visibility(layers, frames: int, extent: tuple[float, float]) -> list[np.ndarray]:
  """Visible share [T] of each tracked layer, measured on a raster that no clip's size changes."""
  size = (round(RASTER * extent[0]), round(RASTER * extent[1]))
  return paint(layers, frames, size, "black", "plain").visibility()
