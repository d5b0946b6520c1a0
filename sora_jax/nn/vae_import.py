"""Starts a video autoencoder from other weights: Wan 2.1's, or an image autoencoder's.

Diffusers' `AutoencoderKLWan` is our network with `wan_compat` (its decoder's first frame is blind)
and attention over whole frames. Kernels turn from [O, I, t, y, x] to [t, y, x, I, O]; gains, and
kernels over fewer axes, lose those of length 1 at the end.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sora_jax.nn import vae
from sora_jax.nn.vae import VAEConfig

Weights = Mapping[str, np.ndarray]


def inflate(image: Mapping, like: Mapping) -> dict:
  """Parameters of a video network that does to every frame what an image network does to one.

  Kernels keep the tap that sees the current frame and are zero before it ("tail init"; Open-Sora
  Plan 1.2); what only the video network has, its steps in time (`*_time`), is copied from `like`,
  where they start by passing on and repeating frames. So latent j is that of image f_t j, and its
  f_t frames are all that image, until training changes it.

  Args: image: parameters of an image network, kernels [t, y, x, I, O] of which the last tap
  counts.  like: fresh parameters of the video network.  Raises: ValueError where they do not fit,
  and for any other parameter that one of the two has alone.
  """
  given, wanted = flatten_dict(image, sep="/"), flatten_dict(like, sep="/")
  missing = [name for name in wanted if name not in given and "_time/" not in name]
  left = [name for name in given if name not in wanted]
  wrong = [f"the image network lacks {_some(missing)}"] if missing else []
  wrong += [f"the video network has no place for {_some(left)}"] if left else []
  if wrong:
    raise ValueError(f"{' and '.join(wrong)}; let their configs differ in time_down and taps only")
  params = {}
  for name, leaf in wanted.items():
    value, leaf = np.asarray(given.get(name, leaf)), np.asarray(leaf)
    if value.shape != leaf.shape and (leaf.ndim != 5 or value.shape[1:] != leaf.shape[1:]):
      raise ValueError(f"{name}: {value.shape} of the image network does not fit {leaf.shape}")
    if leaf.ndim == 5:
      value = np.concatenate([np.zeros_like(leaf[:-1]), value[-1:]])
    params[name] = value
  return unflatten_dict(params, sep="/")


def _some(names: list[str]) -> str:
  """The first few of a list of names, and how many there are."""
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
  taken = {"encoder": _encoder(config, taker), "decoder": _decoder(config, taker)}
  taken = flatten_dict(taken, sep="/")
  made = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))["params"]
  made = flatten_dict(made, sep="/")
  placed = {tensor.name for name, tensor in taken.items() if name in made}
  if left := sorted(set(weights) - placed):
    raise ValueError(f"{len(left)} weights have no place in our network, such as {left[0]}")
  if missing := sorted(set(made) - set(taken)):
    raise ValueError(f"the weights of our {missing[0]} are missing; the config asks for them")
  params = {name: taken[name].turned(leaf.shape) for name, leaf in made.items()}
  stats = {}
  for ours, name, neutral in (("mean_Z", "latents_mean", 0.0), ("std_Z", "latents_std", 1.0)):
    given = theirs.get(name) or ()
    fits = len(given) == config.latent
    stats[ours] = np.asarray(given if fits else [neutral] * config.latent, np.float32)
  return {"params": unflatten_dict(params, sep="/"), "stats": stats}


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A weight under its name, in their layout."""

  name: str
  value: np.ndarray

  def turned(self, shape: tuple[int, ...]) -> np.ndarray:
    """In our layout. Raises: ValueError if it is not of our shape `shape`."""
    theirs = (*shape[:-3:-1], *shape[:-2])
    got = self.value.shape
    wanted = (*theirs, *[1] * (len(got) - len(theirs)))
    if got != wanted:
      raise ValueError(f"weight {self.name} has shape {got}; the config asks for {wanted}")
    value = self.value.reshape(theirs).astype(np.float32)
    return value if len(shape) == 1 else np.moveaxis(value, (0, 1), (-1, -2)).copy()


class _Taker:
  """Finds weights by name."""

  def __init__(self, weights: Weights):
    self.weights = weights

  def get(self, name: str) -> _Tensor:
    if name not in self.weights:
      raise ValueError(f"weight {name} is missing; the config asks for it")
    return _Tensor(name, np.asarray(self.weights[name]))

  def conv(self, name: str) -> dict:
    return {"kernel": self.get(f"{name}.weight"), "bias": self.get(f"{name}.bias")}

  def gain(self, name: str) -> dict:
    return {"scale": self.get(f"{name}.gamma")}

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
        "qkv": self.conv(f"{attention}.to_qkv"),
        "proj": self.conv(f"{attention}.proj"),
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
        params[f"level{i}_time"] = taker.conv(f"{name}.time_conv")
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
        params[f"level{i}_time"] = taker.conv(f"{name}.upsamplers.0.time_conv")
  return params
