"""Draws layers, far to near, into anti-aliased uint8 frames of any size.

Coverage of a pixel is the signed distance in pixels, shifted by a half and clipped to [0, 1]. A
layer is drawn only inside a window around it, so the cost follows the area of the objects.
"""

import dataclasses
from typing import Protocol

import numpy as np

from sora_jax.data.world import outline, vocabulary

GLOW = 2.4  # reach of the night style's glow, in radii
NIGHT = 0.35  # how much of the background's light is left at night
HATCH = (0.75, 0.4)  # period in radii, brightness of the dark stripes


class Canvas:
  """Frames being painted: `pixels_THWC` float32 in [0, 255]; `unit` pixels per short side."""

  def __init__(self, frames: int, size: tuple[int, int], background: tuple[float, ...]):
    self.frames = frames
    self.width, self.height = size
    self.unit = min(size)
    self.pixels_THWC = np.empty((frames, self.height, self.width, 3), np.float32)
    self.pixels_THWC[:] = background
    self.weights: list[tuple[str, np.ndarray]] = []  # visible coverage of each tracked layer

  def track(self, name: str) -> np.ndarray:
    """Starts to measure how much of a layer stays visible; returns its [T, H, W] map."""
    weight_THW = np.zeros(self.pixels_THWC.shape[:3], np.float32)
    self.weights.append((name, weight_THW))
    return weight_THW

  def blend(self, frame: int, window, cover_hw: np.ndarray, color, weight_THW=None):
    """Paints a colour (or an [h, w, 3] picture) through a coverage mask into one frame."""
    target = self.pixels_THWC[frame][window]
    target += cover_hw[..., None] * (color - target)
    for _, other_THW in self.weights:
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
  rgb: tuple[int, int, int]
  center_T2: np.ndarray
  radius_T: np.ndarray
  style: str = "plain"
  name: str = ""  # tracked for visibility when not empty

  def paint(self, canvas: Canvas) -> None:
    center_T2, radius_T = self.center_T2 * canvas.unit, self.radius_T * canvas.unit
    if self.style == "night":
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
      color = color * _stripes(x, y, radius)[..., None]
    weight_THW = canvas.track(self.name) if self.name else None
    for frame, cut in enumerate(slices):
      if cut is not None:
        paint = color[frame][cut[1]] if color.ndim == 4 else color
        canvas.blend(frame, cut[0], cover[frame][cut[1]], paint, weight_THW)

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


def _stripes(x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
  """Brightness of diagonal stripes that move with the object, anti-aliased."""
  period, dark = HATCH
  phase = ((x + y) * np.float32(np.sqrt(0.5)) / period) % 1
  edge = (0.25 - np.abs(phase - 0.5)) * period * radius  # pixels inside a bright stripe
  return dark + (1 - dark) * np.clip(0.5 + edge, 0, 1)


def backdrop(background: str, style: str) -> tuple[float, ...]:
  """RGB of the background in a style."""
  rgb = np.asarray(vocabulary.BACKGROUNDS[background], np.float32)
  if style == "night":
    rgb = rgb * NIGHT + np.asarray((4, 6, 18), np.float32)
  return tuple(rgb.tolist())


def render(layers, frames: int, size: tuple[int, int], background: str, style: str = "plain"):
  """Paints layers far to near.

  Args: size: (width, height) in pixels.  Returns: uint8 [T, H, W, 3] and the canvas' visible
  coverage maps by layer name.
  """
  canvas = Canvas(frames, size, backdrop(background, style))
  for layer in layers:
    layer.paint(canvas)
  return canvas.finish(), canvas.weights
