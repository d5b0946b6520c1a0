"""Convolutions over video that never look ahead, in one pass or in chunks.

Every layer here takes a `mode`:
  "whole"  the whole clip at once, as in training;
  "first"  its first frame; the layer keeps in collection "stream" what later chunks need;
  "next"   the frames after that, in chunks of any one length; reads and renews the stream.
`whole(x)` equals `first(x[:, :1])` followed by `next` on the rest, for any weights.

A clip has 1 + 2m frames on entering `TimeDown` and 1 + m on leaving it; `TimeUp` is its mirror.
The frame counts, the quirk of `TimeUp` and the norm follow Wan 2.1's video autoencoder
(arXiv 2503.20314, section 4.1), so that its weights can be read.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

Mode = Literal["whole", "first", "next"]
STREAM = "stream"
"""Collection of what a chunk hands to the next: one array of fixed shape per layer in time."""
FLOAT32 = jnp.dtype("float32")
LOWERINGS = ("auto", "native", "taps", "concat", "outputs")
FEW = 64
"""Output channels up to which CPUs make all taps' outputs at once, of more input channels or
of 48 or more: 17 frames of 128x128 take 0.7 of the time of one tap after the other with 48
channels, 1.1 with 16, 1.0 with 96."""


def conv2d(
  x_NHWC: Float[Array, "N H W C"], kernel: Float[Array, "y x C O"], stride: int = 1
) -> Float[Array, "N G V O"]:
  """Plain 2-D convolution; with stride 1 the size stays, else padding is one row and column after.

  A 1x1 kernel is a matrix product.
  """
  if kernel.shape[:2] == (1, 1) and stride == 1:
    return jnp.einsum("nhwc,co->nhwo", x_NHWC, kernel[0, 0])
  padding = "SAME" if stride == 1 else ((0, 1), (0, 1))
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x_NHWC, kernel, (stride,) * 2, padding, dimension_numbers=layout)


def frames2d(x: Float[Array, "B T H W C"], kernel, stride: int = 1) -> Array:
  """`conv2d` on every frame."""
  B, T, *rest = x.shape
  y = conv2d(x.reshape(B * T, *rest), kernel, stride)
  return y.reshape(B, T, *y.shape[1:])


def causal_conv(
  x: Float[Array, "B T H W C"],
  kernel: Float[Array, "t y x C O"],
  past: Float[Array, "B P H W C"] | None = None,
  lowering: str = "auto",
) -> Float[Array, "B T H W O"]:
  """y[j] = sum_i kernel[i] * x[j - (t - 1) + i], same size in space, zeros beyond its border.

  Args:
    past: the t - 1 frames before x; zeros if None, and then work on them is saved.
    lowering: "native" (one 3-D convolution), "taps" (t 2-D convolutions of shifted clips, summed),
      "concat" (one 2-D convolution of the shifted clips side by side), "outputs" (one 2-D
      convolution with the outputs of all taps side by side, shifted and summed; gradients, and
      clips with a past, as "taps"); "auto" takes "outputs" for few channels (`FEW`) and "taps" for
      others on CPUs, where XLA's 3-D convolution runs at a fraction of the 2-D one, and "native"
      elsewhere.

  Raises: ValueError for an unknown lowering.
  """
  if lowering not in LOWERINGS:
    raise ValueError(f"lowering={lowering!r}; allowed: {', '.join(LOWERINGS)}")
  if lowering == "auto":
    C, O = kernel.shape[-2:]
    on_cpu = "outputs" if O <= FEW and (C > O or C >= 48) else "taps"
    lowering = on_cpu if jax.default_backend() == "cpu" else "native"
  taps, T = kernel.shape[0], x.shape[1]
  if taps == 1:
    return frames2d(x, kernel[0])
  if past is None and lowering in ("taps", "outputs"):
    return (_taps if lowering == "taps" else _outputs)(x, kernel)
  x = _after_zeros(x, taps - 1) if past is None else jnp.concatenate([past, x], axis=1)
  if lowering == "native":
    return _native(x, kernel)
  shifted = [x[:, i : i + T] for i in range(taps)]
  if lowering in ("taps", "outputs"):
    return sum(frames2d(part, kernel[i]) for i, part in enumerate(shifted))
  _, height, width, C, O = kernel.shape
  wide = jnp.moveaxis(kernel, 0, 2).reshape(height, width, taps * C, O)
  return frames2d(jnp.concatenate(shifted, axis=-1), wide)


def _taps(x, kernel):
  y = frames2d(x, kernel[-1])
  for ago in range(1, min(len(kernel), x.shape[1])):
    y = y + _after_zeros(frames2d(x[:, :-ago], kernel[-1 - ago]), ago)
  return y


@jax.custom_vjp
def _outputs(x, kernel):
  """Gradients of the one wide convolution would take longer than those of `_taps`."""
  taps, height, width, C, O = kernel.shape
  parts = frames2d(x, jnp.moveaxis(kernel, 0, 3).reshape(height, width, C, taps * O))
  *earlier, y = jnp.split(parts, taps, axis=-1)
  for ago in range(1, min(taps, x.shape[1])):
    y = y + _after_zeros(earlier[-ago][:, :-ago], ago)
  return y


_outputs.defvjp(
  lambda *given: (_outputs(*given), given), lambda saved, given: jax.vjp(_taps, *saved)[1](given)
)


def _native(x, kernel):
  edges = [(0, 0)] + [((k - 1) // 2, k // 2) for k in kernel.shape[1:3]]
  layout = ("NDHWC", "DHWIO", "NDHWC")
  return lax.conv_general_dilated(x, kernel, (1, 1, 1), edges, dimension_numbers=layout)


def _after_zeros(x, frames):
  return jnp.pad(x, ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0)))


class CausalConv(nn.Module):
  """Causal convolution with bias: `t - 1` zeros before the clip, symmetric in space.

  Attributes: out: output channels. kernel: (t, y, x), odd in space. zero: start at zero, as the
  last layer of a residual branch. lowering: see `causal_conv`. dtype: of the computation.
  """

  out: int
  kernel: tuple[int, int, int] = (3, 3, 3)
  zero: bool = False
  lowering: str = "auto"
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    init = nn.initializers.zeros if self.zero else fan_in
    kernel = self.param("kernel", init, (*self.kernel, x.shape[-1], self.out))
    kernel = jnp.asarray(kernel, self.dtype)
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.out,)), self.dtype)
    x = x.astype(self.dtype)
    past = recall(self, x, self.kernel[0] - 1, mode)
    return causal_conv(x, kernel, past, self.lowering) + bias[None, None, None, None]


def fan_in(key, shape, dtype=jnp.float32) -> Array:
  """Normal, variance 1 / (inputs of an output)."""
  size = 1
  for n in shape[:-1]:
    size *= n
  return jax.random.normal(key, shape, dtype) * size**-0.5


def recall(
  module: nn.Module, x: Float[Array, "B T H W C"], frames: int, mode: Mode
) -> Float[Array, "B P H W C"] | None:
  """The `frames` inputs before x, or None at the beginning; keeps x's last for the next chunk."""
  if mode == "whole" or not frames:
    return None
  B, T, H, W, C = x.shape
  kept = module.variable(STREAM, "past", jnp.zeros, (B, frames, H, W, C), x.dtype)
  past = kept.value if mode == "next" else None
  before = past if past is not None else jnp.zeros((B, frames, H, W, C), x.dtype)
  kept.value = jnp.concatenate([before, x], axis=1)[:, -frames:]
  return past


class ChannelNorm(nn.Module):
  """x / rms(x over channels) times a gain, at every place and frame alone; float32 inside."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    gain = jnp.asarray(self.param("scale", nn.initializers.ones, (x.shape[-1],)))
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
    return (y * gain.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class SpaceDown(nn.Module):
  """Halves height and width: a 3x3 convolution of stride 2, cells (2i, 2i + 1, 2i + 2) to i."""

  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T h w C"]:
    C = x.shape[-1]
    kernel = jnp.asarray(self.param("kernel", fan_in, (3, 3, C, C)), self.dtype)
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (C,)), self.dtype)
    return frames2d(x, kernel, 2) + bias[None, None, None, None]


class SpaceUp(nn.Module):
  """Doubles height and width: every cell four times, then a 3x3 convolution to `out` channels."""

  out: int
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T h w C"]) -> Float[Array, "B T H W O"]:
    kernel = jnp.asarray(self.param("kernel", fan_in, (3, 3, x.shape[-1], self.out)), self.dtype)
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.out,)), self.dtype)
    x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
    return frames2d(x, kernel) + bias[None, None, None, None]


class TimeDown(nn.Module):
  """Halves the frames after the first: y[0] = x[0], y[j] = W (x[2j - 2], x[2j - 1], x[2j]).

  Starts by passing the latest of the three on.
  """

  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    C = x.shape[-1]
    kernel = jnp.asarray(self.param("kernel", latest, (3, C, C)), self.dtype)
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (C,)), self.dtype)
    past = recall(self, x, 1, mode)
    if mode == "first" or x.shape[1] == 1 and past is None:
      return x
    chunk = x if past is None else jnp.concatenate([past, x], axis=1)
    taps = (chunk[:, :-1:2], chunk[:, 1::2], chunk[:, 2::2])
    y = sum(jnp.einsum("bthwc,co->bthwo", part, kernel[i]) for i, part in enumerate(taps))
    y = y + bias[None, None, None, None]
    return jnp.concatenate([x[:, :1], y], axis=1) if past is None else y


class TimeUp(nn.Module):
  """Doubles the frames after the first: y[0] = x[0]; (y[2j - 1], y[2j]) = W (x[j - 2 : j + 1]).

  Before the clip there are zeros. Wan's x[0] never enters the other frames' windows (its first
  chunk leaves an empty cache); `blind` keeps that, else the first frame is seen like any other.
  Starts by repeating every frame.
  """

  blind: bool = False
  dtype: jnp.dtype = FLOAT32

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W C"], mode: Mode = "whole") -> Array:
    B, T, H, W, C = x.shape
    kernel = jnp.asarray(self.param("kernel", twice_latest, (3, C, 2 * C)), self.dtype)
    bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (2 * C,)), self.dtype)
    seen = x if mode == "next" or not self.blind else x.at[:, 0].set(0)
    past = recall(self, seen, 2, mode)
    if mode == "first" or T == 1 and past is None:
      return x
    chunk = jnp.concatenate([past, x], axis=1) if past is not None else _after_zeros(seen, 1)
    m = chunk.shape[1] - 2
    y = sum(jnp.einsum("bthwc,co->bthwo", chunk[:, i : i + m], kernel[i]) for i in range(3))
    y = (y + bias[None, None, None, None]).reshape(B, m, H, W, 2, C)
    y = jnp.moveaxis(y, 4, 2).reshape(B, 2 * m, H, W, C)
    return jnp.concatenate([x[:, :1], y], axis=1) if past is None else y


def latest(key, shape, dtype=jnp.float32) -> Array:
  """Identity in the last tap, zeros before it."""
  del key
  return jnp.zeros(shape, dtype).at[-1].set(jnp.eye(*shape[1:], dtype=dtype))


def twice_latest(key, shape, dtype=jnp.float32) -> Array:
  """`latest`, once for each of the two frames that are made."""
  half = latest(key, (*shape[:-1], shape[-1] // 2), dtype)
  return jnp.concatenate([half, half], axis=-1)
