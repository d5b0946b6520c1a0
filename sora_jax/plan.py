"""Says before launch what a config needs on a TPU slice, by compiling its true program for it.

  python -m sora_jax.plan --config=configs/dit.py:3b --topology=v5p:4x4x8

Exit status 1 if it does not fit. It runs on any Linux machine: pip install sora_jax[tpu].
"""

import json
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sora_jax import sharding
from sora_jax.planning import report, topology
from sora_jax.tasks import programs
from sora_jax.train import metrics

PROGRAMS = {"train": programs.train}

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SHAPE in chips, like v5p:4x4x8.")
_MESH = flags.DEFINE_string(
  "mesh", "", "Axes as name=size, like data=2,fsdp=64; default: the config's train.mesh."
)
_PROGRAM = flags.DEFINE_enum("program", "train", list(PROGRAMS), "What is compiled.")
_QUICK = flags.DEFINE_bool(
  "quick", False, "Stop when memory is assigned: the same figures but for the code's size."
)
_OUT = flags.DEFINE_string("out", "", "A JSON file for the figures.")


def main(argv: list[str]) -> None:
  """Checks the flags, compiles, reports."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler alone is needed, no chip
  try:
    plan = run(_CONFIG.value.to_dict(), _TOPOLOGY.value, _MESH.value, _PROGRAM.value, _QUICK.value)
  except (ValueError, RuntimeError) as error:
    sys.exit(f"plan: {error}")
  print(report.text(plan), flush=True)
  if _OUT.value:
    metrics.write_whole(Path(_OUT.value), json.dumps(report.figures(plan), indent=2) + "\n")
  sys.stderr.flush()
  os._exit(0 if plan.fits else 1)  # without waiting for a compiler that is still at work


def run(
  config: dict, name: str, mesh: str = "", program: str = "train", quick: bool = False
) -> report.Plan:
  """Compiles a config's program for a topology.

  Args: name: of the topology.  mesh: "axis=size,..."; "" = config.train.mesh.  quick: see
    `planning.compiled.compile_for`.
  Raises: ValueError for a config, topology or mesh that cannot be; RuntimeError without the TPU
    compiler.
  """
  there = topology.describe(name)
  shape = mesh_shape(mesh) if mesh else tuple(config["train"]["mesh"])
  grid = sharding.make_mesh(shape, there.devices)
  config["train"]["mesh"] = shape
  return report.make(PROGRAMS[program](config, grid), there, grid, program, quick)


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


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main)
