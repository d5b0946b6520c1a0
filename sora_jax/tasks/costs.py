"""What a step on packed rows costs, by formula: six operations for each entry of a matrix and each
token that meets it, forward and backward, and twelve for each pair of tokens that attend."""

from typing import Any, NamedTuple

import flax
import numpy as np

from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig
from sora_jax.ops import flash
from sora_jax.train.task import Cost


class Sizes(NamedTuple):
  """Entries of all matrices that a latent token, a text token, and a time slot meet."""

  token: int
  text: int
  slot: int


def sizes_of(shapes: Any) -> Sizes:
  """Counts them in parameters {"dit": ..., "text": ...}, or in their shapes."""
  token = text = slot = 0
  per_slot = ("/time/", "/size/", "/pooled/")
  for name, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
    if not (name.endswith("/kernel") or "/mlp_" in name):
      continue
    if any(part in name for part in per_slot) or "modulation" in name:
      slot += leaf.size
    elif name.startswith("text/") or name.startswith("dit/text/") or "/kv/" in name:
      text += leaf.size
    else:
      token += leaf.size
  return Sizes(token, text, slot)


def packed_cost(sizes: Sizes, dit: DiTConfig, text: TextConfig, batch: dict) -> Cost:
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
  pairs += text.depth * text.heads * text.head_size * (m_RS * m_RS).sum()
  flops = 6 * (sizes.token * n_RS.sum() + sizes.text * m_RS.sum()) + 12 * pairs
  clips = int((batch["clip"] >= 0).sum())
  return Cost(tokens=float(n_RS.sum()), flops=float(flops), clips=clips)


def product_flops(
  sizes: Sizes, dit: DiTConfig, text: TextConfig, row_len: int, text_row_len: int, slots: int
) -> float:
  """What the matrix products of one row come to as they are compiled, for a forward and a backward
  pass: every position of the row, whole rows of text against themselves, sums over slots.

  Attention among tokens and from tokens to words counts where short rows form all scores at once,
  and is left to the kernels otherwise, as `ops.flash.attend` chooses.
  """
  flops = 6.0 * (sizes.token * row_len + sizes.text * text_row_len + sizes.slot * slots)
  flops += 12.0 * text.depth * text.heads * text.head_size * text_row_len**2
  pairs = sum(row_len * n for n in (row_len, text_row_len) if row_len * n <= flash.LONG)
  flops += 12.0 * dit.depth * dit.width * pairs
  sums = 2 * (dit.depth + 1) + 1 * dit.depth + 2 * dit.depth  # shift, scale and gate, twice a block
  return flops + 2.0 * slots * row_len * dit.width * sums


def counts(segment_RL: np.ndarray, most: int) -> np.ndarray:
  """Tokens of each of the segments 1 to `most`, float [R, most]."""
  return np.stack([(segment_RL == s).sum(1) for s in range(1, most + 1)], 1).astype(float)
