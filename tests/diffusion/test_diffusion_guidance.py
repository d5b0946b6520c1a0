"""Guidance: identities, per-segment statistics, and parity with diffusers' guiders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import guidance, process

S = 3


@pytest.fixture
def row(key):
  """cond, free [1, 12, 4]; segments of 5, 4 and 1 tokens of very different scale, and padding."""
  cond, free = jax.random.normal(key, (2, 1, 12, 4))
  segment = jnp.asarray([[1] * 5 + [2] * 4 + [3] + [0] * 2])
  size = jnp.asarray([0.0, 1.0, 30.0, 4.0])[segment][..., None]
  return cond * size, free * size, segment


def rules(segment, num):
  """Every rule as a function of (cond, free)."""
  return {
    "plain": lambda c, f: guidance.guide(c, f, 3.0),
    "rescale": lambda c, f: guidance.rescale(guidance.guide(c, f, 3.0), c, segment, num),
    "projected": lambda c, f: guidance.guide_projected(
      c, f, 3.0, segment, num, eta=0.2, max_norm=4.0
    ),
    "zero_star": lambda c, f: guidance.guide_zero_star(c, f, 3.0, segment, num),
  }


def test_scale_one_is_off_and_zero_is_free(row):
  cond, free, segment = row
  np.testing.assert_array_equal(guidance.guide(cond, free, 1.0), cond)
  np.testing.assert_allclose(guidance.guide(cond, free, 0.0), free, atol=1e-5)
  np.testing.assert_array_equal(guidance.guide_projected(cond, free, 1.0, segment, S), cond)
  np.testing.assert_allclose(
    guidance.guide_projected(cond, free, 3.0, segment, S, eta=1.0),
    guidance.guide(cond, free, 3.0),
    rtol=1e-5,
    atol=1e-4,
  )


def test_two_conditions(row):
  cond, free, _ = row
  image = 0.5 * cond + 1.0
  np.testing.assert_array_equal(guidance.guide_two(cond, image, free, 1.0, 1.0), cond)
  np.testing.assert_allclose(
    guidance.guide_two(cond, image, free, 5.0, 2.0),
    free + 2.0 * (image - free) + 5.0 * (cond - image),
    rtol=1e-5,
    atol=1e-4,
  )
  np.testing.assert_allclose(
    guidance.guide_two(cond, free, free, 5.0, 1.0), guidance.guide(cond, free, 5.0), atol=1e-4
  )


def test_the_same_in_every_space(key):
  x0, other, x = jax.random.normal(key, (3, 1, 4, 2))
  time = jnp.asarray(0.4)
  guided = guidance.guide(x0, other, 4.0)
  for kind in process.KINDS:
    cond, free = (process.convert("x", kind, p, x, time) for p in (x0, other))
    back = process.to_x0(kind, guidance.guide(cond, free, 4.0), x, time)
    np.testing.assert_allclose(back, guided, atol=1e-5)


def test_interval_is_open_below_and_closed_above():
  time = jnp.asarray([0.05, 0.125, 0.5, 0.75, 1.0])
  found = guidance.in_interval(time, (0.125, 0.75))
  np.testing.assert_array_equal(found, [False, False, True, True, False])
  assert guidance.in_interval(time, guidance.ALL_TIMES).all()


@pytest.mark.parametrize(
  "interval", [(0.5,), (-0.1, 1.0), (0.6, 0.5), (0.0, 1.5), (0.0, float("nan"))]
)
def test_what_is_no_interval_is_named(interval):
  assert guidance.checked_interval([0, 1]) == guidance.ALL_TIMES
  with pytest.raises(ValueError, match="guidance_interval is .*; it must be LOW,HIGH within 0 and"):
    guidance.checked_interval(interval)


def test_rescale_restores_the_deviation_of_each_segment(row):
  cond, free, segment = row
  guided = guidance.guide(cond, free, 5.0)
  out = guidance.rescale(guided, cond, segment, S, phi=1.0)
  for s in (1, 2, 3):
    own = np.asarray(segment)[0] == s
    assert np.std(np.asarray(out)[0, own]) == pytest.approx(
      np.std(np.asarray(cond)[0, own]), rel=1e-5
    )
  np.testing.assert_array_equal(np.asarray(out)[0, 10:], 0.0)
  np.testing.assert_allclose(guidance.rescale(guided, cond, segment, S, phi=0.0), guided, rtol=1e-6)


@pytest.mark.parametrize("name", ["rescale", "projected", "zero_star"])
def test_a_segment_is_guided_as_if_alone(row, name):
  cond, free, segment = row
  packed = rules(segment, S)[name](cond, free)
  for s in (1, 2, 3):
    own = np.flatnonzero(np.asarray(segment)[0] == s)
    rule = jax.jit(rules(jnp.ones((1, len(own)), jnp.int32), 1)[name])
    alone = rule(cond[:, own], free[:, own])
    np.testing.assert_allclose(packed[:, own], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "rescale", "projected", "zero_star"])
def test_no_leak_and_clean_padding(row, name):
  cond, free, segment = row
  rule = rules(segment, S)[name]
  jacobian = np.asarray(jax.jacobian(lambda c: rule(c, free))(cond))[0, :, :, 0]
  same = np.asarray(segment)[0][:, None] == np.asarray(segment)[0][None]
  np.testing.assert_array_equal(jacobian.transpose(0, 2, 1, 3)[~same], 0.0)
  assert rule(cond.astype(jnp.bfloat16), free.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  if name != "plain":
    dirty = jnp.where((segment == 0)[..., None], jnp.nan, cond)
    np.testing.assert_array_equal(rule(dirty, free), rule(cond, free))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["plain", "rescale", "projected", "zero_star"])
def test_parity_with_diffusers_guiders(row, name):
  torch = pytest.importorskip("torch")
  guiders = pytest.importorskip("diffusers.guiders")
  from diffusers.guiders import adaptive_projected_guidance as apg

  cond, free, segment = row
  for s in (1, 2, 3):
    own = np.flatnonzero(np.asarray(segment)[0] == s)
    c, f = (torch.tensor(np.asarray(p)[:, own]) for p in (cond, free))
    if name == "plain":
      expected = guiders.ClassifierFreeGuidance(3.0).forward(c, f).pred
    elif name == "rescale":
      expected = guiders.ClassifierFreeGuidance(3.0, guidance_rescale=0.7).forward(c, f).pred
    elif name == "projected":
      # Their scale multiplies the projected difference on top of cond: ours less 1.
      expected = apg.normalized_guidance(c, f, 2.0, None, 0.2, 4.0, True)
    else:
      guider = guiders.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0)
      guider._step = 1
      expected = guider.forward(c, f).pred
    got = rules(segment, S)[name](cond, free)[:, own]
    np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=2e-4)
