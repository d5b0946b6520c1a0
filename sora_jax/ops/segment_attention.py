"""Attention one segment after the other: for rows of a few hundred tokens on CPU.

A segment's tokens lie together in its row, so its scores are a dense matrix of their own; what a
clip costs depends on its own length alone. Windows of a few sizes are cut out at each segment's
start, those of one size in a loop of as many turns as there are segments of that size and heads:
the scores of one head stay in a core's cache. The gradient recomputes the weights from their kept
logarithm (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops.attention import MASKED, TINY
from sora_jax.ops.linear import fence
from sora_jax.shapes import PAD_SEGMENT

SIZES = 8
"""Sizes of windows, even parts of a row; a segment takes the smallest that holds it. Each is a loop
to compile, so short rows have fewer, `LEAST` tokens apart."""
LEAST = 64

NAMES = 1 << 16
"""More than the segments of any row, of which a device may hold a part; an int32 holds both."""


class Runs(NamedTuple):
  """Segments, ordered by the size of their windows; entries after the last one mean nothing.

  start, length: of its queries, among those of all rows. key_start, key_length: of its keys.
  edges: where those of each size begin and end, from the smallest on.
  """

  start: Int[Array, "N"]
  length: Int[Array, "N"]
  key_start: Int[Array, "N"]
  key_length: Int[Array, "N"]
  edges: Int[Array, "E"]


@functools.partial(jax.jit, static_argnames="sizes")
def forward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  sizes: int | None = None,
) -> tuple[Float[Array, "R L A K"], Float[Array, "R L A"]]:  # fmt: skip
  """Attention and the logarithm of each query's total weight, as `ops.flash.forward`.

  The tokens of a segment must lie together. sizes: of windows; by default as many as pay.
  """
  (R, L, A, K), M = q_RLAK.shape, k_RMAK.shape[1]
  sizes = sizes or default_sizes(L, M)
  sizes_L, sizes_M = windows(L, sizes), windows(M, sizes)
  runs = runs_of(segment_RL, segment_RM, sizes_L, sizes_M)
  q_ANK, k_ANK, v_ANK = flat(q_RLAK * K**-0.5), flat(k_RMAK), flat(v_RMAK)
  made = jnp.zeros_like(q_ANK), jnp.full(q_ANK.shape[:2], MASKED, jnp.float32)
  for size, (l, m) in enumerate(zip(sizes_L, sizes_M)):  # noqa: E741

    def turn(number, made, l=l, m=m):  # noqa: E741
      i, head = number // A, number % A
      own_l, of_keys_1m = jnp.arange(l) < runs.length[i], jnp.arange(m)[None] < runs.key_length[i]
      here, keys = (head, runs.start[i]), (head, runs.key_start[i])
      score_lm = product(cut(q_ANK, here, l), cut(k_ANK, keys, m), 1, 1)
      score_lm = jnp.where(of_keys_1m, score_lm, MASKED)
      peak_l1 = fence(score_lm.max(-1, keepdims=True))
      weight_lm = fence(jnp.where(of_keys_1m, jnp.exp(score_lm - peak_l1), 0.0))
      total_l1 = jnp.maximum(weight_lm.sum(-1, keepdims=True), TINY)
      out_lK = product(weight_lm.astype(v_ANK.dtype), cut(v_ANK, keys, m), 1, 0) / total_l1
      log_l = (peak_l1 + jnp.log(total_l1))[:, 0]
      log_l = jnp.where(runs.key_length[i] > 0, log_l, MASKED)
      return put(made[0], out_lK, here, own_l), put(made[1], log_l, here, own_l)

    made = lax.fori_loop(A * runs.edges[size], A * runs.edges[size + 1], turn, made)
  return rows_of(made[0], R, L), rows_of(made[1], R, L)


@functools.partial(jax.jit, static_argnames="sizes")
def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"], sizes: int | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """Gradients of queries, keys and values, as `ops.flash.backward`."""
  along_RLA = (given_RLAK.astype(jnp.float32) * out_RLAK).sum(-1)
  (R, L, A, K), M = q_RLAK.shape, k_RMAK.shape[1]
  sizes = sizes or default_sizes(L, M)
  sizes_L, sizes_M = windows(L, sizes), windows(M, sizes)
  runs = runs_of(segment_RL, segment_RM, sizes_L, sizes_M)
  q_ANK, k_ANK, v_ANK = flat(q_RLAK * K**-0.5), flat(k_RMAK), flat(v_RMAK)
  given_ANK, log_AN, along_AN = flat(given_RLAK), flat(log_RLA), flat(along_RLA)
  made = jnp.zeros_like(q_ANK), jnp.zeros_like(k_ANK), jnp.zeros_like(v_ANK)
  for size, (l, m) in enumerate(zip(sizes_L, sizes_M)):  # noqa: E741

    def turn(number, made, l=l, m=m):  # noqa: E741
      i, head = number // A, number % A
      own_l, of_keys_m = jnp.arange(l) < runs.length[i], jnp.arange(m) < runs.key_length[i]
      here, keys = (head, runs.start[i]), (head, runs.key_start[i])
      q_lK, given_lK = cut(q_ANK, here, l), cut(given_ANK, here, l)
      k_mK, v_mK = cut(k_ANK, keys, m), cut(v_ANK, keys, m)
      # Keys first: two of the three gradients then are products over the last axis.
      score_ml = product(k_mK, q_lK, 1, 1) - cut(log_AN, here, l)[None]
      weight_ml = fence(jnp.where(of_keys_m[:, None] & own_l[None], jnp.exp(score_ml), 0.0))
      to_weight_ml = product(v_mK, given_lK, 1, 1) - cut(along_AN, here, l)[None]
      to_score_ml = fence((weight_ml * to_weight_ml).astype(q_ANK.dtype))
      to_q_lK = product(to_score_ml, k_mK, 0, 0) * K**-0.5
      to_k_mK = product(to_score_ml, q_lK, 1, 0)
      to_v_mK = product(weight_ml.astype(v_ANK.dtype), given_lK, 1, 0)
      return (
        put(made[0], to_q_lK, here, own_l), put(made[1], to_k_mK, keys, of_keys_m),
        put(made[2], to_v_mK, keys, of_keys_m),
      )  # fmt: skip

    made = lax.fori_loop(A * runs.edges[size], A * runs.edges[size + 1], turn, made)
  to_q, to_k, to_v = made
  return rows_of(to_q, R, L), rows_of(to_k, R, M), rows_of(to_v, R, M)


def runs_of(
  segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"], sizes_L: list[int],
  sizes_M: list[int],
) -> Runs:  # fmt: skip
  """The segments of all rows.  Args: sizes_L, sizes_M: of windows of queries and of keys."""
  (R, L), M = segment_RL.shape, segment_RM.shape[1]
  before = jnp.pad(segment_RL[:, :-1], ((0, 0), (1, 0)), constant_values=PAD_SEGMENT - 1)
  start = jnp.nonzero((before != segment_RL).reshape(-1), size=R * L, fill_value=R * L)[0]
  length = jnp.diff(start, append=R * L)
  names = jnp.append(segment_RL.reshape(-1), PAD_SEGMENT)[start]
  # Row and name in one number; numbers of keys are looked up in their order.
  numbered = lambda row, name: row * NAMES + name  # noqa: E731
  known = numbered(jnp.arange(R)[:, None], segment_RM).reshape(-1)
  known, order = lax.sort_key_val(known, jnp.arange(R * M))
  asked = numbered(jnp.minimum(start // L, R - 1), names)
  first = jnp.searchsorted(known, asked)
  key_start = order[jnp.minimum(first, R * M - 1)]
  key_length = jnp.searchsorted(known, asked, side="right") - first
  size = jnp.searchsorted(jnp.asarray(sizes_L), length)
  size = jnp.maximum(size, jnp.searchsorted(jnp.asarray(sizes_M), key_length))
  size = jnp.where(names == PAD_SEGMENT, len(sizes_L), size)
  order = jnp.argsort(size, stable=True)
  edges = jnp.searchsorted(size[order], jnp.arange(len(sizes_L) + 1))
  return Runs(start[order], length[order], key_start[order], key_length[order], edges)


def default_sizes(length: int, key_length: int) -> int:
  """Sizes of windows of rows of these lengths."""
  return min(SIZES, math.ceil(max(length, key_length) / LEAST))


def windows(length: int, sizes: int) -> list[int]:
  """Tokens of windows of each size, of rows of a length."""
  return [math.ceil(length * (size + 1) / sizes) for size in range(sizes)]


def product(a: Array, b: Array, over_a: int, over_b: int) -> Array:
  """A product of two matrices over these axes, accumulated in float32."""
  over = ((over_a,), (over_b,)), ((), ())
  return lax.dot_general(a, b, over, preferred_element_type=jnp.float32)


def flat(x_RLA: Array) -> Array:
  """Heads first, the tokens of all rows one after the other, and room for a window that begins at
  the last."""
  x_NA = x_RLA.reshape(-1, *x_RLA.shape[2:])
  room = ((0, 0), (0, x_RLA.shape[1]), *((0, 0),) * (x_NA.ndim - 2))
  return fence(jnp.pad(x_NA.swapaxes(0, 1), room))


def rows_of(x_AN: Array, rows: int, length: int) -> Array:
  """Rows of tokens, heads behind them: inverse of `flat`."""
  x_NA = fence(x_AN[:, : rows * length].swapaxes(0, 1))
  return x_NA.reshape(rows, length, *x_NA.shape[1:])


def cut(x_AN: Array, place: tuple, size: int) -> Array:
  """A window of one head.  place: (head, token) where it begins."""
  place = (*place, *(0,) * (x_AN.ndim - 2))
  return lax.dynamic_slice(x_AN, place, (1, size, *x_AN.shape[2:]))[0]


def put(x_AN: Array, new_n: Array, place: tuple, own_n: Array) -> Array:
  """Writes a window back where it is the segment's own."""
  old_n = cut(x_AN, place, len(own_n))
  own = own_n.reshape(-1, *(1,) * (new_n.ndim - 1))
  new_n = jnp.where(own, new_n.astype(x_AN.dtype), old_n)
  return lax.dynamic_update_slice(x_AN, new_n[None], (*place, *(0,) * (x_AN.ndim - 2)))
