"""From counts to seconds, and topologies by name."""

import collections
import re

import pytest

from sora_jax.planning import compiled, cost, topology
from sora_jax.planning.hlo import Shape
from sora_jax.planning.walk import Collective, Costs

V5P = topology.CHIPS["v5p"]


def exchange(kind, size=600e9, group=8, axes=("fsdp",), between_slices=False):
  return Collective(kind, axes, group, size, 1.0, between_slices)


@pytest.mark.parametrize(
  "kind, seconds",
  [("all-gather", 7 / 8), ("reduce-scatter", 7 / 8), ("all-reduce", 7 / 4),
   ("collective-permute", 6.0)],
)  # fmt: skip
def test_an_exchange_takes_what_a_chips_links_need(kind, seconds):
  assert cost.exchange_seconds(exchange(kind), V5P) == pytest.approx(seconds)
  assert cost.exchange_seconds(exchange(kind, group=1), V5P) == 0


@pytest.mark.parametrize(
  "kind, slices, times",
  [("all-reduce", 2, 1.0), ("all-reduce", 4, 1.5), ("all-gather", 4, 0.75),
   ("collective-permute", 2, 1.0)],
)  # fmt: skip
def test_between_slices_the_slow_network_counts(kind, slices, times):
  far = exchange(kind, 1e9, slices, ("data",), between_slices=True)
  assert cost.exchange_seconds(far, V5P) == pytest.approx(times * 1e9 / V5P.dcn_rate)
  # on the same axis, within a slice
  near = exchange(kind, 1e9, slices, ("data",))
  assert cost.exchange_seconds(near, V5P) < 0.1 * times * 1e9 / V5P.dcn_rate


@pytest.mark.parametrize("far, network", [(0.5 * 6.2e9, 7 / 8), (1.5 * 6.2e9, 1.5)])
def test_the_bound_is_the_largest_of_three(far, network):
  """Exchanges within a slice and between two may overlap."""
  costs = Costs(dot_flops=459e12, recomputed_flops=459e12, hbm_bytes=2765e9)
  between = exchange("all-reduce", far, 2, ("data",), between_slices=True)
  b = cost.bound(costs, cost.Kernels(0.0, 0.0), [exchange("all-gather"), between], V5P)
  assert b == pytest.approx((2.0, 1.0, network))
  assert b.seconds == 2.0 and b.reason == "compute"
  assert cost.model_flop_use(459e12 * 4, b.seconds, V5P, 4) == pytest.approx(0.5)


def test_kernels_cost_what_their_blocks_do():
  """Texts may be as long as the tokens that a device holds."""
  shape = lambda *dims: Shape("bf16", dims)  # noqa: E731
  table, q, words = Shape("s32", (1, 8, 8)), shape(2, 64, 16), shape(2, 32, 16)
  mask = Shape("s8", (1, 8, 8))
  kernels = collections.Counter({
    ("splash_mha_fwd_segmented_residuals", (table, table, q, q, q), False, False): 3,
    ("splash_mha_fwd_segmented_residuals", (table, table, q, q, q), False, True): 3,
    ("splash_mha_fwd_segmented_residuals", (table, table, q, q, q), True, False): 1,
    ("splash_mha_dq_segmented_no_residuals", (mask, table, q, words, words), True, False): 1,
  })  # fmt: skip
  done, again = cost.kernel_flops(Costs(kernels=kernels), near=0.25, far=0.5)
  forward = 2 * 2 * 2 * 64 * 64 * 16 * 3 * 0.25
  assert again == forward
  assert done == forward + (2 * 64 + 3 * 32) * 2 * 2 * 64 * 16 * 0.5
  kernels["my_kernel", (q,), False, False] = 1
  with pytest.raises(ValueError, match="no formula for the kernel 'my_kernel'"):
    cost.kernel_flops(Costs(kernels=kernels), 1.0, 1.0)


@pytest.mark.parametrize(
  "name, parts",
  [("v5p:4x4x8", ("v5p", (4, 4, 8), 1)), ("v5e:2x4", ("v5e", (2, 4), 1)),
   ("2*v6e:16x16", ("v6e", (16, 16), 2))],
)  # fmt: skip
def test_topologies_are_read(name, parts):
  assert topology.parse(name) == parts


@pytest.mark.parametrize(
  "name",
  ["v5p", "v5p:4x4", "v5e:0x4", "v9:2x2", "0*v5e:2x2", "v5e:axb", "v5e:2x²", "²*v5e:1x1",
   "1*2*v5e:1x1"],
)  # fmt: skip
def test_what_is_no_topology_is_named_with_the_form_of_one(name):
  with pytest.raises(ValueError, match=r"give CHIP:SHAPE.*chips: v5e, v5p, v6e"):
    topology.parse(name)


@pytest.mark.parametrize(
  "name, allowed",
  [("v5e:64x64", "1x1, 2x2, .*16x16;"), ("2*v6e:2x256", "1x1, 2x2, .*16x16;"),
   ("v5p:2x2x3", "2x4x4, or sides that are multiples of 4 with at most 6144 chips"),
   ("v5p:16x16x28", "at most 6144 chips")],
)  # fmt: skip
def test_a_slice_that_does_not_exist_is_refused_with_those_that_do(name, allowed):
  with pytest.raises(ValueError, match=f"{re.escape(name)}.*has no such slice.*{allowed}"):
    topology.parse(name)


@pytest.mark.parametrize(
  "name, hosts",
  [("v5e:1x1", 1), ("v5e:2x2", 1), ("v5e:2x4", 1), ("v6e:2x4", 1), ("v6e:4x4", 4), ("2*v5e:2x2", 2),
   ("2*v6e:2x4", 2), ("2*v5p:4x4x4", 32)],
)  # fmt: skip
def test_each_slice_has_hosts_of_its_own(name, hosts):
  """As Google's tables of VMs say: 2x4 is one of eight chips, what is larger has four each."""
  pytest.importorskip("libtpu")
  assert topology.describe(name).hosts == hosts


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
