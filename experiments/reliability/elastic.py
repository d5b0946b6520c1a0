"""A run that moves to other devices: the same clips in the same order, the same losses?

  python experiments/reliability/elastic.py

A run on eight devices (mesh 2 x 2 x 2 x 1, which one process pretends to have) is stopped on the
way, and taken up by 8, 4, 2 and 1 devices on other meshes. Every loss is compared with those of a
run on one device that nobody moved. Exit status 1 if one differs by more than a thousandth, or if
the clips of a step differ.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import kill
from absl import app, flags

from sora_jax.train import metrics

FIRST = (8, "(2, 2, 2, 1)")
THEN = ((8, "(8, 1, 1, 1)"), (4, "(1, 2, 2, 1)"), (2, "(1, 1, 1, 2)"), (1, "(1, 1, 1, 1)"))
"""(devices, mesh)."""
NEAR = 1e-3

_FOLDER = flags.DEFINE_string("folder", "runs/elastic", "Where the runs are; emptied first.")


def command(mesh: str) -> list[str]:
  """Of the trainer on a mesh, without --workdir."""
  more = ("--config.data.rows=8", "--config.data.streams=8", f"--config.train.mesh={mesh}")
  return [sys.executable, "-m", "sora_jax.main", *kill.JOB, *more]


def start(devices: int, mesh: str, workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the trainer with so many devices."""
  count = f"--xla_force_host_platform_device_count={devices}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('FLAGS_BEFORE', '')} {count}".strip()
  return kill.start(command(mesh), workdir)


def losses(workdir: pathlib.Path) -> dict[int, tuple[float, float]]:
  """Of each step the loss, and how full its rows were, which tells whether they held the same."""
  lines = metrics.read(workdir / "metrics.jsonl")
  return {line["step"]: (line["loss"], line["fill"]) for line in lines if "loss" in line}


def compare(got: dict, want: dict) -> tuple[float, bool]:
  """(largest relative difference of a loss, whether the steps and their clips are the same).

  Both are what `losses` returns; infinity if no step is in both.
  """
  both = got.keys() & want.keys()
  worst = max((abs(got[step][0] / want[step][0] - 1) for step in both), default=math.inf)
  return worst, got.keys() == want.keys() and all(got[step][1] == want[step][1] for step in both)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  os.environ["FLAGS_BEFORE"] = os.environ.get("XLA_FLAGS", "")
  folder = pathlib.Path(_FOLDER.value).absolute()
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  whole, moved = folder / "whole", folder / "moved"
  kill.finish(start(1, "(1, 1, 1, 1)", whole), whole)
  shutil.copytree(whole / "data", moved / "data")
  process = start(*FIRST, moved)
  kill.training_began(moved, process)
  while process.poll() is None and max(losses(moved), default=0) < 6:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  kill.finish(process, moved)
  at = max(losses(moved))
  want, told = losses(whole), []
  for devices, mesh in THEN:
    workdir = folder / f"on{devices}"
    shutil.copytree(moved, workdir)
    kill.finish(start(devices, mesh, workdir), workdir)
    got = losses(workdir)
    worst, same = compare(got, want)
    told.append({"devices": devices, "mesh": mesh, "from": at, "worst": worst, "clips": same})
    print(json.dumps(told[-1]), flush=True)
  good = all(one["worst"] <= NEAR and one["clips"] for one in told)
  print(json.dumps({"moved": len(told), "worst": max(one["worst"] for one in told), "good": good}))
  sys.exit(0 if good else 1)


if __name__ == "__main__":
  app.run(main)
