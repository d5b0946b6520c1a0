"""Which mesh, what to recompute, how long rows: tries them one after the other, keeps the best.

Each choice is compiled (by a function that is handed in), so what is compared are facts about
memory and bounds on time. Meshes first, the config's own among them, since they decide most, and
those that do not fit once more with all recomputed; then what is recomputed, then rows of another
length with as many tokens a step.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from sora_jax.planning.topology import GIB

REMAT = ("none", "dots", "block")
PART = 8
"""Parts of the width that devices store should be a multiple of this: see docs/pods.md."""


class Choice(NamedTuple):
  """mesh: (data, fsdp, context, tensor); of the first choice one may be -1, for the chips that are
  left.  rows: of a step.  row_len, max_segments, text_row_len: of a row."""

  mesh: tuple[int, int, int, int]
  remat: str
  rows: int
  row_len: int
  max_segments: int
  text_row_len: int

  @property
  def settings(self) -> dict[str, object]:
    """Config keys and their values."""
    names = ("rows", "row_len", "max_segments", "text_row_len")
    return {"model.remat": self.remat} | {f"data.{name}": getattr(self, name) for name in names}

  def longer(self, factor: int) -> "Choice":
    """As many tokens, clips and words a step, in fewer and longer rows."""
    return self._replace(
      rows=self.rows // factor, row_len=self.row_len * factor,
      max_segments=self.max_segments * factor, text_row_len=self.text_row_len * factor,
    )  # fmt: skip

  def __str__(self) -> str:
    named = zip(("data", "fsdp", "context", "tensor"), self.mesh)
    mesh = ",".join(f"{name}={size}" for name, size in named if size > 1) or "data=1"
    return f"{mesh} remat={self.remat} rows={self.rows}x{self.row_len}"


class Tried(NamedTuple):
  """A choice and its plan's figures (`report.figures`), or why it could not be compiled."""

  choice: Choice
  figures: dict | None
  error: str = ""

  @property
  def fits(self) -> bool:
    """Whether it can run."""
    return self.figures is not None and self.figures["fits"]

  @property
  def token_seconds(self) -> float:
    """Seconds a real token takes at the least; infinite where it does not fit."""
    if not self.fits:
      return math.inf
    return self.figures["step_seconds_lower_bound"] / self.figures["tokens_per_step"]


class Shape(NamedTuple):
  """What meshes must divide.  accumulate: parts of a step's rows."""

  width: int
  heads: int
  accumulate: int


def search(
  first: Choice, shape: Shape, chips: int, plan: Callable[[Choice], Tried],
  report: Callable[[Tried], None],
) -> list[Tried]:  # fmt: skip
  """Tries choices for a number of chips; best first, those that do not fit last.

  Args: first: what the config says.  plan: compiles one.  report: told of each.
  Raises: ValueError if no mesh of so many chips divides what it must.
  """
  tried: dict[Choice, Tried] = {}

  def best(choices: list[Choice]) -> Choice:
    for choice in choices:
      if choice not in tried:
        tried[choice] = plan(choice)
        report(tried[choice])
    return min(choices, key=lambda c: order(tried[c]))

  own = filled(first.mesh, chips)
  can = math.prod(own) == chips and first.rows % (own[0] * own[1] * shape.accumulate) == 0
  possible = list(dict.fromkeys([*([own] if can else []), *meshes(first, shape, chips)]))
  if not possible:
    raise ValueError(
      f"no mesh of {chips} chips shares out {first.rows} rows in {shape.accumulate} parts and"
      f" {shape.heads} heads; chips must divide data.rows / train.accumulate"
    )
  choices = [first._replace(mesh=mesh) for mesh in possible]
  best(choices)
  # A mesh that is too small for what is kept may be the fastest of those that recompute it.
  large = [choice for choice in choices if tried[choice].figures and not tried[choice].fits]
  found = best([*choices, *(choice._replace(remat=REMAT[-1]) for choice in large)])
  found = best([found._replace(remat=name) for name in REMAT])
  rows = found.mesh[0] * found.mesh[1] * shape.accumulate
  longer = [found.longer(factor) for factor in (2, 4) if found.rows % (factor * rows) == 0]
  best([found, *longer])
  return sorted(tried.values(), key=order)


def order(one: Tried) -> tuple[float, float]:
  """Sorts by speed, then by memory; what cannot be compiled comes last."""
  needed = one.figures and one.figures["hbm_bytes_per_chip"]
  return one.token_seconds, needed or math.inf


def filled(mesh: tuple[int, int, int, int], chips: int) -> tuple[int, int, int, int]:
  """A mesh whose -1, if it has one, is the chips that are left."""
  left = chips // math.prod(size for size in mesh if size != -1)
  return tuple(left if size == -1 else size for size in mesh)


def meshes(first: Choice, shape: Shape, chips: int) -> Iterator[tuple[int, int, int, int]]:
  """Meshes of all chips: for each of a few context and tensor axes the largest fsdp axis that the
  width allows, and a quarter of it."""
  for context, tensor in ((1, 1), (1, 2), (1, 4), (2, 1), (4, 1), (2, 2)):
    left, given = divmod(chips, context * tensor)
    if given or shape.heads % tensor or first.row_len % context:
      continue
    sizes = [n for n in range(1, left + 1) if left % n == 0 and shape.width % (PART * n) == 0]
    for fsdp in sorted({sizes[-1], max(sizes[-1] // 4, 1)} & set(sizes), reverse=True):
      if first.rows % (left * shape.accumulate) == 0:
        yield left // fsdp, fsdp, context, tensor


def why(one: Tried, best: Tried) -> str:
  """In a few words, what a choice comes to and why it is not the best."""
  if one.figures is None:
    return f"cannot be: {one.error}"
  f = one.figures
  needed = (f["hbm_bytes_per_chip"] or math.nan) / GIB
  if f["kernel_memory_exceeded"]:
    return f"does not fit: a kernel's {f['kernel_memory_exceeded']['space']}"
  if not one.fits:
    return f"does not fit: {needed:.1f} of {f['hbm_limit_bytes'] / GIB:.0f} GiB"
  reasons = f["step_seconds_by_reason"]
  said = f"{needed:.1f} GiB, at most {100 * f['mfu_upper_bound']:.0f} % model-FLOP use"
  if one is best:
    return said
  slower = one.token_seconds / best.token_seconds
  return f"{said}; {slower:.2f} times the time a token, for {max(reasons, key=reasons.get)}"
