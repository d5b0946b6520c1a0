"""TPU slices by name: their chips' figures, and devices to compile for that are not there.

The figures and the shapes of slices are those that Google publishes for each chip
(cloud.google.com/tpu/docs: v5e, v5p, v6e). Topologies count chips: v5p:4x4x8 is 128 of them.
"""

import math
import os
import re
from typing import Any, NamedTuple

GIB = 2**30
GB = 1e9
HOST = (2, 2, 1)
"""Chips along each side of a host, as the compiler supposes unless told otherwise."""
WIDE = (2, 4)
"""The slice of v5e and v6e that is one host, of eight chips; larger ones have hosts of four."""


class Chip(NamedTuple):
  """One chip's figures.

  flops: bfloat16 products, FLOP/s. hbm_bytes: capacity. hbm_rate: bytes/s. ici_rate: bytes/s that
  all of its links together take in, one way. ports: number of links. dcn_rate: bytes/s of its share
  of the data-centre network, one way.
  """

  name: str
  flops: float
  hbm_bytes: float
  hbm_rate: float
  ici_rate: float
  ports: int
  dcn_rate: float


CHIPS = {
  "v5e": Chip("TPU v5e", 197e12, 16 * GIB, 819 * GB, 200 * GB, 4, 3.1 * GB),
  "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 6, 6.2 * GB),
  "v6e": Chip("TPU v6e", 918e12, 32 * GIB, 1638 * GB, 400 * GB, 4, 12.5 * GB),
}


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""Slices of v5e and v6e."""
DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Slices of v5p below a cube of 4x4x4; the others are made of such cubes."""
CUBE, MOST = 4, 6144
"""Chips along each side of a cube; and of the largest v5p slice, 16x16x24."""


class Topology(NamedTuple):
  """A slice, or several joined by the data-centre network.

  devices: to compile for; they cannot run anything.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]
  slices: int
  devices: list

  @property
  def hosts(self) -> int:
    """Machines that run the job, as the compiler has them: a process on each."""
    return len({device.process_index for device in self.devices})


def parse(name: str) -> tuple[str, tuple[int, ...], int]:
  """(chip, shape of a slice, slices) of a name such as v5p:4x4x8 or 2*v5e:16x16.

  Raises: ValueError that says how names are formed, or which slices there are.
  """
  found = re.fullmatch(r"(?:([0-9]+)\*)?(\w+):([0-9]+(?:x[0-9]+)+)", name)
  count, chip, shape = found.groups() if found else (None, "", "")
  sides = tuple(int(n) for n in shape.split("x")) if found else ()
  slices, right = int(count or 1), 3 if chip == "v5p" else 2
  if chip not in CHIPS or len(sides) != right or min(sides) < 1 or slices < 1:
    raise ValueError(
      f"topology {name!r}: give CHIP:SHAPE, the shape in chips, like v5e:4x4, v6e:2x4 or v5p:4x4x8,"
      f" with N* before it for N slices; chips: {', '.join(CHIPS)}"
    )
  if not exists(sides):
    allowed = ", ".join(DEEP if chip == "v5p" else FLAT)
    cubes = f", or sides that are multiples of {CUBE} with at most {MOST} chips in all"
    raise ValueError(
      f"topology {name!r}: {chip} has no such slice; those that it has: {allowed}"
      f"{cubes if chip == 'v5p' else ''}; give several slices as N*{chip}:SHAPE"
    )
  return chip, sides, slices


def exists(sides: tuple[int, ...]) -> bool:
  """Whether there is a slice with so many chips along each side: of two, v5e or v6e; of three,
  v5p."""
  cubes = len(sides) == 3 and math.prod(sides) <= MOST and all(n % CUBE == 0 for n in sides)
  return cubes or "x".join(map(str, sides)) in FLAT + DEEP


def describe(name: str) -> Topology:
  """Returns a topology with devices to compile for, without any of its hardware.

  Raises: ValueError for a name that is none or that the TPU compiler refuses; RuntimeError where
    that compiler is not installed.
  """
  chip, shape, slices = parse(name)
  devices = _devices(chip, shape, slices, name)
  if len(devices) != slices * math.prod(shape):
    raise ValueError(
      f"topology {name!r} has {len(devices)} devices for the compiler, not one a chip"
    )
  return Topology(name, CHIPS[chip], shape, slices, devices)


def _devices(chip: str, shape: tuple[int, ...], slices: int, name: str) -> list:
  try:
    import libtpu  # noqa: F401  (the compiler; JAX finds it by itself)
  except ImportError as error:
    raise RuntimeError(
      "the TPU compiler is not installed; it runs on any Linux machine: pip install sora_jax[tpu]"
    ) from error
  # Without these it asks the cloud for a machine that is not there, and waits.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if shape == WIDE or min(shape[:2]) < HOST[0]:  # a host, or a part of one
    more["chips_per_host_bounds"] = [*shape, 1][:3]
  slice_name = f"{chip}:{'x'.join(map(str, shape))}"
  try:
    return list(topologies.get_topology_desc(slice_name, platform="tpu", **more).devices)
  except Exception as error:  # the compiler raises what its C++ does
    raise ValueError(f"topology {name!r}: the TPU compiler refuses it: {error}") from error
