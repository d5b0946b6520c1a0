"""Products and adaptive norms with written-out gradients, against automatic ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.ops import modulation
from sora_jax.ops.linear import flat_outer, linear, outer, settle
from sora_jax.ops.modulation import adaptive_norm, gated_sum


def agree(ours, plain, *args):
  """Values and gradients of two functions of float arrays."""
  out = jax.jit(ours)(*args)
  np.testing.assert_allclose(out, plain(*args), rtol=1e-5, atol=1e-5)
  given = jax.random.normal(jax.random.key(7), out.shape)
  (got, want) = (jax.jit(lambda *a, f=f: jax.vjp(f, *a)[1](given))(*args) for f in (ours, plain))
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
  "x, kernel, num_in",
  [
    ((2, 3, 4), (4, 9), 1),
    ((2, 3, 9), (9, 2), 1),
    ((2, 3, 4), (4, 3, 2, 5), 1),
    ((2, 5, 3, 4), (3, 4, 6), 2),
    ((7, 4), (4, 5), 1),
  ],
)
def test_linear(x, kernel, num_in, key):
  x, kernel = jax.random.normal(key, x), jax.random.normal(key, kernel)
  agree(lambda a, b: linear(a, b, num_in), lambda a, b: jnp.tensordot(a, b, num_in), x, kernel)
  given = jax.random.normal(key, (*x.shape[: x.ndim - num_in], *kernel.shape[num_in:]))
  np.testing.assert_allclose(
    flat_outer(num_in, x, given), outer(num_in, x, given), rtol=1e-5, atol=1e-5
  )


def test_settle_is_the_identity(key):
  x = jax.random.normal(key, (3, 4))
  agree(lambda a: jnp.sin(settle(a)), jnp.sin, x)


SLOT = jnp.array([[0, 0, 1, 2, 2, 2], [1, 0, 0, 0, 3, 3]])


def token(table):
  return jnp.stack([row[slot] for row, slot in zip(table, SLOT)])


def test_adaptive_norm(key):
  x = 3 + 2 * jax.random.normal(key, (2, 6, 8))
  shift, scale = jax.random.normal(key, (2, 2, 4, 8))

  def plain(x, shift, scale):
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
    return normed * (1 + token(scale)) + token(shift)

  agree(lambda *a: adaptive_norm(*a, SLOT), plain, x, shift, scale)


def test_reading_by_a_product_is_reading_but_for_the_tables_rounding(key):
  table = jax.random.normal(key, (2, 4, 8))
  np.testing.assert_array_equal(
    modulation.picked(table, SLOT), token(table.astype(jnp.bfloat16)).astype(jnp.float32)
  )


@pytest.mark.parametrize("dtype, products", [("bfloat16", 3), ("float32", 0)])
def test_tpus_read_tables_by_products_where_activations_are_bfloat16(dtype, products):
  x, table = jnp.zeros((2, 6, 8), dtype), jnp.zeros((2, 4, 8))

  def both(x, table):
    return gated_sum(x, adaptive_norm(x, table, table, SLOT).astype(dtype), table, SLOT)

  def count(platform):
    traced = jax.jit(both).trace(x, table)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("dot_general")

  assert count("tpu") == products and count("cpu") == count("cuda") == 0


def test_gated_sum(key):
  x, branch = jax.random.normal(key, (2, 2, 6, 8))
  gate = jax.random.normal(key, (2, 4, 8))
  agree(
    lambda *a: gated_sum(*a, SLOT), lambda x, b, gate: x + token(gate) * b, x, branch, gate
  )  # fmt: skip
