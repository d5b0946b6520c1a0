"""Sums over the segments of a packed row, and tables spread back over its tokens.

Segment ids are 1..S, 0 is padding (`shapes.PAD_SEGMENT`). Sums are matrix products with a one-hot
matrix: static shapes, no scatter, and a token of another segment enters with an exact zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def one_hot(segment_RL: Int[Array, "R L"], num_segments: int) -> Float[Array, "R L S"]:
  """1 where a token belongs to a segment; all zeros for padding."""
  return jax.nn.one_hot(segment_RL - 1, num_segments, dtype=jnp.float32)


def total(
  value_RL: Float[Array, "R L"], segment_RL: Int[Array, "R L"], num_segments: int
) -> Float[Array, "R S"]:
  """Sum of a per-token value over each segment, in float32; padding counts nowhere."""
  real_RL = jnp.where(segment_RL > 0, value_RL.astype(jnp.float32), 0.0)
  hot_RLS = one_hot(segment_RL, num_segments)
  return jnp.einsum("rl,rls->rs", real_RL, hot_RLS, precision=jax.lax.Precision.HIGHEST)


def count(segment_RL: Int[Array, "R L"], num_segments: int) -> Float[Array, "R S"]:
  """Tokens of each segment, as float32."""
  return jnp.sum(one_hot(segment_RL, num_segments), axis=1)


def spread(
  table_RS: Float[Array, "R S"], segment_RL: Int[Array, "R L"], padding: float = 0.0
) -> Float[Array, "R L"]:
  """The table's entry of each token's segment; `padding` for padding."""
  index_RL = jnp.maximum(segment_RL - 1, 0)
  value_RL = jnp.take_along_axis(table_RS, index_RL, axis=1)
  return jnp.where(segment_RL > 0, value_RL, jnp.asarray(padding, table_RS.dtype))
