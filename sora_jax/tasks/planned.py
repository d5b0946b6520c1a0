"""From a config to a plan: which program, on which mesh of which slice."""

import math
import re
import tempfile
from pathlib import Path

from jax.sharding import Mesh

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
    chips on the data axis for sampling, on the context axis for decoding.  quick: see
    `planning.compiled.compile_for`.  size, frames: of what is sampled or decoded; by default the
    most that the config's evaluation, or its world, shows.
  Raises: ValueError for a config, topology or mesh that cannot be, or a size or frames of a
    training step; RuntimeError without the TPU compiler.
  """
  if program == "train" and (size is not None or frames is not None):
    raise ValueError(
      "--size and --frames are of what is sampled or decoded; a training step's clips are those of"
      " the config: leave them out, or give --program=sample or vae_decode"
    )
  usual = {"train": config["train"]["mesh"], "sample": (-1, 1, 1, 1), "vae_decode": (1, 1, -1, 1)}
  shape = mesh_shape(mesh) if mesh else tuple(usual[program])
  there = topology.describe(name)
  grid = mesh_on(there, shape, f"--mesh={mesh}" if mesh else "config.train.mesh (see --mesh)")
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


def mesh_on(there: topology.Topology, shape: tuple[int, ...], given: str) -> Mesh:
  """The mesh of a topology's devices.

  Raises: ValueError that begins with `given`, which says where the shape is from, if they do not
    make it.
  """
  try:
    return sharding.make_mesh(shape, there.devices)
  except ValueError as error:
    raise ValueError(f"{given} on {there.name}: {error}") from error


def check_search(config: dict, name: str, program: str, mesh: str, cut: bool) -> topology.Topology:
  """Returns the topology on which meshes are tried, if there is something to try.

  Args: cut: whether a size or frames are given.
  Raises: ValueError for what a search does not take, and for what no mesh could mend in the config;
    RuntimeError without the TPU compiler.
  """
  if program != "train":
    raise ValueError(f"--search is for --program=train, not {program}; try --mesh by hand")
  if config["task"] != "text_to_video":
    raise ValueError(
      f"--search tries rows of tokens, which config.task {config['task']!r} has not; try --mesh by"
      " hand"
    )
  if mesh or cut:
    raise ValueError(
      f"--search chooses the mesh itself, for the clips of the config: leave out"
      f" {f'--mesh={mesh}' if mesh else '--size and --frames'}, or plan without --search"
    )
  try:
    sharding.check_shape(tuple(config["train"]["mesh"]))
  except ValueError as error:
    raise ValueError(f"config.train.{error}") from error
  there = topology.describe(name)
  programs.train(config, sharding.make_mesh((1, 1, 1, 1), there.devices[:1]))
  return there


def check_out(path: str) -> None:
  """Raises an OSError, in words, if no file can be written there."""
  try:
    if Path(path).is_dir():
      raise IsADirectoryError(None, "it is a folder")
    tempfile.TemporaryFile(dir=Path(path).parent).close()
  except OSError as error:
    raise OSError(
      f"--out={path} cannot be written: {error.strerror}; name a file in a folder that is there and"
      " can be written"
    ) from error


def mesh_shape(text: str) -> tuple[int, ...]:
  """(data, fsdp, context, tensor) of "data=2,fsdp=64"; axes that are not named are 1, one may be
  -1.

  Raises: ValueError for what is no such list.
  """
  sizes = {}
  for part in text.split(","):
    axis, _, size = part.partition("=")
    if axis not in sharding.MESH_AXES or not re.fullmatch("-1|[0-9]+", size):
      raise ValueError(
        f"--mesh={text}: {part!r} is no AXIS=SIZE; axes: {', '.join(sharding.MESH_AXES)}"
      )
    if axis in sizes:
      raise ValueError(f"--mesh={text}: {axis} is given twice; give each axis once")
    sizes[axis] = int(size)
  return tuple(sizes.get(axis, 1) for axis in sharding.MESH_AXES)
