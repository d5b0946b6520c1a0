"""What do asynchronous checkpoints cost the training loop?

  python experiments/benchmarks/checkpoints.py --workdir=runs/tiny [--every=50] [--rounds=3]

Trains the config of a work directory, on its data, with and without checkpoints in turn, `--every`
steps a round; a round with checkpoints saves once, at its beginning. The cost is the difference of
the rounds' times, beside it the seconds that a save keeps the loop waiting, and the bytes on disk.
Told as the share of 100, 200 and 1,000 steps between two saves. The last line is one JSON object.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import numpy as np

from sora_jax.evaluation import arguments
from sora_jax.tasks import build
from sora_jax.tasks.typed import typed, without
from sora_jax.train import loop


class Watch:
  """Asked before every step: notes when, and has the loop save as each second round begins."""

  def __init__(self, every: int, rounds: int):
    self.every, self.steps, self.times = every, 2 * every * rounds, []

  def __call__(self, step: int) -> bool:
    self.times.append(time.perf_counter())
    return step >= self.steps


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--every", type=int, default=50)
  parser.add_argument("--rounds", type=int, default=3)
  flags = parser.parse_args()
  source = pathlib.Path(flags.workdir)
  for name in ("config.json", "data"):
    if not (source / name).exists():
      raise SystemExit(
        f"checkpoints: --workdir={source} has no {name}; give the work directory of a training run"
      )
  with arguments.refusing():
    config = json.loads((source / "config.json").read_text())
  config["train"] |= {"minutes": 0.0, "eval_every": 0, "save_every": 2 * flags.every,
                      "log_every": 10}  # fmt: skip
  waits, save = [], loop._Runner.save

  def timed_save(self):
    start = time.perf_counter()
    save(self)
    waits.append(time.perf_counter() - start)

  loop._Runner.save = timed_save
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    workdir.mkdir()
    os.symlink((source / "data").absolute(), workdir / "data")
    plan = build.check(config, workdir)
    train = typed(loop.LoopConfig, "train", without(config["train"], *build.OF_THE_TASK))
    watch = Watch(flags.every, flags.rounds + 1)
    loop.run(plan.make(), train, plan.optimizer, workdir, watch)
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
  # Step s begins at times[s]; saves come at multiples of 2 * every, before the step.
  rounds = np.diff(np.asarray(watch.times)[:: flags.every])[2:]  # the first two compile and fill
  saving, quiet = rounds[0::2], rounds[1::2]
  cost = float(np.median(saving) - np.median(quiet))
  step = float(np.median(quiet)) / flags.every
  print(json.dumps({
    "benchmark": "checkpoints", "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
    "bytes": size, "step_seconds": round(step, 4), "save_costs_seconds": round(cost, 3),
    "loop_waits_seconds": round(float(np.median(waits[1:-1])), 3),
    "share_of_steps_between": {
      str(n): round(cost / (n * step), 5) for n in (100, 200, 1000)
    },
    "rounds": {"saving": saving.round(2).tolist(), "quiet": quiet.round(2).tolist()},
  }))  # fmt: skip


if __name__ == "__main__":
  main()
