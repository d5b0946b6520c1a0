"""What a pass over packed rows costs, by formula: two operations for each entry of a matrix and
each token that meets it, four for each pair of tokens that attend; with the backward pass, three
times that."""

from typing import Any, NamedTuple

import flax
import numpy as np

from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig
from sora_jax.ops import flash
from sora_jax.train.task import Cost


class Sizes(NamedTuple):
  """Entries of all matrices that a latent token, a text token and a time slot meet in the
  transformer, and a text token in its encoder."""

  token: int
  text: int
  slot: int
  encoder: int


class Pass(NamedTuple):
  """FLOPs of one pass forward: through the transformer, and through the text encoder."""

  dit: float
  encoder: float

  @property
  def training(self) -> float:
    """Of a step: both, forward and backward, nothing recomputed."""
    return 3.0 * (self.dit + self.encoder)


def sizes_of(shapes: Any) -> Sizes:
  """Counts them in parameters {"dit": ..., "text": ...}, or in their shapes."""
  token = text = slot = encoder = 0
  per_slot = ("/time/", "/size/", "/pooled/")
  for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
    if not (name.endswith("/kernel") or "/mlp_" in name):
      continue
    if any(part in name for part in per_slot) or "modulation" in name:
      slot += leaf.size
    elif name.startswith("text/"):
      encoder += leaf.size
    elif name.startswith("dit/text/") or "/kv/" in name:
      text += leaf.size
    else:
      token += leaf.size
  return Sizes(token, text, slot, encoder)


def packed_cost(sizes: Sizes, dit: DiTConfig, text: TextConfig, batch: dict) -> Cost:
  """What a training step on a batch needs, see `real_flops`."""
  clips = int((batch["clip"] >= 0).sum())
  flops = real_flops(sizes, dit, text, batch).training
  return Cost(tokens=float((batch["segment"] > 0).sum()), flops=flops, clips=clips)


def real_flops(sizes: Sizes, dit: DiTConfig, text: TextConfig, batch: dict) -> Pass:
  """What a batch needs: real tokens alone, attention within segments.

  What runs once for each slot (time, size, pooled text, modulation) is left out.
  """
  n_RS = counts(batch["segment"], batch["grid"].shape[1])
  m_RS, readers_RS = counts(batch["text_segment"], n_RS.shape[1]), n_RS
  if "slot_text" in batch:  # texts have numbers of their own
    slots = np.cumsum(batch["slots"], 1) - batch["slots"]
    slot_RL = np.take_along_axis(slots, np.maximum(batch["segment"] - 1, 0), 1) + batch["slot"]
    text_RL = np.take_along_axis(batch["slot_text"], slot_RL, 1) * (batch["segment"] > 0)
    readers_RS = counts(text_RL, batch["slot_text"].shape[1])
    m_RS = counts(batch["text_segment"], readers_RS.shape[1])
  pairs = dit.depth * dit.width * ((n_RS * n_RS).sum() + (readers_RS * m_RS).sum())
  words = text.depth * text.heads * text.head_size * (m_RS * m_RS).sum()
  return Pass(
    float(2 * (sizes.token * n_RS.sum() + sizes.text * m_RS.sum()) + 4 * pairs),
    float(2 * sizes.encoder * m_RS.sum() + 4 * words),
  )


def product_flops(
  sizes: Sizes, dit: DiTConfig, text: TextConfig, row_len: int, text_row_len: int, slots: int
) -> Pass:
  """What the matrix products of one row come to as they are compiled: every position of the row,
  whole rows of text against themselves, sums over slots.

  Attention among tokens and from tokens to words counts where short rows form all scores at once,
  and is left to the kernels otherwise, as `ops.flash.attend` chooses.
  """
  flops = 2.0 * (sizes.token * row_len + sizes.text * text_row_len + sizes.slot * slots)
  pairs = sum(row_len * n for n in (row_len, text_row_len) if row_len * n < flash.SHORT)
  flops += 4.0 * dit.depth * dit.width * pairs
  words = 4.0 * text.depth * text.heads * text.head_size * text_row_len**2
  return Pass(flops, 2.0 * sizes.encoder * text_row_len + words)


def slot_products(
  dit: DiTConfig, row_len: int, slots: int, copies: int, training: bool = True
) -> float:
  """Products of a row with rows of one 1, which tell tokens and slots apart.

  They read the vectors of shift, scale and gate, twice a block, and of the head's shift and scale,
  where activations are bfloat16 (`ops.modulation.read`); in training the backward pass reads those
  that multiply, and sums over the tokens of each slot what all of them are due. copies: devices
  that share a row's heads, of which each does all of it, as of the norms.
  """
  all_of, factors = 6 * dit.depth + 2, 4 * dit.depth + 1
  read = all_of + factors * training if dit.dtype == "bfloat16" else 0
  return 2.0 * copies * slots * row_len * dit.width * (read + all_of * training)


def counts(segment_RL: np.ndarray, most: int) -> np.ndarray:
  """Tokens of each of the segments 1 to `most`, float [R, most]."""
  return np.stack([(segment_RL == s).sum(1) for s in range(1, most + 1)], 1).astype(float)
