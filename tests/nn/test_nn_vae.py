"""The video autoencoder: shapes, sizes, causality, images, normalisation, padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae
from sora_jax.nn.vae import SIZES, CausalVAE, VAEConfig

NANO = SIZES["nano"]
STEM = VAEConfig(
  width=8, mult=(1, 2), res_blocks=0, latent=4, time_down=(True,), space_down=(True,),
  stem_patch=2, stem_frames=2,
)  # fmt: skip
CONFIGS = {
  "nano": NANO,
  "stem": STEM,
  "cells": VAEConfig(
    width=8, mult=(1,), res_blocks=1, latent=4, time_down=(), space_down=(),
    stem_patch=4, stem_frames=4, decoder_width=12, taps=1, shortcut=True,
  ),
  "window": dataclasses.replace(STEM, mid_attention="window", window=2, activation="relu"),
  "wan": dataclasses.replace(NANO, wan_compat=True, mid_attention="frame"),
}  # fmt: skip
METHODS = ("encode", "decode")
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def random_variables(config, seed=0):
  """Nothing at zero: what starts as zero would hide mistakes."""
  variables = vae.init(config, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(variables["params"])
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  leaves = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  stats = {"mean_Z": jnp.arange(config.latent) * 0.1, "std_Z": 1.0 + jnp.arange(config.latent)}
  return {"params": jax.tree.unflatten(tree, leaves), "stats": stats}


def clip(config, latents=3, seed=2, size=(24, 16), batch=1):
  frames = 1 + config.temporal * (latents - 1)
  return jax.random.uniform(jax.random.key(seed), (batch, frames, size[1], size[0], 3), minval=-1)


def close(a, b, tolerance=1e-5):
  """Two programs of one computation agree to float32 rounding, of the largest value."""
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize(
  "size, millions, temporal, spatial",
  [("nano", 0.157, 2, 4), ("base", 56.52, 4, 8), ("xl", 126.89, 4, 8)],
)
def test_published_sizes_have_their_parameters(size, millions, temporal, spatial):
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
  encode = jax.jit(lambda x: CausalVAE(config).apply(variables, x, method="encode")[0])
  cut = 1 + config.temporal
  whole, other = encode(video), encode(video.at[:, cut:].add(1.0))
  assert jnp.abs(whole[:, :2] - other[:, :2]).max() == 0
  assert jnp.abs(whole[:, 2:] - other[:, 2:]).max() > 1e-3
  reach = jax.jit(jax.grad(lambda x: jnp.sum(encode(x)[:, :2] ** 2)))(video)
  assert jnp.abs(reach[:, cut:]).max() == 0 and jnp.abs(reach[:, :cut]).max() > 0


@each_config
def test_later_latents_never_change_earlier_frames(config):
  variables = random_variables(config)
  decode = jax.jit(lambda z: CausalVAE(config).apply(variables, z, method="decode"))
  latent = jax.random.normal(jax.random.key(3), (1, 3, 4, 6, config.latent))
  whole, other = decode(latent), decode(latent.at[:, 2:].add(1.0))
  assert jnp.abs(whole - other)[:, : 1 + config.temporal].max() == 0
  assert jnp.abs(whole - other).max() > 1e-3


@each_config
def test_an_image_is_the_first_latent_of_its_video(config):
  variables, video = random_variables(config), clip(config)
  image, whole = (vae.encode(config, variables, x) for x in (video[:, :1], video))
  close(image, whole[:, :1])
  frame = vae.decode(config, variables, image)
  close(frame, vae.decode(config, variables, whole)[:, :1])


@pytest.mark.parametrize("wan_compat", [False, True])
def test_only_wans_decoder_is_blind_to_the_first_latent(wan_compat):
  config = VAEConfig(
    width=4, mult=(1, 1), res_blocks=0, latent=4, time_down=(True,), space_down=(False,),
    wan_compat=wan_compat,
  )  # fmt: skip
  variables = random_variables(config)
  decode = jax.jit(lambda z: CausalVAE(config).apply(variables, z, method="decode"))
  latent = jax.random.normal(jax.random.key(3), (1, 9, 2, 2, 4))
  from sora_jax.nn.causal_conv import TimeUp

  up = TimeUp(wan_compat)
  kernel = jax.random.normal(jax.random.key(4), (3, 4, 8))
  run = jax.jit(lambda z: up.apply({"params": {"kernel": kernel, "bias": jnp.zeros(8)}}, z))
  moved = jnp.abs(run(latent) - run(latent.at[:, 0].add(1.0))).max(axis=(0, 2, 3, 4))
  assert moved[0] > 0
  assert (moved[1:5].max() == 0) == wan_compat
  assert decode(latent).shape[1] == 17


@pytest.mark.parametrize("frames", [1, 2, 4, 6])
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_any_size_and_length_comes_back_cropped(frames, size):
  config = CONFIGS["cells"]
  variables = random_variables(config)
  video = clip(config, latents=3, size=size)[:, :frames]
  latent = vae.encode(config, variables, video)
  assert latent.shape == (1, *config.latent_shape(frames, size[1], size[0]), 4)
  back = vae.decode(config, variables, latent, frames=frames, size=size)
  assert back.shape == video.shape
  assert float(jnp.abs(back).max()) <= 1
  padded = vae.fit(video, config)
  assert (padded[:, frames:] == padded[:, frames - 1 : frames]).all()
  with pytest.raises(ValueError, match="made for a smaller clip"):
    vae.decode(config, variables, latent, frames=frames + config.temporal)


def test_sizes_that_do_not_fit_are_refused_by_the_network():
  variables = vae.init(NANO, jax.random.key(0))
  with pytest.raises(ValueError, match="multiples of 4"):
    CausalVAE(NANO).apply(variables, jnp.zeros((1, 3, 15, 16, 3)), method="encode")
  with pytest.raises(ValueError, match=r"1 \+ 2 k"):
    CausalVAE(NANO).apply(variables, jnp.zeros((1, 4, 16, 16, 3)), method="encode")


def test_latents_are_normalised_by_measured_statistics():
  config = CONFIGS["cells"]
  variables = random_variables(config)
  network = CausalVAE(config)
  mean_of = jax.jit(lambda x: network.apply(variables, x, method="encode")[0])
  batches = [np.asarray(clip(config, latents=2, seed=s, batch=3)) for s in range(4)]
  stats = vae.latent_stats(mean_of, batches)
  variables = {**variables, "stats": stats}
  latent = np.concatenate([vae.encode(config, variables, x) for x in batches])
  np.testing.assert_allclose(latent.mean(axis=(0, 1, 2, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(latent.std(axis=(0, 1, 2, 3)), 1, atol=1e-4)
  raw = network.apply(variables, mean_of(batches[0]), method="decode")
  close(vae.decode(config, variables, latent[:3]), np.clip(raw, -1, 1))
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
  config = NANO
  variables, network = random_variables(config), CausalVAE(config)
  video = clip(config)[:, :1]
  grads = jax.grad(lambda p: jnp.mean(network.apply({"params": p}, video) ** 2))(
    variables["params"]
  )
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


def test_bfloat16_activations_change_little():
  config = CONFIGS["cells"]
  variables, video = random_variables(config), clip(config)
  half = vae.encode(dataclasses.replace(config, dtype="bfloat16"), variables, video)
  full = vae.encode(config, variables, video)
  assert half.dtype == jnp.float32
  assert jnp.abs(half - full).max() < 0.05 * jnp.abs(full).max()
