"""The schedule: closed forms against autodiff, and the map to variance-preserving processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import schedule

TIMES = jnp.linspace(0.01, 0.99, 33)


@pytest.mark.parametrize(
  "function, rate",
  [
    (schedule.alpha, schedule.alpha_rate),
    (schedule.sigma, schedule.sigma_rate),
    (schedule.log_snr, schedule.log_snr_rate),
    (lambda u: schedule.vp_cosine(u)[0], lambda u: schedule.vp_cosine_rate(u)[0]),
    (lambda u: schedule.vp_cosine(u)[1], lambda u: schedule.vp_cosine_rate(u)[1]),
  ],
  ids=["alpha", "sigma", "log_snr", "cosine_a", "cosine_s"],
)
def test_rates_match_autodiff(function, rate):
  np.testing.assert_allclose(rate(TIMES), jax.vmap(jax.grad(function))(TIMES), rtol=2e-5, atol=1e-6)


def test_time_runs_from_data_to_noise():
  ends = jnp.asarray([schedule.DATA, schedule.NOISE])
  np.testing.assert_array_equal(schedule.alpha(ends), [1.0, 0.0])
  np.testing.assert_array_equal(schedule.sigma(ends), [0.0, 1.0])
  np.testing.assert_array_equal(schedule.log_snr(ends), [np.inf, -np.inf])
  np.testing.assert_array_equal(schedule.time_of_log_snr(schedule.log_snr(ends)), ends)


def test_log_snr_round_trip():
  np.testing.assert_allclose(
    schedule.time_of_log_snr(schedule.log_snr(TIMES)), TIMES, rtol=1e-5, atol=1e-7
  )


def test_vp_pair_has_unit_norm_and_the_same_snr():
  a, s = schedule.vp_of_time(TIMES)
  np.testing.assert_allclose(a**2 + s**2, np.ones(33), rtol=1e-6)
  np.testing.assert_allclose(2 * jnp.log(a / s), schedule.log_snr(TIMES), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(schedule.time_of_vp(a, s), TIMES, rtol=1e-6)
  a, s = schedule.vp_cosine(jnp.asarray([0.0, 1.0]))
  np.testing.assert_allclose(schedule.time_of_vp(a, s), [0.0, 1.0], atol=1e-6)


def test_vp_data_maps_to_flow_data_and_back(key):
  x0, eps = jax.random.normal(key, (2, 33))
  a, s = schedule.vp_of_time(TIMES)
  flow = (1 - TIMES) * x0 + TIMES * eps
  np.testing.assert_allclose(
    schedule.flow_of_vp(a * x0 + s * eps, a, s), flow, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    schedule.vp_of_flow(flow, TIMES), a * x0 + s * eps, rtol=1e-5, atol=1e-6
  )
