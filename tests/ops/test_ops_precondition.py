"""Preconditioning: unit variance in and out, and the best linear guess in between."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.ops import precondition

SPREAD = jnp.array([6.0, 1.0, 0.1])
CLIPS = 20_000


@pytest.fixture(params=[0.05, 0.5, 0.95], name="noisy")
def noisy_cells(request):
  """(x0, x, time) of many cells at one time."""
  rng = np.random.default_rng(0)
  x0, eps = (jnp.asarray(rng.normal(size=(1, CLIPS, 1, 3)), jnp.float32) for _ in range(2))
  x0, time = x0 * SPREAD[None, None, None], request.param
  return x0, (1 - time) * x0 + time * eps, jnp.full((1, CLIPS), time)


def test_what_enters_has_unit_variance(noisy):
  x0, x, time = noisy
  np.testing.assert_allclose(precondition.enter(x, time, SPREAD).std((0, 1, 2)), 1, atol=0.03)
  mask = jnp.full((1, CLIPS, 1, 2), 7.0)
  cells = precondition.enter(jnp.concatenate([x, mask, x0], -1), time, SPREAD)
  np.testing.assert_array_equal(cells[..., 3:5], mask)
  np.testing.assert_allclose(cells[..., 5:].std((0, 1, 2)), 1, atol=0.03)


def test_the_output_that_would_be_right_has_unit_variance_and_is_no_linear_function(noisy):
  x0, x, time = noisy
  guess = precondition.leave(jnp.zeros_like(x), x, time, SPREAD)
  scale = precondition.leave(jnp.ones_like(x), jnp.zeros_like(x), time, SPREAD)
  right = (x0 - guess) / scale
  np.testing.assert_allclose(right.std((0, 1, 2)), 1, atol=0.03)
  np.testing.assert_allclose((right * x).mean((0, 1, 2)) / x.std((0, 1, 2)), 0, atol=0.03)


def test_data_comes_back_at_time_zero_and_empty_channels_stay_finite():
  x = jnp.ones((1, 1, 1, 3))
  got = precondition.leave(5 * x, x, jnp.zeros((1, 1)), SPREAD)
  np.testing.assert_allclose(got, x, rtol=1e-6)
  for time in (0.0, 1.0):
    cells = precondition.enter(x, jnp.full((1, 1), time), jnp.zeros(3))
    assert np.isfinite(cells).all()
