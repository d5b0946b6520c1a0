"""Compiles a program for a topology that is not here, and keeps what the compiler says of it."""

import functools
import math
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sora_jax.planning import hlo

TOO_LARGE = "RESOURCE_EXHAUSTED"


class Memory(NamedTuple):
  """Bytes of a chip's HBM.

  arguments: what the program is given: state and batch. outputs: beyond what takes the place of
  arguments. temporaries: activations, gathered parameters, buffers of exchanges. code: the program;
  None where it was not made.
  """

  arguments: float
  outputs: float
  temporaries: float
  code: float | None

  @property
  def total(self) -> float:
    """All that is known of it."""
    return float(sum(size for size in self if size is not None))


class Compiled(NamedTuple):
  """A compiled program.

  program: its optimised text, read. largest: (bytes, shapes) of the largest temporary buffers.
  """

  memory: Memory
  program: hlo.Program
  largest: list[tuple[float, str]]
  seconds: float


class DoesNotFit(Exception):
  """The compiler found no way to hold the program.

  space: the memory of a chip that is too small: "hbm", or that of its kernels, "vmem" or "smem".
  needed, limit: its bytes. largest: as of `Compiled`. seconds: spent.
  """

  def __init__(
    self, space: str, needed: float, limit: float, largest: list, seconds: float, why: str
  ):
    super().__init__(why)
    self.space, self.needed, self.limit = space, needed, limit
    self.largest, self.seconds = largest, seconds


def compile_for(
  function: Any, *arguments: Any, quick: bool = False, static: Mapping = {}
) -> Compiled:
  """Compiles a jitted function for the devices that its arguments' shardings name.

  Args:
    arguments: trees of `jax.ShapeDtypeStruct` with shardings on a mesh of `topology.describe`.
    quick: return once the program is optimised and its memory assigned, which is all that is read;
      a thread that turns it into machine code goes on, so the process should end soon.
    static: arguments that are no arrays, by name.
  Raises: DoesNotFit if the chips' memory does not suffice.
  """
  lowered = function.lower(*arguments, **static)
  start = time.perf_counter()
  # The program's text is read from the compiler's own dump: JAX cannot give back that of every TPU
  # program (some asynchronous exchanges fail its checks).
  folder = Path(tempfile.mkdtemp(prefix="sora_jax_plan_"))
  try:
    options = {
      "xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": ".*",
    }  # fmt: skip
    work = _Compilation(functools.partial(lowered.compile, compiler_options=options))
    before = None
    while not work.done.wait(0.5):
      now = written(folder)
      if quick and now and now == before:  # both files are there and no longer grow
        break
      before = now
    seconds = time.perf_counter() - start
    if work.error is not None:
      if not isinstance(work.error, jax.errors.JaxRuntimeError) or TOO_LARGE not in str(work.error):
        raise work.error
      short = exceeded(str(work.error))
      raise DoesNotFit(*short, largest(folder), seconds, str(work.error)) from work.error
    if work.result is None:
      given = sum((_held_bytes(leaf) for leaf in jax.tree.leaves(arguments)), 0.0)
      memory = assigned(folder, given)
    else:
      m = work.result.memory_analysis()
      memory = Memory(
        m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes, m.generated_code_size_in_bytes,
      )  # fmt: skip
    text = _newest(folder, PROGRAM).read_text()
    return Compiled(memory, hlo.parse(text), largest(folder), seconds)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


class _Compilation(threading.Thread):
  """A compilation; when `done`, it has a result or an error."""

  def __init__(self, compile_it: Callable[[], Any]):
    super().__init__(daemon=True)
    self._compile, self.result, self.error = compile_it, None, None
    self.done = threading.Event()
    self.start()

  def run(self) -> None:
    try:
      self.result = self._compile()
    except BaseException as error:  # handed on: the caller raises it
      self.error = error
    self.done.set()


PROGRAM, REPORT = "*after_optimizations.txt", "*memory-usage-report.txt"
"""Files of a dump: the optimised program, and what its buffers take."""


def written(folder: Path) -> list[int] | None:
  """Sizes of both files of a dump; None while one of them is missing or empty."""
  sizes = [[path.stat().st_size for path in folder.glob(name)] for name in (PROGRAM, REPORT)]
  return [max(found) for found in sizes] if all(map(any, sizes)) else None


def assigned(folder: Path, given: float) -> Memory:
  """Memory from a dump's report, which does not count the code; given: bytes of arguments."""
  found = re.search(r"Total bytes: (\d+)", _newest(folder, REPORT).read_text())
  return Memory(given, 0.0, float(found.group(1)) - given, None)


def _held_bytes(leaf: jax.ShapeDtypeStruct) -> float:
  """Bytes of an argument that one chip holds."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  return float(math.prod(shape) * leaf.dtype.itemsize)


def _newest(folder: Path, pattern: str) -> Path:
  found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
  if not found:
    raise RuntimeError(f"the compiler wrote no {pattern}; does this version of libtpu dump text?")
  return found[-1]


def largest(folder: Path, count: int = 8) -> list[tuple[float, str]]:
  """(bytes, shapes) of the largest buffers in a dump's memory report; empty without one."""
  reports = sorted(folder.glob(REPORT), key=lambda path: path.stat().st_size)
  if not reports:
    return []
  found = []
  for line in reports[-1].read_text().splitlines():
    parts = [part.strip() for part in line.split(";")]
    if len(parts) == 5 and "(" in parts[0]:
      found.append((size_of(parts[1]), parts[4]))
  return sorted(found, key=lambda pair: -pair[0])[:count]


UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_of(text: str) -> float:
  """Bytes of "4.78GiB", "236.45G" or "512B"."""
  found = re.match(r"([\d.]+)\s*([BKMGT])", text.strip())
  return float(found.group(1)) * UNITS[found.group(2)] if found else 0.0


def exceeded(message: str) -> tuple[str, float, float]:
  """(space, needed, available) of the memory that the compiler's message names; nan for sizes that
  it does not tell."""
  space = re.search(r"memory space (\w+)|space=(\w+)", message)
  name = next(filter(None, space.groups())) if space else "hbm"
  plain = re.search(r"\(size=(\d+)\) would exceed memory \(size=(\d+)\)", message)
  if plain:
    return name, float(plain.group(1)), float(plain.group(2))
  sizes = [size_of(text) for text in re.findall(r"\d+(?:\.\d+)?[KMGT]", message)]
  return (name, *sizes[:2]) if len(sizes) >= 2 else (name, math.nan, math.nan)
