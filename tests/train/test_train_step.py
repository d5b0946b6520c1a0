"""The step: sums apart, guarded updates, one program, donated state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy

from sora_jax.train import state as state_lib
from sora_jax.train import step as step_lib
from sora_jax.train.optimizer import OptimizerConfig, make
from sora_jax.train.task import Ratio

ADAM = OptimizerConfig(lr=0.1, warmup_steps=1, ema_decay=0.9)


def fresh(config=ADAM, task=None):
  return state_lib.create((task or Toy()).init, make(config), 0, 10)


def test_accumulation_equals_one_large_batch_of_unequal_weights():
  def loss(params, batch, key, progress):
    error = jnp.sum((batch["x"] @ params["layer"]["kernel"] - batch["y"]) ** 2, axis=1)
    return Ratio((error * batch["w"]).sum(), batch["w"].sum()), {}

  batch = jax.tree.map(jnp.asarray, next(Toy().batches()))
  batch["w"] = jnp.array([0.0, 0, 0, 1, 5, 1, 2, 7])
  state = fresh()
  args = (state.params, batch, jax.random.key(0), jnp.zeros(()))
  one, grads_one = step_lib.accumulated_gradients(loss, *args, 1)
  four, grads_four = step_lib.accumulated_gradients(loss, *args, 4)
  np.testing.assert_allclose(one["loss"].numerator, four["loss"].numerator, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads_one, grads_four
  )


def test_accumulation_must_divide():
  batch = jax.tree.map(jnp.asarray, next(Toy().batches()))
  with pytest.raises(ValueError, match="train.accumulate=3"):
    step_lib.accumulated_gradients(
      Toy().loss, fresh().params, batch, jax.random.key(0), jnp.zeros(()), 3
    )


def test_a_bad_batch_leaves_the_state_unchanged():
  step = step_lib.make_step(Toy().loss, ADAM)
  stream = Toy(bad=1).batches()
  state, out = step(fresh(), next(stream))
  before = jax.device_get(state)
  state, out = step(state, next(stream))
  assert not out.finite
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
  state, out = step(state, next(stream))
  assert out.finite and int(state.step) == 2
  assert step._cache_size() == 1


def test_state_is_donated():
  step = step_lib.make_step(Toy().loss, ADAM)
  state = fresh()
  step(state, next(Toy().batches()))
  assert state.params["layer"]["kernel"].is_deleted()


def test_averaged_weights_follow_the_ramp():
  step = step_lib.make_step(Toy().loss, ADAM)
  state = fresh()
  first = jax.device_get(state.params["layer"]["kernel"])
  state, _ = step(state, next(Toy().batches()))
  want = 0.1 * first + 0.9 * np.asarray(state.params["layer"]["kernel"])
  np.testing.assert_allclose(state.ema_params["layer"]["kernel"], want, rtol=1e-5)
  assert float(state_lib.ema_decay(jnp.asarray(10**6), 0.99)) == pytest.approx(0.99)


def test_keys_are_a_function_of_seed_and_step():
  a, b = fresh(), fresh()
  assert jnp.array_equal(
    jax.random.key_data(state_lib.step_key(a)), jax.random.key_data(state_lib.step_key(b))
  )
  c = a.replace(step=a.step + 1)
  d = a.replace(seed=a.seed + 1)
  keys = {tuple(np.asarray(jax.random.key_data(state_lib.step_key(s)))) for s in (a, c, d)}
  assert len(keys) == 3
