"""Reads the text of a compiled XLA program: computations, and the instructions of each.

Only what a count of costs needs is kept: name, type, kind, operands and attributes. The format is
XLA's own (HloModule::ToString); what is not understood is kept as text and costs nothing.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
  "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2,
  "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
"""Bytes of an entry; tokens and the like have none."""

FAST_MEMORY = "S(1)"
"""Mark in the layout of what a TPU keeps in its vector memory instead of HBM."""


class Shape(NamedTuple):
  """An array's type. fast: it lies in the chip's fast memory, not in HBM."""

  dtype: str
  dims: tuple[int, ...]
  fast: bool = False

  @property
  def size(self) -> int:
    """Entries."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes, without the padding of a tiled layout."""
    return float(self.size * BYTES.get(self.dtype, 0))


class Instruction(NamedTuple):
  """One line of a computation.

  shapes: of its result, one for each part of a tuple. attributes: the rest of the line.
  """

  name: str
  shapes: tuple[Shape, ...]
  kind: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """The value of `name=value`, up to the next comma outside brackets."""
    found = re.search(rf"(?<![\w]){name}=", self.attributes)
    return None if found is None else _value(self.attributes, found.end())

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that it calls, by name, other than those that combine two numbers."""
    names = []
    for key in ("calls", "body", "to_apply"):
      if key == "to_apply" and self.kind not in ("call", "async-start"):
        continue
      value = self.attribute(key)
      names += [value.lstrip("%")] if value else []
    branches = self.attribute("branch_computations")
    if branches:
      names += re.findall(r"%([\w.\-]+)", branches)
    for key in ("true_computation", "false_computation"):
      value = self.attribute(key)
      names += [value.lstrip("%")] if value else []
    return tuple(names)

  @property
  def source(self) -> str:
    """The name of the operation in the traced program, a path of scopes; "" if it has none."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found.group(1) if found else ""


class Program(NamedTuple):
  """computations: instructions by name, in the order of each. entry: where it starts."""

  computations: dict[str, dict[str, Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Reads a module.  Raises: ValueError if the text has no entry computation."""
  computations, entry, current = {}, None, None
  for line in _joined(text):
    if line.endswith("{") and not line.startswith((" ", "HloModule")) and "->" in line:
      name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line).group(1)
      current = computations.setdefault(name, {})
      entry = name if line.startswith("ENTRY") else entry
    elif line == "}":
      current = None
    elif current is not None and " = " in line:
      instruction = _instruction(line)
      if instruction is not None:
        current[instruction.name] = instruction
  if entry is None:
    raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
  return Program(computations, entry)


def _joined(text: str) -> Iterator[str]:
  """Lines, those of an instruction joined: what a kernel says of itself may be several."""
  waiting = ""
  for line in text.splitlines():
    starts = line.startswith(("  %", "  ROOT ", "%", "ENTRY", "HloModule")) or line in ("", "}")
    if starts and waiting:
      yield waiting
      waiting = ""
    waiting += line
  yield waiting


def _instruction(line: str) -> Instruction | None:
  left, right = line.strip().split(" = ", 1)
  is_root = left.startswith("ROOT ")
  name = left.removeprefix("ROOT ").lstrip("%")
  end = _matching(right, 0) + 1 if right.startswith("(") else right.find(" ")
  found = re.match(r"\s*([\w\-]+)\(", right[end:])
  if found is None:
    return None
  start = end + found.end() - 1
  close = _matching(right, start)
  operands = tuple(re.findall(r"%([\w.\-]+)", right[start:close]))
  if found.group(1) in ("constant", "parameter"):
    operands = (right[start + 1 : close],)
  shapes = tuple(_shapes(right[:end]))
  return Instruction(name, shapes, found.group(1), operands, right[close + 1 :], is_root)


def _shapes(text: str) -> Iterator[Shape]:
  for found in re.finditer(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", text):
    dims = tuple(int(n) for n in found.group(2).split(",") if n)
    yield Shape(found.group(1), dims, FAST_MEMORY in (found.group(3) or ""))


def _matching(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for found in re.compile(r"[(){}\[\]]").finditer(text, start):
    depth += 1 if found.group() in "({[" else -1
    if depth == 0:
      return found.start()
  return len(text)


def _value(text: str, start: int) -> str:
  """From `start` to the next comma that no bracket encloses."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] in "({[":
      depth += 1
    elif text[i] in ")}]":
      depth -= 1
    elif text[i] == "," and depth == 0:
      return text[start:i]
  return text[start:].strip()
