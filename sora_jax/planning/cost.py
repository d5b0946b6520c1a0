"""From counts to time: the roofline's lower bound of a step, and what it allows.

A step can be no faster than its products at the chips' peak, its traffic with HBM at the full rate,
or its exchanges over all of a chip's links at once (Williams et al. 2009, "Roofline"; for exchanges
Austin et al. 2025, "How to Scale Your Model", section 3). The three may overlap, so the largest
counts; so may exchanges within a slice and those between slices. Model-FLOP use counts what the
model needs for real tokens, nothing recomputed (Chowdhery et al. 2022, arXiv 2204.02311, appendix
B).
"""

from collections.abc import Sequence
from typing import NamedTuple

from sora_jax.planning.topology import Chip
from sora_jax.planning.walk import Collective, Costs

KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""Products of a block of queries with one of keys (or of their like) in each kernel."""


class Bound(NamedTuple):
  """Seconds that a step takes at the least, for each of the three reasons."""

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """The largest."""
    return max(self)

  @property
  def reason(self) -> str:
    """Which it is."""
    return max(self._fields, key=lambda name: getattr(self, name))


class Kernels(NamedTuple):
  """FLOPs of a chip's kernels in a step: first runs, and runs that repeat one."""

  flops: float
  recomputed: float


def kernel_flops(costs: Costs, near: float, far: float) -> Kernels:
  """FLOPs of attention kernels, by formula: 2 x queries x keys x head size for each product.

  Args: near, far: shares of block pairs that are worked on by attention among tokens, and to words.
  Raises: ValueError for a kernel without a formula.
  """
  done = repeated = 0.0
  for (name, shapes, to_words, again), times in costs.kernels.items():
    kind = next((k for k in KERNEL_PRODUCTS if name.startswith(k)), None)
    if kind is None:
      raise ValueError(f"no formula for the kernel {name!r}: {', '.join(map(str, shapes))}")
    q, k = [s for s in shapes if not s.dtype.startswith("s") and len(s.dims) == 3][:2]
    heads, queries, size = q.dims
    share = far if to_words else near
    flops = 2.0 * KERNEL_PRODUCTS[kind] * heads * queries * k.dims[1] * size * share * times
    done, repeated = (done, repeated + flops) if again else (done + flops, repeated)
  return Kernels(done, repeated)


def bound(costs: Costs, kernels: Kernels, collectives: Sequence[Collective], chip: Chip) -> Bound:
  """The roofline of one step on one chip."""
  flops = costs.dot_flops + costs.recomputed_flops + sum(kernels)
  network = [0.0, 0.0]  # within a slice, between slices
  for c in collectives:
    network[c.between_slices] += exchange_seconds(c, chip)
  return Bound(flops / chip.flops, costs.hbm_bytes / chip.hbm_rate, max(network))


def exchange_seconds(c: Collective, chip: Chip) -> float:
  """Seconds of a collective at the least: what a chip must take in, over what its links carry.

  An all-gather or a reduce-scatter of B bytes over n chips moves B (n - 1) / n, an all-reduce twice
  as much, an all-to-all of B bytes a chip the same share; a permutation goes over one link. Between
  n slices the same go over a chip's share of the data-centre network.
  """
  if c.group <= 1:
    return 0.0
  rate = chip.dcn_rate if c.between_slices else chip.ici_rate
  if c.kind == "collective-permute":
    return c.bytes / (rate if c.between_slices else rate / chip.ports)
  share = c.bytes * (c.group - 1) / c.group
  return (2 if c.kind == "all-reduce" else 1) * share / rate


def model_flop_use(flops: float, seconds: float, chip: Chip, chips: int) -> float:
  """Share of the chips' peak that a model's own FLOPs come to."""
  return flops / (seconds * chip.flops * chips)


def sized(count: float | int) -> str:
  """1.25e9 as "1.25 G"."""
  for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if abs(count) >= size:
      return f"{count / size:.4g} {unit}"
  return f"{count:.4g} "
