"""The diffusion transformer: tokens, times and conditions to one prediction per token.

Full space-time attention over packed rows, adaptive layer norm per time slot, cross-attention to
packed text. The network does not know which target its output stands for; it is handed its
attention function, and names axes without knowing any mesh.

Sources: see `nn/dit_blocks.py`; fractional positions from NaViT (arXiv 2307.06304).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sora_jax.nn import conditioning
from sora_jax.nn.dit_blocks import Block, Head, Shared
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.layers import PRODUCT, TOKENS, Linear, constrain, gathered
from sora_jax.ops import attention as attention_ops
from sora_jax.ops import flash, packing, positions, precondition
from sora_jax.ops.packing import Layout


class DiT(nn.Module):
  """The denoiser's network.

  Attributes:
    config: its shape. attention: how queries find their segment's keys, see `ops.attention`.
    cross_attention: the same for the keys of texts; None = as `attention`. The two differ on a
      mesh that splits rows: tokens are shared out, texts are not.
  """

  config: DiTConfig
  attention: attention_ops.Attention = flash.attend
  cross_attention: attention_ops.Attention | None = None

  @nn.compact
  def __call__(
    self,
    tokens_RLP: Float[Array, "R L Pin"],
    time_RQ: Float[Array, "R Q"],
    layout: Layout,
    text_RMU: Float[Array, "R M U"] | None = None,
    label_RS: Int[Array, "R S"] | None = None,
    position_scale: positions.PositionScale | None = None,
  ) -> Float[Array, "R L P"]:
    """Predicts one patch per token.

    Args:
      tokens_RLP: cells that enter, patchified: cells * in_channels entries a token.
      time_RQ: time of each slot in [0, 1], 0 = data.
      layout: where segments, coordinates and slots lie.
      text_RMU: packed text embeddings; needed if, and only if, the config has a text width.
      label_RS: class of each segment, if the config has classes.
      position_scale: tables `[R, S, 3]` of `ops.positions.position_scale`, for segments that reach
        farther than in training; None leaves all positions as they are.
    Returns: float32, cells * out_channels entries a token; exactly 0 at padding.
    Raises: ValueError if an input is missing or has the wrong size.
    """
    c = self.config
    self.check(tokens_RLP, text_RMU, label_RS, position_scale)
    condition_RQD, shared = self.conditions(time_RQ, layout, text_RMU, label_RS, position_scale)
    given_RLP, time_RL = tokens_RLP, packing.take_slots(time_RQ, layout.slot_RL)
    if c.spread:
      noisy = self.cells(given_RLP)[..., : c.out_channels]
      spread_Z, level_Z = jnp.asarray(c.spread), jnp.asarray(c.level)
      level = precondition.estimate_level(
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
    out_RLP = Head(c, name="head")(x_RLD, condition_RQD, layout.slot_RL, tokens_RLP)
    if c.spread:
      out = precondition.leave(self.cells(out_RLP), level, spread_Z)
      out_RLP = out.reshape(out_RLP.shape)
    out_RLP = constrain(out_RLP, *TOKENS, "patch")
    return jnp.where((layout.segment_RL > 0)[..., None], out_RLP, 0.0)

  def cells(self, tokens_RLP: Array) -> Array:
    """`[R, L, cells, channels]` of tokens."""
    return tokens_RLP.reshape(*tokens_RLP.shape[:2], self.config.cells, -1)

  def check(
    self, tokens_RLP: Array, text_RMU: Array | None, label_RS: Array | None,
    position_scale: positions.PositionScale | None,
  ) -> None:  # fmt: skip
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
    if position_scale is not None and c.position != "rotary":
      raise ValueError(f"only rotary positions can be scaled; the config's are {c.position!r}")

  def conditions(
    self, time_RQ: Array, layout: Layout, text_RMU: Array | None, label_RS: Array | None,
    position_scale: positions.PositionScale | None,
  ) -> tuple[Array, Shared]:  # fmt: skip
    """The condition of each slot, and what the blocks share."""
    c = self.config
    condition_RQD = conditioning.TimeEmbedding(
      c.width, c.time_features, c.time_shift, name="time"
    )(time_RQ)  # fmt: skip
    if c.size_condition:
      size_RSD = conditioning.SizeEmbedding(c.width, name="size")(layout.grid_RS3, layout.fps_RS)
      condition_RQD += conditioning.per_slot(size_RSD, layout)
    if c.pooled_text and text_RMU is not None:
      condition_RQD += conditioning.PooledText(c.width, name="pooled")(text_RMU, layout)
    if c.classes:
      init = nn.with_logical_partitioning(conditioning.normal, ("class", "width"))
      table = self.param("classes", init, (c.classes, c.width))
      table = gathered(table, ("class", "width"))
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
      stretch_RL3 = None
      if position_scale is not None:
        squeeze_RL3, stretch_RL3 = positions.token_scale(position_scale, layout.segment_RL)
        place_RL3 = place_RL3 / squeeze_RL3
      angle_RLk = positions.rotary_angles(
        place_RL3, c.head_size, c.rotary_theta, c.rotary_scale, c.rotary_method, stretch_RL3
      )
      cos_RLk, sin_RLk = jnp.cos(angle_RLk), jnp.sin(angle_RLk)
    shared = Shared(
      per_block, layout.slot_RL, layout.segment_RL, layout.text_RL, layout.text_segment_RM,
      text_RMD, cos_RLk, sin_RLk,
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
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT, flash.KEPT)
      block = nn.remat(Block, prevent_cse=False, policy=policy)
    return nn.scan(
      block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
      length=c.depth, unroll=c.scan_unroll, metadata_params={nn.PARTITION_NAME: "layers"},
      check_constancy_invariants=False,  # they take one more trace of a block
    )(c, self.attention, self.cross_attention or self.attention, name="blocks")  # fmt: skip
