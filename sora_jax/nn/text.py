"""T5-style text encoder over packed rows of token ids.

Source: Raffel et al. 2020 (arXiv 1910.10683), the gated variant of T5 v1.1 (Shazeer,
arXiv 2002.05202), and UMT5 (Chung et al. 2023, arXiv 2304.09151), which differs by a table of
relative positions in every layer. Attention is bidirectional within a segment, has no 1/sqrt(K)
scale, and knows positions only through a bias on differences of position; segments are contiguous
runs, so differences of the index in the row are differences of position in the text.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sora_jax.nn.layers import WORDS, Linear, RMSNorm, constrain, gathered
from sora_jax.shapes import PAD_SEGMENT

_MASKED = -1e9
_normal = nn.initializers.normal


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Shape of a text encoder.

  Attributes: vocab_size: V.  width: D, also the output width U.  depth: layers.  heads: A.
    head_size: K.  mlp_width: F.  activation: "relu" (T5) or "gated_gelu" (v1.1, UMT5).
    shared_bias: one table of relative positions for all layers (T5) or one each (UMT5).
    buckets, max_distance: of the relative positions.  norm_eps: under the root of RMS norm.
    dtype: of activations; parameters, softmax and norms are float32.
  """

  vocab_size: int = 512
  width: int = 128
  depth: int = 2
  heads: int = 4
  head_size: int = 32
  mlp_width: int = 512
  activation: str = "relu"
  shared_bias: bool = True
  buckets: int = 32
  max_distance: int = 128
  norm_eps: float = 1e-6
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("vocab_size", "width", "depth", "heads", "head_size", "mlp_width"):
      if getattr(self, name) < 1:
        raise ValueError(f"text.{name}={getattr(self, name)}; it must be at least 1")
    if not 0 < self.norm_eps < math.inf:
      raise ValueError(f"text.norm_eps={self.norm_eps}; it must be above 0, and finite")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"text.dtype={self.dtype!r}; allowed: 'float32', 'bfloat16'")
    if self.activation not in ("relu", "gated_gelu"):
      raise ValueError(f"text.activation={self.activation!r}; allowed: 'relu', 'gated_gelu'")
    if self.buckets < 4 or self.buckets % 2 or self.max_distance <= self.buckets // 4:
      raise ValueError(
        f"text.buckets={self.buckets}, max_distance={self.max_distance}; buckets must be even and "
        "at least 4, max_distance above a quarter of them"
      )


def _published(width: int, depth: int, heads: int, mlp_width: int, **kwargs) -> TextConfig:
  kwargs = {"vocab_size": 32128, "head_size": 64, "activation": "gated_gelu", **kwargs}
  return TextConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width, **kwargs)


SIZES = {
  "tiny": TextConfig(),
  "t5-small": _published(512, 8, 6, 1024),
  "t5-base": _published(768, 12, 12, 2048),
  "t5-large": _published(1024, 24, 16, 2816),
  "t5-xl": _published(2048, 24, 32, 5120),
  "t5-xxl": _published(4096, 24, 64, 10240),
  "umt5-xxl": _published(4096, 24, 64, 10240, vocab_size=256384, shared_bias=False),
}
"""`tiny` is trained with the video model; the others are T5 v1.1 and UMT5 (nn/text_import.py)."""


def relative_buckets(offsets: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
  """Bucket of each key-minus-query position, for attention both ways (T5, section 2.1).

  Half of the buckets are for keys after the query. In each half the first half is exact, the rest
  grows logarithmically up to `max_distance`, beyond which everything shares the last.
  """
  half = buckets // 2
  exact = half // 2
  distance = np.abs(offsets)
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
  ratio = ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
  far = np.minimum(exact + ratio.astype(np.int32), half - 1)
  return np.where(offsets > 0, half, 0) + np.where(distance < exact, distance, far)


class RelativeBias(nn.Module):
  """Learned bias on attention logits by bucketed difference of position: [A, M, M]."""

  config: TextConfig

  @nn.compact
  def __call__(self, row_len: int) -> Float[Array, "A M M"]:
    c = self.config
    init = nn.with_logical_partitioning(_normal(c.width**-0.5), ("buckets", "heads"))
    table_BA = self.param("embedding", init, (c.buckets, c.heads), jnp.float32)
    index_M = np.arange(row_len)
    bucket_MM = relative_buckets(index_M[None] - index_M[:, None], c.buckets, c.max_distance)
    return jnp.moveaxis(table_BA[bucket_MM], -1, 0)


class SelfAttention(nn.Module):
  """Attention within segments: softmax(q k + bias) v, without a scale on q k."""

  config: TextConfig

  @nn.compact
  def __call__(
    self, x_RMD: Float[Array, "R M D"], bias_RAMM: Float[Array, "R A M M"]
  ) -> Float[Array, "R M D"]:
    c = self.config
    dtype = jnp.dtype(c.dtype)

    def project(name: str, std: float) -> Float[Array, "R M A K"]:
      names = ("width", "heads", "head_size")
      return Linear(
        (c.heads, c.head_size), names, bias=False, start=_normal(std), dtype=dtype, lead=WORDS,
        name=name,
      )(x_RMD)  # fmt: skip

    q_RMAK = project("query", (c.width * c.head_size) ** -0.5)
    k_RMAK = project("key", c.width**-0.5)
    v_RMAK = project("value", c.width**-0.5)
    logits_RAML = jnp.einsum("RMAK,RLAK->RAML", q_RMAK, k_RMAK, preferred_element_type=jnp.float32)
    weights_RAML = jax.nn.softmax(logits_RAML + bias_RAMM, axis=-1).astype(dtype)
    mixed_RMAK = jnp.einsum("RAML,RLAK->RMAK", weights_RAML, v_RMAK)
    init = _normal((c.heads * c.head_size) ** -0.5)
    return Linear(
      (c.width,), ("heads", "head_size", "width"), num_in=2, bias=False, start=init, dtype=dtype,
      lead=WORDS, name="out",
    )(mixed_RMAK)  # fmt: skip


class FeedForward(nn.Module):
  """wo(relu(wi x)), or wo(gelu(wi_gate x) * wi x) when gated; gelu by tanh, no biases."""

  config: TextConfig

  @nn.compact
  def __call__(self, x_RMD: Float[Array, "R M D"]) -> Float[Array, "R M D"]:
    c = self.config

    def dense(x: Array, name: str, out: int, names: tuple[str, str]) -> Array:
      init = _normal(x.shape[-1] ** -0.5)
      return Linear(
        (out,), names, bias=False, start=init, dtype=jnp.dtype(c.dtype), lead=WORDS, name=name
      )(x)

    hidden_RMF = dense(x_RMD, "wi", c.mlp_width, ("width", "mlp"))
    if c.activation == "relu":
      hidden_RMF = jax.nn.relu(hidden_RMF)
    else:
      gate_RMF = dense(x_RMD, "wi_gate", c.mlp_width, ("width", "mlp"))
      hidden_RMF = jax.nn.gelu(gate_RMF, approximate=True) * hidden_RMF
    return dense(hidden_RMF, "wo", c.width, ("mlp", "width"))


class TextEncoder(nn.Module):
  """Token ids to text embeddings; what one segment gives does not depend on the others."""

  config: TextConfig

  @nn.compact
  def __call__(
    self, ids_RM: Int[Array, "R M"], segment_RM: Int[Array, "R M"]
  ) -> Float[Array, "R M U"]:
    """Encodes packed texts.

    Args: ids_RM: token ids in [0, vocab_size).  segment_RM: contiguous runs numbered from 1 in
      each row, 0 for padding.
    Returns: embeddings in the config's dtype; exactly 0 at padding.
    """
    c = self.config
    dtype = jnp.dtype(c.dtype)
    init = nn.with_logical_partitioning(_normal(1.0), ("vocab", "width"))
    table_VD = self.param("embedding", init, (c.vocab_size, c.width), jnp.float32)
    x_RMD = gathered(table_VD, ("vocab", "width"), dtype)[ids_RM]
    x_RMD = constrain(x_RMD, *WORDS, "channel")
    row_len = ids_RM.shape[1]
    real_RM = segment_RM != PAD_SEGMENT
    same_RMM = (segment_RM[:, :, None] == segment_RM[:, None, :]) & real_RM[:, None, :]
    bias_AMM = RelativeBias(c, name="relative_bias")(row_len) if c.shared_bias else None
    for layer in range(c.depth):
      if not c.shared_bias:
        bias_AMM = RelativeBias(c, name=f"relative_bias_{layer}")(row_len)
      bias_RAMM = jnp.where(same_RMM[:, None], bias_AMM[None], _MASKED)
      y_RMD = RMSNorm(("width",), c.norm_eps, name=f"attention_norm_{layer}")(x_RMD)
      x_RMD = x_RMD + SelfAttention(c, name=f"attention_{layer}")(y_RMD, bias_RAMM)
      y_RMD = RMSNorm(("width",), c.norm_eps, name=f"mlp_norm_{layer}")(x_RMD)
      x_RMD = x_RMD + FeedForward(c, name=f"mlp_{layer}")(y_RMD)
    text_RMU = RMSNorm(("width",), c.norm_eps, name="final_norm")(x_RMD)
    return jnp.where(real_RM[:, :, None], text_RMU, 0)
