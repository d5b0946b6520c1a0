"""What does attention cost in long packed rows, and what do blocks save?

  python experiments/benchmarks/attention.py [--seconds=20] [--heads=2]

Rows of clips of 1,024 tokens each, forward and backward together, float32, heads of 64 channels:
  skipping   a row of 16,384 tokens, against the same kernel on one clip of 16,384 tokens (`dense`,
             where no block can be skipped) and, where memory allows, against all scores at once
  length     rows of 2,048 to 32,768 tokens: seconds for 1,000 tokens should not grow
All are timed in turn within one run. The last line is one JSON object.
"""

import argparse
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import train_step

from sora_jax.ops import attention, flash

CLIP, ROW, HEAD = 1024, 16_384, 64
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)


def call(attend, length, clip, heads):
  """Attention and its gradients in a row of clips, to be called."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, given = (jax.random.normal(key, (1, length, heads, HEAD)) for key in keys)
  segment = jnp.asarray(1 + np.arange(length)[None] // clip, jnp.int32)

  def both(q, k, v, given):
    out, back = jax.vjp(lambda *x: attend(*x, segment, segment), q, k, v)
    return out, back(given)

  run = jax.jit(both)
  return lambda: jax.block_until_ready(run(q, k, v, given)) and None


def measure(runs, seconds):
  """Least and middle seconds of each of several functions."""
  times = train_step.time_in_turn({**runs, "matmul": train_step.matmul()}, seconds)
  return {
    kind: {name: float(reduce(times[name][:, 0])) for name in times}
    for kind, reduce in (("best", np.min), ("middle", np.median))
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=20)
  parser.add_argument("--heads", type=int, default=2)
  flags = parser.parse_args()
  one = lambda *shape: call(*shape, flags.heads)  # noqa: E731
  found = measure(
    {
      "blocks": one(flash.flash, ROW, CLIP), "dense": one(flash.flash, ROW, ROW),
      "all_scores": one(attention.attention, ROW, CLIP),
    },
    flags.seconds,
  )  # fmt: skip
  lengths = measure({str(n): one(flash.flash, n, CLIP) for n in LENGTHS}, flags.seconds)
  print(json.dumps({
    "benchmark": "attention", "jax": jax.__version__, "device": jax.devices()[0].device_kind,
    "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "heads": flags.heads,
    "seconds": found,
    "share_of_dense": {k: round(s["blocks"] / s["dense"], 4) for k, s in found.items()},
    "share_of_all_scores": {k: round(s["blocks"] / s["all_scores"], 4) for k, s in found.items()},
    "seconds_per_1000_tokens": {
      kind: {str(n): round(1000 * s[str(n)] / n, 5) for n in LENGTHS} for kind, s in lengths.items()
    },
  }))  # fmt: skip


if __name__ == "__main__":
  main()
