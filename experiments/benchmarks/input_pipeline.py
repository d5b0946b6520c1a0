"""How fast are packed batches made, with nothing trained on them?

  python experiments/benchmarks/input_pipeline.py

1024 clips of synthetic latents (8 channels; 30 % pictures, else 9 or 17 frames; five aspect ratios,
three areas) are written as shards and read back through the whole pipeline: shuffle, pack, read,
cut, lay out, batch. Rows hold 1024 tokens, a step has 4 of them. 100 steps pass before the clock
runs. Prints one JSON object as its last line.
"""

import json
import math
import tempfile
import time

import numpy as np

from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.records import Clip, ShardSource, ShardWriter
from sora_jax.data.stats import PackStats
from sora_jax.data.tokenizers import load
from sora_jax.ops.patchify import patchify

CLIPS = 1024
SECONDS = 8.0
WARM_STEPS = 100
STEP_TOKENS_PER_SEC = 12_000
"""What a tiny train step eats on two cores; the pipeline is to make five times that."""
CONFIG = PipelineConfig(
  rows=4, row_len=1024, max_segments=16, text_row_len=2048, streams=16, caption_long=0.3
)


def make_clips():
  """Clips with latents of 4x4x4 compression."""
  rng = np.random.default_rng(0)
  for i in range(CLIPS):
    side, aspect = (
      rng.choice([48, 64, 80]),
      math.sqrt(rng.choice([16 / 9, 4 / 3, 1, 3 / 4, 9 / 16])),
    )
    frames = 1 if rng.random() < 0.3 else int(rng.choice([9, 17]))
    h, w = (2 * max(1, round(side * f / 8)) for f in (1 / aspect, aspect))
    latent_thwZ = rng.standard_normal((1 + (frames - 1) // 4, h, w, 8)).astype(np.float32)
    yield Clip(
      id=f"synthetic {i}",
      fps=8.0 if frames > 1 else None,
      captions={
        "short": "a red circle moves right over a black background",
        "long": "a plain red circle of medium size starts at the left and moves right at a steady "
        "pace over a black background, until it leaves the frame",
      },
      latent_thwZ=latent_thwZ,
      latent_source="synthetic",
      pixel_shape=(frames, 4 * h, 4 * w),
    )


def measure(source, workers):
  """Rates of one pipeline."""
  config = PipelineConfig(**(vars(CONFIG) | {"workers": workers}))
  started = time.perf_counter()
  data = packed_rows(source, config, patchify, load("bytes").tokenize)
  scanned = time.perf_counter()
  batches = iter(data)
  next(batches)
  first = time.perf_counter()
  for _ in range(WARM_STEPS):
    next(batches)
  stats, steps, clock = PackStats(), 0, time.perf_counter()
  kept = []
  while time.perf_counter() - clock < SECONDS:
    kept.append(
      {k: v for k, v in next(batches).items() if k in ("segment", "grid", "text_segment")}
    )
    steps += 1
  seconds = time.perf_counter() - clock
  batches.close()
  for batch in kept:
    stats.add(batch)
  figures = stats.to_dict()
  return {
    "rows_per_sec": figures["rows"] / seconds,
    "tokens_per_sec": figures["tokens"] / seconds,
    "times_a_tiny_step": figures["tokens"] / seconds / STEP_TOKENS_PER_SEC,
    "sec_scan": scanned - started,
    "sec_first_batch": first - scanned,
    "fill": figures["fill"],
  }


def main():
  with tempfile.TemporaryDirectory() as folder:
    with ShardWriter(folder, prefix="latents") as writer:
      for clip in make_clips():
        writer.write(clip)
    source = ShardSource(folder, prefix="latents")
    report = {"clips": CLIPS, "row_len": CONFIG.row_len, "rows": CONFIG.rows}
    report |= {f"workers_{n}": measure(source, n) for n in (0, 2)}
  print(json.dumps(report))


if __name__ == "__main__":
  main()
