"""Attention over rows that are split between devices, along their tokens.

Two exact ways, to be run by every device of a mesh axis on its own tokens (under `shard_map`).
`ring`: keys and values go round, each device meets those of one other at a time and no device ever
holds a whole row (Ring Attention: Liu et al. 2023, arXiv 2310.01889). `ulysses`: devices swap heads
for tokens, attend over whole rows with a share of the heads, and swap back (DeepSpeed-Ulysses:
Jacobs et al. 2023, arXiv 2309.14509); cheaper, but there must be as many heads. Segments may
straddle devices: what a pair of devices does not share costs nothing but the trip.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops import flash
from sora_jax.ops.attention import MASKED


def ulysses(
  axis: str, attend: Callable,
  q_RLAK: Float[Array, "R L A K"], k_RLAK: Float[Array, "R L A K"],
  v_RLAK: Float[Array, "R L A K"], segment_RL: Int[Array, "R L"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """Self-attention of rows whose L tokens here are a device's share.

  Args:
    axis: mesh axis that splits rows; its size must divide the heads A.
    attend: attention within whole rows, see `ops.attention.Attention`.
  """
  to_heads = functools.partial(
    lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True
  )
  whole_RN = lax.all_gather(segment_RL, axis, axis=1, tiled=True)
  out_RNaK = attend(*(to_heads(x) for x in (q_RLAK, k_RLAK, v_RLAK)), whole_RN, whole_RN)
  return lax.all_to_all(out_RNaK, axis, split_axis=1, concat_axis=2, tiled=True)


def ring(
  axis: str,
  q_RLAK: Float[Array, "R L A K"], k_RLAK: Float[Array, "R L A K"],
  v_RLAK: Float[Array, "R L A K"], segment_RL: Int[Array, "R L"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """Self-attention of rows whose L tokens here are a device's share; axis splits rows."""
  inputs = q_RLAK, k_RLAK, v_RLAK, segment_RL
  made = _forward(axis, *map(lax.stop_gradient, inputs))
  return flash.with_gradient(functools.partial(_backward, axis), inputs, made)


def passed_on(axis: str, tree):
  """What the device before this one had."""
  size = lax.axis_size(axis)
  hops = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: lax.ppermute(x, axis, hops), tree)


def _forward(axis: str, q: Array, k: Array, v: Array, segment: Array) -> tuple[Array, Array]:
  def met(visitors, out, log_total):
    keys, values, theirs = visitors
    part, log_part = flash.forward(q, keys, values, segment, theirs)
    joint = jnp.logaddexp(log_total, log_part)
    share, part_share = (jnp.exp(x - joint)[..., None] for x in (log_total, log_part))
    return out * share + part * part_share, joint

  def turn(state, _):
    visitors, *made = state
    return (passed_on(axis, visitors), *met(visitors, *made)), None

  start = (
    (k, v, segment), jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], MASKED, jnp.float32)
  )  # fmt: skip
  last, _ = lax.scan(turn, start, length=lax.axis_size(axis) - 1)  # who comes last goes nowhere
  out, log_total = met(*last)
  return out.astype(q.dtype), log_total


def _backward(
  axis: str, q: Array, k: Array, v: Array, segment: Array, out: Array, log_total: Array,
  given: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
  def met(visitors, to_visitors, to_q):
    keys, values, theirs = visitors
    parts = flash.backward(q, keys, values, segment, theirs, out, log_total, given)
    to_visitors = jax.tree.map(jnp.add, to_visitors, _float32(parts[1:]))
    return passed_on(axis, to_visitors), to_q + parts[0].astype(jnp.float32)

  def turn(state, _):
    visitors, *made = state
    return (passed_on(axis, visitors), *met(visitors, *made)), None

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  start = (k, v, segment), zeros, jnp.zeros(q.shape, jnp.float32)
  last, _ = lax.scan(turn, start, length=lax.axis_size(axis) - 1)
  (to_k, to_v), to_q = met(*last)
  return to_q.astype(q.dtype), to_k.astype(k.dtype), to_v.astype(v.dtype)


def _float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
