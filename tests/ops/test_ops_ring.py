import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from sora_jax.ops import ring


def exchanges(jaxpr, times: int = 1) -> int:
  """Arrays that a device sends on, loops counted as often as they turn."""
  found = 0
  for equation in jaxpr.eqns:
    turns = equation.params["length"] if equation.primitive.name == "scan" else 1
    found += times * (equation.primitive.name == "ppermute")
    for part in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      part = getattr(part, "jaxpr", part)
      if hasattr(part, "eqns"):
        found += exchanges(part, times * turns)
  return found


@pytest.mark.parametrize("shards", [2, 4])
def test_nobody_is_sent_on_who_will_not_be_met(shards):
  """Keys, values and segments meet every shard but their own by n - 1 trips; gradients go home."""
  mesh, rows = AbstractMesh((shards,), ("context",)), PartitionSpec(None, "context")
  attend = jax.shard_map(
    functools.partial(ring.ring, "context"), mesh=mesh, in_specs=(rows,) * 4, out_specs=rows,
    check_vma=False,
  )  # fmt: skip
  heads, segment = jnp.zeros((1, 8 * shards, 2, 4)), jnp.ones((1, 8 * shards), jnp.int32)
  forward = jax.make_jaxpr(attend)(heads, heads, heads, segment)
  assert exchanges(forward.jaxpr) == 3 * (shards - 1)
  total = lambda *heads: attend(*heads, segment).sum()  # noqa: E731
  both = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2)))(heads, heads, heads)
  assert exchanges(both.jaxpr) == 2 * 3 * (shards - 1) + 2 * shards
