"""The saved state of a run, read without being the run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.train import checkpoint
from sora_jax.train import optimizer as optimizer_lib
from sora_jax.train import state as state_lib
from sora_jax.train import task as task_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.state import TrainState
from sora_jax.train.task import Task


def newest(
  task: Task, optimizer: OptimizerConfig, mesh: Mesh, folder: Path, steps: Sequence[int]
) -> tuple[TrainState, dict]:
  """The newest of some checkpoints of a run, which may be going on: nothing in `folder` changes.

  Args: mesh: where the state is to lie, whatever mesh the run has.  steps: of checkpoints that will
    do, one at least.

  Returns: the state, and the notes beside it.  Raises: ValueError if none of them can be read, or
    if the task has inputs, its clips excepted, other than those that the run had.
  """
  task = task.on(mesh)
  axes = task.axes()
  made = optimizer_lib.make(optimizer, axes)
  shapes = like(lambda: state_lib.create(task.init, made, seed=0, total_steps=1), mesh, axes)
  cure = "If the run goes on, it may have replaced them: try again; or name an older one by --step."
  found = checkpoint.newest(Path(folder).absolute(), steps, shapes, cure)
  inputs = task_lib.inputs(task)
  inputs.pop("data.folder", None)  # weights can be used whatever has become of the clips
  checkpoint.same_inputs(Path(folder), found["notes"].get(checkpoint.INPUTS, {}), inputs)
  return found["state"], found["notes"]


def like(create: Callable[[], TrainState], mesh: Mesh, axes: Any) -> TrainState:
  """The shapes of the state that `create` makes, each with its place on the mesh."""
  shapes = jax.eval_shape(create)
  return jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
    shapes, sharding.of_state(mesh, shapes, axes),
  )  # fmt: skip
