"""The diffusion transformer: tokens, times and conditions to one prediction per token.

Full space-time attention over packed rows, adaptive layer norm per time slot, cross-attention to
packed text. The network does not know which target its output stands for; it is handed its
attention function, and names axes without knowing any mesh.

Sources: DiT (Peebles and Xie 2022, arXiv 2212.09748); shared modulation from PixArt-alpha
(arXiv 2310.00426); block order, rotary split and head from Wan 2.1 (arXiv 2503.20314); query-key
norm per head from ViT-22B (arXiv 2302.05442); fractional positions from NaViT (arXiv 2307.06304).
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sora_jax.nn import conditioning
from sora_jax.nn.layers import ACTIVATIONS, MLP, LayerNorm, Linear, RMSNorm, stacked, xavier
from sora_jax.ops import attention as attention_ops
from sora_jax.ops import packing, positions, precondition
from sora_jax.ops.linear import settle
from sora_jax.ops.modulation import adaptive_norm, gated_sum
from sora_jax.ops.packing import Layout


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape and options of a diffusion transformer.

  Attributes:
    width: D. depth: blocks. heads: A; the head size is width / heads. mlp_ratio: F / D.
    patch: latent cells per token, (t, h, w).
    in_channels: channels of a cell that enters, see `ops.patchify.cell_channels`.
    out_channels: channels of a cell that leaves (the latent's Z).
    text_width: U of the text encoder; 0 = no cross-attention.
    pooled_text: tell the modulation the mean of a segment's text embeddings, too, as SD3 does
      (arXiv 2403.03206, section 4): multiplying tokens by what the text says.
    classes: size of a table of class labels; 0 = none.
    spread, level: standard deviation of each of the out_channels within a clip and between clips;
      the network then predicts data and is preconditioned, see `ops.precondition`. () = it reads
      and predicts cells as they are.
    modulation: "single" shares one linear layer among blocks, each adding a table of its own;
      "full" gives every block its linear layer (adaLN-zero).
    qk_norm: RMS norm of queries and keys over each "head", over the "full" width, or "none".
    qkv_bias: biases in the attention's projections.
    cross_norm: layer norm with gain before cross-attention.
    mlp_activation: a key of `nn.layers.ACTIVATIONS`.
    position: "rotary", or "sincos" for the fixed sums of DiT.
    rotary_theta, rotary_scale, rotary_method: see `ops.positions.frequencies`.
    fraction_octaves: detail of the fractional positions; 0 = none.
    size_condition: tell the model extents and frame rate.
    time_features, time_shift: see `ops.positions.fourier`.
    norm_eps: of all norms.
    remat: what the backward pass recomputes: "none", "block" (all of each block), "dots" (all but
      matrix products).
    scan_unroll: blocks per turn of the loop over depth; `depth` unrolls it (faster on CPU).
    dtype: type of activations; parameters, norms, modulation and angles are float32.
  """

  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  patch: Sequence[int] = (1, 2, 2)
  in_channels: int = 36
  out_channels: int = 16
  text_width: int = 0
  pooled_text: bool = False
  classes: int = 0
  spread: Sequence[float] = ()
  level: Sequence[float] = ()
  modulation: str = "single"
  qk_norm: str = "head"
  qkv_bias: bool = False
  cross_norm: bool = True
  mlp_activation: str = "gelu_tanh"
  position: str = "rotary"
  rotary_theta: float = 1e4
  rotary_scale: Sequence[float] = (1.0, 1.0, 1.0)
  rotary_method: str = "none"
  fraction_octaves: int = 4
  size_condition: bool = True
  time_features: int = 256
  time_shift: float = 0.0
  norm_eps: float = 1e-6
  remat: str = "none"
  scan_unroll: int = 1
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("patch", "rotary_scale", "spread", "level"):
      object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, if read from JSON
    allowed = {
      "modulation": ("single", "full"), "qk_norm": ("head", "full", "none"),
      "position": ("rotary", "sincos"), "rotary_method": ("none", "interpolate", "ntk"),
      "remat": ("none", "block", "dots"), "dtype": ("float32", "bfloat16"),
      "mlp_activation": tuple(ACTIVATIONS),
    }  # fmt: skip
    for name, values in allowed.items():
      if getattr(self, name) not in values:
        raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(values)}")
    if self.width % self.heads or (self.width // self.heads) % 2:
      raise ValueError(
        f"width {self.width} over {self.heads} heads gives heads of "
        f"{self.width / self.heads:g}; choose them so that each head is an even number"
      )
    for name in ("spread", "level"):
      if len(getattr(self, name)) != (self.out_channels if self.spread else 0):
        raise ValueError(
          f"{name} has {len(getattr(self, name))} entries; needed is one for each of the"
          f" {self.out_channels} channels, or none in both spread and level"
        )
    if self.position == "rotary":
      positions.axis_sizes(self.head_size)
    elif self.width % 4:
      raise ValueError(f"position='sincos' needs a width that is a multiple of 4: {self.width}")

  @property
  def head_size(self) -> int:
    """K, entries of a head."""
    return self.width // self.heads

  @property
  def cells(self) -> int:
    """Latent cells per token."""
    return self.patch[0] * self.patch[1] * self.patch[2]


class Shared(NamedTuple):
  """What every block reads: tables of the row, and nothing that a block changes."""

  condition_RQX: Array
  slot_RL: Array
  segment_RL: Array
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
  """Attention from a segment's tokens to its text; its output projection starts at zero."""

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
      start=stacked(xavier(), 1), dtype=dtype, name="kv",
    )(shared.text_RMD)  # fmt: skip
    k_RMAK, v_RMAK = unstack(kv_RM2AK)
    q_RLAK, k_RMAK = qk_normed(c, q_RLAK, k_RMAK)
    out_RLAK = self.attention(q_RLAK, k_RMAK, v_RMAK, shared.segment_RL, shared.text_segment_RM)
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

  @nn.compact
  def __call__(
    self, x_RLD: Float[Array, "R L D"], shared: Shared
  ) -> tuple[Float[Array, "R L D"], None]:
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    x_RLD = nn.with_logical_constraint(settle(x_RLD), ("row", "token", "channel"))
    slot_RL = shared.slot_RL
    shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(shared)
    h_RLD = settle(adaptive_norm(x_RLD, shift1, scale1, slot_RL, c.norm_eps).astype(dtype))
    h_RLD = SelfAttention(c, self.attention, name="attention")(h_RLD, shared)
    x_RLD = settle(gated_sum(x_RLD, h_RLD, gate1, slot_RL))
    if shared.text_RMD is not None:
      h_RLD = LayerNorm(c.norm_eps, name="cross_norm")(x_RLD) if c.cross_norm else x_RLD
      h_RLD = CrossAttention(c, self.attention, name="cross")(settle(h_RLD.astype(dtype)), shared)
      x_RLD = settle((x_RLD + h_RLD).astype(x_RLD.dtype))
    h_RLD = settle(adaptive_norm(x_RLD, shift2, scale2, slot_RL, c.norm_eps).astype(dtype))
    h_RLD = MLP(round(c.width * c.mlp_ratio), c.mlp_activation, dtype, name="mlp")(h_RLD)
    return gated_sum(x_RLD, h_RLD, gate2, slot_RL), None

  def modulation(self, shared: Shared) -> list[Array]:
    """The six tables of this block, one vector per slot: shift, scale, gate, twice."""
    c = self.config
    if c.modulation == "full":
      table_RQ6D = conditioning.Modulation(6, c.width, name="modulation")(shared.condition_RQX)
    else:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("modulation", "width"))
      own_6D = self.param("modulation", zeros, (6, c.width))
      table_RQ6D = shared.condition_RQX + own_6D[None, None]
    return [table_RQ6D[:, :, i] for i in range(6)]


class Head(nn.Module):
  """Last norm, its modulation, and the linear layer to a patch, which starts at zero."""

  config: DiTConfig

  @nn.compact
  def __call__(
    self, x_RLD: Float[Array, "R L D"], condition_RQD: Float[Array, "R Q D"],
    slot_RL: Int[Array, "R L"],
  ) -> Float[Array, "R L P"]:  # fmt: skip
    c = self.config
    if c.modulation == "full":
      table_RQ2D = conditioning.Modulation(2, c.width, name="modulation")(condition_RQD)
    else:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("modulation", "width"))
      own_2D = self.param("modulation", zeros, (2, c.width))
      table_RQ2D = condition_RQD[:, :, None] + own_2D[None, None]
    shift_RQD, scale_RQD = table_RQ2D[:, :, 0], table_RQ2D[:, :, 1]
    h_RLD = settle(adaptive_norm(settle(x_RLD), shift_RQD, scale_RQD, slot_RL, c.norm_eps))
    return Linear(
      (c.cells * c.out_channels,), ("width", "patch"), start=nn.initializers.zeros, name="linear"
    )(h_RLD)


class DiT(nn.Module):
  """The denoiser's network.

  Attributes:
    config: its shape. attention: how queries find their segment's keys, see `ops.attention`.
  """

  config: DiTConfig
  attention: attention_ops.Attention = attention_ops.attention

  @nn.compact
  def __call__(
    self,
    tokens_RLP: Float[Array, "R L Pin"],
    time_RQ: Float[Array, "R Q"],
    layout: Layout,
    text_RMU: Float[Array, "R M U"] | None = None,
    label_RS: Int[Array, "R S"] | None = None,
  ) -> Float[Array, "R L P"]:
    """Predicts one patch per token.

    Args:
      tokens_RLP: cells that enter, patchified: cells * in_channels entries a token.
      time_RQ: time of each slot in [0, 1], 0 = data.
      layout: where segments, coordinates and slots lie.
      text_RMU: packed text embeddings; needed if, and only if, the config has a text width.
      label_RS: class of each segment, if the config has classes.
    Returns: float32, cells * out_channels entries a token; exactly 0 at padding.
    Raises: ValueError if an input is missing or has the wrong size.
    """
    c = self.config
    self.check(tokens_RLP, text_RMU, label_RS)
    condition_RQD, shared = self.conditions(time_RQ, layout, text_RMU, label_RS)
    given_RLP, time_RL = tokens_RLP, packing.take_slots(time_RQ, layout.slot_RL)
    if c.spread:
      noisy = self.cells(given_RLP)[..., : c.out_channels]
      spread_Z, level_Z = jnp.asarray(c.spread), jnp.asarray(c.level)
      level = precondition.level(
        noisy, time_RL, layout.segment_RL, layout.grid_RS3.shape[1], spread_Z, level_Z
      )
      cells = precondition.enter(self.cells(given_RLP), level, spread_Z)
      tokens_RLP = cells.reshape(given_RLP.shape)
    x_RLD = Linear(
      (c.width,), ("patch", "width"), dtype=jnp.dtype(c.dtype), name="embed"
    )(tokens_RLP)  # fmt: skip
    if c.spread:
      x_RLD += Linear(
        (c.width,), ("patch", "width"), bias=False, dtype=jnp.dtype(c.dtype), name="level"
      )(level.mean[:, :, 0] / jnp.maximum(level_Z, precondition.LEAST)[None, None])
    x_RLD = x_RLD + self.absolute_positions(layout).astype(x_RLD.dtype)
    x_RLD, _ = self.blocks()(x_RLD, shared)
    out_RLP = Head(c, name="head")(x_RLD, condition_RQD, layout.slot_RL)
    if c.spread:
      out = precondition.leave(self.cells(out_RLP), noisy, level, spread_Z)
      out_RLP = out.reshape(out_RLP.shape)
    out_RLP = nn.with_logical_constraint(out_RLP, ("row", "token", "patch"))
    return jnp.where((layout.segment_RL > 0)[..., None], out_RLP, 0.0)

  def cells(self, tokens_RLP: Array) -> Array:
    """`[R, L, cells, channels]` of tokens."""
    return tokens_RLP.reshape(*tokens_RLP.shape[:2], self.config.cells, -1)

  def check(self, tokens_RLP: Array, text_RMU: Array | None, label_RS: Array | None) -> None:
    """Raises ValueError if the inputs do not fit the config."""
    c = self.config
    if tokens_RLP.shape[-1] != c.cells * c.in_channels:
      raise ValueError(
        f"tokens have {tokens_RLP.shape[-1]} entries; {c.cells} cells of {c.in_channels} channels "
        f"need {c.cells * c.in_channels} (see ops.patchify.join_cells)"
      )
    got = 0 if text_RMU is None else text_RMU.shape[-1]
    if got != c.text_width:
      raise ValueError(f"text embeddings of width {got}; the config's text_width is {c.text_width}")
    if (label_RS is None) != (c.classes == 0):
      raise ValueError(f"labels must be given if, and only if, classes > 0 (it is {c.classes})")

  def conditions(
    self, time_RQ: Array, layout: Layout, text_RMU: Array | None, label_RS: Array | None
  ) -> tuple[Array, Shared]:
    """The condition of each slot, and what the blocks share."""
    c = self.config
    condition_RQD = conditioning.TimeEmbedding(
      c.width, c.time_features, c.time_shift, name="time"
    )(time_RQ)  # fmt: skip
    if c.size_condition:
      size_RSD = conditioning.SizeEmbedding(c.width, name="size")(layout.grid_RS3, layout.fps_RS)
      condition_RQD += conditioning.per_slot(size_RSD, layout)
    if c.pooled_text and text_RMU is not None:
      text_RSD = conditioning.PooledText(c.width, name="pooled")(text_RMU, layout)
      condition_RQD += conditioning.per_slot(text_RSD, layout)
    if c.classes:
      init = nn.with_logical_partitioning(conditioning.normal, ("class", "width"))
      table = self.param("classes", init, (c.classes, c.width))
      condition_RQD += conditioning.per_slot(table[label_RS], layout)
    per_block = condition_RQD
    if c.modulation == "single":
      per_block = conditioning.Modulation(6, c.width, name="modulation")(condition_RQD)
    text_RMD = None
    if c.text_width:
      text_RMD = conditioning.TextProjection(c.width, jnp.dtype(c.dtype), name="text")(text_RMU)
    cos_RLk = sin_RLk = None
    if c.position == "rotary":
      place_RL3 = positions.token_positions(
        layout.coord_RL3, layout.segment_RL, layout.grid_RS3, layout.fps_RS, c.patch[0]
      )
      angle_RLk = positions.rotary_angles(
        place_RL3, c.head_size, c.rotary_theta, c.rotary_scale, c.rotary_method
      )
      cos_RLk, sin_RLk = jnp.cos(angle_RLk), jnp.sin(angle_RLk)
    shared = Shared(
      per_block, layout.slot_RL, layout.segment_RL, layout.text_segment_RM, text_RMD,
      cos_RLk, sin_RLk,
    )  # fmt: skip
    return condition_RQD, shared

  def absolute_positions(self, layout: Layout) -> Array:
    """What is added to the tokens: fixed sums, fractional positions, or nothing."""
    c = self.config
    total = jnp.zeros((*layout.segment_RL.shape, c.width), jnp.float32)
    if c.position == "sincos":
      total += positions.sincos_positions(layout.coord_RL3, c.width)
    if c.fraction_octaves:
      fraction_RL3 = positions.fractional_positions(
        layout.coord_RL3, layout.segment_RL, layout.grid_RS3
      )
      total += Linear(
        (c.width,), ("fraction", "width"), bias=False, start=nn.initializers.zeros, name="fraction"
      )(positions.fraction_features(fraction_RL3, c.fraction_octaves))
    return total

  def blocks(self) -> nn.Module:
    """All blocks as one loop over stacked parameters, recomputed as the config says."""
    c, block = self.config, Block
    if c.remat != "none":
      policy = None
      if c.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      block = nn.remat(Block, prevent_cse=False, policy=policy)
    return nn.scan(
      block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
      length=c.depth, unroll=c.scan_unroll, metadata_params={nn.PARTITION_NAME: "layers"},
    )(c, self.attention, name="blocks")  # fmt: skip


SIZES: dict[str, dict] = {
  "tiny": dict(width=128, depth=6, heads=4, text_width=128, in_channels=20, out_channels=8),
  "small": dict(width=192, depth=8, heads=3, text_width=128, in_channels=20, out_channels=8),
  "s": dict(width=384, depth=12, heads=6, text_width=512),
  "b": dict(width=768, depth=12, heads=12, text_width=768),
  "l": dict(width=1024, depth=24, heads=16, text_width=1024),
  "xl": dict(width=1152, depth=28, heads=16, text_width=2048),
  "3b": dict(width=2304, depth=34, heads=18, text_width=4096),
  "10b": dict(width=4096, depth=40, heads=32, text_width=4096),
}
"""The ladder of sizes; the rest of `DiTConfig` is as by default. Latents: 8 channels for the two
smallest, 16 above, four frames per latent."""
