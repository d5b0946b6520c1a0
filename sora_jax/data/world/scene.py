"""The state of one clip before it is drawn: what was asked for, what is there, how to paint it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from sora_jax.data.world import outline, renderer, vocabulary
from sora_jax.data.world.config import WorldConfig

_ALL = tuple(vocabulary.DIRECTIONS)
_CARDINAL = ("right", "left", "up", "down")
# Directions that a motion can take; () = the motion has none and so nothing to hold out.
MOTION_DIRECTIONS = {
  "constant": _ALL,
  "bounce": _ALL,
  "gravity": ("right", "left", "up", "down", "up-right", "up-left"),
  "swing": _ALL,
  "collide": _ALL,
  "occlude": _CARDINAL,
  "leave": _CARDINAL,
  "pan": ("right", "left"),
  "zoom": (),
  "cut": _ALL,
  "morph": _ALL,
  "orbit": (),
  "paint": _ALL,
  "eat": _CARDINAL,
  "game": (),
}
_GRAIN = 2**18  # sizes are multiples of 1 / _GRAIN


@dataclasses.dataclass(frozen=True)
class Brief:
  """What one clip is asked to be; levels draw the rest from `rng`."""

  rng: np.random.Generator
  config: WorldConfig
  motion: str  # "still" for a picture
  size: tuple[int, int]
  frames: int
  fps: float
  background: str
  style: str

  @property
  def extent(self) -> tuple[float, float]:
    """Width and height of the frame in short sides."""
    return self.size[0] / min(self.size), self.size[1] / min(self.size)

  @property
  def times_T(self) -> np.ndarray:
    return np.arange(self.frames) / self.fps

  @property
  def duration(self) -> float:
    """Seconds from the first frame to the last, at least one frame."""
    return max(self.frames - 1, 1) / self.fps

  def pick(self, words: Sequence):
    return words[int(self.rng.integers(len(words)))]

  def triple(self, directions: Sequence[str] | None = None) -> tuple[str, str, str]:
    """Colour, shape, direction of the main object: held out exactly in split "heldout"."""
    allowed = MOTION_DIRECTIONS[self.motion] if directions is None else directions
    held_out = self.config.split == "heldout"
    return self.pick([t for t in self.config.triples(held_out) if t[2] in allowed])

  def other(self, directions: Sequence[str], taken: Sequence[str]) -> tuple[str, str, str]:
    """Colour, shape, direction of a further object, one of `others`, of a colour not yet taken."""
    triples = self.others(directions)
    return self.pick([t for t in triples if t[0] not in taken] or triples)

  def others(self, directions: Sequence[str]) -> list[tuple[str, str, str]]:
    """What a further object can be, never held out.

    Its direction is one of the config's, or where these leave none, any of `directions`.
    """
    triples = [t for t in self.config.triples(False) if t[2] in directions]
    return triples or [
      (color, shape, direction)
      for color in self.config.colors
      for shape in self.config.shapes
      for direction in directions
      if not vocabulary.is_held_out(color, shape, direction)
    ]

  def color(self, taken: Sequence[str]) -> str:
    """A colour that is not yet taken, where the config has one."""
    return self.pick([c for c in self.config.colors if c not in taken] or self.config.colors)

  def radius(self, scale: float = 1.0) -> float:
    """Radius of the main object. Its last two bits name the split, so splits share no clip."""
    radius = self.rng.uniform(*self.config.radius) * scale
    code = vocabulary.SPLITS.index(self.config.split)
    return (round(radius * _GRAIN / 4) * 4 + code) / _GRAIN

  def pace(self) -> float:
    """Share of its usual speed at which the object moves. Where there is no choice nothing is
    drawn, so that a world without slow objects, or of nothing else, is the same as without it."""
    slowest, fraction = self.config.slowest, self.config.slow_fraction
    if slowest == 1 or fraction == 0:
      return 1.0
    if fraction < 1 and self.rng.uniform() >= fraction:
      return 1.0
    return self.rng.uniform(slowest, 1.0)

  def room(self, shape: str, radius: float, margin: float = 0.02):
    """Where the centre may be so that the whole shape is in the frame: left, top, right, bottom."""
    left, top, right, bottom = (radius * side + margin for side in outline.EXTENT[shape])
    return left, top, self.extent[0] - right, self.extent[1] - bottom


@dataclasses.dataclass(eq=False)
class Actor:
  """One object through the clip; [T, ...] arrays in short sides and seconds."""

  color: str
  shape: str
  radius: float
  position_T2: np.ndarray
  velocity_T2: np.ndarray
  direction: str | None = None
  role: str = "actor"
  scale_T: np.ndarray | None = None  # size on screen over true size; None = 1
  present_T: np.ndarray | None = None  # None = always there

  def radius_T(self) -> np.ndarray:
    scale_T = np.ones(len(self.position_T2)) if self.scale_T is None else self.scale_T
    return self.radius * scale_T

  def sprite(self, style: str, tracked: bool = False, bites: tuple = ()) -> renderer.Sprite:
    rgb = vocabulary.COLORS[self.color]
    return renderer.Sprite(
      self.shape, rgb, self.position_T2, self.radius_T(), style, tracked, self.present_T, bites
    )

  def box_T4(self) -> np.ndarray:
    """Bounding box on screen (left, top, right, bottom), not cut to the frame."""
    left, top, right, bottom = outline.EXTENT[self.shape]
    reach_4 = np.asarray([-left, -top, right, bottom])
    return np.tile(self.position_T2, 2) + self.radius_T()[:, None] * reach_4


@dataclasses.dataclass(eq=False)
class Bar:
  """A standing rectangle from edge to edge, in front of or behind others."""

  color: str
  box_4: np.ndarray  # left, top, right, bottom
  frames: int
  shape: str = "bar"
  direction: str | None = None
  role: str = "bar"

  @property
  def radius(self) -> float:
    """Half the short side."""
    return float((self.box_4[2:] - self.box_4[:2]).min() / 2)

  @property
  def position_T2(self) -> np.ndarray:
    return np.tile((self.box_4[:2] + self.box_4[2:]) / 2, (self.frames, 1))

  @property
  def velocity_T2(self) -> np.ndarray:
    return np.zeros((self.frames, 2))

  def box_T4(self) -> np.ndarray:
    return np.tile(self.box_4, (self.frames, 1))

  def sprite(self, style: str, tracked: bool = False) -> renderer.Rectangle:
    del style
    return renderer.Rectangle(vocabulary.COLORS[self.color], self.box_T4(), tracked)


@dataclasses.dataclass(eq=False)
class Scene:
  """Exact truth (JSON-able) and how to draw it: draw(size) -> uint8 [T, H, W, 3]."""

  truth: dict
  draw: Callable[[tuple[int, int]], np.ndarray]


def rounded(array: np.ndarray) -> list:
  return np.round(array, 6).tolist()


def object_truth(index: int, actor: "Actor | Bar", extent, visibility_T, depth_T) -> dict:
  """The record of one object; the box is cut to the frame, None where it is wholly outside."""
  width, height = extent
  box_T4 = actor.box_T4()
  cut_T4 = np.clip(box_T4, 0, (width, height, width, height))
  inside_T = (cut_T4[:, 2] > cut_T4[:, 0]) & (cut_T4[:, 3] > cut_T4[:, 1])
  return {
    "id": index,
    "role": actor.role,
    "color": actor.color,
    "shape": actor.shape,
    "radius": actor.radius,
    "direction": actor.direction,
    "position": rounded(actor.position_T2),
    "velocity": rounded(actor.velocity_T2),
    "visibility": rounded(visibility_T),
    "box": [box if inside else None for box, inside in zip(rounded(cut_T4), inside_T.tolist())],
    "depth": depth_T,
  }


def flat_scene(brief: Brief, actors: list, near_first: list[int], **more) -> Scene:
  """A scene of actors under a camera that does not move.

  Args: actors: in the order of the truth.  near_first: their indices from near to far.
  more: further keys of the truth.
  """
  far_first = near_first[::-1]
  layers = [actors[k].sprite("plain", tracked=True) for k in far_first]
  seen = renderer.visibility(layers, brief.frames, brief.extent)
  objects = [
    object_truth(
      k,
      actor,
      brief.extent,
      seen[far_first.index(k)],
      [near_first.index(k)] * brief.frames,
    )
    for k, actor in enumerate(actors)
  ]

  def draw(size):
    layers = [actors[k].sprite(brief.style) for k in far_first]
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  return Scene(clip_truth(brief, objects, **more), draw)


def clip_truth(brief: Brief, objects: list[dict], **more) -> dict:
  """The record of a clip; a camera that never moves looks at the middle with zoom 1."""
  width, height = brief.extent
  camera = {"kind": "still", "pose": [[width / 2, height / 2, 1.0]] * brief.frames}
  return {
    "level": vocabulary.LEVEL_OF.get(brief.motion, 1),
    "motion": brief.motion,
    "split": brief.config.split,
    "size": list(brief.size),
    "frames": brief.frames,
    "fps": brief.fps if brief.frames > 1 else None,
    "background": brief.background,
    "style": brief.style,
    "objects": objects,
    "camera": camera,
    "events": [],
    **more,
  }
