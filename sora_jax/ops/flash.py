"""Attention for long rows: one block plan and one gradient rule, a kernel for each backend.

The forward pass keeps the output and the logarithm of each query's total weight; the backward pass
recomputes the weights from it (FlashAttention: Dao et al. 2022, arXiv 2205.14135, algorithms 1 and
4). Pairs of blocks that share no segment cost nothing in either.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from sora_jax.ops import block_attention, segment_attention, splash, triton
from sora_jax.ops.attention import attention

SHORT = 1 << 16
"""Pairs of a row below which all scores are formed at once, on every backend."""
LONG = 1 << 19
"""Pairs of a row up to which CPUs work through segments, and above which through blocks.

Forward and backward, on a device a core, beside all scores at once: by segments rows of 540 tokens,
in three clips each, take 0.4 to 0.5 of the time, rows of one clip of 256 tokens 0.8 to 1.0; by
blocks rows of 1,024 in clips of 210 take 0.5 to 0.65 and rows of 540 took 0.8 to 1.2. Where exactly
each begins to pay was not measured."""

KEPT = "attention"
"""What the results of a forward pass are called, for `jax.checkpoint` to keep them."""


def attend(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """`ops.attention.attention` for short rows, `flash` for others, where the tokens of a segment lie
  together."""
  short = q_RLAK.shape[1] * k_RMAK.shape[1] < SHORT
  return (attention if short else flash)(q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM)


def flash(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
) -> Float[Array, "R L A K"]:  # fmt: skip
  """Agrees with `ops.attention.reference_attention`, see there, if a segment's tokens lie together.

  Where they lie apart it does not, in value or gradient.
  """
  inputs = q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM
  return with_gradient(backward, inputs, forward(*map(lax.stop_gradient, inputs)))


def with_gradient(backward: Callable, inputs: tuple, made: tuple[Array, Array]) -> Array:
  """The output of attention, with a gradient made from what `forward` has kept.

  The forward pass stands outside of the rule, so that `jax.checkpoint` may keep its results (named
  `KEPT`) instead of running the kernel again.

  Args: backward: as `backward` below.  inputs: q, k, v and arrays of integers.  made: output and
    logarithm of `forward`, from inputs without a gradient.
  """
  out, log = (checkpoint_name(x, KEPT) for x in made)
  return _attached(backward, inputs, out, log)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attached(backward: Callable, inputs: tuple, out: Array, log: Array) -> Array:
  del backward, inputs, log
  return out


def _attached_backward(backward: Callable, saved: tuple, given: Array) -> tuple:
  inputs, out, log = saved
  parts = backward(*inputs, out, log, given)
  return (*parts, *(None,) * (len(inputs) - len(parts))), jnp.zeros_like(out), jnp.zeros_like(log)


_attached.defvjp(lambda backward, inputs, out, log: (out, (inputs, out, log)), _attached_backward)


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
    tpu=splash.forward, cuda=triton.forward, default=on_cpu(q_RLAK, k_RMAK).forward,
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
    tpu=splash.backward, cuda=triton.backward, default=on_cpu(q_RLAK, k_RMAK).backward,
  )  # fmt: skip


def on_cpu(q_RLAK: Array, k_RMAK: Array) -> ModuleType:
  """What works through rows of this length where there is no kernel."""
  return segment_attention if q_RLAK.shape[1] * k_RMAK.shape[1] <= LONG else block_attention
