"""Counts what a compiled program does: a walk that multiplies loops by their trips.

XLA's own cost analysis counts a loop's body once and a custom kernel hardly at all. Products of
matrices are counted where they stand, fused or not; on TPUs they are convolutions, whose positions
outside the input are left out, as XLA does. What a backward pass computes a second time is kept
apart (`origin`). Kernels are listed, not counted: what they cost depends on the data. The program
of several slices is that of one of them: what crosses to the others are sends and receives.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from sora_jax.planning import origin
from sora_jax.planning.hlo import Instruction, Program, Shape

KERNEL = "tpu_custom_call"
"""Target of a call of a kernel written in Pallas."""
CROSS = "/cross/"
"""Scope of attention from tokens to words, in the name of an operation."""
BETWEEN_SLICES = "between slices"
"""In place of the groups of an exchange over the data-centre network."""
SCATTERS = "all-reduce-scatter"
"""Name of the fused computation in which the TPU compiler reduces and keeps one part."""
COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
  "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call",
  "conditional", "partition-id", "replica-id", "iota",
)  # fmt: skip
"""Kinds that move no bytes themselves."""


@dataclasses.dataclass(frozen=True)
class Collective:
  """Exchanges of one kind over one group of mesh axes.

  bytes: that a device holds of the result, all trips together (of the larger side for an
  all-gather, of the smaller side's source for a reduce-scatter). group: devices that take part, or
  slices where it is between_slices, over the data-centre network.
  """

  kind: str
  axes: tuple[str, ...]
  group: int
  bytes: float
  count: float
  between_slices: bool = False


@dataclasses.dataclass
class Costs:
  """Of one device, one run of the program.

  dot_flops: of matrix products, without what is recomputed. recomputed_flops: what is.
  kernels: runs of each custom kernel, by (name, shapes of its operands, whether it is of attention
  to words, whether it repeats one). exchanges: runs of each collective, by (kind, groups as XLA
  writes them or `BETWEEN_SLICES`, bytes).
  hbm_bytes: read from and written to HBM.
  """

  dot_flops: float = 0.0
  recomputed_flops: float = 0.0
  hbm_bytes: float = 0.0
  kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  exchanges: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def walk(
  program: Program, mesh: Sequence[tuple[str, int]] = (), slices: int = 1
) -> tuple[Costs, list[Collective]]:
  """Counts a program.

  Args:
    mesh: axes and sizes in the order in which devices are numbered, to name those that a
      collective spans. slices: that share the first of these axes.
  """
  costs = Costs()
  _visit(program, program.entry, 1.0, costs)
  total = collections.defaultdict(lambda: [0.0, 0.0])
  for (kind, groups, size), times in costs.exchanges.items():
    far = groups == BETWEEN_SLICES
    axes, group = ((mesh[0][0],), slices) if far else span(groups, mesh, slices)
    entry = total[kind, axes, group, far]
    entry[0] += size * times
    entry[1] += times
  found = [Collective(*key[:3], *values, key[3]) for key, values in total.items()]
  return costs, sorted(found, key=lambda c: -c.bytes)


def _visit(
  program: Program, name: str, times: float, costs: Costs, callers: origin.Callers = ()
) -> None:
  """Adds `times` runs of a computation. callers: of a fusion's body, whose results do not lie in
  memory."""
  body = program.computations[name]
  for i in body.values():
    kind = i.kind.removesuffix("-start")
    if kind in ("dot", "convolution"):
      flops = times * (dot_flops(i, body) if kind == "dot" else convolution_flops(i, body))
      if origin.is_repeated(program, i, body, callers):
        costs.recomputed_flops += flops
      else:
        costs.dot_flops += flops
    elif kind in COLLECTIVES:
      if kind == "all-reduce" and name.startswith(SCATTERS):
        kind = "reduce-scatter"
      costs.exchanges[kind, _groups(i), _exchanged(i, body)] += times
    elif i.kind == "send" and _quoted(i, TRANSFER):
      costs.exchanges[_between_slices(i, body)] += times
    elif i.kind == "custom-call" and KERNEL in i.attributes:
      given = tuple(s for operand in i.operands if operand in body for s in body[operand].shapes)
      marked = (CROSS in i.source, origin.REPEATED in i.source)
      costs.kernels[re.sub(r"\.\d+$", "", i.name), given, *marked] += times
    if not callers and i.kind not in FREE and not i.kind.endswith("-done"):
      costs.hbm_bytes += times * moved_bytes(i, body, program)
    trips = trip_count(i, body, program) if i.kind == "while" else 1
    for called in i.called:
      if called in program.computations:
        inside = () if i.kind in FREE and not callers else (*callers, (body, i))
        _visit(program, called, times * trips, costs, inside)


def dot_flops(i: Instruction, body: dict[str, Instruction]) -> float:
  """Two for each product of entries."""
  lhs = body[i.operands[0]].shapes[0]
  over = [int(n) for n in re.findall(r"\d+", i.attribute("lhs_contracting_dims") or "")]
  return 2.0 * i.shapes[0].size * math.prod(lhs.dims[n] for n in over)


def convolution_flops(i: Instruction, body: dict[str, Instruction]) -> float:
  """Two for each product of an entry of the input with one of the kernel."""
  (lhs,), (rhs,) = (body[name].shapes[:1] for name in i.operands[:2])
  out = i.shapes[0]
  left, right, result = re.match(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels")).groups()
  features = lhs.dims[left.index("f")] / int(i.attribute("feature_group_count") or 1)
  batch = lhs.dims[left.index("b")] / int(i.attribute("batch_group_count") or 1)
  window, pairs = _window(i), 1.0
  for n in range(len(left) - 2):
    place = str(n)
    pairs *= valid_positions(
      lhs.dims[left.index(place)], rhs.dims[right.index(place)], out.dims[result.index(place)],
      *(part[n] if part else default for part, default in window),
    )  # fmt: skip
  return 2.0 * features * batch * out.dims[result.index("f")] * pairs


def valid_positions(
  size: int, kernel: int, out: int, stride: int, pad: tuple[int, int], dilate: int, spread: int
) -> int:
  """Pairs of an output and a kernel position that meet a true entry of the input, on one axis.

  dilate: of the input: entries lie that far apart, with nothing between. spread: of the kernel.
  """
  begin = pad[0] - np.arange(kernel) * spread  # where the input begins, from output 0, for each
  period = dilate // math.gcd(stride, dilate)  # of the outputs that meet an entry
  first = np.full(dilate, out)  # by begin's remainder; `out` lies beyond all of them
  first[np.arange(period) * stride % dilate] = np.arange(period)
  first = first[begin % dilate]
  low = np.maximum(-(-begin // stride), 0)
  high = np.minimum((begin + (size - 1) * dilate) // stride, out - 1)
  count = (high - first) // period - -(-(low - first) // period) + 1
  return int(np.where(first < out, np.maximum(count, 0), 0).sum())


def _window(i: Instruction) -> list[tuple[list | None, object]]:
  """(values for each axis or None, what None means) of stride, padding and the two dilations."""
  text = i.attribute("window") or ""

  def numbers(name: str) -> list | None:
    found = re.search(rf"(?<!\w){name}=([\d_x\-]+)", text)
    return None if found is None else found.group(1).split("x")

  stride, pad = numbers("stride"), numbers("pad")
  return [
    (stride and [int(n) for n in stride], 1),
    (pad and [tuple(int(n) for n in part.split("_")) for part in pad], (0, 0)),
    ((d := numbers("lhs_dilate")) and [int(n) for n in d], 1),
    ((d := numbers("rhs_dilate")) and [int(n) for n in d], 1),
  ]


def trip_count(i: Instruction, body: dict[str, Instruction], program: Program) -> int:
  """Trips of a loop that counts up to a constant; 1 for one whose end depends on data.

  The compiler's own loops, which weave exchanges into products, may count in twos.
  """
  known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', i.attributes)
  if known:
    return int(known.group(1))
  condition = program.computations[i.attribute("condition").lstrip("%")]
  root = next(c for c in condition.values() if c.is_root)
  limits = _constants(root, condition)
  if root.kind != "compare" or not limits or "direction=LT" not in root.attributes:
    return 1
  counter = next((condition[o] for o in root.operands if o in condition), root)
  index = int(counter.attribute("index") or 0)
  start = _constants(_part(body.get(i.operands[0]), index, body), body) or [0]
  inside = program.computations[i.attribute("body").lstrip("%")]
  end = _part(next(c for c in inside.values() if c.is_root), index, inside)
  step = _constants(end, inside) if end is not None and end.kind == "add" else []
  return max(-(-(limits[0] - start[0]) // (step or [1])[0]), 0)


def _part(i: Instruction | None, index: int, body: dict[str, Instruction]) -> Instruction | None:
  """What stands at an index of a tuple; None if that is not to be seen."""
  if i is None or i.kind != "tuple" or index >= len(i.operands):
    return None
  return body.get(i.operands[index])


def _constants(i: Instruction | None, body: dict[str, Instruction]) -> list[int]:
  """Values of an instruction if it is a constant, or of its operands that are."""
  near = [] if i is None else [i, *(body[name] for name in i.operands if name in body)]
  values = [j.operands[0] for j in near if j.kind == "constant"]
  return [int(value) for value in values if re.fullmatch(r"-?\d+", value)]


def moved_bytes(i: Instruction, body: dict[str, Instruction], program: Program) -> float:
  """Bytes that an instruction reads from HBM and writes to it.

  Of an array of which only a slice is read or replaced, only the slice counts.
  """
  reads = [body[name].shapes for name in i.operands if name in body]
  read = [in_hbm(shapes) for shapes in reads]
  written = in_hbm(i.shapes)
  if i.kind in ("dynamic-slice", "gather", "slice"):
    return 2 * written
  if i.kind == "custom-call" and KERNEL not in i.attributes:
    return 0.0  # the compiler's own: room for a buffer, a hint
  if i.kind == "copy-start":  # (copy, original, context)
    return sum(read) + in_hbm(i.shapes[:1])
  if i.kind == "async-start":  # the operation stands in a computation of its own
    inner = program.computations.get(i.called[0] if i.called else "", {})
    return sum(moved_bytes(j, inner, program) for j in inner.values() if j.is_root)
  if i.kind == "dynamic-update-slice":
    return 2 * read[1] if len(read) > 1 else 0.0
  if i.kind == "fusion" and i.called and i.called[0] in program.computations:
    return _fused_bytes(program, program.computations[i.called[0]], read, written)
  return sum(read) + written


def in_hbm(shapes: tuple[Shape, ...]) -> float:
  """Bytes of the arrays that do not lie in fast memory."""
  return sum((s.bytes for s in shapes if not s.fast), 0.0)


def _fused_bytes(
  program: Program, fused: dict[str, Instruction], read: list[float], written: float
) -> float:
  """`moved_bytes` of a fusion, from how it uses its parameters.

  read: bytes of each operand. written: of the results.
  """
  total, replaced = 0.0, 0.0
  for j in fused.values():
    if j.kind != "parameter":
      continue
    number = int(j.operands[0])
    whole = read[number] if number < len(read) else 0.0
    part, is_replaced = _part_used(program, fused, j.name)
    if is_replaced:
      replaced += max(whole - part, 0.0)
      continue
    total += whole if part is None else min(whole, part)
  return total + max(written - replaced, 0.0)


def _part_used(
  program: Program, fused: dict[str, Instruction], name: str
) -> tuple[float | None, bool]:
  """(bytes of a value that a fusion needs, None = all; whether it is only replaced in part)."""
  users = [j for j in fused.values() if name in j.operands]
  if users and all(u.kind == "dynamic-update-slice" and u.operands[0] == name for u in users):
    return sum((fused[u.operands[1]].shapes[0].bytes for u in users), 0.0), True
  total = 0.0
  for u in users:
    if u.kind in ("dynamic-slice", "gather") and u.operands[0] == name:
      part = sum((s.bytes for s in u.shapes), 0.0)
    elif u.kind == "bitcast":
      part, is_replaced = _part_used(program, fused, u.name)
      part = None if is_replaced else part
    elif u.kind == "fusion" and u.called and u.called[0] in program.computations:
      inner = program.computations[u.called[0]]
      number = str(u.operands.index(name))
      inside = (j.name for j in inner.values() if j.kind == "parameter" and j.operands[0] == number)
      part, is_replaced = _part_used(program, inner, next(inside, ""))
      part = None if is_replaced else part
    else:
      part = None
    if part is None:
      return None, False
    total += part
  return total, False


def _exchanged(i: Instruction, body: dict[str, Instruction]) -> float:
  """Bytes of the larger of what goes in and what comes out."""
  given = sum((s.bytes for name in i.operands if name in body for s in body[name].shapes), 0.0)
  parts = i.shapes[len(i.shapes) // 2 :] if i.kind.endswith("-start") else i.shapes
  return max(given, sum((s.bytes for s in parts), 0.0))


TRANSFER, MEETING = "_xla_megascale_transfer_type", "_xla_host_transfer_rendezvous"
"""Attributes of a send and a receive between slices: what both do, and a name that they share."""


def _between_slices(i: Instruction, body: dict[str, Instruction]) -> tuple[str, str, float]:
  """A send as a key of `Costs.exchanges`; bytes: the larger of what goes out and what comes in."""
  kind = _quoted(i, TRANSFER).lower().replace("_", "-")
  ends = [j for j in body.values() if j.kind in ("send", "recv")]
  size = max(j.shapes[0].bytes for j in ends if _quoted(j, MEETING) == _quoted(i, MEETING))
  return "collective-permute" if kind == "one-to-one" else kind, BETWEEN_SLICES, size


def _quoted(i: Instruction, name: str) -> str | None:
  """The value of `name="value"` within the attributes of an instruction."""
  found = re.search(rf'\b{name}="([^"]*)"', i.attributes)
  return found and found.group(1)


GROUPS_BY_NAME = re.compile(
  r"mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
)
"""`mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}`: groups along axes of a mesh of devices."""


def _groups(i: Instruction) -> str:
  named = GROUPS_BY_NAME.match(i.attributes.partition("replica_groups=")[2])
  if named:  # a comma that no bracket encloses may lie in it
    return named.group()
  value = i.attribute("replica_groups") or i.attribute("source_target_pairs") or ""
  return f"{value}"


def span(
  groups: str, mesh: Sequence[tuple[str, int]], slices: int = 1
) -> tuple[tuple[str, ...], int]:
  """(mesh axes along which the devices of a group differ, devices in a group).

  Args: groups: as XLA writes them: lists, `[4,2]<=[8]T(...)`, or as `GROUPS_BY_NAME`.  mesh,
    slices: as of `walk`; groups are of the devices of one slice, the first ones.
  """
  sizes = [size for _, size in mesh]
  devices = list(range(math.prod(sizes) // slices))
  members = _members(groups, devices)
  if members is None:
    return ("?",), 0
  where = np.stack(np.unravel_index(members, sizes)) if sizes else np.zeros((0, len(members)))
  varies = tuple(
    name for (name, size), at in zip(mesh, where) if size > 1 and len(set(at.tolist())) > 1
  )
  return varies, len(members)


def _iota(count: int, shape: str | None, order: str | None) -> np.ndarray:
  """Devices 0 to count - 1, in a grid of that shape with its axes in that order."""
  grid = np.arange(count)
  if shape:
    grid = grid.reshape([int(n) for n in shape.split(",")])
  return grid.transpose([int(n) for n in order.split(",")]) if order else grid


def _members(groups: str, devices: list[int]) -> list[int] | None:
  """Devices of the first group of several, or all."""
  named = GROUPS_BY_NAME.match(groups)
  if named:
    axes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", named.group(1))]
    chosen = re.findall(r"'([^']+)'", named.group(4))
    grid = _iota(math.prod(s for _, s in axes), named.group(2), named.group(3))
    grid = grid.reshape([s for _, s in axes])
    index = tuple(slice(None) if n in chosen else 0 for n, _ in axes)
    return np.ravel(grid[index]).tolist()
  tiled = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
  if tiled:
    rows, columns = int(tiled.group(1)), int(tiled.group(2))
    return _iota(rows * columns, tiled.group(3), tiled.group(4)).reshape(rows, columns)[0].tolist()
  lists = re.findall(r"\{([\d,]+)\}", groups)
  if not lists:
    return devices if groups in ("", "{}", "{{}}") else None
  return [int(n) for n in max(lists, key=len).split(",")]
