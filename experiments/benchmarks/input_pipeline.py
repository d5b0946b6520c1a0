"""How fast are packed batches made, with nothing trained on them?

  python experiments/benchmarks/input_pipeline.py

1024 clips of synthetic latents, with the sizes, lengths and share of pictures of the main job
(configs/tiny.py) and the 48 channels of the shipped autoencoder, are written as shards and read
back through the whole pipeline in the main job's rows: shuffle, pack, read, cut, lay out, batch.
100 steps pass before the clock runs. Prints one JSON object as its last line.
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from configs import tiny
from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.records import Clip, ShardSource
from sora_jax.data.shard_writer import ShardWriter
from sora_jax.data.stats import PackStats
from sora_jax.data.tokenizers import load
from sora_jax.ops.patchify import patchify

CLIPS = 1024
SECONDS = 8.0
WARM_STEPS = 100
STEP_TOKENS_PER_SEC = 12_000
"""More than any tiny step measured on two cores has eaten (2,800 in the main job, 5,300 to 8,000 in
train_step.py); the pipeline is to make five times that."""
TINY = tiny.get_config()
CONFIG = PipelineConfig(
  **{name: TINY.data[name] for name in (
    "rows", "row_len", "max_segments", "text_row_len", "streams", "window", "caption_long",
  )}
)  # fmt: skip
CELL, LATENT = 8, 48
"""Pixels of a token, channels of the shipped autoencoder."""


def make_clips():
  """Clips with latents as the main job has them."""
  rng, world = np.random.default_rng(0), TINY.data.world
  for i in range(CLIPS):
    width, height = world.sizes[rng.integers(len(world.sizes))]
    still = rng.random() < world.image_fraction
    frames = 1 if still else int(world.frames[rng.integers(len(world.frames))])
    h, w = (2 * -(-side // CELL) for side in (height, width))
    latent_thwZ = rng.standard_normal((1 + (frames - 1) // 4, h, w, LATENT)).astype(np.float32)
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
      pixel_shape=(frames, height, width),
    )


def measure(source, workers):
  """Rates of one pipeline."""
  config = PipelineConfig(**(vars(CONFIG) | {"workers": workers}))
  started = time.perf_counter()
  data = packed_rows(source, config, patchify, load(TINY.text.tokenizer).tokenize)
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
