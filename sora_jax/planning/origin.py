"""Tells products that a backward pass repeats from those that it makes for the first time.

`jax.checkpoint` leaves a scope in the names of the operations that are done a second time. The TPU
compiler drops the name of a product that it computes while an exchange is under way. What such a
product takes in tells: a repeated one gets results of repeated operations alone, and weights; one
of a gradient gets a gradient, whose name is of the backward pass but not of what is repeated.
"""

from collections.abc import Iterator

from sora_jax.planning.hlo import Instruction, Program

REPEATED, BACKWARD = "rematted_computation", "/checkpoint/"
Body = dict[str, Instruction]
Callers = tuple[tuple[Body, Instruction], ...]
"""Fused computations that an instruction stands in, outermost first: where each is called, and the
call."""


def is_repeated(program: Program, i: Instruction, body: Body, callers: Callers = ()) -> bool:
  """Whether an instruction of a computation repeats one of the forward pass."""
  names = [i.source] if i.source else list(_before(program, i, body, callers))
  own = any(BACKWARD in name and REPEATED not in name for name in names)
  return any(REPEATED in name for name in names) and not own


def _before(program: Program, i: Instruction, body: Body, callers: Callers) -> Iterator[str]:
  """The nearest names on each way back from an instruction to what it takes in."""
  for name in i.operands:
    yield from _made_by(program, body.get(name), body, callers)


def _made_by(
  program: Program, i: Instruction | None, body: Body, callers: Callers, part: int | None = None
) -> Iterator[str]:
  """An instruction's name, or the nearest before it.  part: of its result, where that has several;
  the ways end where a loop hands on its state."""
  if i is None:
    return
  if i.source:
    yield i.source
  elif i.kind == "parameter":
    if callers:
      outside, call = callers[-1]
      given = outside.get(call.operands[int(i.operands[0])])
      yield from _made_by(program, given, outside, callers[:-1], part)
  elif i.kind == "get-tuple-element":
    index = int(i.attribute("index"))
    yield from _made_by(program, body.get(i.operands[0]), body, callers, index)
  elif i.kind == "tuple" and part is not None:
    yield from _made_by(program, body.get(i.operands[part]), body, callers)
  elif i.kind == "fusion":
    fused = program.computations[i.called[0]]
    root = next(j for j in fused.values() if j.is_root)
    yield from _made_by(program, root, fused, (*callers, (body, i)), part)
  elif i.kind != "while":
    yield from _before(program, i, body, callers)
