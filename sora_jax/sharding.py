"""The mesh, and the one table that says which logical axis lies on which mesh axis."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")
AXIS_RULES = (
  # of activations
  ("row", ("data", "fsdp")),
  ("token", "context"),
  ("channel", None),  # of a token; `width` is the same axis of a parameter
  ("patch", None),  # of parameters too
  # of parameters
  ("width", "fsdp"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("head_size", None),
  ("layers", None),
  ("qkv", None),
  ("modulation", None),
  ("condition", None),
  ("fraction", None),
  ("text", None),
  ("class", None),
  ("vocab", None),
  ("buckets", None),
)
"""(logical axis, mesh axes): modules name the left, only this file the right."""


def make_mesh(shape: tuple[int, int, int, int] = (1, 1, 1, 1), devices=None) -> Mesh:
  """Returns a mesh (data, fsdp, context, tensor); one -1 takes the devices that are left.

  Raises: ValueError if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes, fixed = list(shape), int(np.prod([s for s in shape if s != -1]))
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(f"mesh {tuple(shape)}: sizes are 1 and up, with at most one -1")
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
      f"mesh {tuple(shape)} over {MESH_AXES} does not fit {len(devices)} devices;"
      " their product must be the number of devices"
    )
  return Mesh(np.asarray(devices).reshape(sizes), MESH_AXES)


def spec(*logical: str | None) -> PartitionSpec:
  """Returns the partition of an array with these logical axes.

  Raises: ValueError for a name that the table lacks: never replicated in silence.
  """
  rules = dict(AXIS_RULES)
  unknown = [name for name in logical if name is not None and name not in rules]
  if unknown:
    raise ValueError(f"logical axes {unknown} have no rule; those with one: {', '.join(rules)}")
  return PartitionSpec(*(None if name is None else rules[name] for name in logical))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: dict) -> dict:
  """Puts a batch on the mesh, leading axes (rows) split over the data axes."""
  rows = NamedSharding(mesh, spec("row"))
  return {name: jax.device_put(value, rows) for name, value in batch.items()}
