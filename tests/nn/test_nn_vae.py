"""The video autoencoder: shapes, sizes, causality, images, normalisation, padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae
from sora_jax.nn.causal_conv import TimeUp
from sora_jax.nn.vae import SIZES, CausalVAE, VAEConfig
from sora_jax.nn.vae_blocks import FrameAttention

NANO = SIZES["nano"]
LEVEL = VAEConfig(width=4, mult=(1, 2), latent=4, time_down=(True,), space_down=(True,))
CONFIGS = {
  "level": LEVEL,
  "levels": VAEConfig(
    width=4, mult=(1, 1, 2), res_blocks=0, latent=4, space_down=(True, False)
  ),
  "cells": VAEConfig(
    width=8, mult=(1,), res_blocks=1, latent=4, time_down=(), space_down=(), stem_patch=4,
    stem_frames=4, decoder_width=12, taps=1, shortcut=True,
  ),
  "window": dataclasses.replace(
    LEVEL, res_blocks=0, stem_patch=2, stem_frames=2, mid_attention="window", window=2,
    activation="relu",
  ),
  "wan": dataclasses.replace(LEVEL, wan_compat=True, mid_attention="frame"),
}  # fmt: skip
METHODS = ("encode", "decode")
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@functools.cache
def random_variables(config, seed=0):
  """Nothing at zero: what starts as zero would hide mistakes."""
  shapes = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))["params"]
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    near = 1.0 if path[-1].key == "scale" else 0.0
    size = 0.2 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(near + size * rng.normal(size=leaf.shape), jnp.float32)

  params = jax.tree_util.tree_map_with_path(draw, shapes)
  stats = {
    "mean_Z": jnp.arange(config.latent) * 0.1,
    "std_Z": 0.5 + 0.1 * jnp.arange(config.latent),
  }
  return {"params": params, "stats": stats}


@functools.cache
def jitted(function, config, *options):
  """`function(config, variables, x, *options)`, compiled once for all tests."""
  return jax.jit(lambda variables, x: function(config, variables, x, *options))


def encode(config, variables, video):
  return jitted(vae.encode, config)(variables, video)


def decode(config, variables, latent, frames=None, size=None):
  return jitted(vae.decode, config, frames, size)(variables, latent)


def clip(config, latents=3, seed=2, size=(24, 16), batch=1):
  """Noise in [-1, 1], of so many latents."""
  frames = 1 + config.temporal * (latents - 1)
  return jax.random.uniform(jax.random.key(seed), (batch, frames, size[1], size[0], 3), minval=-1)


def close(a, b, tolerance=1e-5):
  """Two programs of one computation agree to float32 rounding, of the largest value."""
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize(
  "size, millions, temporal, spatial",
  [("nano", 0.157, 2, 4), ("tiny", 1.715, 4, 4), ("base", 56.52, 4, 8), ("xl", 126.89, 4, 8)],
)
def test_sizes_have_their_parameters(size, millions, temporal, spatial):
  shapes = jax.eval_shape(lambda k: vae.init(SIZES[size], k), jax.random.key(0))
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
  assert abs(count / 1e6 / millions - 1) < 5e-3
  assert (SIZES[size].temporal, SIZES[size].spatial) == (temporal, spatial)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_size_maps_clips_to_latents_and_back(size, dtype):
  config = dataclasses.replace(SIZES[size], dtype=dtype)
  variables = jax.eval_shape(lambda k: vae.init(config, k), jax.random.key(0))
  for frames in (1, 1 + config.temporal, 1 + 4 * config.temporal):
    video = jax.ShapeDtypeStruct((2, frames, 32, 48, 3), jnp.float32)
    encode, decode = (functools.partial(CausalVAE(config).apply, method=m) for m in METHODS)
    mean, logvar = jax.eval_shape(encode, variables, video)
    assert mean.shape == logvar.shape == (2, *config.latent_shape(frames, 32, 48), config.latent)
    back = jax.eval_shape(decode, variables, mean)
    assert back.shape == video.shape and mean.dtype == back.dtype == jnp.float32


@each_config
def test_later_frames_never_change_earlier_latents(config):
  variables, video = random_variables(config), clip(config)
  network = CausalVAE(config)
  mean = jax.jit(lambda x: network.apply(variables, x, method="encode")[0])
  cut = 1 + config.temporal
  whole, other = mean(video), mean(video.at[:, cut:].add(1.0))
  assert jnp.abs(whole[:, :2] - other[:, :2]).max() == 0
  assert jnp.abs(whole[:, 2:] - other[:, 2:]).max() > 1e-3
  reach = jax.jit(jax.grad(lambda x: jnp.sum(mean(x)[:, :2] ** 2)))(video)
  assert jnp.abs(reach[:, cut:]).max() == 0 and jnp.abs(reach[:, :cut]).max() > 0


@each_config
def test_later_latents_never_change_earlier_frames(config):
  variables = random_variables(config)
  pixels = jax.jit(lambda z: CausalVAE(config).apply(variables, z, method="decode"))
  latent = jax.random.normal(jax.random.key(3), (1, 3, 4, 6, config.latent))
  whole, other = pixels(latent), pixels(latent.at[:, 2:].add(1.0))
  assert jnp.abs(whole - other)[:, : 1 + config.temporal].max() == 0
  assert jnp.abs(whole - other).max() > 1e-3


@each_config
def test_an_image_is_the_first_latent_of_its_video(config):
  variables, video = random_variables(config), clip(config)
  image, whole = (encode(config, variables, x) for x in (video[:, :1], video))
  close(image, whole[:, :1])
  frame = decode(config, variables, image)
  close(frame, decode(config, variables, whole)[:, :1])


@pytest.mark.parametrize("blind", [False, True])
def test_only_wans_steps_in_time_are_blind_to_the_first_frame(blind):
  kernel = jax.random.normal(jax.random.key(4), (3, 4, 8))
  variables = {"params": {"kernel": kernel, "bias": jnp.zeros(8)}}
  run = jax.jit(lambda z: TimeUp(blind).apply(variables, z))
  latent = jax.random.normal(jax.random.key(3), (1, 4, 2, 2, 4))
  assert run(latent).shape == (1, 7, 2, 2, 4)
  moved = jnp.abs(run(latent) - run(latent.at[:, 0].add(1.0))).max(axis=(0, 2, 3, 4))
  assert moved[0] > 0 and moved[5:].max() == 0
  assert (moved[1:5].max() == 0) == blind


@pytest.mark.parametrize("frames", [1, 2, 4, 6])
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_any_size_and_length_comes_back_cropped(frames, size):
  config = CONFIGS["cells"]
  variables = random_variables(config)
  video = clip(config, latents=3, size=size)[:, :frames]
  latent = encode(config, variables, video)
  assert latent.shape == (1, *config.latent_shape(frames, size[1], size[0]), 4)
  back = decode(config, variables, latent, frames=frames, size=size)
  assert back.shape == video.shape
  assert float(jnp.abs(back).max()) <= 1
  padded = vae.fit(video, config)
  assert (padded[:, frames:] == padded[:, frames - 1 : frames]).all()
  with pytest.raises(ValueError, match="made for a smaller clip"):
    decode(config, variables, latent, frames=frames + config.temporal)


def test_sizes_that_do_not_fit_are_refused_by_the_network():
  for shape, word in (((1, 3, 15, 16, 3), "multiples of 2"), ((1, 4, 16, 16, 3), r"1 \+ 2 k")):
    with pytest.raises(ValueError, match=word):
      CausalVAE(LEVEL).apply(random_variables(LEVEL), jnp.zeros(shape), method="encode")


def test_latents_are_normalised_by_measured_statistics():
  config = CONFIGS["cells"]
  variables = random_variables(config)
  network = CausalVAE(config)
  mean_of = jax.jit(lambda x: network.apply(variables, x, method="encode")[0])
  batches = [np.asarray(clip(config, latents=2, seed=s, batch=3)) for s in range(4)]
  stats = vae.latent_stats(mean_of, batches)
  variables = {**variables, "stats": stats}
  latent = np.concatenate([encode(config, variables, x) for x in batches])
  np.testing.assert_allclose(latent.mean(axis=(0, 1, 2, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(latent.std(axis=(0, 1, 2, 3)), 1, atol=1e-4)
  means = latent.mean((1, 2, 3), keepdims=True)
  np.testing.assert_allclose(stats["level_Z"], means.std(0).ravel(), atol=1e-4)
  np.testing.assert_allclose(stats["spread_Z"], (latent - means).std((0, 1, 2, 3)), atol=1e-4)
  raw = network.apply(variables, mean_of(batches[0]), method="decode")
  close(decode(config, variables, latent[:3]), np.clip(raw, -1, 1))
  with pytest.raises(ValueError, match="at least one batch"):
    vae.latent_stats(mean_of, [])


def test_training_needs_parameters_alone_and_gradients_reach_all_of_them():
  config = CONFIGS["window"]
  variables = random_variables(config)
  network, video = CausalVAE(config), clip(config)

  @jax.jit
  @jax.grad
  def gradients(params):
    mean, logvar = network.apply({"params": params}, video, method="encode")
    latent = vae.sample_posterior(jax.random.key(0), mean, logvar)
    recon = network.apply({"params": params}, latent, method="decode")
    return jnp.mean(recon**2) + jnp.mean(logvar)

  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
    assert jnp.isfinite(leaf).all() and jnp.abs(leaf).max() > 0, path


def test_a_still_clip_trains_what_stills_pass_through():
  config = LEVEL
  variables, network = random_variables(config), CausalVAE(config)
  video = clip(config)[:, :1]
  mean_square = jax.jit(lambda p: jnp.mean(network.apply({"params": p}, video) ** 2))
  grads = jax.grad(mean_square)(variables["params"])
  flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(grads)}
  assert all(jnp.isfinite(v).all() for v in flat.values())
  silent = [k for k, v in flat.items() if jnp.abs(v).max() == 0]
  assert silent and all("_time" in k or "quant" in k or "conv_out" in k for k in silent)


@pytest.mark.parametrize(
  "changes, word",
  [
    ({"stem_patch": 3}, "stem_patch"),
    ({"time_down": (True,)}, "one entry for each step"),
    ({"mid_attention": "global"}, "mid_attention"),
    ({"latent": 0}, "latent"),
    ({"decoder_width": 3, "mult": (1, 1, 1)}, "even"),
  ],
)
def test_impossible_configs_are_refused(changes, word):
  with pytest.raises(ValueError, match=word):
    VAEConfig(**changes)


def test_a_window_over_the_frame_is_attention_over_the_frame():
  x = jax.random.normal(jax.random.key(0), (2, 2, 3, 5, 4))
  shapes = jax.eval_shape(FrameAttention().init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), shapes)
  frame, window, tiles = (jax.jit(FrameAttention(side).apply)(variables, x) for side in (0, 8, 2))
  close(window, frame)
  assert jnp.abs(tiles - frame).max() > 1e-3
  corner = jax.jit(FrameAttention().apply)(variables, x[:, :, 2:, 4:])  # the last, cut window
  close(tiles[:, :, 2:, 4:], corner)


def test_bfloat16_activations_change_little():
  config = CONFIGS["cells"]
  variables, video = random_variables(config), clip(config)
  half = vae.encode(dataclasses.replace(config, dtype="bfloat16"), variables, video)
  full = encode(config, variables, video)
  assert half.dtype == jnp.float32
  assert jnp.abs(half - full).max() < 0.05 * jnp.abs(full).max()
