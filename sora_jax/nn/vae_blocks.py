"""What the video autoencoder is built of: cells, residual blocks, attention, encoder, decoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sora_jax.nn.causal_conv import (
  FLOAT32,
  CausalConv,
  ChannelNorm,
  Mode,
  SpaceDown,
  SpaceUp,
  TimeDown,
  TimeUp,
)

ACTIVATIONS = {"silu": jax.nn.silu, "relu": jax.nn.relu}


def to_cells(
  video: Float[Array, "B T H W C"], patch: int, frames: int, first: bool
) -> Float[Array, "B t h w P"]:
  """Cuts pixels into cells of `frames` x `patch` x `patch`, channels in that order, then C.

  first: the clip starts here, and its first frame, repeated, fills the first cells alone.
  """
  if first and frames > 1:
    video = jnp.concatenate([jnp.repeat(video[:, :1], frames - 1, axis=1), video], axis=1)
  B, T, H, W, C = video.shape
  t, h, w = T // frames, H // patch, W // patch
  cells = video.reshape(B, t, frames, h, patch, w, patch, C).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return cells.reshape(B, t, h, w, frames * patch * patch * C)


def from_cells(
  cells: Float[Array, "B t h w P"], patch: int, frames: int, first: bool
) -> Float[Array, "B T H W C"]:
  """Inverse of `to_cells`: of the clip's first cells only the last frame is shown."""
  B, t, h, w, P = cells.shape
  C = P // (frames * patch * patch)
  video = cells.reshape(B, t, h, w, frames, patch, patch, C).transpose(0, 1, 4, 2, 5, 3, 6, 7)
  video = video.reshape(B, t * frames, h * patch, w * patch, C)
  return video[:, frames - 1 :] if first else video


class ResBlock(nn.Module):
  """x + conv(act(norm(conv(act(norm(x)))))), with a 1x1x1 convolution on x if widths differ."""

  out: int
  taps: int = 3
  activation: str = "silu"
  eps: float = 1e-6
  lowering: str = "auto"
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    act = ACTIVATIONS[self.activation]
    conv = dict(lowering=self.lowering, dtype=self.dtype)
    kernel = (self.taps, 3, 3)
    y = CausalConv(self.out, kernel, name="conv1", **conv)(
      act(ChannelNorm(self.eps, name="norm1")(x)), mode
    )
    y = act(ChannelNorm(self.eps, name="norm2")(y))
    y = CausalConv(self.out, kernel, zero=True, name="conv2", **conv)(y, mode)
    if x.shape[-1] != self.out:
      x = CausalConv(self.out, (1, 1, 1), name="shortcut", **conv)(x, mode)
    return x + y


class FrameAttention(nn.Module):
  """x + one-head self-attention over the places of each frame, or of each fixed window of it.

  window: side of the windows, laid out from the frame's corner; 0 = the whole frame.
  """

  window: int = 0
  eps: float = 1e-6
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    B, T, H, W, C = x.shape
    y = ChannelNorm(self.eps, name="norm")(x)
    qkv = nn.Dense(3 * C, dtype=self.dtype, name="qkv")(y)
    window = (self.window, self.window) if self.window else (H, W)
    qkv, mask = _windows(qkv.reshape(B * T, H, W, 3 * C), window)
    q, k, v = jnp.split(qkv[:, :, None], 3, axis=-1)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])[:, :, 0]
    out = _frames(out, window, (B, T, H, W, C))
    return x + nn.Dense(C, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj")(out)


def _windows(x_NHWC, window):
  """[N, H, W, C] -> [N * windows, places, C] and which places are real."""
  N, H, W, C = x_NHWC.shape
  down, right = -H % window[0], -W % window[1]
  x_NHWC = jnp.pad(x_NHWC, ((0, 0), (0, down), (0, right), (0, 0)))
  real = jnp.pad(jnp.ones((N, H, W, 1), bool), ((0, 0), (0, down), (0, right), (0, 0)))

  def cut(x):
    x = x.reshape(N, (H + down) // window[0], window[0], (W + right) // window[1], window[1], -1)
    return x.swapaxes(2, 3).reshape(-1, window[0] * window[1], x.shape[-1])

  return cut(x_NHWC), cut(real)[..., 0]


def _frames(x, window, shape):
  """Inverse of `_windows`, to [B, T, H, W, C]."""
  B, T, H, W, C = shape
  rows, columns = -(-H // window[0]), -(-W // window[1])
  x = x.reshape(B * T, rows, columns, *window, C).swapaxes(2, 3)
  x = x.reshape(B, T, rows * window[0], columns * window[1], C)
  return x[:, :, :H, :W]


class Encoder(nn.Module):
  """Cells to 2 Z channels. config: a `vae.VAEConfig`."""

  config: object

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    c, dtype, conv = _options(self.config)
    cells = x
    if c.linear_encoder:  # sees one cell to each side, see `VAEConfig.encoder_reach`
      x = CausalConv(2 * c.latent, (1, 3, 3), name="shortcut", **conv)(cells, mode)
      return CausalConv(2 * c.latent, (1, 1, 1), name="quant", **conv)(x, mode)
    x = CausalConv(c.width * c.mult[0], name="conv_in", **conv)(x, mode)
    for i, mult in enumerate(c.mult):
      for j in range(c.res_blocks):
        x = _res(c, c.width * mult, f"level{i}_block{j}")(x, mode)
      if i < len(c.space_down) and c.space_down[i]:
        x = SpaceDown(dtype, name=f"level{i}_space")(x)
      if i < len(c.time_down) and c.time_down[i]:
        x = TimeDown(dtype, name=f"level{i}_time")(x, mode)
    x = _mid(c, x, mode)
    x = ACTIVATIONS[c.activation](ChannelNorm(c.norm_eps, name="norm_out")(x))
    x = CausalConv(2 * c.latent, name="conv_out", **conv)(x, mode)
    if c.shortcut:
      x = x + CausalConv(2 * c.latent, (1, 3, 3), name="shortcut", **conv)(cells, mode)
    return CausalConv(2 * c.latent, (1, 1, 1), name="quant", **conv)(x, mode)


class Decoder(nn.Module):
  """Raw latents to cells. config: a `vae.VAEConfig`."""

  config: object

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    c, dtype, conv = _options(self.config)
    width = c.decoder_width or c.width
    x = latent = CausalConv(c.latent, (1, 1, 1), name="quant", **conv)(x, mode)
    x = CausalConv(width * c.mult[-1], name="conv_in", **conv)(x, mode)
    x = _mid(c, x, mode)
    for i in reversed(range(len(c.mult))):
      for j in range(c.res_blocks + 1):
        x = _res(c, width * c.mult[i], f"level{i}_block{j}")(x, mode)
      if i and c.time_down[i - 1]:
        x = TimeUp(c.wan_compat, dtype, name=f"level{i}_time")(x, mode)
      if i and c.space_down[i - 1]:
        x = SpaceUp(x.shape[-1] // 2, dtype, name=f"level{i}_space")(x)
    x = ACTIVATIONS[c.activation](ChannelNorm(c.norm_eps, name="norm_out")(x))
    pixels = 3 * c.stem_frames * c.stem_patch**2
    x = CausalConv(pixels, name="conv_out", **conv)(x, mode)
    if c.shortcut:
      x = x + CausalConv(pixels, (1, 3, 3), name="shortcut", **conv)(latent, mode)
    return x


def _options(config):
  dtype = jnp.dtype(config.dtype)
  return config, dtype, {"lowering": config.conv, "dtype": dtype}


def _res(config, out, name):
  c = config
  return ResBlock(out, c.taps, c.activation, c.norm_eps, c.conv, jnp.dtype(c.dtype), name=name)


def _mid(config, x, mode):
  """Two residual blocks around the attention, if there is any."""
  x = _res(config, x.shape[-1], "mid_block0")(x, mode)
  if config.mid_attention != "none":
    window = config.window if config.mid_attention == "window" else 0
    dtype = jnp.dtype(config.dtype)
    x = FrameAttention(window, config.norm_eps, dtype, name="mid_attention")(x)
  return _res(config, x.shape[-1], "mid_block1")(x, mode)
