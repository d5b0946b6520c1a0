"""What a world dataset is made of, checked before the first clip is drawn."""

import dataclasses
import difflib
import functools
import operator
from collections.abc import Sequence

from sora_jax.data.world import vocabulary

_WORDS = {
  "colors": tuple(vocabulary.COLORS),
  "shapes": vocabulary.SHAPES,
  "backgrounds": tuple(vocabulary.BACKGROUNDS),
  "styles": vocabulary.STYLES,
  "directions": tuple(vocabulary.DIRECTIONS),
  "motions": tuple(vocabulary.LEVEL_OF),
}
# What may be passed; a single value stands for a tuple of one, and tuples are what is kept.
Words = str | Sequence[str]
Whole = int | Sequence[int]
Numbers = int | float | Sequence[int | float]


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """One split of a procedural dataset; every attribute is drawn evenly from its tuple.

  Raises: ValueError for unknown words, impossible sizes, frame counts, rates, splits or seeds.
  """

  levels: Whole = (1,)
  motions: Words = ()  # () = every motion of the levels
  sizes: Sequence[Sequence[int]] = ((32, 32),)  # (width, height) in pixels, both >= 8
  frames: Whole = (9,)  # frame counts, 1 to 65
  fps: Numbers = (8.0,)  # frames per second, 8 to 24
  image_fraction: float | int = 0.0  # share of clips that are one still frame
  split: str = "train"
  seed: int = 0
  num_clips: int = 1024
  colors: Words = _WORDS["colors"]
  shapes: Words = _WORDS["shapes"]
  backgrounds: Words = _WORDS["backgrounds"]
  styles: Words = ("plain",)
  directions: Words = _WORDS["directions"]
  radius: Numbers = (0.14, 0.22)  # of a lone object, in short sides
  slowest: float | int = 1.0  # least share of usual speeds: constant, bounce, cut, morph
  slow_fraction: float | int = 1.0  # share of clips that may be slower than usual, down to slowest

  def __post_init__(self):
    for name in ("levels", "motions", "sizes", "frames", "fps", "radius", *_WORDS):
      value = getattr(self, name)
      value = (value,) if isinstance(value, (int, float, str)) else tuple(value)
      object.__setattr__(self, name, value)
    for name in ("fps", "radius"):
      object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
    self._check_whole()
    self._check_words()
    self._check_numbers()
    if self.split == "heldout" and not self.triples(True):
      raise ValueError(
        "split 'heldout' is empty: no held-out (colour, shape, direction) is made of "
        f"{self.colors}, {self.shapes}, {self.directions}; allow more of them"
      )

  def _check_whole(self):
    """Keeps sizes, frame counts, seed and clip count as ints."""
    try:
      sizes = tuple((operator.index(w), operator.index(h)) for w, h in self.sizes)
    except (TypeError, ValueError):
      raise ValueError(
        f"sizes: got {self.sizes}; must be (width, height) pairs of whole pixels, like ((32, 32),)"
      ) from None
    object.__setattr__(self, "sizes", sizes)
    frames = tuple(_whole("frames", n, "whole numbers from 1 to 65") for n in self.frames)
    object.__setattr__(self, "frames", frames)
    for name, allowed in (
      ("seed", "a whole number from 0"),
      ("num_clips", "a whole number from 1"),
    ):
      object.__setattr__(self, name, _whole(name, getattr(self, name), allowed))

  def _check_words(self):
    for name, allowed in _WORDS.items():
      for word in getattr(self, name):
        if word not in allowed:
          near = difflib.get_close_matches(str(word), allowed, n=1)
          hint = f"; did you mean {near[0]!r}?" if near else ""
          raise ValueError(f"{name}: got {word!r}, allowed are {', '.join(allowed)}{hint}")
      if not getattr(self, name) and name != "motions":
        raise ValueError(f"{name} is empty; allowed are {', '.join(allowed)}")
    if not self.levels or any(level not in vocabulary.MOTIONS for level in self.levels):
      raise ValueError(f"levels: got {self.levels}, allowed are 1, 2, 3, 4")
    for motion in self.motions:
      if vocabulary.LEVEL_OF[motion] not in self.levels:
        raise ValueError(
          f"motion {motion!r} belongs to level {vocabulary.LEVEL_OF[motion]}, "
          f"but levels is {self.levels}; add the level or drop the motion"
        )
    if self.split not in vocabulary.SPLITS:
      raise ValueError(f"split: got {self.split!r}, allowed are {', '.join(vocabulary.SPLITS)}")

  def _check_numbers(self):
    for width, height in self.sizes:
      if min(width, height) < 8 or max(width, height) > 4 * min(width, height):
        raise ValueError(
          f"sizes: got {width}x{height}; both sides must be at least 8 pixels, "
          "the long one at most four times the short one"
        )
    if not self.sizes:
      raise ValueError("sizes is empty; give at least one (width, height), like ((32, 32),)")
    if not self.frames or not all(1 <= n <= 65 for n in self.frames):
      raise ValueError(f"frames: got {self.frames}; must be whole numbers from 1 to 65")
    if self.seed < 0:
      raise ValueError(f"seed: got {self.seed}; must be a whole number from 0")
    if not self.fps or not all(8 <= rate <= 24 for rate in self.fps):
      raise ValueError(f"fps: got {self.fps}; rates must be 8 to 24 frames per second")
    if not 0.0 <= self.image_fraction <= 1.0:
      raise ValueError(f"image_fraction: got {self.image_fraction}; must be in [0, 1]")
    if len(self.radius) != 2 or not 0.05 <= self.radius[0] <= self.radius[1] <= 0.3:
      raise ValueError(f"radius: got {self.radius}; must be (low, high) within [0.05, 0.3]")
    if not 0.1 <= self.slowest <= 1.0:
      raise ValueError(
        f"slowest: got {self.slowest}; must be in [0.1, 1], a share of an object's usual speed"
      )
    if not 0.0 <= self.slow_fraction <= 1.0:
      raise ValueError(f"slow_fraction: got {self.slow_fraction}; must be in [0, 1]")
    if self.num_clips < 1:
      raise ValueError(f"num_clips: got {self.num_clips}; must be at least 1")
    if self.split == "heldout" and (self.image_fraction == 1.0 or max(self.frames) == 1):
      raise ValueError("split 'heldout' holds out motions, but only still pictures were asked for")

  def all_motions(self) -> tuple[str, ...]:
    """The motions that clips are drawn from, in a fixed order."""
    if self.motions:
      return self.motions
    return tuple(m for level in sorted(set(self.levels)) for m in vocabulary.MOTIONS[level])

  def triples(self, held_out: bool) -> tuple[tuple[str, str, str], ...]:
    """Allowed (colour, shape, direction) that are, or are not, held out."""
    return _triples(self.colors, self.shapes, self.directions, held_out)


def _whole(name: str, value, allowed: str) -> int:
  """The value as an int. Raises: ValueError if it is no whole number."""
  try:
    return operator.index(value)
  except TypeError:
    raise ValueError(f"{name}: got {value!r}; must be {allowed}") from None


@functools.lru_cache(maxsize=64)
def _triples(colors, shapes, directions, held_out):
  return tuple(
    (color, shape, direction)
    for color in colors
    for shape in shapes
    for direction in directions
    if vocabulary.is_held_out(color, shape, direction) == held_out
  )
