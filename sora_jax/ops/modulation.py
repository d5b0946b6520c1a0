"""Adaptive layer norm and gates per time slot: every token reads the row of its slot.

Tables are `[R, Q, D]`, one vector per slot of a row. Reading them is a gather that fuses with the
arithmetic around it; their gradients are products of matrices, since no backend scatters fast. On
TPUs, whose compiler stores what it gathers and copies it to another layout before use, reading is
such a product too where activations are bfloat16; the table is then rounded to that.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.ops.linear import fence


def take_rows(table_RQD: Float[Array, "R Q D"], slot_RL: Int[Array, "R L"]) -> Array:
  """Gives each token the row of its slot, `[R, L, D]`; slots must lie within the table."""
  return _take_rows(table_RQD.shape[1], table_RQD, slot_RL)


def adaptive_norm(
  x_RLD: Float[Array, "R L D"],
  shift_RQD: Float[Array, "R Q D"],
  scale_RQD: Float[Array, "R Q D"],
  slot_RL: Int[Array, "R L"],
  eps: float = 1e-6,
) -> Float[Array, "R L D"]:
  """norm(x) (1 + scale) + shift, with norm(x) = (x - mean) / sqrt(variance + eps); float32.

  Source: Peebles and Xie 2022 (arXiv 2212.09748), section 3.2.
  """
  return _adaptive_norm(eps, x_RLD, shift_RQD, scale_RQD, slot_RL)


def gated_sum(
  x_RLD: Float[Array, "R L D"],
  branch_RLD: Float[Array, "R L D"],
  gate_RQD: Float[Array, "R Q D"],
  slot_RL: Int[Array, "R L"],
) -> Float[Array, "R L D"]:
  """x + gate * branch, in x's dtype."""
  return _gated_sum(x_RLD, branch_RLD, gate_RQD, slot_RL)


def gather(table_RQD: Array, slot_RL: Array) -> Array:
  """`take_rows` without its gradient rule."""
  return jax.vmap(lambda table_QD, slot_L: table_QD.at[slot_L].get(mode="promise_in_bounds"))(
    table_RQD, slot_RL
  )


def read(table_RQD: Array, slot_RL: Array, dtype: jnp.dtype) -> Array:
  """`gather` for activations of a type: the fastest way on each backend, float32 `[R, L, D]`."""
  if dtype != jnp.bfloat16:
    return gather(table_RQD, slot_RL)
  return lax.platform_dependent(table_RQD, slot_RL, tpu=picked, default=gather)


def picked(table_RQD: Array, slot_RL: Array) -> Array:
  """`gather` as a product with rows of one 1; exact but for the table's rounding to bfloat16."""
  hot_RLQ = slot_RL[:, :, None] == jnp.arange(table_RQD.shape[1])[None, None]
  half = hot_RLQ.astype(jnp.bfloat16), table_RQD.astype(jnp.bfloat16)
  return jnp.einsum("rlq,rqd->rld", *half).astype(table_RQD.dtype)


def slot_sums(values_RLD: Array, slot_RL: Array, num_slots: int) -> Array:
  """Sums the values of each slot's tokens, float32 `[R, Q, D]`."""
  hot_RQL = slot_RL[:, None, :] == jnp.arange(num_slots)[None, :, None]
  return jnp.einsum(
    "rql,rld->rqd", hot_RQL.astype(values_RLD.dtype), values_RLD,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_rows(num_slots: int, table_RQD: Array, slot_RL: Array) -> Array:
  return gather(table_RQD, slot_RL)


_take_rows.defvjp(
  lambda num_slots, table_RQD, slot_RL: (gather(table_RQD, slot_RL), slot_RL),
  lambda num_slots, slot_RL, given_RLD: (slot_sums(given_RLD, slot_RL, num_slots), None),
)


def moments(x_RLD: Array, eps: float) -> tuple[Array, Array]:
  """Mean and 1 / standard deviation of each token, float32 `[R, L, 1]`."""
  mean_RL1 = x_RLD.mean(-1, keepdims=True)
  variance_RL1 = jnp.square(x_RLD - mean_RL1).mean(-1, keepdims=True)
  return fence(mean_RL1), fence(lax.rsqrt(variance_RL1 + eps))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _adaptive_norm(
  eps: float, x_RLD: Array, shift_RQD: Array, scale_RQD: Array, slot_RL: Array
) -> Array:
  return _adaptive_norm_forward(eps, x_RLD, shift_RQD, scale_RQD, slot_RL)[0]


def _adaptive_norm_forward(
  eps: float, x_RLD: Array, shift_RQD: Array, scale_RQD: Array, slot_RL: Array
) -> tuple[Array, tuple]:
  mean_RL1, inverse_RL1 = moments(x_RLD.astype(jnp.float32), eps)
  normed_RLD = (x_RLD - mean_RL1) * inverse_RL1
  scale_RLD, shift_RLD = (read(t, slot_RL, x_RLD.dtype) for t in (scale_RQD, shift_RQD))
  out_RLD = normed_RLD * (1 + scale_RLD) + shift_RLD
  return out_RLD, (x_RLD, mean_RL1, inverse_RL1, scale_RQD, slot_RL)


def _adaptive_norm_backward(eps: float, saved: tuple, given_RLD: Array) -> tuple:
  x_RLD, mean_RL1, inverse_RL1, scale_RQD, slot_RL = saved
  num_slots = scale_RQD.shape[1]
  normed_RLD = (x_RLD - mean_RL1) * inverse_RL1
  to_normed_RLD = given_RLD * (1 + read(scale_RQD, slot_RL, x_RLD.dtype))
  along_RL1 = fence((to_normed_RLD * normed_RLD).mean(-1, keepdims=True))
  level_RL1 = fence(to_normed_RLD.mean(-1, keepdims=True))
  to_x_RLD = inverse_RL1 * (to_normed_RLD - level_RL1 - normed_RLD * along_RL1)
  to_scale_RQD = slot_sums(given_RLD * normed_RLD, slot_RL, num_slots)
  to_shift_RQD = slot_sums(given_RLD, slot_RL, num_slots)
  return to_x_RLD.astype(x_RLD.dtype), to_shift_RQD, to_scale_RQD, None


_adaptive_norm.defvjp(_adaptive_norm_forward, _adaptive_norm_backward)


@jax.custom_vjp
def _gated_sum(x_RLD: Array, branch_RLD: Array, gate_RQD: Array, slot_RL: Array) -> Array:
  return (x_RLD + read(gate_RQD, slot_RL, x_RLD.dtype) * branch_RLD).astype(x_RLD.dtype)


def _gated_sum_forward(
  x_RLD: Array, branch_RLD: Array, gate_RQD: Array, slot_RL: Array
) -> tuple[Array, tuple]:
  return _gated_sum(x_RLD, branch_RLD, gate_RQD, slot_RL), (branch_RLD, gate_RQD, slot_RL)


def _gated_sum_backward(saved: tuple, given_RLD: Array) -> tuple:
  branch_RLD, gate_RQD, slot_RL = saved
  gate_RLD = read(gate_RQD, slot_RL, given_RLD.dtype)
  to_branch_RLD = (given_RLD * gate_RLD).astype(branch_RLD.dtype)
  product_RLD = given_RLD.astype(jnp.float32) * branch_RLD
  to_gate_RQD = slot_sums(product_RLD, slot_RL, gate_RQD.shape[1])
  return given_RLD, to_branch_RLD, to_gate_RQD, None


_gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)
