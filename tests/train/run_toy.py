"""Trains the toy task in a process of its own, to be disturbed: the true loop and checkpoints.

  python run_toy.py --workdir=DIR [--steps=40] [--milliseconds=5] [--file_bytes=N]

milliseconds: that a batch takes to come. file_bytes: the largest file that may be written: a disk
that is full from then on.
"""

import argparse
import dataclasses
import pathlib
import resource
import sys
import time

import jax
from toy import Stream, Toy

from sora_jax.train import loop
from sora_jax.train.optimizer import OptimizerConfig


class Slow(Stream):
  """Batches that take their time."""

  milliseconds = 0

  def __next__(self):
    time.sleep(self.milliseconds / 1000)
    return super().__next__()


@dataclasses.dataclass(frozen=True)
class Wide(Toy):
  """The toy with an array that has a file's data to itself."""

  milliseconds: int = 0

  def init(self, key):
    params = super().init(key)
    params["layer"]["unused"] = jax.random.normal(key, (200, 300))
    return params

  def batches(self):
    stream = Slow(self.rows)
    stream.milliseconds = self.milliseconds
    return stream


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", required=True)
  for name, value in (("steps", 40), ("milliseconds", 5), ("file_bytes", 0)):
    parser.add_argument(f"--{name}", type=int, default=value)
  given = parser.parse_args()
  if given.file_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (given.file_bytes,) * 2)
  config = loop.LoopConfig(steps=given.steps, log_every=1, save_every=4, seed=3)
  optimizer = OptimizerConfig(lr=0.1, warmup_steps=2)
  try:
    loop.run(Wide(milliseconds=given.milliseconds), config, optimizer, pathlib.Path(given.workdir))
  except OSError as error:
    sys.exit(f"main: {error}")


if __name__ == "__main__":
  main()
