"""Kills a training run with SIGKILL at random moments and takes it up again: the same to the bit?

  python experiments/reliability/kill.py --rounds=20

A run that nobody disturbs is the reference. In each round a new run is killed, at a moment drawn
evenly from its training or (every second round) while a checkpoint is being written, and the same
command is started again until it ends. Every loss, and every array of the last checkpoint, must be
those of the reference. Exit status 1 if one is not. The data are rendered once and copied, and runs
share a compilation cache, so that rounds are short.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import orbax.checkpoint as ocp
from absl import app, flags

from sora_jax.train import metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOB = ("--config=configs/dit.py:tiny,smoke", "--config.train.steps=24",
       "--config.train.save_every=3", "--config.train.log_every=1", "--config.train.eval_every=0",
       "--config.data.world.num_clips=64", "--config.data.validation_clips=4",
       "--config.data.processes=1", "--config.evaluation.prompts=1",
       "--config.evaluation.steps=1")  # fmt: skip
"""Small: what is tested is the machinery around the step."""


class Outcome:
  """losses: of each step, as written.  arrays: a digest of every array of the last checkpoint."""

  def __init__(self, workdir: pathlib.Path):
    lines = metrics.read(workdir / "metrics.jsonl")
    self.losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    self.arrays = digests(workdir / "checkpoints")


def digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every array of the newest checkpoint, by name."""
  with ocp.CheckpointManager(folder.absolute(), item_names=("state", "data", "notes")) as manager:
    step = manager.latest_step()
    # The run may have had more devices than this process.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    args = ocp.args.Composite(state=ocp.args.StandardRestore(fallback_sharding=here))
    state = manager.restore(step, args=args)["state"]
  flat = {}

  def visit(name: str, value) -> None:
    if isinstance(value, dict):
      for key, inner in value.items():
        visit(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
      for key, inner in enumerate(value):
        visit(f"{name}/{key}", inner)
    elif value is not None:
      flat[name] = hashlib.sha256(bytes(memoryview(value).cast("B"))).hexdigest()

  visit("", {"step": state["step"], **state})
  return flat


def start(command: Sequence[str], workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the trainer; what it says is added to WORKDIR.log."""
  with open(f"{workdir}.log", "a") as log:
    return subprocess.Popen(
      [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )


def finish(process: subprocess.Popen, workdir: pathlib.Path) -> None:
  """Waits for the end.  Raises: RuntimeError if it failed."""
  if process.wait():
    raise RuntimeError(f"the run failed with {process.returncode}; see {workdir}.log")


def kill_at(process: subprocess.Popen, seconds: float, saving_in: pathlib.Path | None) -> str:
  """Kills a process some seconds from now, or at the next checkpoint after that, as it is written.

  Returns: what was done: "killed", "killed while saving", or "ended before".
  """
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if process.poll() is not None:
      return "ended before"
    time.sleep(0.005)
  while saving_in is not None and not unfinished(saving_in):
    if process.poll() is not None:
      return "ended before"
    time.sleep(0.0005)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  return "killed" if saving_in is None else "killed while saving"


def unfinished(folder: pathlib.Path) -> bool:
  """Whether a checkpoint is being written."""
  return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def training_began(workdir: pathlib.Path, process: subprocess.Popen) -> None:
  """Waits until the first step's figures are written."""
  path = workdir / "metrics.jsonl"
  while not (path.is_file() and path.stat().st_size) and process.poll() is None:
    time.sleep(0.02)


def seconds_of_training(workdir: pathlib.Path, process: subprocess.Popen) -> float:
  """Waits for the end; seconds from now to the figures of the last step, which others follow."""
  first = last = time.monotonic()
  steps = 0
  while process.poll() is None:
    time.sleep(0.05)
    now = sum("loss" in line for line in metrics.read(workdir / "metrics.jsonl"))
    if now > steps:
      steps, last = now, time.monotonic()
  return last - first


def check(
  command: Sequence[str], folder: pathlib.Path, rounds: int, seed: int, data: bool = True
) -> list[dict]:
  """Runs the rounds.

  Args: command: of the trainer, without --workdir.  data: whether runs begin with a copy of the
    reference's data folder.
  Returns: for each round what was done to it, and whether its losses and arrays are the same.
  """
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  whole = folder / "whole"
  began = start(command, whole)
  training_began(whole, began)
  seconds = seconds_of_training(whole, began)
  finish(began, whole)
  want, rng = Outcome(whole), random.Random(seed)
  told = []
  for number in range(rounds):
    workdir = folder / f"round{number}"
    if data:
      shutil.copytree(whole / "data", workdir / "data")
    process = start(command, workdir)
    training_began(workdir, process)
    saving_in = workdir / "checkpoints" if number % 2 else None
    after = rng.uniform(0.0, seconds * (0.7 if number % 2 else 0.95))
    done = kill_at(process, after, saving_in)
    steps = [line["step"] for line in metrics.read(workdir / "metrics.jsonl") if "loss" in line]
    if done != "ended before":
      finish(start(command, workdir), workdir)
    got = Outcome(workdir)
    told.append({
      "round": number, "done": done, "after_step": steps[-1] if steps else 0,
      "losses": got.losses == want.losses, "arrays": got.arrays == want.arrays,
      "steps": len(got.losses),
    })  # fmt: skip
    print(json.dumps(told[-1]), flush=True)
    shutil.rmtree(workdir)
  return told


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  given = flags.FLAGS
  folder = pathlib.Path(given.folder).absolute()
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder) + ".cache")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  command = [sys.executable, "-m", "sora_jax.main", *JOB]
  told = check(command, folder, given.rounds, given.seed)
  same = sum(one["losses"] and one["arrays"] for one in told)
  killed = sum(one["done"] != "ended before" for one in told)
  print(json.dumps({"rounds": len(told), "killed": killed, "equal": same}))
  sys.exit(0 if same == len(told) else 1)


if __name__ == "__main__":
  flags.DEFINE_integer("rounds", 20, "How often a run is killed.")
  flags.DEFINE_string("folder", "runs/kill", "Where the runs are; emptied first.")
  flags.DEFINE_integer("seed", 0, "Of the moments.")
  app.run(main)
