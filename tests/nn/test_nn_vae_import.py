"""Copied random weights of diffusers' AutoencoderKLWan give its outputs."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae, vae_import, vae_streaming
from sora_jax.nn.vae import VAEConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def live(**options):
  for module in ("torch", "diffusers"):
    pytest.importorskip(module)
  spec = importlib.util.spec_from_file_location("make_wan_vae", GOLDEN / "make_wan_vae.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.make(**options)


def saved():
  return dict(np.load(GOLDEN / "wan_vae.npz"))


def ours(case):
  theirs = json.loads(str(case["config"]))
  weights = {k.removeprefix("weights/"): v for k, v in case.items() if k.startswith("weights/")}
  return vae_import.wan_config(theirs), vae_import.wan_variables(theirs, weights)


def last(x):
  """Torch's [B, C, T, H, W] with channels last."""
  return np.moveaxis(x, 1, -1)


def check(case):
  config, variables = ours(case)
  network = vae.CausalVAE(config)
  encode = jax.jit(lambda x: network.apply(variables, x, method="encode"))
  mean, logvar = encode(jnp.asarray(last(case["video"])))
  assert np.abs(case["mean"]).max() > 0.1 and np.abs(case["decoded"]).std() > 0.01
  np.testing.assert_allclose(mean, last(case["mean"]), atol=1e-4)
  np.testing.assert_allclose(logvar, last(case["logvar"]), atol=1e-4)
  decode = jax.jit(lambda z: network.apply(variables, z, method="decode"))
  latent = jnp.asarray(last(case["mean"])) * 0.3
  decoded = jnp.clip(decode(latent), -1, 1)
  np.testing.assert_allclose(decoded, last(case["decoded"]), atol=1e-4)
  return config, variables, latent


def test_equals_the_stored_outputs_whole_and_in_chunks():
  case = saved()
  config, variables, latent = check(case)
  normalised = vae.CausalVAE(config).apply(variables, latent, method="normalise")
  pieces = list(vae_streaming.decode_stream(config, variables, normalised))
  np.testing.assert_allclose(np.concatenate(pieces, 1), last(case["decoded"]), atol=1e-4)
  np.testing.assert_allclose(variables["stats"]["std_Z"], [1.0, 2.0, 0.5, 1.5])


@pytest.mark.oracle
def test_equals_diffusers_live():
  check(live(seed=1, base_dim=8, mult=(1, 2, 2, 2), side=32))


def test_weights_that_do_not_fit_are_named():
  case = saved()
  theirs = json.loads(str(case["config"]))
  weights = {k.removeprefix("weights/"): v for k, v in case.items() if k.startswith("weights/")}
  with pytest.raises(ValueError, match="no place in our network, such as extra"):
    vae_import.wan_variables(theirs, {**weights, "extra": np.zeros(1)})
  for name, cut, message in (
    ("decoder.conv_in.bias", np.s_[:-1], r"has shape \(3,\); the config asks for \(4,\)"),
    ("quant_conv.weight", np.s_[:, :, :, 0], r"\(8, 8, 1, 1\); the config asks for .8, 8, 1, 1, 1"),
    ("encoder.norm_out.gamma", np.s_[:2], r"\(2, 1, 1, 1\); the config asks for \(4, 1, 1, 1\)"),
    ("encoder.down_blocks.3.time_conv.weight", np.s_[..., [0, 0]], r"asks for \(4, 4, 3, 1, 1\)"),
    ("encoder.conv_in.weight", np.s_[0], r"asks for \(4, 3, 3, 3, 3\)"),
  ):
    with pytest.raises(ValueError, match=f"weight {name} .*{message}"):
      vae_import.wan_variables(theirs, {**weights, name: weights[name][cut]})
  short = "decoder.up_blocks.1.resnets.0.conv_shortcut"
  fewer = {name: value for name, value in weights.items() if not name.startswith(short)}
  with pytest.raises(ValueError, match="our decoder/level2_block0/shortcut/bias are missing"):
    vae_import.wan_variables(theirs, fewer)
  more = {f"{short[:-15]}1.conv_shortcut.{part}": np.zeros(1) for part in ("weight", "bias")}
  with pytest.raises(ValueError, match="2 weights have no place .*resnets.1.conv_shortcut.bias"):
    vae_import.wan_variables(theirs, {**weights, **more})
  weights.pop("decoder.conv_in.bias")
  with pytest.raises(ValueError, match="decoder.conv_in.bias is missing"):
    vae_import.wan_variables(theirs, weights)
  with pytest.raises(ValueError, match="is_residual"):
    vae_import.wan_config({**theirs, "is_residual": True})


def test_an_inflated_image_network_treats_every_frame_as_an_image():
  video = VAEConfig(width=4, mult=(1, 1, 2), latent=4, res_blocks=1)
  still = dataclasses.replace(video, time_down=(False, False), taps=1)
  shapes = jax.eval_shape(lambda key: vae.init(still, key), jax.random.key(0))["params"]
  rng = np.random.default_rng(0)
  image = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), shapes)
  fresh = jax.jit(lambda key: vae.init(video, key))(jax.random.key(0))["params"]
  params = vae_import.inflate(image, fresh)
  clip = jnp.asarray(rng.uniform(-1, 1, size=(1, 9, 8, 8, 3)), jnp.float32)

  def run(config, params, x, method):
    network = vae.CausalVAE(config)
    return jax.jit(lambda x: network.apply({"params": params}, x, method=method))(x)

  one_by_one = jnp.moveaxis(clip, 1, 0)
  images, _ = run(still, image, one_by_one, "encode")
  latent, _ = run(video, params, clip, "encode")
  np.testing.assert_allclose(latent[0], images[::4, 0], atol=1e-5)
  frames = run(still, image, images[::4], "decode")[:, 0]
  decoded = run(video, params, latent, "decode")[0]
  np.testing.assert_allclose(decoded, frames[np.array([0, 1, 1, 1, 1, 2, 2, 2, 2])], atol=1e-5)
  with pytest.raises(ValueError, match="does not fit"):
    vae_import.inflate(jax.tree.map(lambda x: x[..., :1], image), fresh)


def test_networks_that_differ_in_more_than_steps_in_time_are_not_inflated():
  video = VAEConfig(width=4, mult=(1, 1), latent=4, time_down=(True,), space_down=(True,))
  still = dataclasses.replace(video, time_down=(False,), taps=1)

  def zeros(**options):
    config = dataclasses.replace(still, **options)
    shapes = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))["params"]
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

  like = zeros(time_down=(True,), taps=3)
  vae_import.inflate(zeros(), like)
  with pytest.raises(ValueError, match="image network lacks decoder/level0_block1/.* and 21 more;"):
    vae_import.inflate(zeros(res_blocks=0), like)
  with pytest.raises(ValueError, match="^the video network has no place for .*/mid_attention/.*;"):
    vae_import.inflate(zeros(mid_attention="frame"), like)
  less = zeros()
  del less["encoder"]["conv_in"]["bias"]
  with pytest.raises(ValueError, match="^the image network lacks encoder/conv_in/bias; let their"):
    vae_import.inflate(less, like)
