"""Attention for long rows: one block plan and one gradient rule, a kernel for each backend.

The forward pass keeps the output and the logarithm of each query's total weight; the backward pass
recomputes the weights from it (FlashAttention: Dao et al. 2022, arXiv 2205.14135, algorithms 1 and
4). Pairs of blocks that share no segment cost nothing in either.
"""

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops import block_attention, splash
from sora_jax.ops.attention import attention

LONG = 1 << 21
"""Pairs of a row above which blocks pay on CPU: at 1,024 tokens all scores at once are faster."""


def attend(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """`ops.attention.attention` for short rows, `flash` for long ones."""
  long = q_RLAK.shape[1] * k_RMAK.shape[1] > LONG
  return (flash if long else attention)(q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM)


@jax.custom_vjp
def flash(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """Agrees with `ops.attention.reference_attention`; see there."""
  return forward(q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM)[0]


def forward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
) -> tuple[Float[Array, "R L A K"], Float[Array, "R L A"]]:  # fmt: skip
  """Attention over some of a row's keys, in a form that can be joined with that over others.

  Returns: the output, and log(sum exp(q k / sqrt(K))) over a query's keys, float32; `MASKED` (and
    an output of 0) for queries without any.
  """
  return lax.platform_dependent(
    q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM,
    tpu=splash.forward, default=block_attention.forward,
  )  # fmt: skip


def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"],
) -> tuple[Array, Array, Array]:  # fmt: skip
  """Gradients of queries, keys and values.

  Args:
    out_RLAK, log_RLA: of `forward` over ALL of a query's keys, of which these may be a part.
    given_RLAK: gradient of the output.
  """
  return lax.platform_dependent(
    q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM, out_RLAK, log_RLA, given_RLAK,
    tpu=splash.backward, default=block_attention.backward,
  )  # fmt: skip


def _flash_forward(*inputs: Array) -> tuple[Array, tuple]:
  out_RLAK, log_RLA = forward(*inputs)
  return out_RLAK, (*inputs, out_RLAK, log_RLA)


flash.defvjp(_flash_forward, lambda saved, given: (*backward(*saved, given), None, None))
