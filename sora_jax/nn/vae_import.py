"""Starts a video autoencoder from other weights: Wan 2.1's, or an image autoencoder's.

Diffusers' `AutoencoderKLWan` is our network with `wan_compat` (its decoder's first frame is blind)
and attention over whole frames. Kernels turn from [O, I, t, y, x] to [t, y, x, I, O]; gains lose
their broadcast axes.
"""

from collections.abc import Mapping

import numpy as np

from sora_jax.nn.vae import VAEConfig

Weights = Mapping[str, np.ndarray]


def inflate(image: Mapping, like: Mapping) -> dict:
  """Parameters of a video network that does to every frame what an image network does to one.

  Kernels keep the tap that sees the current frame and are zero before it ("tail init"; Open-Sora
  Plan 1.2); what only the video network has, its steps in time, is copied from `like`, where they
  start by passing on and repeating frames. So latent j is that of image f_t j, and its f_t frames
  are all that image, until training changes it.

  Args: image: parameters of an image network, kernels [t, y, x, I, O] of which the last tap
  counts.  like: fresh parameters of the video network.  Raises: ValueError where they do not fit.
  """
  params = {}
  for name, leaf in like.items():
    if isinstance(leaf, Mapping):
      params[name] = inflate(image[name], leaf) if name in image else leaf
      continue
    value, leaf = np.asarray(image[name]), np.asarray(leaf)
    if value.shape != leaf.shape and (leaf.ndim != 5 or value.shape[1:] != leaf.shape[1:]):
      raise ValueError(f"{name}: {value.shape} of the image network does not fit {leaf.shape}")
    if leaf.ndim == 5:
      value = np.concatenate([np.zeros_like(leaf[:-1]), value[-1:]])
    params[name] = value
  return params


def wan_config(theirs: Mapping) -> VAEConfig:
  """Our config for the config of an `AutoencoderKLWan`.

  Raises: ValueError for options that change the mathematics and that we do not have.
  """
  wanted = {
    "is_residual": False,
    "attn_scales": [],
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "dropout": 0.0,
  }
  for name, value in wanted.items():
    if theirs.get(name, value) not in (value, tuple(value) if value == [] else value):
      raise ValueError(f"cannot import {name}={theirs[name]!r}; only {value!r} is supported")
  steps = len(theirs["dim_mult"]) - 1
  return VAEConfig(
    width=theirs["base_dim"],
    mult=tuple(theirs["dim_mult"]),
    res_blocks=theirs["num_res_blocks"],
    latent=theirs["z_dim"],
    time_down=tuple(theirs["temperal_downsample"])[:steps],
    space_down=(True,) * steps,
    decoder_width=theirs.get("decoder_base_dim") or 0,
    mid_attention="frame",
    wan_compat=True,
    norm_eps=1e-20,
  )


def wan_variables(theirs: Mapping, weights: Weights) -> dict:
  """Our variables {"params", "stats"} for a Wan state dict.

  Latent statistics come from the config if it has one number per channel, else they are 0 and 1.
  Raises: ValueError for weights that are missing, left over or of another shape than expected.
  """
  config = wan_config(theirs)
  taker = _Taker(weights)
  params = {"encoder": _encoder(config, taker), "decoder": _decoder(config, taker)}
  if left := sorted(set(weights) - taker.taken):
    raise ValueError(f"{len(left)} weights have no place in our network, such as {left[0]}")
  stats = {}
  for ours, name, neutral in (("mean_Z", "latents_mean", 0.0), ("std_Z", "latents_std", 1.0)):
    given = theirs.get(name) or ()
    fits = len(given) == config.latent
    stats[ours] = np.asarray(given if fits else [neutral] * config.latent, np.float32)
  return {"params": params, "stats": stats}


class _Taker:
  """Hands out weights by name in our layouts, and remembers which."""

  def __init__(self, weights: Weights):
    self.weights, self.taken = weights, set()

  def get(self, name: str) -> np.ndarray:
    if name not in self.weights:
      raise ValueError(f"weight {name} is missing; the config asks for it")
    self.taken.add(name)
    return np.asarray(self.weights[name], np.float32)

  def conv(self, name: str) -> dict:
    kernel = self.get(f"{name}.weight")
    return {
      "kernel": np.moveaxis(kernel, (0, 1), (-1, -2)).copy(),
      "bias": self.get(f"{name}.bias"),
    }

  def time(self, name: str) -> dict:
    conv = self.conv(name)
    return {"kernel": conv["kernel"][:, 0, 0], "bias": conv["bias"]}

  def dense(self, name: str) -> dict:
    conv = self.conv(name)
    return {"kernel": conv["kernel"][0, 0], "bias": conv["bias"]}

  def gain(self, name: str) -> dict:
    return {"scale": self.get(f"{name}.gamma").reshape(-1)}

  def block(self, name: str) -> dict:
    block = {
      "norm1": self.gain(f"{name}.norm1"),
      "conv1": self.conv(f"{name}.conv1"),
      "norm2": self.gain(f"{name}.norm2"),
      "conv2": self.conv(f"{name}.conv2"),
    }
    if f"{name}.conv_shortcut.weight" in self.weights:
      block["shortcut"] = self.conv(f"{name}.conv_shortcut")
    return block

  def mid(self, name: str) -> dict:
    attention = f"{name}.attentions.0"
    return {
      "mid_block0": self.block(f"{name}.resnets.0"),
      "mid_attention": {
        "norm": self.gain(f"{attention}.norm"),
        "qkv": self.dense(f"{attention}.to_qkv"),
        "proj": self.dense(f"{attention}.proj"),
      },
      "mid_block1": self.block(f"{name}.resnets.1"),
    }

  def ends(self, name: str) -> dict:
    return {
      "conv_in": self.conv(f"{name}.conv_in"),
      "norm_out": self.gain(f"{name}.norm_out"),
      "conv_out": self.conv(f"{name}.conv_out"),
    }


def _encoder(config: VAEConfig, taker: _Taker) -> dict:
  params = {"quant": taker.conv("quant_conv"), **taker.ends("encoder")}
  params.update(taker.mid("encoder.mid_block"))
  place = 0
  for i in range(len(config.mult)):
    for j in range(config.res_blocks):
      params[f"level{i}_block{j}"] = taker.block(f"encoder.down_blocks.{place}")
      place += 1
    if i < len(config.space_down):
      name = f"encoder.down_blocks.{place}"
      params[f"level{i}_space"] = taker.conv(f"{name}.resample.1")
      if config.time_down[i]:
        params[f"level{i}_time"] = taker.time(f"{name}.time_conv")
      place += 1
  return params


def _decoder(config: VAEConfig, taker: _Taker) -> dict:
  params = {"quant": taker.conv("post_quant_conv"), **taker.ends("decoder")}
  params.update(taker.mid("decoder.mid_block"))
  for i in range(len(config.mult)):
    name = f"decoder.up_blocks.{len(config.mult) - 1 - i}"
    for j in range(config.res_blocks + 1):
      params[f"level{i}_block{j}"] = taker.block(f"{name}.resnets.{j}")
    if i:
      params[f"level{i}_space"] = taker.conv(f"{name}.upsamplers.0.resample.1")
      if config.time_down[i - 1]:
        params[f"level{i}_time"] = taker.time(f"{name}.upsamplers.0.time_conv")
  return params
