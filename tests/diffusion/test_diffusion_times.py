"""Times: stratification, the mixture, and the shift as a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sora_jax.diffusion import times


def test_stratified_over_all_valid_slots(key):
  valid = np.random.default_rng(0).random((8, 6)) < 0.7
  u = np.asarray(times.stratify(key, jnp.asarray(valid)))
  number = valid.sum()
  # One slot in each of the N equal parts, and nothing at unused slots.
  np.testing.assert_array_equal(np.sort((u[valid] * number).astype(int)), np.arange(number))
  np.testing.assert_array_equal(u[~valid], 0.0)


def test_each_slot_alone_is_uniform(key):
  valid = jnp.ones((4, 4), bool).at[1, 2].set(False)
  u = jax.vmap(lambda k: times.stratify(k, valid))(jax.random.split(key, 2000))
  for row, slot in ((0, 0), (3, 3), (1, 1)):
    assert stats.kstest(np.asarray(u[:, row, slot]), "uniform").pvalue > 1e-3


def test_unused_slots_do_not_change_the_number_of_parts(key):
  valid = jnp.zeros((3, 5), bool).at[2, 4].set(True)
  u = times.stratify(key, valid)
  assert 0 <= float(u[2, 4]) < 1 and float(jnp.sum(u != 0)) <= 1
  np.testing.assert_array_equal(times.stratify(key, jnp.zeros((3, 5), bool)), np.zeros((3, 5)))


def test_mixture_of_logit_normal_and_uniform():
  config = times.TimeConfig(mean=0.4, std=0.8, uniform=0.1)
  u = (jnp.arange(20000) + 0.5) / 20000
  got = np.sort(np.asarray(times.quantile_times(u, config), np.float64))
  logit = np.log(got) - np.log1p(-got)
  cdf = 0.1 * got + 0.9 * stats.norm.cdf(logit, 0.4, 0.8)
  np.testing.assert_allclose(cdf, np.asarray(u, np.float64), atol=2e-4)


@pytest.mark.parametrize("uniform", [0.0, 0.1, 1.0])
def test_times_are_inside_and_finite(uniform):
  u = jnp.asarray([0.0, 1e-9, 0.1, 0.5, 1.0 - 6e-8])
  got = np.asarray(times.quantile_times(u, times.TimeConfig(uniform=uniform)))
  assert np.isfinite(got).all() and (got >= 0).all() and (got <= 1).all()


def test_training_times_come_from_key_and_layout_alone(key):
  valid = jnp.ones((4, 3), bool).at[0, 2].set(False)
  shift = jnp.full((4, 3), 2.0)
  draw = jax.jit(lambda k: times.training_times(k, valid, shift, times.TimeConfig()))
  np.testing.assert_array_equal(draw(key), draw(key))
  assert float(draw(key)[0, 2]) == 0.0
  assert (np.asarray(draw(key)) != np.asarray(draw(jax.random.key(1))))[np.asarray(valid)].all()


def test_a_network_for_a_part_of_the_way_sees_the_same_times_squeezed_into_it(key):
  valid, shift = jnp.ones((64, 4), bool), jnp.ones((64, 4))
  draw = lambda **low: times.training_times(key, valid, shift, times.TimeConfig(std=2.0, **low))  # noqa: E731
  whole, above = draw(), draw(low=0.4)
  np.testing.assert_allclose(above, 0.4 + 0.6 * whole, rtol=1e-6)
  assert float(whole.min()) < 0.4 < float(above.min())
  below = draw(high=0.4)
  np.testing.assert_allclose(below, 0.4 * whole, rtol=1e-6)
  near = lambda low: times.near_noise(key, whole, shift, valid, low)  # noqa: E731
  assert 0.8 < float(near(0.4).min()) < 0.81 and 0.9 < float(near(0.9).min()) < 0.91


def test_what_lies_next_to_known_frames_is_ahead_of_what_lies_beyond(key):
  owner = jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 0, 0]] * 2)
  away = jnp.asarray([[0, 0, 1, 2, 3, 0, 1, 12, 12, 12, 12, 12]] * 2)
  chosen, before = jnp.asarray([[True] * 4, [False] * 4]), jnp.full((2, 12), 0.123)
  draw = lambda key, low=0.0, shift=1.0: np.asarray(  # noqa: E731
    times.staged(key, before, jnp.full((2, 12), shift), away, owner, chosen, low)
  )
  fronts, waits = [], []
  for each in jax.random.split(key, 40):
    found = draw(each)
    assert (found[1] == before[1]).all() and (found[0, 5:] == before[0, 5:]).all()
    waiting = found[0, :5] < 0.5
    fronts.append(int(waiting.sum()))  # frames 0 to 2 wait, or 0 to 3
    waits.append(found[0, 0])
    assert waiting[: fronts[-1]].all() and len(set(found[0, :5][waiting])) == 1
    assert len(set(found[0, :5][~waiting])) == 1 and found[0, 4] > times.NEAR
  assert set(fronts) == {3, 4} and 12 < fronts.count(3) < 28
  assert times.WAITING[0] <= min(waits) < 0.22 and 0.38 < max(waits) <= times.WAITING[1]
  shifted = times.shift(4.0, jnp.asarray(draw(key)[0, :5]))
  np.testing.assert_allclose(draw(key, shift=4.0)[0, :5], shifted, rtol=1e-6)
  assert 0.5 <= draw(key, low=0.5)[0, 0] < 0.7
  late = [draw(each, low=0.95)[0, :5] for each in jax.random.split(key, 20)]
  assert 0.95 <= np.min(late) and np.max(late) <= 1


def test_shift_is_a_group_that_keeps_the_ends():
  t = jnp.linspace(0.0, 1.0, 65)
  both = times.shift(3.0, times.shift(1.7, t))
  np.testing.assert_allclose(both, times.shift(5.1, t), atol=1e-6)
  np.testing.assert_array_equal(times.shift(1.0, t), t)
  np.testing.assert_allclose(times.shift(1 / 3.0, times.shift(3.0, t)), t, atol=1e-6)
  moved = np.asarray(times.shift(3.0, t))
  assert moved[0] == 0 and moved[-1] == 1 and (np.diff(moved) > 0).all()


def test_segment_shift_by_size():
  grid = jnp.asarray([[[1, 8, 8], [1, 16, 16], [16, 8, 8], [0, 0, 0], [64, 128, 128], [1, 2, 2]]])
  config = times.ShiftConfig(reference=64, space=0.5, frames=0.25)
  got = times.segment_shift(grid, config)
  np.testing.assert_allclose(got[0], [1.0, 2.0, 2.0, 1.0, 7.0, 1.0], rtol=1e-6)
  double = times.segment_shift(grid, config, patch_frames=16)
  np.testing.assert_allclose(double[0, 0], 2.0, rtol=1e-6)


def test_slots_and_tokens_look_up_their_own():
  shift_RQ = times.slot_shift(jnp.asarray([[2.0, 3.0]]), jnp.asarray([[2, 1, 0]]))
  np.testing.assert_array_equal(shift_RQ, [[3.0, 2.0, 1.0]])
  token = times.token_times(jnp.asarray([[0.1, 0.2, 0.3]]), jnp.asarray([[2, 2, 0, 1]]))
  np.testing.assert_allclose(token, [[0.3, 0.3, 0.1, 0.2]])


@pytest.mark.parametrize(
  "make",
  [
    lambda: times.ShiftConfig(reference=0),
    lambda: times.ShiftConfig(low=3, high=2),
    lambda: times.TimeConfig(uniform=1.5),
    lambda: times.TimeConfig(std=0),
    lambda: times.TimeConfig(low=1),
  ],
)
def test_impossible_settings_are_refused(make):
  with pytest.raises(ValueError, match="got"):
    make()
