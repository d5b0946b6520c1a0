"""Words of the world and what they look like: the one owner of colour, shape and direction names.

All lengths in this room are in units of the frame's short side, x to the right, y down, the origin
at the frame's top left corner; a pixel (row i, column j) has its centre at ((j + .5), (i + .5)) / m
where m = min(width, height). Times are in seconds, frame k is at k / fps.
"""

import math

import numpy as np

COLORS = {
  "red": (226, 38, 38),
  "green": (34, 176, 64),
  "blue": (48, 92, 240),
  "yellow": (250, 218, 36),
  "purple": (150, 50, 205),
  "orange": (250, 132, 20),
  "cyan": (40, 212, 224),
  "white": (250, 250, 250),
}
BACKGROUNDS = {
  "black": (0, 0, 0),
  "gray": (112, 112, 112),
  "navy": (16, 24, 72),
  "cream": (238, 224, 186),
}
SHAPES = ("circle", "square", "triangle", "star")
STYLES = ("plain", "outline", "hatched", "night")
_D = math.sqrt(0.5)
DIRECTIONS = {
  "right": (1.0, 0.0),
  "left": (-1.0, 0.0),
  "up": (0.0, -1.0),
  "down": (0.0, 1.0),
  "up-right": (_D, -_D),
  "up-left": (-_D, -_D),
  "down-right": (_D, _D),
  "down-left": (-_D, _D),
}
MOTIONS = {
  1: ("constant", "bounce", "gravity", "swing"),
  2: ("collide", "occlude", "leave"),
  3: ("pan", "zoom", "cut", "morph", "orbit"),
  4: ("paint", "eat", "game"),
}
LEVEL_OF = {motion: level for level, motions in MOTIONS.items() for motion in motions}
SPLITS = ("train", "validation", "test", "heldout")

_COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}
_SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}
_DIRECTION_INDEX = {name: i for i, name in enumerate(DIRECTIONS)}


def is_held_out(color: str, shape: str, direction: str) -> bool:
  """Whether (colour, shape, direction) is kept for split "heldout": 16 of the 256 triples.

  Every colour, shape, direction and every pair of them still occurs in the other splits: a colour
  and shape lose at most one of eight directions.
  """
  c, s = _COLOR_INDEX[color], _SHAPE_INDEX[shape]
  return (c + s) % 2 == 0 and _DIRECTION_INDEX[direction] == (c + 2 * s) % 8


def nearest_direction(velocity_2: np.ndarray) -> str:
  """The direction word whose unit vector is closest to a velocity (x right, y down)."""
  return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], velocity_2)))
