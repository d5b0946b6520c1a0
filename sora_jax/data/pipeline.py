"""From cached latents to packed batches: deterministic, endless or finite, checkpointable.

Global row g = step * rows + r belongs to logical stream g % streams and is row g // streams of it.
Hosts own blocks of a step's rows, workers a share of a host's streams; neither changes a batch.
"""

import dataclasses
import json
from collections.abc import Callable

import grain
import numpy as np

from sora_jax.data import workers
from sora_jax.data.packing import TokenDrop
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.data.streams import Rows, StreamPlan
from sora_jax.data.table import ClipSource, ClipTable, scan, usable
from sora_jax.shapes import WHOLE, Patch, Share


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """How clips become rows.

  Attributes:
    rows: R, rows of a step over all hosts.
    row_len: L, tokens of a row.
    max_segments: S, most clips in a row.
    text_row_len: M, text ids of a row.
    patch: latent cells of a patch, (t, h, w).
    streams: logical streams, each with its own packer; part of what defines the order.
    window: clips that a packer considers at once.
    seed: of shuffling, captions and dropping.
    shuffle: another order each epoch.
    repeat: endless; else every clip comes exactly once and the last rows are padded.
    caption_long: share of visits that read the long caption.
    caption_shots: share of visits to clips that tell their shots that read a caption for each, in
      its own latent frames, instead of one for all.
    caption_dropout: share of visits whose caption is "", for guidance.
    drop_to_fill: share of a row by which clips may exceed it before they are cut to it; 0 = off.
    token_drop: NaViT token dropping; None = off.
    too_long: what to do about clips that fit no row: "raise", "skip", or "fit": their latents have
      been made smaller beforehand, so what is left (too many frames) raises.
    workers: processes that prepare rows; 0 prepares them in this one.
    prefetch: batches prepared ahead in a thread; 0 = none.
    prompts: shares of image and video prompts; None = text alone. Their clips need canvases.
    frames_per_latent: F, pixel frames that a latent frame covers.
    max_slots: Q, times of a row: a clip has one, or one for each latent frame while there are so
      many left. 0 = max_segments, which leaves few.
    share: which of a step's rows this host makes.
  """

  rows: int = 4
  row_len: int = 1024
  max_segments: int = 16
  text_row_len: int = 512
  patch: tuple[int, int, int] = (1, 2, 2)
  streams: int = 16
  window: int = 256
  seed: int = 0
  shuffle: bool = True
  repeat: bool = True
  caption_long: float = 0.5
  caption_shots: float = 0.0
  caption_dropout: float = 0.1
  drop_to_fill: float = 0.0
  token_drop: TokenDrop | None = None
  too_long: str = "raise"
  workers: int = 0
  prefetch: int = 0
  prompts: PromptMix | None = None
  frames_per_latent: int = 4
  max_slots: int = 0
  share: Share = WHOLE

  def __post_init__(self):
    object.__setattr__(self, "patch", Patch(*self.patch))
    object.__setattr__(self, "max_slots", self.max_slots or self.max_segments)
    if self.max_slots < self.max_segments:
      raise ValueError(
        f"max_slots={self.max_slots}; each of max_segments={self.max_segments} clips needs a time"
      )
    for name in ("rows", "row_len", "max_segments", "text_row_len", "streams", "window"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
    for name in ("caption_long", "caption_shots", "caption_dropout"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name}={getattr(self, name)}; it is a share, between 0 and 1")
    if not 0 <= self.drop_to_fill <= 0.1:
      raise ValueError(f"drop_to_fill={self.drop_to_fill}; allowed: 0 (off) to 0.1")
    if self.too_long not in ("raise", "skip", "fit"):
      raise ValueError(f"too_long={self.too_long!r}; allowed: raise, skip, fit")
    _check_split(self)

  @property
  def local_rows(self) -> int:
    """Rows of a step on this host."""
    return len(self.share.rows(self.rows))

  @property
  def local_streams(self) -> list[int]:
    """This host's streams in the order in which their rows come."""
    if self.share == WHOLE:
      return list(range(self.streams))
    rows = self.share.rows(self.rows)
    return [first + row for first in range(0, self.streams, self.rows) for row in rows]


def _check_split(c: PipelineConfig) -> None:
  if c.share.of > 1 and (c.rows % c.share.of or c.streams % c.rows):
    raise ValueError(
      f"rows={c.rows} and streams={c.streams}, shared out among hosts in {c.share.of} blocks: rows "
      f"must be a multiple of {c.share.of} and streams a multiple of rows, so that each host owns "
      "whole streams"
    )
  own = len(c.local_streams)
  if c.workers < 0 or (c.workers and own % c.workers):
    raise ValueError(f"workers={c.workers} must be 0 or divide this host's {own} streams")


def packed_rows(
  source: ClipSource,
  config: PipelineConfig,
  patchify: Callable[[np.ndarray, Patch], np.ndarray],
  tokenize: Callable[[str], list[int]],
  table: ClipTable | None = None,
) -> grain.IterDataset:
  """Packed batches of clips with latents; `iter()` of it saves and restores its place.

  Args:
    source: random access to `Clip`s with latents; picklable if there are workers.
    config: sizes and shares.
    patchify: `(latent_thwZ, patch) -> [N, P]`, works on numpy and is picklable.
    tokenize: text to ids, picklable.
    table: the clips' lengths if they are known; else every clip is read once.

  Returns: a data set of dicts of numpy arrays, R = rows of this host:
    patch f32 [R, L, P], normalised latents, 0 at padding; segment i32 [R, L], 0 = padding;
    coord i32 [R, L, 3], (t, y, x) in the token grid; slot i32 [R, L]; grid i32 [R, S, 3], tokens,
    0 = unused; fps f32 [R, S], 0 for pictures; slots i32 [R, S]; text, text_segment i32 [R, M];
    clip i32 [R, S], index in the source, -1 = unused. With prompts also known u8 [R, L, cells F]
    and canvas f32 [R, L, P], both 0 where nothing is known. With captions of shots also slot_text
    i32 [R, Q], the text of each slot (text_segment then numbers the row's texts), and one_time
    bool [R, S], of segments whose slots share the time of the first.
    Its iterators' state is JSON-able, and the same for any number of workers.

  Raises: ValueError naming clips that fit no row or are no whole number of patches. Iterators
    raise RuntimeError if a worker process dies.
  """
  table = table or scan(source, config.patch, tokenize)
  skip = config.too_long == "skip"
  indices = usable(
    table, source, config.row_len, config.text_row_len, config.caption_long, config.caption_shots,
    skip,
  )  # fmt: skip
  batches = PackedBatches(StreamPlan(source, table, indices, patchify, tokenize, config))
  if config.prefetch:
    return grain.experimental.ThreadPrefetchIterDataset(
      batches, prefetch_buffer_size=config.prefetch
    )
  return batches


class PackedBatches(grain.IterDataset):
  """Batches of a plan's rows; see `packed_rows`."""

  def __init__(self, plan: StreamPlan):
    super().__init__()
    self._plan = plan

  def num_steps(self) -> int:
    """Steps of a finite pass, the same on every host. Raises: ValueError if it is endless."""
    c = self._plan.config
    if c.repeat:
      raise ValueError("an endless stream has no number of steps; set repeat=False")
    last = -1
    for stream in range(c.streams):
      rows = sum(1 for _ in self._plan.packer(stream))
      if rows:
        last = max(last, stream + c.streams * (rows - 1))
    return last // c.rows + 1

  def __iter__(self) -> "PackedBatchIterator":
    return PackedBatchIterator(self._plan, None if self._plan.config.repeat else self.num_steps())


class PackedBatchIterator(grain.DatasetIterator):
  """State: the step, and each local stream's own state as JSON text."""

  def __init__(self, plan: StreamPlan, num_steps: int | None):
    super().__init__()
    self._plan, self._num_steps = plan, num_steps
    self._step, self._rows = 0, None
    self._states = {
      stream: json.dumps(iter(plan.packer(stream)).get_state())
      for stream in plan.config.local_streams
    }

  def start_prefetch(self) -> None:
    """Starts the workers."""
    if self._rows is None:
      c = self._plan.config
      streams = c.local_streams
      first = self._step * c.local_rows % len(streams)
      rows = Rows(self._plan, streams[first:] + streams[:first], self._states)
      buffered = max(2, c.local_rows // max(1, c.workers))
      self._rows = workers.iterate(rows, c.workers, buffered)

  def __next__(self) -> dict:
    self._assert_not_closed()
    if self._num_steps is not None and self._step >= self._num_steps:
      raise StopIteration
    self.start_prefetch()
    rows = [workers.advance(self._rows, self._step) for _ in range(self._plan.config.local_rows)]
    for row in rows:
      self._states[int(row.pop("stream"))] = row.pop("state")
    self._step += 1
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def get_state(self) -> dict:
    return {"step": self._step, "streams": {str(s): t for s, t in sorted(self._states.items())}}

  def set_state(self, state: dict) -> None:
    missing = [s for s in self._states if str(s) not in state["streams"]]
    if missing:
      raise ValueError(
        f"the saved state lacks streams {missing}; merge the states of all hosts, and keep "
        f"streams={self._plan.config.streams} as it was"
      )
    self._release()
    self._step = state["step"]
    self._states = {stream: state["streams"][str(stream)] for stream in self._states}

  def _release(self) -> None:
    if self._rows is not None:
      self._rows.close()
      self._rows = None

  def close(self) -> None:
    """Stops the workers."""
    if not self._closed:
      self._closed = True
      self._release()
