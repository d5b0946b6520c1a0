"""Several machines in one job: how they find each other, what each does, what only one does.

Every process runs the same program. The first one alone writes what people read: the log, figures,
reports. Data that is made from a config is made by the first while the others wait, since they may
share a file system. When one is lost the others end, see `watch`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from sora_jax.train import watch

TPU_DEVICES = ("accel[0-9]*", "vfio/[0-9]*")
"""Names under /dev by which a machine with TPUs is known."""


def connect(
  coordinator: str = "", processes: int = 0, process: int = -1, devices: Path = Path("/dev")
) -> None:
  """Joins the other processes of a job; call it before JAX runs anything.

  On machines with TPUs it finds them by itself. Elsewhere the first process's address and the
  number of processes have to be given, and which of them this is; without them it stays alone.

  Args: coordinator: HOST:PORT of process 0.
  Raises: ValueError if only some of the three are given.
  """
  given = (bool(coordinator), processes > 0, process >= 0)
  if any(given) and not all(given):
    raise ValueError(
      f"coordinator={coordinator!r}, processes={processes}, process={process}: give all three, or"
      " none to run alone (or on TPUs, where they are found)"
    )
  if all(given):
    if not 0 <= process < processes:
      raise ValueError(f"process={process} of {processes}; the first is 0")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _join(coordinator, processes, process)
  elif any(any(devices.glob(name)) for name in TPU_DEVICES):
    _join()


def _join(*where) -> None:
  jax.distributed.initialize(*where, heartbeat_timeout_seconds=watch.HEARTBEAT_SECONDS)
  if jax.process_count() > 1:
    watch.Watch()


def is_first() -> bool:
  """Whether this process writes what people read."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def in_turn(name: str) -> Iterator[None]:
  """The first process goes through alone; when it is done, the others together."""
  if not is_first():
    wait(name)
  yield
  if is_first():
    wait(name)


def quiet_others() -> None:
  """Leaves progress to the first process; warnings are everybody's."""
  if not is_first():
    logging.set_verbosity(logging.WARNING)


def merged(state: Any) -> Any:
  """The JSON states of all processes' streams as one: what any number of them can start from.

  Raises: ValueError if two processes disagree about something that both hold.
  """
  if jax.process_count() == 1:
    return state
  mine = np.frombuffer(json.dumps(state).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray(len(mine)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(mine)] = mine
  every = multihost_utils.process_allgather(padded)
  states = [json.loads(bytes(text[:size])) for text, size in zip(every, sizes)]
  return union(states)


def union(states: list) -> Any:
  """One tree of dicts with the entries of all.  Raises: ValueError for leaves that differ."""
  first = states[0]
  if not isinstance(first, dict):
    if any(other != first for other in states[1:]):
      raise ValueError(f"processes disagree about the data: {states}")
    return first
  names = sorted({name for state in states for name in state})
  return {name: union([state[name] for state in states if name in state]) for name in names}


def agree_to_stop(step: int, asked: bool) -> bool:
  """Whether to stop before this step: asked of this process alone, or of any one of several.

  Several agree on a step that none has passed yet, without waiting for each other at every one.
  """
  if jax.process_count() == 1:
    return asked
  return multihost_utils.reached_preemption_sync_point(step)


def every(mine: bool) -> bool:
  """Whether it is true in all processes; every process must ask."""
  if jax.process_count() == 1:
    return mine
  return bool(multihost_utils.process_allgather(np.asarray(mine)).all())


def of_first(number: int) -> int:
  """What the first process says; every process must ask."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.asarray(number)))


def whole(tree: Any) -> Any:
  """Arrays that lie on all devices of all processes, as numpy arrays on every host."""
  if jax.process_count() == 1:
    return tree
  return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)
