"""What does an optimizer's update take, and what does sharing Muon's products out over cores save?

  python experiments/benchmarks/optimizer.py [--config=configs/tiny.py] [--seconds=20]

The update alone, of gradients that are there, on as many devices as there are cores, its parameters
whole on each, as in training on processors:
  shared   Muon, its momentum over the data axis: each device makes its own matrices orthogonal
  whole    Muon, its momentum whole on each, and so all products on each
  adamw    AdamW
All are timed in turn within one run, beside a product of two matrices of 2048. The last line is one
JSON object.
"""

import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np
import train_step
from absl import app, flags
from ml_collections import config_flags

from sora_jax import sharding
from sora_jax.tasks import build
from sora_jax.tasks.typed import typed
from sora_jax.train import optimizer, processors

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # configs import each other
CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py")
SECONDS = flags.DEFINE_float("seconds", 20.0, "Seconds of timing.")


def call(transform, placed, params, whole):
  """An update of all parameters, to be called; its state is kept and placed as told."""
  state = jax.device_put(transform.init(params), placed)
  run = jax.jit(transform.update, out_shardings=(whole, placed)).lower(params, state, params)
  compiled = run.compile()
  return lambda: jax.block_until_ready(compiled(params, state, params)) and None


def main(argv):
  del argv
  config = CONFIG.value.to_dict()
  processors.share_out((-1, 1, 1, 1), config["data"]["rows"])
  mesh = sharding.make_mesh((-1, 1, 1, 1))
  task, whole = build.sketch(config, mesh), sharding.replicated(mesh)
  muon = dataclasses.replace(
    typed(optimizer.OptimizerConfig, "optimizer", config["optimizer"]), name="muon"
  )
  axes, rng = task.axes(), np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), shapes)
  params = jax.device_put(params, whole)
  runs = {"matmul": train_step.matmul()}
  for name, chosen in (("shared", muon), ("whole", muon),
                       ("adamw", dataclasses.replace(muon, name="adamw"))):  # fmt: skip
    transform = optimizer.make(chosen, axes)
    state = jax.eval_shape(transform.init, params)
    placed = sharding.of_state(mesh, state, axes)
    if name == "whole":
      placed = jax.tree.map(lambda _: whole, placed)
    runs[name] = call(transform, placed, params, whole)
  times = {name: each[:, 0] for name, each in train_step.time_in_turn(runs, SECONDS.value).items()}
  found = {
    "benchmark": "optimizer", "jax": jax.__version__, "devices": mesh.size,
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "muon_gflop": round(optimizer.product_flops(muon, params, axes) / 1e9, 2),
    "matmul_gflops": round(2 * 2048**3 / times["matmul"].min() / 1e9),
    "whole_over_shared": round(float(np.median(times["whole"] / times["shared"])), 3),
    "load_average": os.getloadavg()[0],
  }  # fmt: skip
  for kind, reduce in (("best", np.min), ("middle", np.median)):
    found[kind] = {name: round(float(reduce(each)), 4) for name, each in times.items()}
  print(json.dumps(found))


if __name__ == "__main__":
  app.run(main)
