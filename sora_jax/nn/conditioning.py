"""What a denoiser is told beside its tokens: time, size and frame rate, class, text.

Each condition becomes a vector of the model's width for every time slot of a row, and from their
sum come the shifts, scales and gates of adaptive layer norm (Peebles and Xie 2022, arXiv
2212.09748, section 3.2; shared between blocks as in PixArt-alpha, arXiv 2310.00426, section 2.3).
All of it is float32.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sora_jax.nn.layers import SLOTS, WORDS, Linear
from sora_jax.ops.packing import Layout, segment_lengths, take_segments, vector_sums
from sora_jax.ops.positions import fourier

NULL_PROMPT = ""
"""The "null" condition is the encoding of the empty prompt, which any text encoder has."""

TIME_UNIT = 1000.0
"""Time in [0, 1] is embedded as if it counted a thousand steps, as pretrained models expect."""

normal = nn.initializers.normal(0.02)


class VectorMLP(nn.Module):
  """Linear, SiLU, linear: features of a scalar condition to a vector of the model's width."""

  width: int

  @nn.compact
  def __call__(self, features: Float[Array, "R n f"]) -> Float[Array, "R n D"]:
    def layer(name: str, x: Array) -> Array:
      names = ("condition", "width")
      return Linear((self.width,), names, start=normal, lead=SLOTS, name=name)(x)

    return layer("down", jax.nn.silu(layer("up", features)))


class TimeEmbedding(nn.Module):
  """Embeds times in [0, 1].

  Attributes:
    features: number of sines and cosines. shift: see `ops.positions.fourier`.
  """

  width: int
  features: int = 256
  shift: float = 0.0

  @nn.compact
  def __call__(self, time_RQ: Float[Array, "R Q"]) -> Float[Array, "R Q D"]:
    return VectorMLP(self.width, name="mlp")(
      fourier(TIME_UNIT * time_RQ, self.features, shift=self.shift)
    )


class SizeEmbedding(nn.Module):
  """Embeds a segment's extent in time, height and width, and its frame rate.

  Extents enter as logarithms in base 2, so that equal ratios are equal steps, the rate in frames a
  second; pictures have rate 0. Attributes: features: sines and cosines per number.
  """

  width: int
  features: int = 32

  @nn.compact
  def __call__(
    self, grid_RS3: Int[Array, "R S 3"], fps_RS: Float[Array, "R S"]
  ) -> Float[Array, "R S D"]:
    octaves_RS3 = 10.0 * jnp.log2(jnp.maximum(grid_RS3, 1).astype(jnp.float32))
    numbers_RS4 = jnp.concatenate([octaves_RS3, fps_RS[..., None]], axis=-1)
    features = fourier(numbers_RS4, self.features)
    return VectorMLP(self.width, name="mlp")(features.reshape(*fps_RS.shape, -1))


class PooledText(nn.Module):
  """Embeds for each slot the mean of its text's embeddings; a slot without text gives that of 0."""

  width: int

  @nn.compact
  def __call__(self, text_RMU: Float[Array, "R M U"], layout: Layout) -> Float[Array, "R Q D"]:
    reader_RQ = layout.slot_segment_RQ if layout.slot_text_RQ is None else layout.slot_text_RQ
    S = layout.grid_RS3.shape[1] if layout.slot_text_RQ is None else reader_RQ.shape[1]
    total_RSU = vector_sums(text_RMU.astype(jnp.float32), layout.text_segment_RM, S)
    length_RS = jnp.maximum(segment_lengths(layout.text_segment_RM, S), 1)
    text_RSD = VectorMLP(self.width, name="mlp")(total_RSU / length_RS[..., None])
    return take_segments(text_RSD, reader_RQ)


class TextProjection(nn.Module):
  """Projects text embeddings to the model's width: linear, GELU, linear (as PixArt and Wan do)."""

  width: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, text_RMU: Float[Array, "R M U"]) -> Float[Array, "R M D"]:
    def layer(name: str, of: str, x: Array) -> Array:
      return Linear(
        (self.width,), (of, "width"), start=normal, dtype=self.dtype, lead=WORDS, name=name
      )(x)

    return layer("down", "condition", jax.nn.gelu(layer("up", "text", text_RMU), approximate=True))


class Modulation(nn.Module):
  """Shifts, scales and gates from a condition: SiLU, then a linear layer that starts at zero."""

  parts: int
  width: int

  @nn.compact
  def __call__(self, condition_RQD: Float[Array, "R Q D"]) -> Float[Array, "R Q parts D"]:
    return Linear(
      (self.parts, self.width), ("condition", "modulation", "width"),
      start=nn.initializers.zeros, lead=SLOTS, name="linear",
    )(jax.nn.silu(condition_RQD))  # fmt: skip


def per_slot(table_RSD: Float[Array, "R S D"], layout: Layout) -> Float[Array, "R Q D"]:
  """Gives each time slot its segment's entry of a table; unused slots get 0."""
  return take_segments(table_RSD, layout.slot_segment_RQ)
