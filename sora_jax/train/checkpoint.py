"""Checkpoints of a run: train state and data iterator together, written while training goes on.

With the arrays goes a checksum of each: storage that changes a bit of one is not noticed by those
who read it.
"""

import contextlib
import gc
import itertools
import json
import logging as std_logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from sora_jax.train import hosts, metrics
from sora_jax.train.state import TrainState

MAY_CHANGE = (
  "train.steps",
  "train.minutes",
  "train.log_every",
  "train.eval_every",
  "train.save_every",
  "train.keep",
  "train.prefetch",
  "train.mesh",
  "train.context",
  "data.workers",
  "data.processes",
  "evaluation.",
)
"""Config keys that a resumed run may change (train.steps only if no tokens are dropped); all others
must stay as they were."""


CHECKSUMS = "checksums"
"""Name of the checksums among the notes."""
INPUTS = "inputs"
"""Name of what the run read by path, see `same_inputs`, among the notes."""


class CheckpointError(OSError):
  """What a run keeps could not be written; the message says where, why, and what is still there."""


class Checkpoints:
  """The checkpoints of one work directory, at most `keep` of them.

  Each holds the state (orbax arrays), the state of the data iterator after the last batch that the
  state has seen (JSON), and a small dict of the run's own notes, such as seconds spent.
  """

  def __init__(self, folder: Path, keep: int = 3):
    make_writable(folder)
    self._manager = ocp.CheckpointManager(
      Path(folder).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(barrier_sync_fn=_meet),
      ),
      item_names=("state", "data", "notes"),
    )

  def save(self, step: int, state: TrainState, data: Any, notes: dict) -> None:
    """Starts writing a checkpoint and returns; the caller may donate `state` at once.

    Raises: CheckpointError if it, or the one before, cannot be written.
    """
    sums = {name: int(value) for name, value in jax.device_get(checksums(state)).items()}
    with self._told():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          data=ocp.args.JsonSave({"iterator": data}),
          notes=ocp.args.JsonSave(notes | {CHECKSUMS: sums}),
        ),
      )

  def restore(self, like: TrainState) -> tuple[TrainState, Any, dict] | None:
    """Returns (state, data, notes) of the newest checkpoint that can be read, or None.

    like: a state with the right shapes; `jax.ShapeDtypeStruct` leaves with shardings will do. Of
    checkpoints that cannot be read the log tells why; the one before is tried, and once one is
    found they are put aside under other names: the reason may pass.

    Raises: ValueError if checkpoints exist and none fits; CheckpointError if one cannot be put
      aside.
    """
    steps = self._manager.all_steps()
    cure = "Start with another --workdir, or delete this folder."
    found = newest(Path(self._manager.directory), steps, like, cure)
    if found is None:
      return None
    self._put_aside([step for step in steps if step > int(found["state"].step)])
    return found["state"], found["data"]["iterator"], found["notes"]

  def _put_aside(self, steps: Sequence[int]) -> None:
    """Gives checkpoints names that are no steps, so that their steps can be saved again."""
    for step in steps if hosts.is_first() else ():
      path = Path(self._manager.directory) / str(step)
      aside, numbers = path.with_name(f"{step}.unreadable"), itertools.count(2)
      while aside.exists():
        aside = path.with_name(f"{step}.unreadable.{next(numbers)}")
      try:
        path.rename(aside)
      except OSError as error:
        raise CheckpointError(
          f"{path} cannot be read, and not be renamed to {aside.name}: {error.strerror}. Make its"
          " folder writable, and run the same command again"
        ) from error
      logging.warning(
        "the checkpoint of step %d is kept as %s: give it its name back if it can be read after"
        " all, or delete it", step, aside,
      )  # fmt: skip
    if steps:
      hosts.wait("put aside")
      self._manager.reload()

  def saved(self) -> str:
    """Says which finished checkpoint is the newest, and where."""
    whole = self._whole()
    what = "nothing is saved yet" if whole is None else f"step {whole} is saved"
    return f"{what} in {self._manager.directory}"

  def _whole(self) -> int | None:
    """The newest step whose checkpoint is finished on disk."""
    return max(saved_steps(Path(self._manager.directory)), default=None)

  def wait(self) -> None:
    """Blocks until what was saved is on disk.  Raises: CheckpointError if it cannot be."""
    with self._told():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes writing and releases the folder.  Raises: as `wait`."""
    try:
      self.wait()
    finally:
      self._manager.close()

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    """Says of whatever goes wrong while writing what it means for the run."""
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      whole = self._whole()
      kept = "there is no older one" if whole is None else f"that of step {whole} is whole"
      raise CheckpointError(
        f"a checkpoint could not be written to {self._manager.directory}: {_reason(error)}; {kept}."
        " Make room there, or make it writable, and run the same command again"
      ) from error


def saved_steps(folder: Path) -> list[int]:
  """The steps whose checkpoints in a folder are finished; it need not be there."""
  try:
    return sorted(ocp.utils.checkpoint_steps(Path(folder).absolute()))
  except OSError:
    return []


def newest(folder: Path, steps: Sequence[int], like: TrainState, cure: str) -> Any:
  """Reads the newest of some steps' checkpoints that can be read; nothing in the folder changes.

  like: see `Checkpoints.restore`.  cure: what to do if none can be read.

  Returns: {"state", "data", "notes"}, or None if there are no steps.  Raises: ValueError if none of
  them can be read.
  """
  problems = []
  for step in sorted(steps, reverse=True):
    with _quiet():
      try:
        return _read(folder, step, like)
      except Exception as error:  # orbax raises many kinds for a damaged folder
        lines = str(error).strip().splitlines() or [""]
        problems.append(f"step {step}: {type(error).__name__}: {lines[0][:200]}")
        logging.warning(
          "checkpoint of step %d cannot be read, trying an older one: %s", step, lines[0]
        )
  if problems:
    raise ValueError(
      f"{folder} holds checkpoints, but none can be restored: " + "; ".join(problems) + f". {cure}"
    )
  return None


def _read(folder: Path, step: int, like: TrainState) -> Any:
  """Reads a checkpoint, each process its part, without meeting the others on the way.

  Raises: in all processes if in one; what orbax raises, or ValueError.
  """
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(me, {me}, f"reader{me}")
  options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
  names = ("state", "data", "notes")
  try:
    with ocp.CheckpointManager(folder, options=options, item_names=names) as reader:
      found = reader.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(like),
          data=ocp.args.JsonRestore(),
          notes=ocp.args.JsonRestore(),
        ),
      )
  except Exception:
    hosts.every(False)
    raise
  if not hosts.every(True):
    raise ValueError("another process cannot read its part")
  _verify(found["state"], found["notes"].pop(CHECKSUMS, None))
  return found


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes, unless this one's part has failed: it must end, and they too."""
  if sys.exc_info()[1] is None:
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _reason(error: Exception) -> str:
  """What went wrong, without the library's story of how it came to know."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = str(error).splitlines()[0] if str(error) else type(error).__name__
  known = (
    "No space left on device",
    "Read-only file system",
    "Permission denied",
    "File too large",
  )
  return next((words for words in known if words in str(error)), text[:200])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Within it asyncio does not list what the reader's many tasks ran into; one error is raised.

  Tasks complain when they are collected, which therefore happens here. What was there before is not
  looked through, as that takes seconds in a large program.
  """
  logger = std_logging.getLogger("asyncio")
  level = logger.level
  logger.setLevel(std_logging.CRITICAL)
  gc.freeze()
  try:
    yield
  finally:
    gc.collect()
    gc.unfreeze()
    logger.setLevel(level)


@jax.jit
def checksums(tree: Any) -> dict[str, jax.Array]:
  """A number for each array, by its path: uint32, the same wherever the array lies.

  The sum of all words, each times an odd number of its own, modulo 2^32: any single changed bit
  changes it.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): _checksum(leaf) for path, leaf in leaves}


def _checksum(x: jax.Array) -> jax.Array:
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  word = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
  words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
  place, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    at = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place, stride = place + at * jnp.uint32(stride % 2**32), stride * words.shape[axis]
  return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _verify(state: TrainState, wanted: dict[str, int] | None) -> None:
  """Raises a ValueError that names the first array whose bits are not those that were saved."""
  if wanted is None:  # written before there were checksums
    return
  for name, value in jax.device_get(checksums(state)).items():
    if int(value) != wanted.get(name):
      raise ValueError(f"state{name} is not as it was saved: the storage has changed it")


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  """Returns {"a.b": value} for a nested dict; lists are values."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat


def make_writable(folder: Path) -> None:
  """Makes a folder if it is not there.  Raises: CheckpointError if files cannot be made in it."""
  try:
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise CheckpointError(
      f"{folder} cannot be written: {error.strerror}; a run keeps all that it makes there. Make it"
      " writable, or choose another --workdir"
    ) from error


def same_inputs(folder: Path, before: dict[str, str], now: dict[str, str]) -> None:
  """Insists that what a run reads by path is what it was when `folder` was written.

  Args: before, now: hashes of the contents by config key; keys that only one has are not compared.
  Raises: ValueError that lists every key whose content is another, with both hashes.
  """
  lines = [
    f"{name} {before[name][:12]} -> {now[name][:12]}"
    for name in sorted(before.keys() & now.keys())
    if before[name] != now[name]
  ]
  if lines:
    raise ValueError(
      f"{folder} was trained with other contents than these keys name now: {', '.join(lines)}"
      " (hashes). Put back what was there, or start with another --workdir"
    )


def keep_config(workdir: Path, config: dict) -> None:
  """Stores the config in a work directory; where a checkpoint is saved, insists that it is the
  same.

  Raises: ValueError that lists every key that differs, with both values, or that names a stored
  config that cannot be read; CheckpointError or OSError if the directory cannot be written.
  """
  path = Path(workdir) / "config.json"
  text = json.dumps(config, indent=2, sort_keys=True)
  if path.exists() and saved_steps(Path(workdir) / "checkpoints"):
    old, new = flatten(read_config(path)), flatten(json.loads(text))
    drops = new.get("data.token_drop.share", 0) > 0
    lines = []
    for name in sorted(old.keys() | new.keys()):
      allowed = any(name == m or (m.endswith(".") and name.startswith(m)) for m in MAY_CHANGE)
      by_steps = drops and name == "train.steps"
      if (by_steps or not allowed) and old.get(name, "absent") != new.get(name, "absent"):
        why = " (data.token_drop ends at a share of them)" if by_steps else ""
        lines.append(f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}{why}")
    if lines:
      raise ValueError(
        f"{workdir} was started with another config: "
        + "; ".join(lines)
        + ". Change these back to resume, or start with another --workdir."
      )
  make_writable(workdir)
  metrics.write_whole(path, text + "\n")


def read_config(path: Path) -> dict:
  """The config that a work directory keeps.  Raises: ValueError if the file is damaged."""
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f"{path} is not JSON ({error}). If you are sure that the config is the one that this run was"
      " started with, delete it to resume; or start with another --workdir."
    ) from error
