"""Figures of a run: sums over steps, the machine's own speed, and `metrics.jsonl`."""

import contextlib
import functools
import json
import math
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax.train.task import Cost


def write_whole(path: Path, text: str) -> None:
  """Makes `text` the content of a file, whole or not at all; leaves a file that has it alone.

  Raises: OSError that names the file, whose content stays, if it cannot be written.
  """
  path = Path(path)
  temporary = path.with_name(f".{path.name}.tmp")
  try:
    if path.exists() and path.read_bytes() == text.encode():
      return
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise OSError(
      f"{path} cannot be written: {error.strerror}. Make room there, or make it writable, and run"
      " the same command again"
    ) from error


class Writer:
  """Appends one JSON object a line to `metrics.jsonl`, flushed at once.

  first_step: on resume, lines of later steps are dropped first: those steps will come again.
  """

  def __init__(self, path: Path, first_step: int = 0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      kept = [line for line in read(path) if line["step"] <= first_step]
      write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    self._path, self._file = path, path.open("a")

  def write(self, step: int, values: dict) -> None:
    """Writes a line; numbers become floats, what is not finite becomes null."""
    line = {"step": int(step)} | {name: _plain(value) for name, value in values.items()}
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as error:
      raise OSError(
        f"{self._path} cannot be written: {error.strerror}. Make room there, and run the same"
        " command again"
      ) from error

  def close(self) -> None:
    self._file.close()


def read(path: Path) -> list[dict]:
  """Returns the lines of a `metrics.jsonl`; a last line cut short by a crash is left out."""
  lines = []
  for text in Path(path).read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      continue
  return lines


def _plain(value):
  if isinstance(value, str | bool | int | None):
    return value
  value = float(value)
  return value if math.isfinite(value) else None


class Meter:
  """Adds up what happens between two lines of the log.

  Steps that waited for a compilation, an evaluation or a checkpoint count towards the loss but not
  towards the speed.
  """

  def __init__(self):
    self.clear()

  def clear(self) -> None:
    self._sums: dict[str, np.ndarray] = {}
    self._last: dict[str, float] = {}
    self._seconds = self._tokens = self._flops = 0.0
    self._timed = 0

  def add(self, ratios: dict, last: dict[str, float], cost: Cost, seconds: float | None) -> None:
    """Adds a step. seconds: its duration, or None if it should not be timed."""
    for name, ratio in ratios.items():
      pair = np.array([float(ratio[0]), float(ratio[1])])
      self._sums[name] = self._sums.get(name, 0.0) + pair
    self._last = last
    if seconds is not None:
      self._timed += 1
      self._seconds += seconds
      self._tokens += cost.tokens
      self._flops += cost.flops

  @property
  def sec_per_step(self) -> float:
    """Mean duration of the timed steps; nan if there were none."""
    return self._seconds / self._timed if self._timed else math.nan

  def summary(self, matmul_rate: float) -> dict[str, float]:
    """Returns the means. matmul_rate: of all devices (`mesh_rate`), in FLOP/s."""
    means = {name: pair[0] / max(pair[1], 1e-20) for name, pair in self._sums.items()}
    seconds = self._seconds or math.nan
    return (
      means
      | self._last
      | {
        "sec_per_step": self.sec_per_step,
        "tokens_per_sec": self._tokens / seconds,
        "matmul_fraction": self._flops / seconds / matmul_rate,
      }
    )


def mesh_rate(mesh: Mesh) -> float:
  """FLOP/s of f32 matrix products on all of a mesh at once: that of a device for each accelerator,
  or of all of a process's cores, which its devices share, for each process."""
  processes = len({device.process_index for device in mesh.devices.flat})
  return matmul_rate() * (processes if jax.default_backend() == "cpu" else mesh.size)


@functools.cache
def matmul_rate(size: int = 2048, repeats: int = 5) -> float:
  """Returns the FLOP/s of an f32 matrix product of this size on one device: the best of a few.

  Measured once in a process.
  """
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(lambda a: a @ a)
  product(x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    product(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2.0 * size**3 / best


def progress_line(step: int, total: int, values: dict[str, float]) -> str:
  """Returns the line that a person reads: step, loss, tokens/s, share of the matmul rate, ETA."""
  minutes, seconds = divmod(int(values["eta_sec"]) if math.isfinite(values["eta_sec"]) else 0, 60)
  return (
    f"step {step}/{total}  loss {values['loss']:.4f}  grad {values['grad_norm']:.3f}  "
    f"{values['tokens_per_sec']:,.0f} tokens/s  {values['sec_per_step'] * 1e3:.0f} ms/step  "
    f"{100 * values['matmul_fraction']:.0f}% of matmul  ETA {minutes}:{seconds:02d}"
  )
