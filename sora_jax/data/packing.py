"""Packing: which clips share a row, and how many tokens of each are kept.

grain's best-fit packer decides, over nothing but lengths, so that a window of hundreds of clips
costs a few kilobytes and a restored stream replays without reading one latent. An element is a
dict of `tokens`, `floor` and `text` (arrays of which only the length counts) and `visit`.

Drop-to-fill: `tokens` may exceed the row by a small slack while `floor`, the least that each clip
may shrink to, must not. Both are ordinary features of the packer, so every packed row can be cut
to exactly its length by taking at most a tenth of any clip (NaViT, arXiv 2307.06304, section 3.1).
"""

import dataclasses
import math
from collections.abc import Sequence

import grain
import numpy as np
from grain.experimental import BestFitPackIterDataset

MIN_TOKENS = 64
"""Clips and pictures of fewer tokens keep all of them, and none is cut below."""

MAX_CUT = 0.1
"""Largest share of a clip that drop-to-fill may take."""


@dataclasses.dataclass(frozen=True)
class TokenDrop:
  """NaViT token dropping (arXiv 2307.06304, section 2.2) that fades out before training ends.

  Half the visits (`share`) lose a rate drawn from scale * Beta(alpha, beta); the rate is full until
  `hold` of `steps`, then falls linearly to none at `end`.
  """

  steps: int
  share: float = 0.5
  scale: float = 0.6
  alpha: float = 2.0
  beta: float = 4.0
  hold: float = 0.7
  end: float = 0.85

  def __post_init__(self):
    for name in ("share", "scale"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}; it is a share, between 0 and 1")
    if self.steps < 1 or not 0 <= self.hold < self.end <= 1:
      raise ValueError(
        f"token dropping over steps={self.steps} with hold={self.hold}, end={self.end}; "
        "allowed: steps >= 1 and 0 <= hold < end <= 1"
      )

  def strength(self, step: int | float) -> float:
    """Factor on the rate at an optimizer step: 1 until hold * steps, 0 from end * steps on."""
    progress = step / self.steps
    return min(1.0, max(0.0, (self.end - progress) / (self.end - self.hold)))

  def kept(self, tokens: int, step: int | float, rng: np.random.Generator) -> int:
    """Number of tokens that one visit keeps, of `tokens`; two draws from `rng` are used."""
    drops, rate = rng.random() < self.share, self.scale * rng.beta(self.alpha, self.beta)
    if not drops or tokens <= MIN_TOKENS:
      return tokens
    return max(MIN_TOKENS, math.ceil(tokens * (1 - rate * self.strength(step))))


def floor_of(tokens: int) -> int:
  """Fewest tokens that drop-to-fill may leave of `tokens`: nine tenths, and never below 64."""
  return min(tokens, max(MIN_TOKENS, tokens - int(tokens * MAX_CUT)))


def cut_to_fit(tokens: Sequence[int], row_len: int) -> list[int]:
  """Token counts after taking exactly the excess over `row_len`, from the largest clips first.

  Raises: ValueError if the clips cannot shrink that far (see `floor_of`).
  """
  kept = list(tokens)
  excess = sum(kept) - row_len
  for i in sorted(range(len(kept)), key=lambda i: (-kept[i], i)):
    if excess <= 0:
      break
    cut = min(excess, kept[i] - floor_of(kept[i]))
    kept[i] -= cut
    excess -= cut
  if excess > 0:
    raise ValueError(f"clips of {list(tokens)} tokens cannot be cut to a row of {row_len}")
  return kept


def element(visit: int, tokens: int, text: int, drop_to_fill: bool) -> dict:
  """What the packer sees of one visit to a clip: lengths and the visit's number."""
  lengths = {"tokens": tokens, "text": text}
  if drop_to_fill:
    lengths["floor"] = floor_of(tokens)
  return {name: np.zeros(n, np.int8) for name, n in lengths.items()} | {
    "visit": int(visit),
    "kept": int(tokens),
  }


def bins_for(window: int, mean_tokens: float, row_len: int, max_segments: int) -> int:
  """Open rows that together hold about `window` clips."""
  per_row = min(max_segments, row_len / mean_tokens)
  return max(1, round(window / per_row))


def best_fit(
  visits: grain.IterDataset,
  *,
  row_len: int,
  text_row_len: int,
  max_segments: int,
  bins: int,
  drop_to_fill: float = 0.0,
  seed: int = 0,
) -> grain.IterDataset:
  """Packs `element`s into rows of at most `row_len` tokens, `text_row_len` text ids.

  Args:
    visits: an endless or finite data set of `element`s that each fit a row.
    bins: rows that are open at once; all are emitted when a clip fits none of them.
    drop_to_fill: share of the row by which its clips may exceed it before they are cut; 0 = off.
    seed: of the order in which filled rows are emitted.

  Returns: a data set of dicts {"visits": int64 [n], "kept": int64 [n]}, one for each row, whose
    iterators save and restore their place.
  """
  lengths = {"tokens": row_len + int(row_len * drop_to_fill), "text": text_row_len}
  if drop_to_fill:
    lengths["floor"] = row_len
  packed = BestFitPackIterDataset(
    visits,
    length_struct=lengths,
    meta_features=("visit", "kept"),
    num_packing_bins=bins,
    max_sequences_per_bin=max_segments,
    seed=seed,
  )
  return packed.map(_Row(row_len))


@dataclasses.dataclass(frozen=True)
class _Row:
  """Turns a row of grain's packer into visits and kept token counts."""

  row_len: int

  def __call__(self, packed: dict) -> dict:
    kept = cut_to_fit(packed["kept"], self.row_len)
    return {"visits": np.array(packed["visit"], np.int64), "kept": np.array(kept, np.int64)}
