"""From counts to seconds, and topologies by name."""

import collections

import pytest

from sora_jax.planning import compiled, cost, topology
from sora_jax.planning.hlo import Shape
from sora_jax.planning.walk import Collective, Costs

V5P = topology.CHIPS["v5p"]


def exchange(kind, size=600e9, group=8, axes=("fsdp",)):
  return Collective(kind, axes, group, size, 1.0)


@pytest.mark.parametrize(
  "kind, seconds",
  [("all-gather", 7 / 8), ("reduce-scatter", 7 / 8), ("all-reduce", 7 / 4),
   ("collective-permute", 6.0)],
)  # fmt: skip
def test_an_exchange_takes_what_a_chips_links_need(kind, seconds):
  assert cost.exchange_seconds(exchange(kind), V5P) == pytest.approx(seconds)
  assert cost.exchange_seconds(exchange(kind, group=1), V5P) == 0


def test_between_slices_the_slow_network_counts():
  here = exchange("all-reduce", size=1e9, axes=("data",))
  near = cost.exchange_seconds(here, V5P)
  far = cost.exchange_seconds(here, V5P, {"data": 2})
  assert far == pytest.approx(2 * 1e9 / 2 / 4 / V5P.dcn_rate)
  assert far > near


def test_the_bound_is_the_largest_of_three():
  costs = Costs(dot_flops=459e12, recomputed_flops=459e12, hbm_bytes=2765e9)
  b = cost.bound(costs, cost.Kernels(0.0, 0.0), [exchange("all-gather")], V5P)
  assert b == pytest.approx((2.0, 1.0, 7 / 8))
  assert b.seconds == 2.0 and b.reason == "compute"
  assert cost.model_flop_use(459e12 * 4, b.seconds, V5P, 4) == pytest.approx(0.5)


def test_kernels_cost_what_their_blocks_do():
  shape = lambda *dims: Shape("bf16", dims)  # noqa: E731
  table, q, k, words = Shape("s32", (1, 8, 8)), shape(2, 64, 16), shape(2, 64, 16), shape(2, 32, 16)
  mask = Shape("s8", (1, 8, 8))
  kernels = collections.Counter({
    ("splash_mha_fwd_segmented_residuals", (table, table, q, k, k), False): 3,
    ("splash_mha_fwd_segmented_residuals", (table, table, q, k, k), True): 3,
    ("splash_mha_dq_segmented_no_residuals", (mask, table, q, words, words), False): 1,
  })  # fmt: skip
  done, again = cost.kernel_flops(Costs(kernels=kernels), near=0.25, far=0.5)
  forward = 2 * 2 * 2 * 64 * 64 * 16 * 3 * 0.25
  assert again == forward
  assert done == forward + 3 * 2 * 2 * 64 * 32 * 16 * 0.5
  kernels["my_kernel", (q,), False] = 1
  with pytest.raises(ValueError, match="no formula for the kernel 'my_kernel'"):
    cost.kernel_flops(Costs(kernels=kernels), 1.0, 1.0)


@pytest.mark.parametrize(
  "name, parts",
  [("v5p:4x4x8", ("v5p", (4, 4, 8), 1)), ("v5e:2x4", ("v5e", (2, 4), 1)),
   ("2*v6e:16x16", ("v6e", (16, 16), 2))],
)  # fmt: skip
def test_topologies_are_read(name, parts):
  assert topology.parse(name) == parts


@pytest.mark.parametrize("name", ["v5p", "v5p:4x4", "v5e:0x4", "v9:2x2", "0*v5e:2x2", "v5e:axb"])
def test_what_is_no_topology_is_named_with_the_form_of_one(name):
  with pytest.raises(ValueError, match=r"give CHIP:SHAPE.*chips: v5e, v5p, v6e"):
    topology.parse(name)


@pytest.mark.parametrize(
  "text, size", [("4.78GiB", 4.78 * 2**30), ("236.45G", 236.45 * 2**30), ("512B", 512), ("", 0)]
)
def test_sizes_are_read_as_the_compiler_writes_them(text, size):
  assert compiled.size_of(text) == size


@pytest.mark.parametrize(
  "message, want",
  [
    ("Ran out of memory in memory space hbm. Used 236.45G of 95.74G hbm.",
     ("hbm", 236.45 * 2**30, 95.74 * 2**30)),
    ("Ran out of memory in memory space smem. Used 1.04M of 1.00M smem. Exceeded by 42.1K.",
     ("smem", 1.04 * 2**20, 2**20)),
    ("Allocation (size=1404928) would exceed memory (size=1048576) :: [shape = 'u8[1404928]{0}',"
     " space=smem, size = 0x157000, scoped]", ("smem", 1404928, 1048576)),
    ("Ran out of memory in memory space vmem while allocating on stack for %a.1 = f32[2048,128]."
     " Scoped allocation with size 25.97M and limit 16.00M exceeded",
     ("vmem", 25.97 * 2**20, 16 * 2**20)),
  ],
)  # fmt: skip
def test_the_memory_that_is_too_small_is_read_from_what_the_compiler_says(message, want):
  assert compiled.exceeded(message) == want


def test_numbers_are_written_for_people():
  assert cost.sized(2.962e9) == "2.962 G" and cost.sized(12) == "12 "
