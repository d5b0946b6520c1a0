"""Attention one segment after the other: for rows of a few hundred tokens on CPU.

A segment's tokens lie together in its row, so its scores are a dense matrix of their own; what a
clip costs depends on its own length alone. Windows of a few sizes are cut out at each segment's
start, those of one size in a loop of as many turns as there are segments of that size. The gradient
recomputes the weights from their kept logarithm (Dao et al. 2022, arXiv 2205.14135, algorithm 4).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops.attention import MASKED, TINY, products
from sora_jax.ops.linear import fence
from sora_jax.shapes import PAD_SEGMENT

SIZES = 4
"""Sizes of windows, even parts of a row; a segment takes the smallest that holds it. Each is a loop
to compile, so that short rows have fewer, `LEAST` tokens apart."""
LEAST = 32

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
  sizes = sizes or default_sizes(q_RLAK, k_RMAK)
  (R, L, A, K), M = q_RLAK.shape, k_RMAK.shape[1]
  sizes_L, sizes_M = windows(L, sizes), windows(M, sizes)
  runs = runs_of(segment_RL, segment_RM, sizes_L, sizes_M)
  q, k, v = flat(q_RLAK), flat(k_RMAK), flat(v_RMAK)
  made = jnp.zeros(q.shape, q.dtype), jnp.full(q.shape[:2], MASKED, jnp.float32)
  for size, (l, m) in enumerate(zip(sizes_L, sizes_M)):  # noqa: E741

    def turn(i, made, l=l, m=m):  # noqa: E741
      here, own, keys = runs.start[i], jnp.arange(l) < runs.length[i], runs.key_start[i]
      score_Alm = products(cut(q, here, l), cut(k, keys, m), 2, 2) * K**-0.5
      known = (jnp.arange(m) < runs.key_length[i])[None, None]
      score_Alm = jnp.where(known, score_Alm, MASKED)
      peak_Al1 = fence(score_Alm.max(-1, keepdims=True))
      weight_Alm = fence(jnp.where(known, jnp.exp(score_Alm - peak_Al1), 0.0))
      total_Al1 = jnp.maximum(weight_Alm.sum(-1, keepdims=True), TINY)
      out_AlK = products(weight_Alm.astype(v.dtype), cut(v, keys, m), 2, 1) / total_Al1
      log_Al = (peak_Al1 + jnp.log(total_Al1))[..., 0]
      log_Al = jnp.where(runs.key_length[i] > 0, log_Al, MASKED)
      return put(made[0], out_AlK, here, own), put(made[1], log_Al, here, own)

    made = lax.fori_loop(runs.edges[size], runs.edges[size + 1], turn, made)
  out, log = made
  return out[: R * L].reshape(q_RLAK.shape), log[: R * L].reshape(R, L, A)


@functools.partial(jax.jit, static_argnames="sizes")
def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"], sizes: int | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """Gradients of queries, keys and values, as `ops.flash.backward`."""
  along_RLA = (given_RLAK.astype(jnp.float32) * out_RLAK).sum(-1)
  sizes = sizes or default_sizes(q_RLAK, k_RMAK)
  L, K, M = q_RLAK.shape[1], q_RLAK.shape[3], k_RMAK.shape[1]
  sizes_L, sizes_M = windows(L, sizes), windows(M, sizes)
  runs = runs_of(segment_RL, segment_RM, sizes_L, sizes_M)
  q, k, v, given = flat(q_RLAK), flat(k_RMAK), flat(v_RMAK), flat(given_RLAK)
  log, along = flat(log_RLA), flat(along_RLA)
  made = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
  for size, (l, m) in enumerate(zip(sizes_L, sizes_M)):  # noqa: E741

    def turn(i, made, l=l, m=m):  # noqa: E741
      here, own, keys = runs.start[i], jnp.arange(l) < runs.length[i], runs.key_start[i]
      of_keys = jnp.arange(m) < runs.key_length[i]
      q_AlK, given_AlK = cut(q, here, l), cut(given, here, l)
      k_AmK, v_AmK = cut(k, keys, m), cut(v, keys, m)
      score_Alm = products(q_AlK, k_AmK, 2, 2) * K**-0.5 - cut(log, here, l)[..., None]
      both = (own[:, None] & of_keys[None])[None]
      weight_Alm = fence(jnp.where(both, jnp.exp(score_Alm), 0.0))
      to_weight_Alm = products(given_AlK, v_AmK, 2, 2) - cut(along, here, l)[..., None]
      to_score_Alm = fence((weight_Alm * to_weight_Alm * K**-0.5).astype(q.dtype))
      to_v_AmK = products(weight_Alm.astype(v.dtype), given_AlK, 1, 1)
      to_q_AlK = products(to_score_Alm, k_AmK, 2, 1)
      to_k_AmK = products(to_score_Alm, q_AlK, 1, 1)
      return (
        put(made[0], to_q_AlK, here, own), put(made[1], to_k_AmK, keys, of_keys),
        put(made[2], to_v_AmK, keys, of_keys),
      )  # fmt: skip

    made = lax.fori_loop(runs.edges[size], runs.edges[size + 1], turn, made)
  return tuple(
    x[: like.shape[0] * like.shape[1]].reshape(like.shape)
    for x, like in zip(made, (q_RLAK, k_RMAK, v_RMAK))
  )


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


def default_sizes(q_RLAK: Array, k_RMAK: Array) -> int:
  """Sizes of windows of rows as long as these."""
  return min(SIZES, math.ceil(max(q_RLAK.shape[1], k_RMAK.shape[1]) / LEAST))


def windows(length: int, sizes: int) -> list[int]:
  """Tokens of windows of each size, of rows of a length."""
  return [math.ceil(length * (size + 1) / sizes) for size in range(sizes)]


def flat(x_RL: Array) -> Array:
  """Tokens of all rows one after the other, and room for a window that begins at the last."""
  L = x_RL.shape[1]
  x_N = x_RL.reshape(-1, *x_RL.shape[2:])
  return fence(jnp.pad(x_N, ((0, L), *((0, 0),) * (x_N.ndim - 1))))


def cut(x_NA: Array, start: Array, size: int) -> Array:
  """A window, its heads first."""
  return lax.dynamic_slice_in_dim(x_NA, start, size).swapaxes(0, 1)


def put(x_NA: Array, new_An: Array, start: Array, own: Array) -> Array:
  """Writes a window back where it is the segment's own."""
  old = lax.dynamic_slice_in_dim(x_NA, start, new_An.shape[1])
  own = own.reshape(-1, *(1,) * (x_NA.ndim - 1))
  new = jnp.where(own, new_An.swapaxes(0, 1).astype(x_NA.dtype), old)
  return lax.dynamic_update_slice_in_dim(x_NA, new, start, 0)
