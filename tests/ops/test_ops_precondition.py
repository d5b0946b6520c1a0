"""Preconditioning: unit variance in and out, and the level of a clip taken out in between."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.ops import precondition

SPREAD, LEVEL = np.float32([2.0, 1.0, 0.1]), np.float32([6.0, 0.0, 0.5])
SPREAD_Z, LEVEL_Z = jnp.asarray(SPREAD), jnp.asarray(LEVEL)
ROWS, TOKENS, CELLS = 4000, 5, 2
SEGMENT = jnp.tile(jnp.array([1, 1, 1, 2, 0]), (ROWS, 1))


def draw(time):
  """(x0, x, time_RL) of rows with a clip of three tokens, one of one token, and padding."""
  rng = np.random.default_rng(0)
  level = np.stack([rng.normal(size=(ROWS, 3)) * LEVEL for _ in range(3)], 1)
  x0 = rng.normal(size=(ROWS, TOKENS, CELLS, 3)) * SPREAD
  x0 = np.float32(x0 + level[:, [0, 0, 0, 1, 2], None])
  eps = np.float32(rng.normal(size=x0.shape))
  time_RL = np.tile(time, (ROWS, 1))
  t = time_RL[..., None, None]
  return x0, jnp.asarray((1 - t) * x0 + t * eps), jnp.asarray(time_RL)


@pytest.fixture(params=[0.05, 0.5, 0.95, (0.9, 0.2, 0.5, 0.7, 0.0)], name="noisy")
def noisy_cells(request):
  """(x0, x, Level, time_RL) at one time, or at one for each token."""
  x0, x, time_RL = draw(np.broadcast_to(request.param, (TOKENS,)).astype(np.float32))
  return x0, x, estimate(x, time_RL), time_RL


def estimate(x, time_RL, segment_RL=SEGMENT):
  return precondition.estimate_level(x, time_RL, segment_RL, 3, SPREAD_Z, LEVEL_Z)


def test_the_level_is_the_mean_of_the_posterior(noisy):
  x0, x, level, time_RL = noisy
  t = np.asarray(time_RL[0], np.float64)
  for tokens in ([0, 1, 2], [3]):
    a, n = np.repeat(1 - t[tokens], CELLS), CELLS * len(tokens)
    noise = np.diag(np.repeat(t[tokens], CELLS) ** 2)
    for z in range(3):
      cross = a * float(LEVEL[z]) ** 2
      inner = np.eye(n) * float(SPREAD[z]) ** 2 + np.full((n, n), float(LEVEL[z]) ** 2)
      gain = np.linalg.solve(np.outer(a, a) * inner + noise, cross)
      got = level.mean[:, tokens[0], 0, z]
      want = np.asarray(x, np.float64)[..., z][:, tokens].reshape(ROWS, n) @ gain
      np.testing.assert_allclose(got, want, atol=2e-4)
      left = float(LEVEL[z]) ** 2 - gain @ cross
      np.testing.assert_allclose(level.variance[:, tokens[0], 0, z], left, rtol=2e-3, atol=1e-5)


def test_levels_keep_to_their_segment(noisy):
  _, x, level, time_RL = noisy
  other = estimate(x.at[:, 3:].add(100.0), time_RL)
  np.testing.assert_array_equal(other.mean[:, :3], level.mean[:, :3])
  np.testing.assert_array_equal(level.mean[:, 4], 0)


def test_what_enters_has_unit_variance(noisy):
  x0, x, level, _ = noisy
  many = precondition.enter(x, level, SPREAD_Z)[:, :4]
  np.testing.assert_allclose(many.std((0, 2)), 1, atol=0.03)
  mask = jnp.full((ROWS, TOKENS, CELLS, 2), 7.0)
  cells = precondition.enter(jnp.concatenate([x, mask, x0], -1), level, SPREAD_Z)
  np.testing.assert_array_equal(cells[..., :3], precondition.enter(x, level, SPREAD_Z))
  np.testing.assert_array_equal(cells[..., 3:5], mask)
  np.testing.assert_allclose(cells[..., 5:], x0 / SPREAD[None, None, None], rtol=1e-6)


def test_one_level_of_zero_is_the_preconditioning_of_every_cell_alone(noisy):
  x0, x, level, time_RL = noisy
  t, s = np.asarray(time_RL)[:, :, None], float(SPREAD[1])
  D = (1 - t) ** 2 * s**2 + t**2
  np.testing.assert_allclose(
    precondition.enter(x, level, SPREAD_Z)[..., 1], x[..., 1] / np.sqrt(D), rtol=1e-5
  )
  out = precondition.leave(jnp.full_like(x, 3.0), level, SPREAD_Z)[..., 1]
  np.testing.assert_allclose(out, 3 * s, rtol=1e-6)


def test_the_output_that_would_be_right_has_unit_variance(noisy):
  x0, x, level, _ = noisy
  guess = precondition.leave(jnp.zeros_like(x), level, SPREAD_Z)
  np.testing.assert_array_equal(guess, jnp.broadcast_to(level.mean, x.shape))
  right = (x0 - guess) / (precondition.leave(jnp.ones_like(x), level, SPREAD_Z) - guess)
  np.testing.assert_allclose(right[:, :4].std((0, 2)), 1, atol=0.03)


def test_empty_channels_stay_finite():
  x = jnp.ones((1, 2, 1, 3))
  segment = jnp.array([[1, 0]])
  for time in (0.0, 1.0):
    time_RL, none = jnp.full((1, 2), time), jnp.zeros(3)
    level = precondition.estimate_level(x, time_RL, segment, 1, none, none)
    assert np.isfinite(precondition.enter(x, level, none)).all()
    assert np.isfinite(precondition.leave(x, level, none)).all()
