"""Which blocks of keys each block of queries needs: the plan that attention kernels read.

Rows are cut into blocks of equal length; a pair of blocks is in the plan if they may share a
segment. What is not in the plan costs nothing. A pair in the plan still needs the mask inside.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sora_jax.shapes import PAD_SEGMENT


class BlockPlan(NamedTuple):
  """Pairs of blocks that share a segment, row by row, queries before keys.

  Attributes:
    row, query, key: row, block of queries and block of keys of each pair; entries from `count` on
      are not meant. count: number of pairs, a traced integer.
  """

  row: Array
  query: Array
  key: Array
  count: Array


def pad_to_blocks(segment_RL: Int[Array, "R L"], block: int) -> Int[Array, "R Lpadded"]:
  """Adds padding to a whole number of blocks."""
  short = -segment_RL.shape[1] % block
  return jnp.pad(segment_RL, ((0, 0), (0, short)), constant_values=PAD_SEGMENT)


def spans(segment_RL: Int[Array, "R L"], block: int) -> tuple[Array, Array]:
  """Smallest and largest segment of each block, `[R, blocks]`; all padding: a huge one and 0."""
  segment_RL = pad_to_blocks(segment_RL, block)
  R, L = segment_RL.shape
  cut_RIB = segment_RL.reshape(R, L // block, block)
  most = jnp.iinfo(segment_RL.dtype).max
  return jnp.where(cut_RIB == PAD_SEGMENT, most, cut_RIB).min(-1), cut_RIB.max(-1)


def shared_blocks(
  segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"], block_l: int, block_m: int
) -> Bool[Array, "R I J"]:
  """Which blocks of queries and keys may share a segment.

  Two blocks share one if the ranges of their segments' numbers overlap. This is exact where
  segments are numbered in the order in which they lie and each has keys, and never misses a pair.
  """
  low_RI, high_RI = spans(segment_RL, block_l)
  low_RJ, high_RJ = spans(segment_RM, block_m)
  overlap = (low_RI[:, :, None] <= high_RJ[:, None, :]) & (
    low_RJ[:, None, :] <= high_RI[:, :, None]
  )
  real = (high_RI[:, :, None] > 0) & (high_RJ[:, None, :] > 0)
  return overlap & real


def block_plan(
  segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"], block_l: int, block_m: int
) -> BlockPlan:
  """The list of pairs of blocks that share a segment.

  Args:
    segment_RL, segment_RM: segments of queries and keys, 0 = padding.
    block_l, block_m: tokens per block of queries and of keys; the last one may be cut short.
  Returns: the pairs, in arrays long enough for all of them.
  """
  shared_RIJ = shared_blocks(segment_RL, segment_RM, block_l, block_m)
  row, query, key = jnp.nonzero(shared_RIJ, size=shared_RIJ.size, fill_value=0)
  return BlockPlan(row, query, key, shared_RIJ.sum())
