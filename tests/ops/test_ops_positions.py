"""Positions: real time, centring, rotation as a relative law, fractions, scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.ops import packing, positions


def placed(grid, fps):
  tables = packing.place([[(grid, fps)]], int(np.prod(grid)) + 1, 2)
  return {name: jnp.asarray(value) for name, value in tables.items()}


def position(grid, fps, patch_t=1):
  t = placed(grid, fps)
  return positions.token_positions(t["coord"], t["segment"], t["grid"], t["fps"], patch_t)[0]


def test_time_is_real_and_space_is_centred():
  got = np.asarray(position((3, 2, 3), 8.0))[:-1].reshape(3, 2, 3, 3)
  np.testing.assert_allclose(got[:, 0, 0, 0], [0, 3, 6])
  np.testing.assert_allclose(got[0, :, 0, 1], [-0.5, 0.5])
  np.testing.assert_allclose(got[0, 0, :, 2], [-1, 0, 1])
  np.testing.assert_allclose(np.asarray(position((3, 1, 1), 24.0, 2))[:3, 0], [0, 2, 4])


def test_pictures_and_padding_lie_at_the_origin_of_time():
  got = np.asarray(position((1, 3, 3), 0.0))
  assert not got[:, 0].any() and not got[-1].any()


@pytest.mark.parametrize(
  "size, want", [(128, (44, 42, 42)), (64, (24, 20, 20)), (32, (12, 10, 10)), (72, (24, 24, 24))]
)
def test_heads_are_split_as_in_wan(size, want):
  assert positions.axis_sizes(size) == want


def test_heads_that_cannot_be_split_are_refused():
  for size in (7, 4):
    with pytest.raises(ValueError, match="even head size of at least 6"):
      positions.axis_sizes(size)


def test_products_depend_on_differences_only(key):
  """<rotate(q, a), rotate(k, b)> = <rotate(q, a + c), rotate(k, b + c)>."""
  q, k = jax.random.normal(key, (2, 1, 5, 2, 12))
  place = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (1, 5, 3)), jnp.float32)

  def product(shift):
    angle = positions.rotary_angles(place + shift, 12)
    turned = [positions.rotate(x, jnp.cos(angle), jnp.sin(angle)) for x in (q, k)]
    return jnp.einsum("rlak,rmak->ralm", *turned)

  moved = product(jnp.array([3.0, -2.0, 5.0]).reshape(1, 1, 3))
  np.testing.assert_allclose(product(jnp.zeros((1, 1, 3))), moved, atol=2e-5)
  assert not np.allclose(moved, jnp.einsum("rlak,rmak->ralm", q, k), atol=0.1)


def test_rotation_turns_pairs_half_a_head_apart():
  x = jnp.zeros((1, 1, 1, 4)).at[..., 0].set(1.0)
  angle = jnp.array([[[jnp.pi / 2, 0.0]]])
  got = positions.rotate(x, jnp.cos(angle), jnp.sin(angle))
  np.testing.assert_allclose(got[0, 0, 0], [0, 0, 1, 0], atol=1e-6)


def test_the_gradient_of_a_rotation_is_that_of_a_complex_product(key):
  x, weight = jax.random.normal(key, (2, 2, 5, 3, 8))
  angle = jax.random.normal(jax.random.fold_in(key, 1), (2, 5, 4))

  def complex_product(x):
    turned = (x[..., :4] + 1j * x[..., 4:]) * jnp.exp(1j * angle)[:, :, None]
    return (weight * jnp.concatenate([turned.real, turned.imag], -1)).sum()

  ours = lambda x: (weight * positions.rotate(x, jnp.cos(angle), jnp.sin(angle))).sum()  # noqa: E731
  for got, expected in zip(jax.value_and_grad(ours)(x), jax.value_and_grad(complex_product)(x)):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.oracle
def test_angles_equal_wans():
  pytest.importorskip("diffusers")
  from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

  torch = pytest.importorskip("torch")
  cos, sin = WanRotaryPosEmbed(32, (1, 2, 2), 64)(torch.zeros(1, 4, 3, 8, 6))
  place = jnp.asarray(packing.token_coords((3, 4, 3)), jnp.float32)[None]
  angle = positions.rotary_angles(place, 32)[0]
  np.testing.assert_allclose(jnp.cos(angle), cos[0, :, 0, 0::2], atol=1e-6)
  np.testing.assert_allclose(jnp.sin(angle), sin[0, :, 0, 1::2], atol=1e-6)


def test_interpolation_and_ntk_reach_farther():
  plain = np.asarray(positions.frequencies(20))
  squeezed = np.asarray(positions.frequencies(20, scale=4.0, method="interpolate"))
  np.testing.assert_allclose(squeezed, plain / 4, rtol=1e-6)
  ntk = np.asarray(positions.frequencies(20, scale=4.0, method="ntk"))
  np.testing.assert_allclose(ntk[0], plain[0])
  np.testing.assert_allclose(ntk[-1], plain[-1] / 4, rtol=1e-5)
  with pytest.raises(ValueError, match="choose none, interpolate or ntk"):
    positions.frequencies(20, method="yarn")


def test_fractions_say_where_the_frame_ends():
  t = placed((2, 2, 4), 8.0)
  got = positions.fractional_positions(t["coord"], t["segment"], t["grid"])[0]
  np.testing.assert_allclose(got[0], [0.25, 0.25, 0.125])
  np.testing.assert_allclose(got[15], [0.75, 0.75, 0.875])
  assert not np.asarray(got[-1]).any()
  features = positions.fraction_features(got[None], 4)
  assert features.shape == (1, 17, 24)
  assert len(np.unique(np.asarray(features[0, :16]).round(4), axis=0)) == 16


@pytest.mark.oracle
@pytest.mark.parametrize("shift", [0, 1])
def test_time_features_equal_diffusers(shift):
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  import torch
  from diffusers.models.embeddings import get_timestep_embedding

  times = np.array([0.0, 3.5, 999.0], np.float32)
  want = get_timestep_embedding(
    torch.from_numpy(times), 32, flip_sin_to_cos=True, downscale_freq_shift=shift
  )
  got = positions.fourier(jnp.asarray(times), 32, shift=float(shift))
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.oracle
def test_fixed_positions_equal_diffusers():
  pytest.importorskip("torch")
  pytest.importorskip("diffusers")
  from diffusers.models.embeddings import get_2d_sincos_pos_embed

  want = get_2d_sincos_pos_embed(16, 4, base_size=4, output_type="pt")
  coord = jnp.asarray(packing.token_coords((1, 4, 4)))[None]
  np.testing.assert_allclose(positions.sincos_positions(coord, 16)[0], want, atol=1e-5)
