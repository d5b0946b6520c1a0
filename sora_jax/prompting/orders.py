"""What users ask for as text alone: one order a video, single values spread over lists."""

import dataclasses
import math
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
    width, height = self.size
    for name, value, low in (
      ("width", width, 1), ("height", height, 1), ("frames", self.frames, 1),
      ("sample", self.sample, 0), ("seed", self.seed, 0),
    ):  # fmt: skip
      if int(value) != value or value < low:
        raise ValueError(f"{name} is {value}; it must be a whole number, at least {low}")
    if self.frames > MAX_FRAMES:
      raise ValueError(f"frames is {self.frames}; at most {MAX_FRAMES} are made at once")
    if not 0 < self.fps <= 1000:
      raise ValueError(f"fps is {self.fps}; it must be above 0, at most 1000")
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}; it must be a number, 1 = off")


def spread(**arguments: Any) -> tuple[bool, list[Order]]:
  """Spreads single values over lists.  Returns: (whether there was a list, the orders)."""
  lists = {}
  for name, value in arguments.items():
    single = not isinstance(value, (list, tuple))
    if name == "size":
      single = len(value) == 2 and all(isinstance(side, (int, np.integer)) for side in value)
    if not single:
      lists[name] = list(value)
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
    values["size"] = tuple(values["size"])
    orders.append(Order(**values))
  return bool(lists), orders
