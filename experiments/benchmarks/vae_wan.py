"""The video autoencoder against diffusers' `AutoencoderKLWan` with the same weights.

  python experiments/benchmarks/vae_wan.py [--widths=16,48] [--seconds=40]

Encodes and decodes 17 frames of 128x128 on processors with random weights of Wan 2.1's architecture
(`base_dim` of the given widths, otherwise its own defaults), float32, the same threads, in turn
within one run; says how far the two results lie apart. PyTorch runs eagerly and compiled
(`--compile`). The last line is one JSON object.
"""

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import train_step
from diffusers import AutoencoderKLWan

from sora_jax.nn import vae, vae_import

FRAMES, SIDE = 17, 128


def models(width):
  """(theirs, our config, our variables), the same weights."""
  torch.manual_seed(0)
  theirs = AutoencoderKLWan(base_dim=width).eval().requires_grad_(False)
  config = {name: value for name, value in theirs.config.items() if not name.startswith("_")}
  weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
  variables = vae_import.wan_variables(config, weights)
  return theirs, vae_import.wan_config(config), jax.tree.map(jnp.asarray, variables)


def measure(width, seconds, compiled):
  """All figures of one width."""
  theirs, config, variables = models(width)
  if compiled:
    theirs._encode, theirs._decode = torch.compile(theirs._encode), torch.compile(theirs._decode)
  rng = np.random.default_rng(0)
  video = rng.uniform(-1, 1, (1, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
  cells = (1, 1 + (FRAMES - 1) // 4, SIDE // 8, SIDE // 8, config.latent)
  latent = rng.standard_normal(cells).astype(np.float32)
  network = vae.CausalVAE(config)
  encode = jax.jit(lambda v, x: network.apply(v, x, method="encode")[0])
  decode = jax.jit(lambda v, z: jnp.clip(network.apply(v, z, method="decode"), -1, 1))
  last = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())  # noqa: E731
  video_t, latent_t = last(video), last(latent)
  video_j, latent_j = jnp.asarray(video), jnp.asarray(latent)
  kept = {}

  def keep(name, value):
    kept[name] = value

  runs = {
    "encode": lambda: keep("encode", jax.block_until_ready(encode(variables, video_j))),
    "torch encode": lambda: keep("torch encode", theirs.encode(video_t).latent_dist),
    "decode": lambda: keep("decode", jax.block_until_ready(decode(variables, latent_j))),
    "torch decode": lambda: keep("torch decode", theirs.decode(latent_t).sample),
    "matmul": train_step.matmul(),
  }  # fmt: skip
  first = {}
  for name, run in runs.items():
    start = time.perf_counter()
    run()
    first[name] = round(time.perf_counter() - start, 2)
  apart = {
    "encode": distance(kept["encode"], kept["torch encode"].mean),
    "decode": distance(kept["decode"], kept["torch decode"]),
  }
  times = train_step.time_in_turn(runs, seconds)
  found = {"base_dim": width, "calls": len(times["matmul"]), "apart": apart, "first_call": first}
  for kind, reduce in (("best", np.min), ("middle", np.median)):
    least = {name: float(reduce(times[name][:, 0])) for name in runs}
    found[kind] = {
      "seconds": {name: round(one, 4) for name, one in least.items()},
      "encode_over_torch": round(least["torch encode"] / least["encode"], 3),
      "decode_over_torch": round(least["torch decode"] / least["decode"], 3),
    }
  return found


def distance(ours, theirs):
  """Largest difference over the largest value."""
  theirs = np.moveaxis(np.asarray(theirs), 1, -1)
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--widths", default="16,48")
  parser.add_argument("--seconds", type=float, default=40)
  parser.add_argument("--compile", action="store_true", help="torch.compile beside eager PyTorch")
  flags = parser.parse_args()
  torch.set_num_threads(os.cpu_count())
  results = []
  for width in flags.widths.split(","):
    results.append(measure(int(width), flags.seconds, flags.compile))
    print(json.dumps(results[-1], indent=2), flush=True)
  print(json.dumps({
    "benchmark": "vae_wan", "jax": jax.__version__, "torch": torch.__version__,
    "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0], "results": results,
  }))  # fmt: skip


if __name__ == "__main__":
  main()
