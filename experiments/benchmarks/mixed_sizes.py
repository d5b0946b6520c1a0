"""What do rows of mixed sizes cost, against padding, buckets, and a plain DiT in PyTorch?

  python experiments/benchmarks/mixed_sizes.py [--sizes=tiny,w512] [--seconds=60] [--no_torch]

The mix is `tiny` of packing.py: pictures and clips of 9 and 17 frames, five aspect ratios, 36 to
540 tokens. All are whole steps (forward, backward, AdamW, float32) of one shape of network with 16
words a clip, timed in turn within one run; figures are real tokens a second. Our rows are shared
out over the cores, as in training; PyTorch has as many threads.

  packed    rows of 540 tokens, the longest clip, one program
  padded    a clip a row, padded to the longest: the same network, whose attention skips padding
  masked    the same rows, all scores formed and those of padding masked
  buckets   clips of one shape in each batch, a clip a row, nothing padded: the same network. Of all
            shapes some are timed, drawn by their share of tokens; each is a program of its own
  torch     PyTorch's plain DiT (torch_dit.py), padded to the longest; equal: all of one length, as
            `equal` of ours. eager and torch.compile, the same threads

Ratios are given of the best times, of the middle ones, and as the middle of those within each
round, where both were timed within seconds: on a machine whose speed wanders these say most.

The last line is one JSON object.
"""

import argparse
import collections
import dataclasses
import json
import math
import os
import sys
import time

import jax
import numpy as np
import packing
import train_step
from flax import linen as nn

from sora_jax.nn.dit import DiT
from sora_jax.ops.attention import attention

TOKENS = 4096
"""Of a packed step; others take about as many real ones, or padded ones."""
EQUAL = (4, 8, 8)
"""Grid of the clips that are all alike."""
SHAPES = 4
"""Buckets that are timed."""


def batch_of(config, rows, row_len, segments):
  """Rows of grids as the network takes them."""
  size = {"config": config, "rows": len(rows), "row_len": row_len, "segments": segments}
  clips = [[(grid, 12.0 if grid[0] > 1 else 0.0) for grid in row] for row in rows]
  return train_step.packed_batch(size, clips, np.random.default_rng(0))


def parameters(config):
  """Of our network, random."""
  batch = batch_of(config, [[(1, 1, 1)]], 1, 1)
  arguments = (batch["tokens"], batch["time"], batch["layout"], batch["text"])
  return nn.meta.unbox(jax.jit(DiT(config).init)(jax.random.key(0), *arguments))["params"]


def even(number):
  """The nearest even one: rows are shared out over cores."""
  return 2 * round(number / 2)


def say(line):
  """Progress, beside the result."""
  print(line, file=sys.stderr, flush=True)


def tokens_of(rows):
  """Real tokens of rows of grids."""
  return sum(math.prod(grid) for row in rows for grid in row)


def systematic(values, weights, count):
  """`count` of the values, drawn by weight at even distances: a mean over them is unbiased."""
  edges = np.cumsum(weights) / np.sum(weights)
  return [values[i] for i in np.searchsorted(edges, (np.arange(count) + 0.5) / count)]


def methods(config):
  """({name: step}, {name: real tokens of a step}, figures, lengths of what PyTorch gets)."""
  mix = packing.MIXES["tiny"]
  grids = packing.draw_grids(mix, seed=0)
  longest = max(math.prod(grid) for grid in grids)
  found, _ = packing.pack_rows([math.prod(grid) for grid in grids], longest)
  packed = [[grids[v] for v in row["visits"]] for row in found[: even(TOKENS / longest)]]
  params, steps, tokens = parameters(config), {}, {}
  about = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}

  def add(name, rows, row_len, segments, attend=None):
    start = time.perf_counter()
    batch = batch_of(config, rows, row_len, segments)
    steps[name] = train_step.packed_step(config, params, batch, attend=attend)
    say(f"{name}: {len(rows)} rows of {row_len}, made in {time.perf_counter() - start:.0f} s")
    tokens[name] = tokens_of(rows)

  add("packed", packed, longest, max(len(row) for row in packed))
  padded = [[grid] for grid in grids[: even(TOKENS / longest)]]
  add("padded", padded, longest, 1)
  add("masked", padded, longest, 1, attention)
  shapes = collections.Counter(grids)
  drawn = systematic(*zip(*((g, math.prod(g) * n) for g, n in sorted(shapes.items()))), SHAPES)
  for i, grid in enumerate(drawn):
    length = math.prod(grid)
    add(f"bucket {i}", [[grid]] * even(TOKENS / length), length, 1)
  equal = math.prod(EQUAL)
  add("equal", [[EQUAL]] * (TOKENS // equal), equal, 1)
  about |= {
    "packed_fill": tokens["packed"] / (len(packed) * longest),
    "padded_fill": tokens["padded"] / (len(padded) * longest),
    "programs_of_buckets": len(shapes), "buckets_timed": ["x".join(map(str, g)) for g in drawn],
  }  # fmt: skip
  lengths = {"padded": [math.prod(row[0]) for row in padded], "equal": [equal] * (TOKENS // equal)}
  return steps, tokens, about, lengths


def add_torch(config, lengths, steps, tokens, about):
  """PyTorch's steps beside ours, and what their compilation took."""
  import torch
  import torch_dit

  torch.set_num_threads(os.cpu_count())
  about["torch"] = {"version": torch.__version__, "threads": torch.get_num_threads()}
  for kind, of in lengths.items():
    for compiled in (False, True):
      name = f"torch {kind} {'compiled' if compiled else 'eager'}"
      step = torch_dit.Step(config, of, train_step.TEXT_TOKENS, compiled)
      start = time.perf_counter()
      step()
      about["torch"][f"{name}, first step"] = round(time.perf_counter() - start, 1)
      say(f"{name}: first step in {time.perf_counter() - start:.0f} s")
      about["torch"]["parameters"] = step.parameters
      steps[name], tokens[name] = step, sum(of)


def rates(tokens, times):
  """Real tokens a second of each way, all buckets together, from seconds or arrays of them."""
  found = {name: tokens[name] / times[name] for name in tokens}
  of_buckets = [found.pop(name) for name in list(found) if name.startswith("bucket")]
  return found | {"buckets": 1 / np.mean([1 / one for one in of_buckets], axis=0)}


def ratios(rate):
  """How much faster one way is than another."""
  found = {
    "packed_over_padded": rate["packed"] / rate["padded"],
    "packed_over_masked": rate["packed"] / rate["masked"],
    "packed_over_buckets": rate["packed"] / rate["buckets"],
  }
  if any(name.startswith("torch") for name in rate):
    best = {
      of: np.maximum(rate[f"torch {of} eager"], rate[f"torch {of} compiled"])
      for of in ("padded", "equal")
    }
    found["equal_over_torch"] = rate["equal"] / best["equal"]
    found["packed_over_torch_padded"] = rate["packed"] / best["padded"]
  return found


def measure(name, seconds, with_torch):
  """All figures of a size of network."""
  config = dataclasses.replace(train_step.SIZES[name]["config"], mlp_activation="gelu_tanh")
  steps, tokens, about, lengths = methods(config)
  if with_torch:
    add_torch(config, lengths, steps, tokens, about)
  times = train_step.time_in_turn({**steps, "matmul": train_step.matmul()}, seconds)
  found = {"size": name, "steps_timed": len(times["matmul"])} | about
  taken = {name: each[:, 0] for name, each in times.items()}
  for kind, reduce in (("best", np.min), ("middle", np.median)):
    reduced = {name: reduce(each) for name, each in taken.items()}
    rate = rates(tokens, reduced)
    found[kind] = {
      "tokens_per_sec": {name: round(one) for name, one in rate.items()},
      "matmul_gflops": round(2 * 2048**3 / reduced["matmul"] / 1e9),
      **{name: round(float(one), 3) for name, one in ratios(rate).items()},
    }
  in_turn = ratios(rates(tokens, taken))
  found["within_rounds"] = {name: round(float(np.median(r)), 3) for name, r in in_turn.items()}
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="tiny,w512")
  parser.add_argument("--seconds", type=float, default=60)
  parser.add_argument("--no_torch", action="store_true")
  flags = parser.parse_args()
  results = []
  for name in flags.sizes.split(","):
    results.append(measure(name, flags.seconds, not flags.no_torch))
    print(json.dumps(results[-1], indent=2), flush=True)
  print(json.dumps({
    "benchmark": "mixed_sizes", "jax": jax.__version__, "cores": os.cpu_count(),
    "load_average": os.getloadavg()[0], "results": results,
  }))  # fmt: skip


if __name__ == "__main__":
  main()
