"""Attention in packed rows: queries see the keys of their own segment and nothing else.

Modules are handed a function of the type `Attention`. `reference_attention` is the definition;
`attention` forms the same scores with a gradient written out, and is what rows of up to a few
hundred tokens want; long rows want `ops.block_attention`. Scores and softmax are float32.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops.linear import fence, settle
from sora_jax.ops.packing import shared_segment

MASKED = -1e30
"""Score of a pair that shares no segment; finite, so that rows of padding stay free of NaN."""

TINY = 1e-30
"""Added nowhere, but the least total of weights that is divided by: padding then gives 0."""


@runtime_checkable
class Attention(Protocol):
  """softmax(q k^T / sqrt(K)) v within segments; padding (segment 0) neither asks nor answers.

  The tokens of a segment must lie together in a row, and so its keys.
  """

  def __call__(
    self, q_RLAK: Array, k_RMAK: Array, v_RMAK: Array, segment_RL: Array, segment_RM: Array
  ) -> Array: ...


def reference_attention(
  q_RLAK: Float[Array, "R L A K"],
  k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"],
  segment_RL: Int[Array, "R L"],
  segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:
  """Attention within segments, as it is defined.

  Args:
    q_RLAK, k_RMAK, v_RMAK: heads of queries, keys and values; scores are divided by sqrt(K).
    segment_RL, segment_RM: segments of queries and keys, 0 = padding.
  Returns: the queries' dtype; exactly 0 for padding and for queries whose segment has no key.
    Other segments have weight exactly 0, in value and in gradient.
  """
  mask_RALM = shared_segment(segment_RL, segment_RM)[:, None]
  score_RALM = jnp.einsum("rlak,rmak->ralm", q_RLAK, k_RMAK, preferred_element_type=jnp.float32)
  score_RALM = jnp.where(mask_RALM, score_RALM * q_RLAK.shape[-1] ** -0.5, MASKED)
  peak_RAL1 = lax.stop_gradient(jnp.max(score_RALM, axis=-1, keepdims=True))
  weight_RALM = jnp.where(mask_RALM, jnp.exp(score_RALM - peak_RAL1), 0.0)
  weight_RALM = weight_RALM / jnp.maximum(weight_RALM.sum(-1, keepdims=True), TINY)
  out_RLAK = jnp.einsum(
    "ralm,rmak->rlak", weight_RALM.astype(v_RMAK.dtype), v_RMAK,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  return out_RLAK.astype(q_RLAK.dtype)


def attention(
  q_RLAK: Float[Array, "R L A K"],
  k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"],
  segment_RL: Int[Array, "R L"],
  segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:
  """`reference_attention` with the gradient of FlashAttention (arXiv 2205.14135, appendix B.2).

  It keeps the weights before they are divided by their total, and divides the shorter output
  instead; the backward pass needs no sum over keys.
  """
  heads_first = [x.swapaxes(1, 2) for x in (q_RLAK, k_RMAK, v_RMAK)]
  heads_first[0] = heads_first[0] * jnp.asarray(q_RLAK.shape[-1] ** -0.5, q_RLAK.dtype)
  out_RALK = _attention(*(settle(x) for x in heads_first), segment_RL, segment_RM)
  return settle(out_RALK.swapaxes(1, 2))


def products(a: Array, b: Array, over_a: int, over_b: int) -> Array:
  """One matrix product for each row and head, or head, accumulated in float32."""
  lead = tuple(range(a.ndim - 2))
  return lax.dot_general(
    a, b, (((over_a,), (over_b,)), (lead, lead)), preferred_element_type=jnp.float32
  )


def flipped(x_RALM: Array) -> Array:
  """Its last two axes exchanged in memory: on CPU a product over the third axis is three times
  slower than one over the last.
  """
  return fence(x_RALM.swapaxes(2, 3))


@jax.custom_vjp
def _attention(
  q_RALK: Array, k_RAMK: Array, v_RAMK: Array, segment_RL: Array, segment_RM: Array
) -> Array:
  return _attention_forward(q_RALK, k_RAMK, v_RAMK, segment_RL, segment_RM)[0]


def _attention_forward(
  q_RALK: Array, k_RAMK: Array, v_RAMK: Array, segment_RL: Array, segment_RM: Array
) -> tuple[Array, tuple]:
  mask_RALM = shared_segment(segment_RL, segment_RM)[:, None]
  score_RALM = products(q_RALK, k_RAMK, 3, 3)
  peak_RAL1 = fence(jnp.where(mask_RALM, score_RALM, MASKED).max(-1, keepdims=True))
  weight_RALM = jnp.where(mask_RALM, jnp.exp(score_RALM - peak_RAL1), 0.0)
  weight_RALM = fence(weight_RALM.astype(v_RAMK.dtype))
  total_RAL1 = weight_RALM.astype(jnp.float32).sum(-1, keepdims=True)
  share_RAL1 = fence(1 / jnp.maximum(total_RAL1, TINY))
  out_RALK = fence((products(weight_RALM, v_RAMK, 3, 2) * share_RAL1).astype(q_RALK.dtype))
  return out_RALK, (q_RALK, k_RAMK, v_RAMK, weight_RALM, share_RAL1, out_RALK)


def _attention_backward(saved: tuple, given_RALK: Array) -> tuple:
  q_RALK, k_RAMK, v_RAMK, weight_RALM, share_RAL1, out_RALK = saved
  given_RALK = given_RALK.astype(jnp.float32) * share_RAL1
  along_RAL1 = fence((given_RALK * out_RALK).sum(-1, keepdims=True))
  given_RALK = fence(given_RALK.astype(v_RAMK.dtype))
  to_v_RAMK = products(flipped(weight_RALM), given_RALK, 3, 2)
  to_weight_RALM = products(given_RALK, v_RAMK, 3, 3)
  to_score_RALM = fence((weight_RALM * (to_weight_RALM - along_RAL1)).astype(q_RALK.dtype))
  to_q_RALK = products(to_score_RALM, k_RAMK, 3, 2)
  to_k_RAMK = products(flipped(to_score_RALM), q_RALK, 3, 2)
  return (
    to_q_RALK.astype(q_RALK.dtype), to_k_RAMK.astype(k_RAMK.dtype),
    to_v_RAMK.astype(v_RAMK.dtype), None, None,
  )  # fmt: skip


_attention.defvjp(_attention_forward, _attention_backward)
