"""Blocks of the diffusion transformer: attention, cross-attention, MLP, their modulation; the head.

Sources: DiT (Peebles and Xie 2022, arXiv 2212.09748); shared modulation from PixArt-alpha
(arXiv 2310.00426); block order, rotary split and head from Wan 2.1 (arXiv 2503.20314); query-key
norm per head from ViT-22B (arXiv 2302.05442).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sora_jax.nn import conditioning
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.layers import (
  ACTIVATIONS,
  MLP,
  TOKENS,
  WORDS,
  LayerNorm,
  Linear,
  RMSNorm,
  constrain,
  gathered,
  stacked,
  xavier,
)
from sora_jax.ops import attention as attention_ops
from sora_jax.ops import positions
from sora_jax.ops.linear import settle
from sora_jax.ops.modulation import adaptive_norm, gated_sum


class Shared(NamedTuple):
  """What every block reads: tables of the row, and nothing that a block changes."""

  condition_RQX: Array
  slot_RL: Array
  segment_RL: Array
  text_RL: Array
  text_segment_RM: Array
  text_RMD: Array | None
  cos_RLk: Array | None
  sin_RLk: Array | None


class SelfAttention(nn.Module):
  """Attention among the tokens of a segment, with normed and rotated queries and keys."""

  config: DiTConfig
  attention: attention_ops.Attention

  @nn.compact
  def __call__(self, x_RLD: Float[Array, "R L D"], shared: Shared) -> Float[Array, "R L D"]:
    c = self.config
    qkv_RL3AK = Linear(
      (3, c.heads, c.head_size), ("width", "qkv", "heads", "head_size"), bias=c.qkv_bias,
      start=stacked(xavier(), 1), dtype=jnp.dtype(c.dtype), name="qkv",
    )(x_RLD)  # fmt: skip
    q_RLAK, k_RLAK, v_RLAK = unstack(qkv_RL3AK)
    q_RLAK, k_RLAK = qk_normed(c, q_RLAK, k_RLAK)
    if shared.cos_RLk is not None:
      q_RLAK = positions.rotate(q_RLAK, shared.cos_RLk, shared.sin_RLk)
      k_RLAK = positions.rotate(k_RLAK, shared.cos_RLk, shared.sin_RLk)
    out_RLAK = self.attention(q_RLAK, k_RLAK, v_RLAK, shared.segment_RL, shared.segment_RL)
    return project_heads(c, out_RLAK)


class CrossAttention(nn.Module):
  """Attention from each token to the text it reads; its output projection starts at zero."""

  config: DiTConfig
  attention: attention_ops.Attention

  @nn.compact
  def __call__(self, x_RLD: Float[Array, "R L D"], shared: Shared) -> Float[Array, "R L D"]:
    c = self.config
    names = ("width", "heads", "head_size")
    dtype = jnp.dtype(c.dtype)
    q_RLAK = Linear((c.heads, c.head_size), names, bias=c.qkv_bias, dtype=dtype, name="q")(x_RLD)
    kv_RM2AK = Linear(
      (2, c.heads, c.head_size), ("width", "qkv", "heads", "head_size"), bias=c.qkv_bias,
      start=stacked(xavier(), 1), dtype=dtype, lead=WORDS, name="kv",
    )(shared.text_RMD)  # fmt: skip
    k_RMAK, v_RMAK = unstack(kv_RM2AK)
    q_RLAK, k_RMAK = qk_normed(c, q_RLAK, k_RMAK)
    out_RLAK = self.attention(q_RLAK, k_RMAK, v_RMAK, shared.text_RL, shared.text_segment_RM)
    return project_heads(c, out_RLAK, start=nn.initializers.zeros)


def unstack(parts_RLnAK: Array) -> list[Array]:
  """Parts along the third axis; unlike indexing, its gradient is one concatenation."""
  n = parts_RLnAK.shape[2]
  return [part.squeeze(2) for part in jax.lax.split(parts_RLnAK, (1,) * n, axis=2)]


def qk_normed(c: DiTConfig, q: Array, k: Array) -> tuple[Array, Array]:
  """Queries and keys after the norm that the config asks for (called inside a module)."""
  if c.qk_norm == "none":
    return q, k
  names = ("head_size",) if c.qk_norm == "head" else ("heads", "head_size")
  return (
    RMSNorm(names, c.norm_eps, name="q_norm")(q),
    RMSNorm(names, c.norm_eps, name="k_norm")(k),
  )


def project_heads(c: DiTConfig, out_RLAK: Array, start=None) -> Array:
  """Heads back to the width (called inside a module)."""
  return Linear(
    (c.width,), ("heads", "head_size", "width"), num_in=2, bias=c.qkv_bias, start=start,
    dtype=jnp.dtype(c.dtype), name="out",
  )(out_RLAK)  # fmt: skip


class Block(nn.Module):
  """Self-attention, cross-attention, MLP; gates of zero make it the identity at the start."""

  config: DiTConfig
  attention: attention_ops.Attention
  cross_attention: attention_ops.Attention

  @nn.compact
  def __call__(
    self, x_RLD: Float[Array, "R L D"], shared: Shared
  ) -> tuple[Float[Array, "R L D"], None]:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_RLD = constrain(settle(x_RLD), *TOKENS, "channel")
    slot_RL = shared.slot_RL
    shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(shared)
    h_RLD = settle(adaptive_norm(x_RLD, shift1, scale1, slot_RL, c.norm_eps).astype(dtype))
    h_RLD = SelfAttention(c, self.attention, name="attention")(h_RLD, shared)
    x_RLD = settle(gated_sum(x_RLD, h_RLD, gate1, slot_RL))
    if shared.text_RMD is not None:
      h_RLD = LayerNorm(c.norm_eps, name="cross_norm")(x_RLD) if c.cross_norm else x_RLD
      cross = CrossAttention(c, self.cross_attention, name="cross")
      h_RLD = cross(settle(h_RLD.astype(dtype)), shared)
      x_RLD = settle((x_RLD + h_RLD).astype(x_RLD.dtype))
    h_RLD = settle(adaptive_norm(x_RLD, shift2, scale2, slot_RL, c.norm_eps).astype(dtype))
    h_RLD = MLP(round(c.width * c.mlp_ratio), c.mlp_activation, dtype, name="mlp")(h_RLD)
    x_RLD = gated_sum(x_RLD, h_RLD, gate2, slot_RL)
    return constrain(x_RLD, *TOKENS, "channel"), None

  def modulation(self, shared: Shared) -> list[Array]:
    """The six tables of this block, one vector per slot: shift, scale, gate, twice."""
    c = self.config
    if c.modulation == "full":
      table_RQ6D = conditioning.Modulation(6, c.width, name="modulation")(shared.condition_RQX)
    else:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("modulation", "width"))
      own_6D = self.param("modulation", zeros, (6, c.width))
      own_6D = gathered(own_6D, ("modulation", "width"))
      table_RQ6D = shared.condition_RQX + own_6D[None, None]
    return [table_RQ6D[:, :, i] for i in range(6)]


class Head(nn.Module):
  """Last norm, its modulation, and the linear layer to a patch, which starts at zero.

  To take the noise off a token, its output has to hold that noise, entry by entry. A network whose
  width is hardly more than a patch has no room for it beside all else (Li & He 2025, arXiv
  2511.13720, section 3), so a head with a `head_width` adds an MLP that reads the noisy token
  itself: the blocks tell it what is there, it takes away what is not.
  """

  config: DiTConfig

  @nn.compact
  def __call__(
    self, x_RLD: Float[Array, "R L D"], condition_RQD: Float[Array, "R Q D"],
    slot_RL: Int[Array, "R L"], tokens_RLP: Float[Array, "R L Pin"],
  ) -> Float[Array, "R L P"]:  # fmt: skip
    c = self.config
    if c.modulation == "full":
      table_RQ2D = conditioning.Modulation(2, c.width, name="modulation")(condition_RQD)
    else:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("modulation", "width"))
      own_2D = self.param("modulation", zeros, (2, c.width))
      own_2D = gathered(own_2D, ("modulation", "width"))
      table_RQ2D = condition_RQD[:, :, None] + own_2D[None, None]
    shift_RQD, scale_RQD = table_RQ2D[:, :, 0], table_RQ2D[:, :, 1]
    h_RLD = settle(adaptive_norm(settle(x_RLD), shift_RQD, scale_RQD, slot_RL, c.norm_eps))
    size, zeros = (c.cells * c.out_channels,), nn.initializers.zeros
    out_RLP = Linear(size, ("width", "patch"), start=zeros, name="linear")(h_RLD)
    if c.head_width:
      both_RLX = jnp.concatenate([h_RLD, tokens_RLP], axis=-1)
      hidden_RLF = Linear((c.head_width,), ("patch", "mlp"), name="up")(both_RLX)
      hidden_RLF = ACTIVATIONS[c.mlp_activation](hidden_RLF)
      out_RLP += Linear(size, ("mlp", "patch"), bias=False, start=zeros, name="down")(hidden_RLF)
    return out_RLP
