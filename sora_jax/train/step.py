"""One jitted training step: gradients of sums, a guarded update, averaged weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.train import optimizer as optimizer_lib
from sora_jax.train import state as state_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.state import TrainState
from sora_jax.train.task import Batch, Ratio


class StepMetrics(NamedTuple):
  """What a step leaves on the device for the host to read one step later.

  ratios: sums by name, "loss" among them.  finite: whether the update was made.  skipped: steps
  that were left out so far, see `optimizer.skip_spikes`.  moved: which parameters learned
  from it, see `optimizer.moved`; all of them in a step that was left out.
  """

  ratios: dict[str, Ratio]
  grad_norm: Any
  lr: Any
  finite: Any
  skipped: Any
  moved: Any


def make_step(
  loss: Callable,
  config: OptimizerConfig,
  accumulate: int = 1,
  axes: Any = None,
  mesh: Mesh | None = None,
  placed: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
  """Returns the jitted step `(state, batch) -> (state, metrics)`; the state is donated.

  loss: as `Task.loss`.  accumulate: microbatches per step; every leading axis of the batch must be
  a multiple of it.  axes: see `optimizer.make`.  mesh: where the step runs; None = one device.
  placed: shardings of the state on it, see `sharding.of_state`. A step whose loss or gradient is
  not finite returns the state as it came, with `finite` false: no later step can see the damage,
  and the host need not wait to find out.
  """
  optimizer = optimizer_lib.make(config, axes)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    key, progress = state_lib.step_key(state), state_lib.progress(state)
    with sharding.using(mesh):
      ratios, grads = accumulated_gradients(loss, state.params, batch, key, progress, accumulate)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(ratios["loss"].numerator)
    lr = optimizer_lib.learning_rate(config, state.step, state.total_steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + (lr * u).astype(p.dtype), state.params, updates)
    decay = state_lib.ema_decay(state.step, config.ema_decay)
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), state.ema_params, params)
    new = state.replace(step=state.step + 1, params=params, ema_params=ema, opt_state=opt_state)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    moved = optimizer_lib.moved(grads, updates, axes)
    skipped = optimizer_lib.skipped(new.opt_state)
    return new, StepMetrics(ratios, grad_norm, lr, finite, skipped, moved | ~moved.any())

  out = None if mesh is None else (placed, sharding.replicated(mesh))
  return jax.jit(step, donate_argnums=0, out_shardings=out)


def accumulated_gradients(
  loss: Callable, params: Any, batch: Batch, key: jax.Array, progress: jax.Array, accumulate: int
) -> tuple[dict[str, Ratio], Any]:
  """Returns (sums by name, gradient of the loss) over `accumulate` microbatches.

  Numerators, denominators and the gradient of the numerator are summed apart and divided once, so
  microbatches with few tokens weigh as little as they would in one large batch.

  Raises: ValueError if a leading axis is not a multiple of `accumulate`.
  """

  def numerator(params, batch, key):
    ratio, metrics = loss(params, batch, key, progress)
    return ratio.numerator, {"loss": ratio, **metrics}

  gradient = jax.value_and_grad(numerator, has_aux=True)
  if accumulate == 1:
    (_, sums), grads = gradient(params, batch, key)
  else:
    batches = jax.tree.map(lambda x: _split(x, accumulate), batch)
    keys = jax.random.split(key, accumulate)

    def body(total, part):
      (_, sums), grads = gradient(params, *part)
      return jax.tree.map(jnp.add, total, (sums, grads)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], batches), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0][1], shapes[1]))
    (sums, grads), _ = jax.lax.scan(body, zeros, (batches, keys))
  weight = jnp.maximum(sums["loss"].denominator, 1e-20)
  return sums, jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)


def _split(x: jax.Array, parts: int) -> jax.Array:
  """Splits the leading axis into `parts` strided microbatches, which keeps shards in place."""
  if x.shape[0] % parts:
    raise ValueError(
      f"a batch axis of {x.shape[0]} cannot be split into train.accumulate={parts} parts;"
      " choose a divisor"
    )
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
