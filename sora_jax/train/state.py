"""The state of a training run, and the one owner of the step counter and of random keys."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; it is saved whole.

  step: steps taken, int32.  total_steps: where the learning-rate schedule ends, int32; it is
  state because a run with a time budget measures its own length.  seed: uint32, the run's seed.
  """

  step: Any
  total_steps: Any
  seed: Any
  params: Any
  ema_params: Any
  opt_state: Any


def create(init, optimizer, seed: int, total_steps: int) -> TrainState:
  """Returns the state before the first step; traceable.

  init: `key -> params`.  optimizer: an optax transformation.
  """
  params = init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    total_steps=jnp.asarray(total_steps, jnp.int32),
    seed=jnp.asarray(seed, jnp.uint32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
  )


def step_key(state: TrainState) -> jax.Array:
  """Returns the random key of the coming step: a function of (seed, step) alone, so resume is
  exact."""
  return jax.random.fold_in(jax.random.key(state.seed), state.step)


def progress(state: TrainState) -> Float[Array, ""]:
  """Returns the share of training done, 0 to 1."""
  return jnp.clip(state.step / jnp.maximum(state.total_steps, 1), 0.0, 1.0).astype(jnp.float32)


def ema_decay(step: Int[Array, ""], limit: float) -> Float[Array, ""]:
  """Returns the decay of the averaged weights at `step`: min(limit, (1 + s) / (10 + s)).

  The ramp keeps the average of a short run from remembering its random start.
  """
  s = step.astype(jnp.float32)
  return jnp.minimum(limit, (1.0 + s) / (10.0 + s))
