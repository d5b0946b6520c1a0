"""The walk over a TPU program with a loop over layers, against the same program without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax import sharding
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.ops import packing
from sora_jax.planning import compiled, topology, walk

pytest.importorskip("libtpu")

L, M = 224, 32  # short enough that the scores of a row are products, and no kernel's


@functools.cache
def products(depth: int, unroll: int) -> tuple[float, float]:
  """FLOPs of a gradient's matrix products by the walk: first runs, and those that repeat one."""
  mesh = sharding.make_mesh((1, 1, 1, 1), topology.describe("v5e:1x1").devices)
  dit = DiT(
    DiTConfig(
      width=128, depth=depth, heads=2, in_channels=8, out_channels=4, text_width=32,
      scan_unroll=unroll,
    )
  )  # fmt: skip
  tables = packing.place([[((4, 8, 7), 8.0)]], L, 1)
  layout = packing.layout_of({**tables, "text_segment": np.ones((1, M), np.int32)})
  inputs = jnp.zeros((1, L, 32)), jnp.zeros((1, 1)), layout, jnp.zeros((1, M, 32))
  params = nn.meta.unbox(jax.eval_shape(dit.init, jax.random.key(0), *inputs))

  def loss(params, *inputs):
    return jnp.square(dit.apply(params, *inputs)).sum()

  whole = sharding.replicated(mesh)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), (params, *inputs)
  )
  costs, _ = walk.walk(compiled.compile_for(jax.jit(jax.grad(loss)), *shapes).program)
  return costs.dot_flops, costs.recomputed_flops


@pytest.mark.parametrize("depth", [2, 4])
def test_a_loop_counts_as_the_layers_it_stands_for(depth):
  looped, unrolled = products(depth, 1), products(depth, depth)
  assert looped[0] == pytest.approx(unrolled[0], rel=0.01)
  assert looped[1] == unrolled[1] == 0


def test_layers_more_cost_what_their_matrices_say():
  more = products(4, 1)[0] - products(2, 1)[0]
  layer = 2 * 3 * L * (4 + 2 + 8) * 128**2 + 2 * 3 * M * 2 * 128**2 + 4 * 3 * L * (L + M) * 128
  assert more == pytest.approx(2 * layer, rel=0.05)
