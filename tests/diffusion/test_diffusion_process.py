"""The process: nine conversions there and back, the floor, and losses in other spaces."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import process

PAIRS = list(itertools.product(process.KINDS, process.KINDS))


@pytest.fixture
def noisy(key):
  """x0, eps, time [R, L, 1] and the noisy point."""
  x0, eps = jax.random.normal(key, (2, 2, 16, 5))
  time = jnp.linspace(0.06, 0.94, 32).reshape(2, 16, 1)
  return x0, eps, time, process.add_noise(x0, eps, time)


@pytest.mark.parametrize("source, wanted", PAIRS)
def test_conversions_agree_with_targets_and_round_trip(noisy, source, wanted):
  x0, eps, time, x = noisy
  there = process.convert(source, wanted, process.target(source, x0, eps), x, time)
  # Divisions by time >= 0.06 magnify float32 rounding about 20 times.
  np.testing.assert_allclose(there, process.target(wanted, x0, eps), atol=3e-5)
  wrong = process.target(source, x0, eps) + 0.3
  back = process.convert(wanted, source, process.convert(source, wanted, wrong, x, time), x, time)
  np.testing.assert_allclose(back, wrong, atol=3e-5)


@pytest.mark.parametrize("kind", process.KINDS)
def test_x0_of_a_perfect_prediction(noisy, kind):
  x0, eps, time, x = noisy
  np.testing.assert_allclose(
    process.to_x0(kind, process.target(kind, x0, eps), x, time), x0, atol=3e-5
  )


def test_ends_of_the_process(noisy):
  x0, eps, *_ = noisy
  ends = jnp.asarray([0.0, 1.0])[:, None, None]
  x = process.add_noise(x0, eps, ends)
  np.testing.assert_array_equal(x[0], x0[0])
  np.testing.assert_array_equal(x[1], eps[1])


@pytest.mark.parametrize("kind, loss", PAIRS)
def test_finite_at_both_ends_and_dtype_kept(noisy, kind, loss):
  x0, eps, _, _ = noisy
  ends = jnp.asarray([0.0, 1.0])[:, None, None]
  x = process.add_noise(x0.astype(jnp.bfloat16), eps.astype(jnp.bfloat16), ends)
  assert x.dtype == jnp.bfloat16
  out = process.convert(kind, loss, (x0 + 5.0).astype(jnp.bfloat16), x, ends)
  assert out.dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(out, np.float32)).all()
  assert np.isfinite(process.error_factor(kind, loss, ends)).all()


@pytest.mark.parametrize("kind, loss", PAIRS)
def test_error_factor_is_the_slope_of_the_conversion(noisy, kind, loss):
  x0, eps, _, _ = noisy
  time = jnp.linspace(0.0, 1.0, 32).reshape(2, 16, 1)  # inside the floor too
  x = process.add_noise(x0, eps, time)
  right = process.target(kind, x0, eps)
  error = 0.5
  moved = process.convert(kind, loss, right + error, x, time)
  still = process.convert(kind, loss, right, x, time)
  factor = process.error_factor(kind, loss, time)
  np.testing.assert_allclose((moved - still) / error, jnp.broadcast_to(factor, x.shape), atol=1e-4)


def test_textbook_weights_away_from_the_floor():
  time = jnp.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(process.error_factor("x", "v", time) ** 2, time**-2, rtol=1e-5)
  np.testing.assert_allclose(
    process.error_factor("eps", "v", time) ** 2, (1 - time) ** -2, rtol=1e-5
  )
  np.testing.assert_allclose(process.error_factor("v", "x", time) ** 2, time**2, rtol=1e-5)
  assert float(process.error_factor("x", "v", jnp.asarray(0.0))) == pytest.approx(-20.0)


def test_unknown_kind_is_named():
  with pytest.raises(ValueError, match="'score'"):
    process.from_hub("score", process.Hub(jnp.ones(1), jnp.ones(1)))
