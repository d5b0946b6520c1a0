"""A plan: what compiling a program for a topology has shown, in words and as figures."""

import dataclasses
import math
from typing import Any, NamedTuple

from sora_jax.planning import compiled, cost, walk
from sora_jax.planning.compiled import Compiled, DoesNotFit
from sora_jax.planning.cost import Bound, Kernels
from sora_jax.planning.topology import GIB, Topology
from sora_jax.planning.walk import Collective, Costs


class Plan(NamedTuple):
  """What is known of a program on a topology.

  found, and what is counted from it, are None where the program does not fit. run: what one run of
  it is called. load: typical data of a run on all chips, see `tasks.programs.Load`. needed, limit:
  bytes of a chip's memory, of the space that is too small if one is (see `DoesNotFit`).
  """

  program: str
  run: str
  there: Topology
  mesh: dict[str, int]
  parameters: int
  load: Any
  space: str
  needed: float
  limit: float
  largest: list[tuple[float, str]]
  seconds: float
  found: Compiled | None = None
  costs: Costs | None = None
  kernels: Kernels | None = None
  collectives: tuple[Collective, ...] = ()
  bound: Bound | None = None

  @property
  def fits(self) -> bool:
    """Whether a chip's memory suffices."""
    return self.found is not None and self.needed <= self.limit

  @property
  def flops_compiled(self) -> float:
    """Of a step on all chips, as compiled, without what is recomputed."""
    return (self.costs.dot_flops + self.kernels.flops) * len(self.there.devices)

  @property
  def model_flop_use(self) -> float:
    """The most that the roofline allows."""
    chips = len(self.there.devices)
    return cost.model_flop_use(self.load.flops, self.bound.seconds, self.there.chip, chips)


def make(program: Any, there: Topology, mesh: Any, name: str, quick: bool = False) -> Plan:
  """Compiles a `tasks.programs.Program` for a topology and counts what it does.

  quick: see `compiled.compile_for`.
  """
  axes = dict(mesh.shape)
  same = (name, program.run, there, axes, program.parameters, program.load)
  try:
    found = compiled.compile_for(
      program.function, *program.arguments, quick=quick, static=program.static
    )
  except DoesNotFit as error:
    return Plan(*same, error.space, error.needed, error.limit, error.largest, error.seconds)
  costs, collectives = walk.walk(found.program, tuple(axes.items()), there.slices)
  kernels = cost.kernel_flops(costs, program.load.near, program.load.far)
  bound = cost.bound(costs, kernels, collectives, there.chip)
  return Plan(
    *same, "hbm", found.memory.total, there.chip.hbm_bytes, found.largest, found.seconds, found,
    costs, kernels, tuple(collectives), bound,
  )  # fmt: skip


def figures(plan: Plan) -> dict:
  """The plan as JSON; seconds, bytes and FLOPs of one step, None where it does not fit."""
  memory = plan.found.memory._asdict() if plan.found else None
  known, other = plan.found is not None, plan.space != "hbm"
  return {
    "program": plan.program,
    "topology": plan.there.name,
    "mesh": plan.mesh,
    "fits": plan.fits,
    "parameters": plan.parameters,
    "hbm_bytes_per_chip": None if other or math.isnan(plan.needed) else plan.needed,
    "hbm_limit_bytes": hbm_limit(plan),
    "hbm_bytes_by_kind": memory,
    "kernel_memory_exceeded": (
      {"space": plan.space, "bytes": plan.needed, "limit_bytes": plan.limit} if other else None
    ),
    "largest_buffers": [{"bytes": size, "shapes": shapes} for size, shapes in plan.largest],
    "flops_per_step_compiled": plan.flops_compiled if known else None,
    "flops_per_step_recomputed": (
      (plan.costs.recomputed_flops + plan.kernels.recomputed) * len(plan.there.devices)
      if known else None
    ),
    "flops_per_step_formula": plan.load.flops,
    "dot_flops_compiled": plan.costs.dot_flops * len(plan.there.devices) if known else None,
    "dot_flops_formula": plan.load.dots,
    "tokens_per_step": plan.load.tokens,
    "collectives": [dataclasses.asdict(c) for c in plan.collectives],
    "step_seconds_lower_bound": plan.bound.seconds if known else None,
    "step_seconds_by_reason": plan.bound._asdict() if known else None,
    "mfu_upper_bound": plan.model_flop_use if known else None,
    "compile_seconds": plan.seconds,
  }  # fmt: skip


def text(plan: Plan) -> str:
  """The plan for a person."""
  there, load, run = plan.there, plan.load, plan.run
  mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
  lines = [
    f"{plan.program} on {there.name}: {len(there.devices)} x {there.chip.name},"
    f" {there.hosts} hosts; mesh {mesh}",
    f"parameters           {cost.sized(plan.parameters)}",
    line(f"a {run}", f"{cost.sized(load.tokens)}{load.unit}"),
  ]
  lines.append(line("memory of a chip", memory_of(plan)))
  if plan.found:
    for kind, size in plan.found.memory._asdict().items():
      lines.append(f"  {kind:<18} {'not made' if size is None else f'{size / GIB:.2f} GiB'}")
  if not plan.fits:
    lines += advice(plan)
  lines += [f"  largest            {size / GIB:.2f} GiB: {what}" for size, what in plan.largest[:4]]
  if plan.found is None:
    return "\n".join(lines)
  chips = len(there.devices)
  again = (plan.costs.recomputed_flops + plan.kernels.recomputed) * chips
  lines += [
    line(
      f"FLOPs a {run}",
      f"{cost.sized(plan.flops_compiled)}compiled, {cost.sized(again)}recomputed;"
      f" {cost.sized(load.flops)}needed for {load.unit} (formula)",
    ),
    f"  matrix products    {cost.sized(plan.costs.dot_flops * chips)}compiled,"
    f" {cost.sized(load.dots)}by formula"
    f" ({100 * (plan.costs.dot_flops * chips / load.dots - 1):+.1f} %)",
    line(f"exchanges a {run}", "of a chip:"),
  ]
  lines += [
    f"  {c.kind:<18} {cost.sized(c.bytes)}B over {'+'.join(c.axes) or 'none'}"
    f" ({c.group} {'slices' if c.between_slices else 'chips'}), {c.count:.0f} times"
    for c in plan.collectives[:8]
  ]
  b = plan.bound
  lines += [
    line(
      f"{run} at the least",
      f"{b.seconds:.3g} s, for {b.reason} (compute {b.compute:.3g}, memory {b.memory:.3g},"
      f" network {b.network:.3g})",
    ),
    f"model-FLOP use       at most {100 * plan.model_flop_use:.0f} %, {load.unit} alone,"
    " nothing recomputed counted",
    f"compiled in          {plan.seconds:.0f} s",
  ]
  return "\n".join(lines)


def memory_of(plan: Plan) -> str:
  """What is needed of a chip's memory, and whether it fits."""
  if plan.space != "hbm":
    kib = f"{plan.needed / 2**10:.0f} of {plan.limit / 2**10:.0f} KiB"
    return f"a kernel's {plan.space}: {kib}: DOES NOT FIT"
  gib = "more than" if math.isnan(plan.needed) else f"{plan.needed / GIB:.2f} of"
  return f"{gib} {hbm_limit(plan) / GIB:g} GiB: {'fits' if plan.fits else 'DOES NOT FIT'}"


def hbm_limit(plan: Plan) -> float:
  """Bytes of a chip's memory: what the compiler says that it may use of it, where it does."""
  return float(plan.limit if plan.space == "hbm" else plan.there.chip.hbm_bytes)


def line(name: str, value: str) -> str:
  """A line of the plan, its value in the column of all."""
  return f"{name:<20} {value}"


def advice(plan: Plan) -> list[str]:
  """What to change so that it fits."""
  if plan.space != "hbm":
    return [
      "  to make it fit: a larger context axis or a shorter row (data.row_len, --frames, --size):",
      "  the blocks of a long row and their tables lie in the memory of attention's kernels",
    ]
  if plan.program == "sample":
    return ["  to make it fit: a larger context, tensor or fsdp axis, fewer --frames, more chips"]
  if plan.program == "vae_decode":
    return ["  to make it fit: a larger context or tensor axis (for lines, columns), more chips"]
  if plan.load.unit == "pixels":  # an autoencoder, whose state lies whole on each chip
    return [
      "  to make it fit: a context or tensor axis (for lines, columns), smaller clips (vae.sizes,",
      "  vae.frames), fewer at once (vae.batch_pixels, train.accumulate), chips with more memory",
    ]
  return [
    "  to make it fit: a larger fsdp or tensor axis (for the state), a context axis or a larger",
    "  train.accumulate (for activations), model.remat=block, a smaller data.row_len, more chips",
  ]
