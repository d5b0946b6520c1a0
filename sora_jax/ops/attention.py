"""Attention in packed rows: queries see the keys of their own segment and nothing else.

Modules are handed a function of the type `Attention`; the reference below forms all scores, and
whatever replaces it must agree with it. Scores and softmax are float32 whatever the inputs.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.ops.packing import shared_segment

MASKED = -1e30
"""Score of a pair that shares no segment; finite, so that rows of padding stay free of NaN."""


@runtime_checkable
class Attention(Protocol):
  """softmax(q k^T / sqrt(K)) v within segments; padding (segment 0) neither asks nor answers."""

  def __call__(
    self, q_RLAK: Array, k_RMAK: Array, v_RMAK: Array, segment_RL: Array, segment_RM: Array
  ) -> Array: ...


def attention(
  q_RLAK: Float[Array, "R L A K"],
  k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"],
  segment_RL: Int[Array, "R L"],
  segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:
  """Reference attention within segments, for self- and cross-attention.

  Args:
    q_RLAK, k_RMAK, v_RMAK: heads of queries, keys and values; scores are divided by sqrt(K).
    segment_RL, segment_RM: segments of queries and keys, 0 = padding.
  Returns: the queries' dtype; exactly 0 for padding and for queries whose segment has no key.
    Other segments have weight exactly 0, in value and in gradient.
  """
  mask_RLM = shared_segment(segment_RL, segment_RM)[:, None]
  scale = q_RLAK.shape[-1] ** -0.5
  score_RALM = jnp.einsum(
    "rlak,rmak->ralm", q_RLAK * jnp.asarray(scale, q_RLAK.dtype), k_RMAK,
    preferred_element_type=jnp.float32,
  )  # fmt: skip
  score_RALM = jnp.where(mask_RLM, score_RALM, MASKED)
  peak_RAL1 = jax.lax.stop_gradient(jnp.max(score_RALM, axis=-1, keepdims=True))
  weight_RALM = jnp.where(mask_RLM, jnp.exp(score_RALM - peak_RAL1), 0.0)
  total_RAL1 = jnp.maximum(weight_RALM.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
  weight_RALM = (weight_RALM / total_RAL1).astype(v_RMAK.dtype)
  out_RLAK = jnp.einsum("ralm,rmak->rlak", weight_RALM, v_RMAK, preferred_element_type=jnp.float32)
  return out_RLAK.astype(q_RLAK.dtype)
