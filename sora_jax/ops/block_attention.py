"""Attention for long rows: works through the block plan, a pair of blocks at a time.

Time and memory grow with the pairs that share a segment, not with the square of the row. The
softmax is accumulated over blocks as in FlashAttention (Dao et al. 2022, arXiv 2205.14135,
algorithm 1), the gradient recomputes the weights from their kept logarithm (algorithm 4).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops.attention import MASKED, TINY
from sora_jax.ops.block_plan import BlockPlan, block_plan, pad_to_blocks
from sora_jax.shapes import PAD_SEGMENT

BLOCK = 128
"""Tokens per block of queries and of keys."""


def forward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  block: int = BLOCK,
) -> tuple[Float[Array, "R L A K"], Float[Array, "R L A"]]:  # fmt: skip
  """Attention and the logarithm of each query's total weight, as `ops.flash.forward`."""
  q, k, v, tables = blocked(q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM, block)
  out, log_total = _forward(q, k, v, tables)
  L = q_RLAK.shape[1]
  return rows_of(out, L), rows_of(log_total, L)[..., 0]


def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"], block: int = BLOCK,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """Gradients of queries, keys and values, as `ops.flash.backward`."""
  q, k, v, tables = blocked(q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM, block)
  size = q.shape[3]
  along_RLA1 = (given_RLAK.astype(jnp.float32) * out_RLAK).sum(-1, keepdims=True)
  along, log_total = head_blocks(along_RLA1, size), head_blocks(log_RLA[..., None], size)
  to_q, to_k, to_v = _backward(q, k, v, tables, along, log_total, head_blocks(given_RLAK, size))
  scale, L, M = q_RLAK.shape[-1] ** -0.5, q_RLAK.shape[1], k_RMAK.shape[1]
  return (
    rows_of(to_q * scale, L).astype(q_RLAK.dtype), rows_of(to_k, M).astype(k_RMAK.dtype),
    rows_of(to_v, M).astype(v_RMAK.dtype),
  )  # fmt: skip


class Tables(NamedTuple):
  """The plan, and the segments of the tokens of each block."""

  plan: BlockPlan
  query_segment_RIB: Array
  key_segment_RJB: Array


def blocks_of(segment_RL: Array, block: int) -> Array:
  """`[R, L]` to `[R, blocks, block]`."""
  return segment_RL.reshape(segment_RL.shape[0], -1, block)


def head_blocks(x_RLAK: Array, block: int) -> Array:
  """`[R, L, A, K]` to `[R, blocks, A, block, K]`, padded with zeros."""
  R, L, A, K = x_RLAK.shape
  x_RLAK = jnp.pad(x_RLAK, ((0, 0), (0, -L % block), (0, 0), (0, 0)))
  return x_RLAK.reshape(R, -1, block, A, K).swapaxes(2, 3)


def rows_of(x_RIABK: Array, length: int) -> Array:
  """The inverse of `head_blocks`: `[R, L, A, K]`."""
  R, I, A, B, K = x_RIABK.shape
  return x_RIABK.swapaxes(2, 3).reshape(R, I * B, A, K)[:, :length]


def blocked(
  q_RLAK: Array, k_RMAK: Array, v_RMAK: Array, segment_RL: Array, segment_RM: Array, block: int
) -> tuple[Array, Array, Array, Tables]:
  """Scaled queries, keys and values in blocks, and which blocks meet."""
  block_l, block_m = min(block, q_RLAK.shape[1]), min(block, k_RMAK.shape[1])
  tables = Tables(
    block_plan(segment_RL, segment_RM, block_l, block_m),
    blocks_of(pad_to_blocks(segment_RL, block_l), block_l),
    blocks_of(pad_to_blocks(segment_RM, block_m), block_m),
  )
  scale = jnp.asarray(q_RLAK.shape[-1] ** -0.5, q_RLAK.dtype)
  return (
    head_blocks(q_RLAK * scale, block_l), head_blocks(k_RMAK, block_m),
    head_blocks(v_RMAK, block_m), tables,
  )  # fmt: skip


def read(x: Array, row: Array, block: Array) -> Array:
  """Entry `[row, block]` of an array of blocks."""
  start = (row, block) + (0,) * (x.ndim - 2)
  return lax.dynamic_slice(x, start, (1, 1, *x.shape[2:]))[0, 0]


def write(x: Array, value: Array, row: Array, block: Array) -> Array:
  """The array with its entry `[row, block]` replaced."""
  start = (row, block) + (0,) * (x.ndim - 2)
  return lax.dynamic_update_slice(x, value[None, None].astype(x.dtype), start)


def products(a: Array, b: Array, over_a: int, over_b: int) -> Array:
  """One matrix product for each head, accumulated in float32."""
  return lax.dot_general(
    a, b, (((over_a,), (over_b,)), ((0,), (0,))), preferred_element_type=jnp.float32
  )


def scores(tables: Tables, q: Array, k: Array, pair: Array) -> tuple[Array, Array]:
  """Scores `[A, B, C]` and mask `[1, B, C]` of a pair of blocks."""
  plan = tables.plan
  query_B = read(tables.query_segment_RIB, plan.row[pair], plan.query[pair])
  key_C = read(tables.key_segment_RJB, plan.row[pair], plan.key[pair])
  mask = (query_B[:, None] == key_C[None, :]) & (query_B != PAD_SEGMENT)[:, None]
  return products(q, k, 2, 2), mask[None]


def _forward(q: Array, k: Array, v: Array, tables: Tables) -> tuple[Array, Array]:
  plan = tables.plan

  def add_pair(pair, state):
    peak, total, out = state
    at = plan.row[pair], plan.query[pair]
    keys = plan.row[pair], plan.key[pair]
    score_ABC, mask_1BC = scores(tables, read(q, *at), read(k, *keys), pair)
    old_AB1 = read(peak, *at)
    new_AB1 = jnp.maximum(old_AB1, jnp.where(mask_1BC, score_ABC, MASKED).max(-1, keepdims=True))
    weight_ABC = jnp.where(mask_1BC, jnp.exp(score_ABC - new_AB1), 0.0)
    fade_AB1 = jnp.exp(old_AB1 - new_AB1)
    sum_AB1 = read(total, *at) * fade_AB1 + weight_ABC.sum(-1, keepdims=True)
    value_ABK = products(weight_ABC.astype(v.dtype), read(v, *keys), 2, 1)
    out_ABK = read(out, *at) * fade_AB1 + value_ABK
    return write(peak, new_AB1, *at), write(total, sum_AB1, *at), write(out, out_ABK, *at)

  R, I, A, B, K = q.shape
  peak = jnp.full((R, I, A, B, 1), MASKED, jnp.float32)
  total = jnp.zeros((R, I, A, B, 1), jnp.float32)
  out = jnp.zeros(q.shape, jnp.float32)
  peak, total, out = lax.fori_loop(0, plan.count, add_pair, (peak, total, out))
  log_total = jnp.where(total > 0, peak + jnp.log(jnp.maximum(total, TINY)), MASKED)
  return (out / jnp.maximum(total, TINY)).astype(q.dtype), log_total


def _backward(
  q: Array, k: Array, v: Array, tables: Tables, along: Array, log_total: Array, given: Array
) -> tuple[Array, Array, Array]:
  plan = tables.plan

  def add_pair(pair, state):
    to_q, to_k, to_v = state
    at = plan.row[pair], plan.query[pair]
    keys = plan.row[pair], plan.key[pair]
    q_ABK, k_ACK, v_ACK = read(q, *at), read(k, *keys), read(v, *keys)
    given_ABK = read(given, *at)
    score_ABC, mask_1BC = scores(tables, q_ABK, k_ACK, pair)
    weight_ABC = jnp.where(mask_1BC, jnp.exp(score_ABC - read(log_total, *at)), 0.0)
    to_v_ACK = products(weight_ABC.astype(v.dtype), given_ABK, 1, 1)
    to_weight_ABC = products(given_ABK, v_ACK, 2, 2)
    to_score_ABC = (weight_ABC * (to_weight_ABC - read(along, *at))).astype(q.dtype)
    to_q_ABK = products(to_score_ABC, k_ACK, 2, 1)
    to_k_ACK = products(to_score_ABC, q_ABK, 1, 1)
    add = lambda total, value, where: write(total, read(total, *where) + value, *where)  # noqa: E731
    return add(to_q, to_q_ABK, at), add(to_k, to_k_ACK, keys), add(to_v, to_v_ACK, keys)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
  return lax.fori_loop(0, plan.count, add_pair, zeros)
