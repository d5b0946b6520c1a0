"""From a config to a plan: which program, on which mesh of which slice."""

import math

from sora_jax import sharding
from sora_jax.planning import report, topology
from sora_jax.tasks import programs, sampling_programs

PROGRAMS = ("train", "sample", "vae_decode")


def run(
  config: dict, name: str, mesh: str = "", program: str = "train", quick: bool = False,
  size: tuple[int, int] | None = None, frames: int | None = None,
) -> report.Plan:  # fmt: skip
  """Compiles a config's program for a topology.

  Args: name: of the topology.  mesh: "axis=size,..."; "" = config.train.mesh for training, all
    chips on the data axis for the others.  quick: see
    `planning.compiled.compile_for`.  size, frames: of what is sampled or decoded; by default the
    most that the config's evaluation, or its world, shows.
  Raises: ValueError for a config, topology or mesh that cannot be; RuntimeError without the TPU
    compiler.
  """
  there = topology.describe(name)
  shape = tuple(config["train"]["mesh"]) if program == "train" else (-1, 1, 1, 1)
  if mesh:
    shape = mesh_shape(mesh)
  grid = sharding.make_mesh(shape, there.devices)
  config["train"]["mesh"] = shape
  if program == "train":
    made = programs.train(config, grid)
  else:
    e, world = config["evaluation"], config["data"]["world"]
    size = size or max(e["sizes"] or world["sizes"], key=math.prod)
    frames = (e["frames"] or max(world["frames"])) if frames is None else frames
    make = sampling_programs.sample if program == "sample" else sampling_programs.vae_decode
    made = make(config, grid, tuple(size), frames)
  return report.make(made, there, grid, program, quick)


def mesh_shape(text: str) -> tuple[int, ...]:
  """(data, fsdp, context, tensor) of "data=2,fsdp=64"; axes that are not named are 1.

  Raises: ValueError for what is no such list.
  """
  sizes = dict.fromkeys(sharding.MESH_AXES, 1)
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sizes or not size.lstrip("-").isdigit():
      raise ValueError(
        f"--mesh={text}: {part!r} is no AXIS=SIZE; axes: {', '.join(sharding.MESH_AXES)}"
      )
    sizes[axis] = int(size)
  return tuple(sizes.values())


def size_of(text: str) -> tuple[int, int]:
  """(width, height) of "1920x1080".  Raises: ValueError for what is no size."""
  sides = text.split("x")
  if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
    raise ValueError(f"--size={text}: expected WIDTHxHEIGHT in pixels, like 1920x1080")
  return int(sides[0]), int(sides[1])
