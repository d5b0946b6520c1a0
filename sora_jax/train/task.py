"""What the loop trains: the protocol that every task fulfils.

A task is a frozen object that knows a network, its loss and its data. The loop knows none of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

Params = Any
Batch = dict[str, Any]


class Ratio(NamedTuple):
  """A mean kept as its two sums, so that devices and microbatches of unequal weight add up right.

  `numerator / denominator` is the mean; both are f32 scalars and the denominator carries no
  gradient. (Fields are `Any`, as in every tree here: they hold shapes and host arrays too.)
  """

  numerator: Any
  denominator: Any


class Cost(NamedTuple):
  """What a batch costs, counted on the host from its real content.

  tokens: real tokens (padding excluded). For the VAE: output pixels per 1000.
  flops: floating point operations of the matrix products of forward and backward.
  clips: number of real clips.
  """

  tokens: float
  flops: float
  clips: int

  def times(self, factor: float) -> "Cost":
    """Of so many batches like this one: of all hosts, from one's share."""
    return Cost(self.tokens * factor, self.flops * factor, round(self.clips * factor))


@runtime_checkable
class Batches(Protocol):
  """An endless, checkpointable stream of batches; the state must survive JSON."""

  def __next__(self) -> Batch: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


@runtime_checkable
class Evaluator(Protocol):
  """Figures and files about a set of weights."""

  name: str

  def __call__(self, params: Params, step: int, folder: Path) -> dict[str, float]:
    """Writes its files into `folder` and returns its figures, named without a prefix."""
    ...


@runtime_checkable
class Task(Protocol):
  """One training job: network, loss, data, figures.

  A task that reads something by path may also have `inputs() -> dict[str, str]`: by the config key
  that names it, a hash of its content. A run is not resumed beside other contents.
  """

  name: str

  def init(self, key: jax.Array) -> Params:
    """Returns fresh parameters; a pure function, so that it can be traced by `jax.eval_shape`."""
    ...

  def axes(self) -> Any:
    """Returns a tree like the parameters with the tuple of each one's logical axis names, or
    None if the network does not name them."""
    ...

  def fixed(self) -> tuple[str, ...]:
    """Returns the names of those parts of the parameters that are not meant to learn."""
    ...

  def on(self, mesh: Mesh) -> "Task":
    """Returns the same task for devices that form this mesh, see `sharding.py`."""
    ...

  def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
    """Returns the logical axes of those arrays of a batch of which more than the rows are split
    between devices."""
    ...

  def loss(
    self, params: Params, batch: Batch, key: jax.Array, progress: jax.Array
  ) -> tuple[Ratio, dict[str, Ratio]]:
    """Returns the loss and the metrics of one batch, as ratios of sums.

    progress: f32 scalar, the share of training that is done, 0 to 1.
    """
    ...

  def batches(self) -> Batches:
    """Returns a fresh stream from its beginning."""
    ...

  def evaluators(self) -> list[Evaluator]:
    """Returns what is measured every `eval_every` steps and at the end."""
    ...

  def cost(self, batch: Batch) -> Cost:
    """Returns what a batch of the stream costs; numpy only, called in the fetching thread."""
    ...

  def names(self, batch: Batch) -> Callable[[], list[str]]:
    """Returns what gives the ids of the clips in a batch, called only where a message names them;
    until then it should keep no more of the batch than it needs."""
    ...

  def export(self, params: Params, folder: Path, provenance: dict) -> dict[str, float]:
    """Writes final weights into `folder` and returns last figures about them."""
    ...


def inputs(task: Task) -> dict[str, str]:
  """Hashes of what a task reads by path, by config key; empty if it does not tell."""
  return dict(task.inputs()) if hasattr(task, "inputs") else {}
