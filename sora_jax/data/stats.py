"""What a run's rows held: fill, spread of the attention cost, and a histogram of sizes."""

import collections

import numpy as np

from sora_jax.shapes import PAD_SEGMENT


class PackStats:
  """Accumulates figures from packed batches.

  The attention cost of a row is the sum over its segments of tokens squared; its spread over rows
  is what one device waits for another.
  """

  def __init__(self):
    self._rows = 0
    self._cells = 0
    self._text_cells = 0
    self._text_tokens = 0
    self._segments = 0
    self._costs = []
    self._row_tokens = []
    self._sizes = collections.Counter()
    self._picture_tokens = 0
    self._shapes_per_row = []

  def add(self, batch: dict) -> None:
    """Counts one batch of the pipeline (see `pipeline.packed_rows` for its arrays)."""
    segment_RL, grid_RS3 = batch["segment"], batch["grid"]
    self._rows += segment_RL.shape[0]
    self._cells += segment_RL.size
    self._text_cells += batch["text_segment"].size
    self._text_tokens += int((batch["text_segment"] != PAD_SEGMENT).sum())
    for segment_L, grid_S3 in zip(segment_RL, grid_RS3):
      tokens_S = np.bincount(segment_L, minlength=len(grid_S3) + 1)[PAD_SEGMENT + 1 :]
      self._costs.append(float((tokens_S.astype(np.float64) ** 2).sum()))
      self._row_tokens.append(int(tokens_S.sum()))
      used = grid_S3[:, 0] > 0
      grids = [tuple(int(x) for x in grid) for grid in grid_S3[used]]
      self._segments += len(grids)
      self._sizes.update(grids)
      self._shapes_per_row.append(len({grid[1:] for grid in grids}))
      self._picture_tokens += int(tokens_S[used & (grid_S3[:, 0] == 1)].sum())

  @property
  def fill(self) -> float:
    """Real tokens over all tokens; 0 before the first batch."""
    return sum(self._row_tokens) / max(1, self._cells)

  def to_dict(self) -> dict:
    """JSON-able figures; `sizes` counts segments by token grid, "t x h x w", most first."""
    tokens = sum(self._row_tokens)
    costs = np.array(self._costs or [0.0])
    mean = max(float(costs.mean()), 1e-9)
    return {
      "rows": self._rows,
      "segments": self._segments,
      "tokens": tokens,
      "fill": self.fill,
      "text_fill": self._text_tokens / max(1, self._text_cells),
      "segments_per_row": self._segments / max(1, self._rows),
      "frame_sizes_per_row": float(np.mean(self._shapes_per_row or [0])),
      "picture_token_share": self._picture_tokens / max(1, tokens),
      "attention_cost": {
        "mean": mean,
        "std_over_mean": float(costs.std()) / mean,
        "max_over_mean": float(costs.max()) / mean,
      },
      "sizes": {"x".join(map(str, grid)): n for grid, n in self._sizes.most_common()},
    }
