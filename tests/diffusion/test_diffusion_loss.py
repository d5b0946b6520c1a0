"""The packed loss: equal to the clips alone, blind to order, and without leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import loss, process, segments

S = 4


@pytest.fixture
def packed():
  """Two rows with segments of 5, 1, 7 and of 9 tokens, and padding."""
  segment = jnp.asarray([[1] * 5 + [2] + [3] * 7 + [0] * 3, [1] * 9 + [0] * 7])
  error = jnp.abs(jax.random.normal(jax.random.key(3), (2, 16)))
  return error, segment


def clips(error, segment):
  return [
    np.asarray(error[r])[np.asarray(segment[r]) == s]
    for r in range(error.shape[0])
    for s in range(1, S + 1)
    if (np.asarray(segment[r]) == s).any()
  ]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_packed_equals_the_clips_alone(packed, gamma):
  error, segment = packed
  alone = clips(error, segment)
  weights = [len(e) ** gamma for e in alone]
  expected = np.average([e.mean() for e in alone], weights=weights)
  got = loss.packed_loss(error, segment, S, gamma)
  assert float(got.value) == pytest.approx(expected, rel=1e-5)
  if gamma == 1.0:
    assert float(got.value) == pytest.approx(np.concatenate(alone).mean(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_rows_apart_sum_to_rows_together(packed, gamma):
  error, segment = packed
  whole = loss.packed_loss(error, segment, S, gamma)
  parts = [loss.packed_loss(error[r : r + 1], segment[r : r + 1], S, gamma) for r in range(2)]
  together = sum(p.numerator for p in parts) / sum(p.denominator for p in parts)
  assert float(together) == pytest.approx(float(whole.value), rel=1e-6)
  assert float(sum(p.value for p in parts) / 2) != pytest.approx(float(whole.value), rel=1e-3)


def test_order_of_segments_and_rows_does_not_matter(packed):
  error, segment = packed
  order = np.r_[6:13, 0:5, 13:16, 5:6]
  moved_segment = jnp.asarray([0, 2, 3, 1])[segment[:, order]][::-1]
  value, gradient = jax.value_and_grad(lambda e: loss.packed_loss(e, segment, S, 0.5).value)(error)
  moved_value, moved_gradient = jax.value_and_grad(
    lambda e: loss.packed_loss(e, moved_segment, S, 0.5).value
  )(error[:, order][::-1])
  assert float(moved_value) == pytest.approx(float(value), rel=1e-6)
  np.testing.assert_allclose(moved_gradient, gradient[:, order][::-1], rtol=1e-6)


def test_no_gradient_across_segments(packed):
  error, segment = packed
  jacobian = jax.jacobian(lambda e: loss.packed_loss(e, segment, S).segment_RS)(error)
  own = np.asarray(segments.one_hot(segment, S)).transpose(0, 2, 1)  # R S L
  for row in range(2):
    np.testing.assert_array_equal(np.asarray(jacobian)[row, :, 1 - row], 0.0)
    np.testing.assert_array_equal(np.asarray(jacobian)[row, :, row] != 0, own[row] > 0)


def test_padding_may_hold_anything(packed):
  error, segment = packed
  dirty = jnp.where(segment == 0, jnp.nan, error)
  value, gradient = jax.value_and_grad(lambda e: loss.packed_loss(e, segment, S).value)(dirty)
  assert float(value) == float(loss.packed_loss(error, segment, S).value)
  np.testing.assert_array_equal(np.asarray(gradient)[np.asarray(segment) == 0], 0.0)


def test_given_tokens_are_out_of_the_loss_and_of_the_weight(packed):
  error, segment = packed
  counted = jnp.ones((2, 16), bool).at[0, 5].set(False).at[1, :4].set(False)
  got = loss.packed_loss(error, segment, S, 0.5, counted)
  np.testing.assert_array_equal(got.valid_RS, [[True, False, True, False], [True] + [False] * 3])
  alone = [np.asarray(error)[0, :5], np.asarray(error)[0, 6:13], np.asarray(error)[1, 4:9]]
  expected = np.average([e.mean() for e in alone], weights=[len(e) ** 0.5 for e in alone])
  assert float(got.value) == pytest.approx(expected, rel=1e-5)


def test_an_empty_batch_weighs_nothing():
  got = loss.packed_loss(jnp.ones((1, 4)), jnp.zeros((1, 4), jnp.int32), S, 0.0)
  assert float(got.numerator) == 0 and float(got.denominator) == 0 and float(got.value) == 0


@pytest.mark.parametrize("kind", process.KINDS)
@pytest.mark.parametrize("space", process.KINDS)
def test_token_error_is_the_error_in_the_space_of_the_loss(key, kind, space):
  x0, eps, wrong = jax.random.normal(key, (3, 1, 8, 6))
  time = jnp.linspace(0.06, 0.94, 8)[None]
  x = process.add_noise(x0, eps, time[..., None])
  got = loss.token_error(wrong, process.target(kind, x0, eps), time, kind, space)
  moved = process.convert(kind, space, wrong, x, time[..., None])
  expected = jnp.mean((moved - process.target(space, x0, eps)) ** 2, axis=-1)
  np.testing.assert_allclose(got, expected, rtol=1e-3)


def test_the_floor_bounds_what_low_times_weigh():
  ones, time_RL = jnp.ones((1, 3, 2)), jnp.array([[0.0, 0.1, 0.8]])
  got = loss.token_error(ones, 0 * ones, time_RL, "x", "v", floor=0.5)
  np.testing.assert_allclose(got, [[4.0, 4.0, 0.8**-2]], rtol=1e-6)
