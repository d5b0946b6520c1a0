"""Positions: real time, centring, rotation as a relative law, fractions, scaling."""

import functools

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


def row_of(segments):
  """Grids, seconds, segments and positions of one row of (token grid, seconds)."""
  fps = [0.0 if seconds == 0 else 8.0 for _, seconds in segments]
  row_len = sum(int(np.prod(grid)) for grid, _ in segments) + 2
  tables = packing.place(
    [[(grid, rate) for (grid, _), rate in zip(segments, fps)]], row_len, len(segments) + 1
  )
  t = {name: jnp.asarray(value) for name, value in tables.items()}
  seconds = jnp.asarray([[seconds for _, seconds in segments] + [0.0]], jnp.float32)
  place = positions.token_positions(t["coord"], t["segment"], t["grid"], t["fps"])
  return t["grid"], seconds, t["segment"], place


def scaled(segments, methods, extent=(2.0, 4.0)):
  """Positions of one row, the scale of its segments, and that of its tokens."""
  grid, seconds, segment, place = row_of(segments)
  scale = positions.position_scale(grid, seconds, extent, methods)
  return place, scale, positions.token_scale(scale, segment)


LARGE = [((4, 3, 8), 6.0), ((2, 3, 4), 2.0), ((1, 10, 2), 0.0)]
"""Segments that are three times too long and twice too wide, within (2 s, 4 tokens), too high."""


def test_each_segment_has_the_scale_of_what_it_exceeds():
  _, scale, (squeeze, stretch) = scaled(LARGE, ("interpolate", "ntk"))
  np.testing.assert_array_equal(scale.squeeze_RS3[0], [[3, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
  np.testing.assert_array_equal(
    scale.stretch_RS3[0], [[1, 2, 2], [1, 1, 1], [1, 2.5, 2.5], [1, 1, 1]]
  )
  np.testing.assert_array_equal(squeeze[0, 0], [3, 1, 1])
  np.testing.assert_array_equal(stretch[0, -3], [1, 2.5, 2.5])
  np.testing.assert_array_equal(squeeze[0, -2:], 1)  # padding


@pytest.mark.parametrize("method", positions.METHODS)
def test_positions_within_the_trained_extent_are_untouched_to_the_bit(method):
  row = row_of([((5, 7, 3), 29 / 24), ((1, 1, 7), 0.0), ((2, 6, 7), 0.3)])

  @functools.partial(jax.jit, static_argnums=0)
  def angles(extent, grid, seconds, segment, place):
    scale = positions.position_scale(grid, seconds, extent, (method, method))
    squeeze, stretch = positions.token_scale(scale, segment)
    return positions.rotary_angles(place / squeeze, 32, stretch_RL3=stretch)

  got = angles((29 / 24, 7.0), *row)
  np.testing.assert_array_equal(got, jax.jit(lambda x: positions.rotary_angles(x, 32))(row[3]))
  changed = np.asarray(angles((0.5, 7.0), *row) != got).any(-1)[0]  # the first is now too long
  assert not changed[105:].any() and changed[:105].any() == (method != "none")


def test_interpolated_angles_are_those_of_positions_over_the_scale():
  place, _, (squeeze, stretch) = scaled(LARGE, ("interpolate", "interpolate"))
  got = positions.rotary_angles(place / squeeze, 32, stretch_RL3=stretch)
  by_hand = np.array(place)
  by_hand[0, :96] /= np.float32([3, 2, 2])
  by_hand[0, 120:140] /= np.float32([1, 2.5, 2.5])
  np.testing.assert_array_equal(got, positions.rotary_angles(jnp.asarray(by_hand), 32))
  last = np.asarray(place / squeeze)[0, :96]
  assert last[:, 0].max() == 3 * 3 / 3 and last[:, 2].max() == 3.5 / 2


def test_ntk_angles_are_those_of_a_larger_base():
  place, _, (squeeze, stretch) = scaled(LARGE, ("ntk", "ntk"))
  np.testing.assert_array_equal(squeeze, 1)
  got = np.asarray(positions.rotary_angles(place, 32, 1e4, stretch_RL3=stretch))[0]
  place, start = np.asarray(place, np.float64)[0], 0
  for axis, (size, scale) in enumerate(zip((12, 10, 10), (3, 2, 2))):
    base = 1e4 * scale ** (size / (size - 2))
    angle = place[:96, axis, None] * base ** (-np.arange(0, size, 2) / size)
    mine = got[:96, start : start + size // 2]
    np.testing.assert_allclose(mine, angle, rtol=1e-5)
    np.testing.assert_array_equal(mine[:, 0], place[:96, axis].astype("f"))  # the fastest stays
    slowest = place[:96, axis] * 1e4 ** (-(size - 2) / size) / scale
    np.testing.assert_allclose(mine[:, -1], slowest, rtol=1e-5)
    start += size // 2


def test_unknown_ways_to_reach_farther_are_refused():
  with pytest.raises(ValueError, match="'yarn'.*choose two of none, interpolate or ntk"):
    scaled(LARGE, ("ntk", "yarn"))


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
