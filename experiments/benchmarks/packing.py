"""How full are rows? Packing, packing with drop-to-fill, padding and buckets on one mix.

  python experiments/benchmarks/packing.py

The mix: 30 % pictures, else clips of 17, 33 or 49 frames; areas of 192^2, 256^2, 384^2 or 512^2
pixels; aspect ratios 16:9, 4:3, 1:1, 3:4, 9:16; all drawn evenly. A token covers 16 x 16 pixels (8x
latents, 2 x 2 patches) and four frames. Rows hold 16384 tokens, the window is 256 clips.
`tiny` is the same on 1024-token rows of 8-pixel tokens with 48^2 to 80^2 pixels and 9 or 17 frames.

Padding gives each clip of a batch of 16 its own row, as long as the longest of the batch. Buckets
collect 16 clips of exactly one shape before they train; what has no full batch at the end waits.
Prints one JSON object as its last line.
"""

import collections
import json
import math

import grain
import numpy as np

from sora_jax.data import packing
from sora_jax.data.stats import PackStats

CLIPS = 20_000
WINDOW = 256
BATCH = 16
SEGMENTS = 64
ASPECTS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
MIXES = {
  "16k": {"row_len": 16384, "cell": 16, "sides": (192, 256, 384, 512), "frames": (17, 33, 49)},
  "tiny": {"row_len": 1024, "cell": 8, "sides": (48, 64, 80), "frames": (9, 17)},
}


def draw_grids(mix, seed):
  """Token grids (t, h, w) of CLIPS clips."""
  rng = np.random.default_rng(seed)
  grids = []
  for _ in range(CLIPS):
    side, aspect = rng.choice(mix["sides"]), math.sqrt(rng.choice(ASPECTS))
    frames = 1 if rng.random() < 0.3 else int(rng.choice(mix["frames"]))
    cells = [max(1, round(side * f / mix["cell"])) for f in (1 / aspect, aspect)]
    grids.append((1 + (frames - 1) // 4, *cells))
  return grids


def pack_rows(tokens, row_len, drop_to_fill=0.0):
  """Rows of clips with so many tokens, without those of the last window; open rows."""
  bins = packing.bins_for(WINDOW, float(np.mean(tokens)), row_len, SEGMENTS)
  elements = [packing.element(i, n, 1, drop_to_fill > 0) for i, n in enumerate(tokens)]
  visits = grain.MapDataset.source(elements).to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )
  rows = packing.best_fit(
    visits, row_len=row_len, text_row_len=SEGMENTS, max_segments=SEGMENTS, bins=bins,
    drop_to_fill=drop_to_fill,
  )  # fmt: skip
  return list(rows)[:-bins], bins


def pack(grids, row_len, drop_to_fill):
  """(fill, share of tokens dropped, figures); the last, unfinished window is left out."""
  tokens = [math.prod(grid) for grid in grids]
  rows, bins = pack_rows(tokens, row_len, drop_to_fill)
  stats = PackStats()
  for row in rows:
    stats.add(as_batch(row, grids, row_len))
  whole = sum(tokens[v] for row in rows for v in row["visits"])
  kept = sum(int(row["kept"].sum()) for row in rows)
  return stats.fill, 1 - kept / whole, stats.to_dict() | {"open_rows": bins}


def as_batch(row, grids, row_len):
  """The tables that statistics need, of one row."""
  segment = np.zeros((1, row_len), np.int32)
  ids = np.repeat(np.arange(1, len(row["kept"]) + 1), row["kept"])
  segment[0, : len(ids)] = ids
  grid = np.zeros((1, SEGMENTS, 3), np.int32)
  grid[0, : len(row["visits"])] = [grids[v] for v in row["visits"]]
  return {"segment": segment, "grid": grid, "text_segment": segment[:, :SEGMENTS]}


def pad(tokens):
  """Fill of batches of BATCH clips, each padded to the longest of its batch."""
  batches = np.array(tokens[: len(tokens) // BATCH * BATCH]).reshape(-1, BATCH)
  return float(batches.sum() / (batches.max(axis=1).sum() * BATCH))


def pad_to_row(tokens, row_len):
  """Fill of one clip in each row: what a single compiled shape costs without packing."""
  return float(np.mean(tokens) / row_len)


def bucket(grids):
  """Shapes that must be compiled, and the most clips that wait for their batch to fill."""
  waiting, most = collections.Counter(), 0
  for grid in grids:
    waiting[grid] = (waiting[grid] + 1) % BATCH
    most = max(most, sum(waiting.values()))
  return {"fill": 1.0, "shapes_to_compile": len(waiting), "most_clips_waiting": most}


def measure(mix):
  """All methods on one mix."""
  grids = draw_grids(mix, seed=0)
  tokens = [math.prod(grid) for grid in grids]
  row_len = mix["row_len"]
  fill, _, figures = pack(grids, row_len, 0.0)
  dropped_fill, dropped, _ = pack(grids, row_len, 0.02)
  return {
    "row_len": row_len,
    "mean_tokens": float(np.mean(tokens)),
    "longest_tokens": max(tokens),
    "packed_fill": fill,
    "drop_to_fill": {"fill": dropped_fill, "tokens_dropped_share": dropped},
    "padded_to_longest_fill": pad(tokens),
    "padded_to_row_fill": pad_to_row(tokens, row_len),
    "buckets": bucket(grids),
    "open_rows": figures["open_rows"],
    "segments_per_row": figures["segments_per_row"],
    "frame_sizes_per_row": figures["frame_sizes_per_row"],
    "attention_cost": figures["attention_cost"],
  }


def main():
  report = {"clips": CLIPS, "window": WINDOW}
  for name, mix in MIXES.items():
    report[name] = measure(mix)
  print(json.dumps(report))


if __name__ == "__main__":
  main()
