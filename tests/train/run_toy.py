"""Trains the toy task in a process of its own, to be disturbed: the true loop and checkpoints.

  python run_toy.py --workdir=DIR [--steps=40] [--stop=N] [--mesh=-1,1,1,1] [--milliseconds=5]
    [--file_bytes=N] [--read_only=N] [--heartbeat=5] [--coordinator=HOST:PORT --processes=2
    --process=0]

stop: the step before which the run stops, as at SIGTERM. mesh: sizes of its axes; parameters lie in
parts on those of fsdp and tensor. milliseconds: that a batch takes to come. file_bytes: the largest
file that may be written: a disk that is full from then on. read_only: the step from which on no
folder can be made. heartbeat: seconds of silence after which a process counts as dead. The last
three are those of `sora_jax.main`.
"""

import argparse
import dataclasses
import errno
import functools
import operator
import os
import pathlib
import resource
import time

import jax
from toy import Stream, Toy

from sora_jax.train import hosts, loop, metrics, tensorboard, watch
from sora_jax.train.optimizer import OptimizerConfig


class Slow(Stream):
  """Batches that take their time."""

  milliseconds = read_only = 0

  def __next__(self):
    time.sleep(self.milliseconds / 1000)
    if self.read_only and self.position == self.read_only:
      os.mkdir = _refuse
    return super().__next__()


def _refuse(path, *args, **kwargs):
  raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


@dataclasses.dataclass(frozen=True)
class Wide(Toy):
  """The toy with an array that has a file's data to itself."""

  milliseconds: int = 0
  read_only: int = 0

  def init(self, key):
    params = super().init(key)
    params["layer"]["unused"] = jax.random.normal(key, (200, 300))
    return params

  def axes(self):
    names = {"kernel": ("width", "head_size"), "bias": ("head_size",), "unused": ("width", "mlp")}
    return {"layer": names}

  def batches(self):
    stream = Slow(self.rows)
    stream.milliseconds, stream.read_only = self.milliseconds, self.read_only
    return stream


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--coordinator", default="")
  parser.add_argument("--mesh", default="-1,1,1,1")
  numbers = {"steps": 40, "milliseconds": 5, "file_bytes": 0, "read_only": 0, "heartbeat": 5}
  for name, value in (numbers | {"stop": -1, "processes": 0, "process": -1}).items():
    parser.add_argument(f"--{name}", type=int, default=value)
  given = parser.parse_args()
  if given.file_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_bytes,) * 2)
  watch.HEARTBEAT_SECONDS = given.heartbeat
  tensorboard.NEEDS = ("no such library",)  # TensorFlow takes seconds to import
  metrics.matmul_rate = lambda: 1e11
  hosts.connect(given.coordinator, given.processes, given.process)
  mesh = tuple(int(size) for size in given.mesh.split(","))
  config = loop.LoopConfig(steps=given.steps, log_every=1, save_every=4, seed=3, mesh=mesh)
  optimizer = OptimizerConfig(lr=0.1, warmup_steps=2)
  try:
    task = Wide(milliseconds=given.milliseconds, read_only=given.read_only)
    stop = functools.partial(operator.eq, given.stop)
    loop.run(task, config, optimizer, pathlib.Path(given.workdir), stop)
  except (OSError, RuntimeError) as error:
    watch.leave(f"main: {error}", error)


if __name__ == "__main__":
  main()
