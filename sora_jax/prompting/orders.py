"""What users ask for as text alone: one order a video, single values spread over lists."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.data.transforms import Size

MAX_FRAMES = 100_000
DRAFT_SCALE = 2
"""A draft has half the width and height and half the solver steps."""


@dataclasses.dataclass(frozen=True)
class Order:
  """What a user asks for: one video (or picture, with one frame)."""

  prompt: str
  size: Size
  frames: int
  seed: int
  sample: int
  fps: float
  guidance: float
  from_draft: np.ndarray | None = None

  def __post_init__(self):
    if self.frames > MAX_FRAMES:
      raise ValueError(f"frames is {self.frames}; at most {MAX_FRAMES} are made at once")
    if not 0 < self.fps <= 1000:
      raise ValueError(f"fps is {self.fps}; it must be above 0, at most 1000")
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}; it must be a number, 1 = off")
    if self.from_draft is not None and self.frames > len(self.from_draft):
      raise ValueError(
        f"frames is {self.frames}, but the draft has {len(self.from_draft)}; ask for at most as "
        "many, or make a longer draft"
      )


def whole(name: str, value: Any, least: int) -> int:
  """An argument as an int.  Raises: ValueError for what is no whole number, or below `least`."""
  try:
    if int(value) == value >= least:
      return int(value)
  except (TypeError, ValueError, OverflowError):  # a text, NaN, infinity
    pass
  raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}")


def whole_size(size: Any) -> Size:
  """A size as two ints.  Raises: ValueError for what is no pair of whole numbers above 0."""
  if np.shape(size) != (2,):
    raise ValueError(f"size is {size!r}; it must be (width, height) in pixels")
  return whole("width", size[0], 1), whole("height", size[1], 1)


def spread(**arguments: Any) -> tuple[bool, list[Order]]:
  """Spreads single values over lists, which any sequence but a text is, and any array.

  Whole numbers of other types, like 5.0, become ints.
  Returns: (whether there was a list, the orders).  Raises: ValueError naming the argument.
  """
  lists = {name: list(value) for name, value in arguments.items() if _is_list(name, value)}
  lengths = {name: len(value) for name, value in lists.items()}
  if len(set(lengths.values())) > 1:
    said = ", ".join(f"{name}: {n}" for name, n in lengths.items())
    raise ValueError(f"lists of different lengths ({said}); give one value, or one per video")
  number = next(iter(lengths.values()), 1)
  if number == 0:
    raise ValueError(f"{next(iter(lengths))} is an empty list; nothing to make")
  orders = []
  for i in range(number):
    values = {name: lists[name][i] if name in lists else arguments[name] for name in arguments}
    if values["frames"] is None:
      values["frames"] = 17 if values["from_draft"] is None else len(values["from_draft"])
    values["size"] = whole_size(values["size"])
    for name, least in (("frames", 1), ("sample", 0), ("seed", 0)):
      values[name] = whole(name, values[name], least)
    orders.append(Order(**values))
  return bool(lists), orders


def _is_list(name: str, value: Any) -> bool:
  """Whether an argument holds one value for each video: a size is a pair, a draft has four axes."""
  if hasattr(value, "ndim"):
    return value.ndim > {"size": 1, "from_draft": 4}.get(name, 0)
  if not isinstance(value, Sequence) or isinstance(value, str):
    return False
  return name != "size" or not value or any(np.ndim(side) for side in value)
