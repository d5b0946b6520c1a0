"""How long do samples take: the first call, another size, a step, and eight prompts at once?

  python experiments/benchmarks/sampler.py [--model=tiny] [--rounds=5]

Videos of 17 frames of 96x64. `step` is the time of 24 solver steps less that of 12, divided by 12.
Eight prompts of eight sizes and lengths are sampled packed together and one by one, in turn. The
last line is one JSON object.
"""

import argparse
import json
import os
import time

import jax
import numpy as np

import sora_jax
from sora_jax.evaluation import arguments

PROMPT = "a red circle moves right on a black background"
SIZES = ((96, 64), (64, 96), (64, 64), (48, 48), (96, 64), (80, 48), (48, 80), (64, 48))
FRAMES = (17, 17, 9, 17, 1, 9, 17, 9)


def seconds(run):
  """Of a call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="tiny")
  parser.add_argument("--rounds", type=int, default=5)
  flags = parser.parse_args()
  with arguments.refusing():
    found = {"load": seconds(lambda: sora_jax.load(flags.model))}
  model = sora_jax.load(flags.model)
  one = lambda steps=12, size=(96, 64), frames=17, seed=0: model.generate(  # noqa: E731
    PROMPT, size, frames, seed, steps=steps
  )
  found["first_call"] = seconds(one)
  found["second_call"] = seconds(one)
  found["second_size"] = seconds(lambda: one(size=(64, 96), seed=1))
  programs = model.sampler.programs
  prompts = [PROMPT] * len(SIZES)
  together = lambda: model.generate(prompts, SIZES, FRAMES, steps=12)  # noqa: E731
  alone = lambda: [one(size=s, frames=f) for s, f in zip(SIZES, FRAMES)]  # noqa: E731
  runs = {"12 steps": one, "24 steps": lambda: one(24), "together": together, "one by one": alone}
  for run in runs.values():
    run()
  times = {name: [] for name in runs}
  for _ in range(flags.rounds):
    for name, run in runs.items():
      times[name].append(seconds(run))
  least = {name: float(np.min(of)) for name, of in times.items()}
  middle = {name: float(np.median(of)) for name, of in times.items()}
  print(json.dumps({
    "benchmark": "sampler", "jax": jax.__version__, "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
    "seconds": {name: round(value, 3) for name, value in {**found, **least}.items()},
    "seconds_per_step": round((least["24 steps"] - least["12 steps"]) / 12, 4),
    "programs_after_two_sizes": programs, "programs": model.sampler.programs,
    "together_over_one_by_one": {
      "best": round(least["one by one"] / least["together"], 3),
      "middle": round(middle["one by one"] / middle["together"], 3),
    },
  }))  # fmt: skip


if __name__ == "__main__":
  main()
