"""What a program of several slices, compiled, sends over the data-centre network."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax import sharding
from sora_jax.planning import compiled, cost, topology, walk

pytest.importorskip("libtpu")

WIDTH, OUT, ROWS = 256, 512, 16


def gradient(w, x):
  """Of the weights of a layer, summed over the rows of all devices."""
  return jax.grad(lambda w: jnp.square(jnp.tanh(x @ w)).sum())(w)


def exchanges(name, mesh, function, *placed):
  """(topology, exchanges within a slice, exchanges between slices) of a function of arrays.

  placed: (shape, mesh axes of its first side) of each argument, and of the result.
  """
  there = topology.describe(name)
  grid = sharding.make_mesh(mesh, there.devices)
  lie = [NamedSharding(grid, PartitionSpec(axes)) for _, axes in placed]
  given = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=s) for (shape, _), s in zip(placed, lie[:-1])
  ]
  made = compiled.compile_for(jax.jit(function, out_shardings=lie[-1]), *given)
  _, found = walk.walk(made.program, tuple(grid.shape.items()), there.slices)
  between = [c for c in found if c.between_slices]
  return there, [c for c in found if not c.between_slices], between


def test_a_sum_over_the_data_axis_is_split_between_both_networks():
  """Two of the four parts of `data` lie in each of two slices."""
  weights = (WIDTH, OUT), "fsdp"
  there, within, between = exchanges(
    "2*v5e:2x2", (4, 2, 1, 1), gradient, weights, ((ROWS, WIDTH), ("data", "fsdp")), weights
  )
  (far,) = between
  assert (far.kind, far.axes, far.group, far.count) == ("all-reduce", ("data",), 2, 1)
  assert far.bytes == 4 * WIDTH * OUT / 4  # what remains when the four chips have shared it out
  assert {c.axes for c in within} == {("data",), ("fsdp",)} and {c.group for c in within} == {2}
  b = cost.bound(walk.Costs(), cost.Kernels(0.0, 0.0), [*within, far], there.chip)
  assert b.network == pytest.approx(far.bytes / there.chip.dcn_rate)


def test_what_is_gathered_from_other_slices_counts_as_a_whole():
  array = WIDTH, OUT
  _, within, (far,) = exchanges(
    "4*v5e:2x2", (4, 4, 1, 1), lambda x: 2 * x, (array, "data"), (array, None)
  )
  assert not within
  assert (far.kind, far.axes, far.group) == ("all-gather", ("data",), 4)
  assert far.bytes == 4 * WIDTH * OUT
