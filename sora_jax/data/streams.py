"""Logical streams: each visits its share of the clips and packs its own rows.

Visit v of stream s is number q = v * streams + s of one endless shuffled sequence, so every clip
comes once per epoch whatever the number of streams. All choices of a visit (caption, dropping)
follow from the seed and q. A stream's place is a few small numbers, so its saved state means the
same on any number of workers and hosts.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from sora_jax.data import known, packing, prompt_mix
from sora_jax.data.table import ClipSource, ClipTable, caption, shots
from sora_jax.shapes import PAD_SEGMENT, Patch

_PLAN, _CELLS, _PROMPT, _STAGED = 0, 1, 2, 3
"""Purposes of a visit's random numbers: caption and rate; which tokens stay; what is known; whether
its latent frames are ahead of each other."""
_LISTED = 1024
"""Sets of fewer clips have their order listed: `index_shuffle` tries 2^16 / n numbers for each."""


@functools.lru_cache(maxsize=64)
def _listed_order(n: int, seed: int) -> np.ndarray:
  """[n] a shuffled order."""
  return np.random.default_rng(seed).permutation(n)


@dataclasses.dataclass(frozen=True)
class StreamPlan:
  """All that a stream needs to know, picklable. Fields are named as in `PipelineConfig`."""

  source: ClipSource
  table: ClipTable
  indices: np.ndarray
  patchify: Callable[[np.ndarray, Patch], np.ndarray]
  tokenize: Callable[[str], list[int]]
  config: Any

  def rng(self, visit: int, purpose: int) -> np.random.Generator:
    """Random numbers of one visit, for one purpose."""
    return np.random.default_rng((self.config.seed, purpose, visit))

  def clip_index(self, visit: int) -> int:
    """Index in the source of the clip that a global visit shows."""
    epoch, place = divmod(visit, len(self.indices))
    if self.config.shuffle and len(self.indices) > 1:
      seed = int(np.random.SeedSequence((self.config.seed, epoch)).generate_state(1)[0])
      n = len(self.indices)
      if n < _LISTED:
        place = _listed_order(n, seed)[place]
      else:
        place = index_shuffle(place, max_index=n - 1, seed=seed, rounds=4)
    return int(self.indices[place])

  def choose(self, visit: int) -> tuple[int, str | None, np.random.Generator]:
    """(clip index, kind of caption or None for dropped, rest of the rng)."""
    rng = self.rng(visit, _PLAN)
    dropped, long = rng.random(2) < (self.config.caption_dropout, self.config.caption_long)
    index, kind = self.clip_index(visit), None if dropped else ("long" if long else "short")
    if self.config.caption_shots and kind is not None and self.table.text_N3[index, 2]:
      kind = "shots" if rng.random() < self.config.caption_shots else kind
    return index, kind, rng

  def prompt(self, visit: int, clip: Any) -> tuple[np.ndarray, np.ndarray, bool, bool]:
    """(known_thwF, canvas_thwZ) of one visit, whether its latent frames have their own times, and
    whether those next to known ones are ahead of the rest.

    Raises: ValueError if the clip should have canvases and has none.
    """
    mix, rng = self.config.prompts, self.rng(visit, _PROMPT)
    grid, F = clip.latent_thwZ.shape[:3], self.config.frames_per_latent
    kind, own = mix.kind(grid[0], rng), bool(rng.random() < mix.frame_times)
    if kind is None:
      return np.zeros((*grid, F), np.uint8), np.zeros_like(clip.latent_thwZ), own, False
    staged = not own and mix.staged > 0 and bool(self.rng(visit, _STAGED).random() < mix.staged)
    if kind in prompt_mix.PREFIX_KINDS:
      mask = prompt_mix.prefix_mask(kind, grid, F, rng)
      return mask, known.canvas(clip.latent_thwZ, mask), own, staged
    if not clip.canvases:
      raise ValueError(f"clip {clip.id!r} has no canvases; make its latents with prompts")
    canvas = clip.canvases[int(rng.integers(len(clip.canvases)))]
    return canvas.known_thwF, canvas.latent_thwZ.astype(np.float32), own, staged

  def words(self, clip: Any, kind: str | None, slots: int) -> tuple[list[str], np.ndarray]:
    """Texts of one visit, those that no slot reads left out, and which of them each slot reads."""
    if kind != "shots":
      text = "" if kind is None else caption(clip, kind == "long")
      return [text], np.zeros(slots, int)
    parts, F = shots(clip), self.config.frames_per_latent
    frames = 1 + (slots * self.config.patch.t - 1) * F
    read_t = known.readers([frame for frame, _ in parts], frames, F)
    used, number_q = np.unique(read_t[:: self.config.patch.t], return_inverse=True)
    return [parts[number][1] for number in used], number_q

  def packer(self, stream: int) -> grain.IterDataset:
    """Rows of one stream, as `packing.best_fit` gives them."""
    if self.config.token_drop is not None:
      return _CountedRows(self, stream)
    return self.packed(_Visits(self, stream), stream)

  def packed(self, visits: grain.IterDataset, stream: int) -> grain.IterDataset:
    """Rows of one stream's visits."""
    c = self.config
    tokens = float(self.table.tokens_N[self.indices].mean())
    return packing.best_fit(
      visits,
      row_len=c.row_len,
      text_row_len=c.text_row_len,
      max_segments=c.max_segments,
      bins=packing.bins_for(c.window, tokens, c.row_len, c.max_segments),
      drop_to_fill=c.drop_to_fill,
      seed=int(np.random.SeedSequence((c.seed, stream)).generate_state(1)[0]),
    )


class _Emitted:
  """What a packer tells its visits: the rows before those that it fills or has filled."""

  rows = 0


class _Visits(grain.IterDataset):
  """The lengths of one stream's visits, in order; endless if the config repeats."""

  def __init__(self, plan: StreamPlan, stream: int, emitted: _Emitted | None = None):
    super().__init__()
    self._plan, self._stream, self._emitted = plan, stream, emitted

  def __iter__(self):
    return _VisitIterator(self._plan, self._stream, self._emitted)


class _VisitIterator(grain.DatasetIterator):
  """State: the next visit, and the tokens so far. While tokens are dropped also the rows that were
  last told of, and by how many they differ from what so many tokens would fill: rows have gaps.

  A packer fills some rows at once, and learns that they are full from a visit that goes into the
  next ones. It is fetched before they are emitted, and once more where a state is restored: so the
  first visit after a state never counts rows anew.
  """

  def __init__(self, plan: StreamPlan, stream: int, emitted: _Emitted | None):
    super().__init__()
    self._plan, self._stream, self._emitted = plan, stream, emitted
    self._next, self._tokens, self._rows, self._gaps, self._restored = 0, 0, 0, 0.0, False

  def __next__(self) -> dict:
    plan, c = self._plan, self._plan.config
    visit = self._next * c.streams + self._stream
    if not c.repeat and visit >= len(plan.indices):
      raise StopIteration
    index, kind, rng = plan.choose(visit)
    tokens = int(plan.table.tokens_N[index])
    if c.token_drop is not None:
      tokens = c.token_drop.kept(tokens, self._rows_packed() * c.streams / c.rows, rng)
    text = plan.table.empty_text
    if kind is not None:
      text = plan.table.text_N3[index, ("short", "long", "shots").index(kind)]
    self._next += 1
    self._tokens += tokens
    return packing.element(visit, tokens, int(text), c.drop_to_fill > 0)

  def _rows_packed(self) -> float:
    """About the row of this stream that the next visit goes into; those of a window are emitted in
    any order."""
    full = self._tokens / self._plan.config.row_len
    if self._emitted.rows != self._rows and not self._restored:
      self._rows, self._gaps = self._emitted.rows, self._emitted.rows - full
    self._restored = False
    return full + self._gaps

  def get_state(self) -> dict:
    state = {"next": self._next, "tokens": self._tokens}
    return state if self._emitted is None else state | {"rows": self._rows, "gaps": self._gaps}

  def set_state(self, state: dict) -> None:
    self._next, self._tokens, self._restored = state["next"], state["tokens"], True
    if self._emitted is not None:  # states of before rows were counted go on as they began
      self._rows, self._gaps = state.get("rows", self._emitted.rows), state.get("gaps", 0.0)


class _CountedRows(grain.IterDataset):
  """The rows of one stream, of which its visits are told how many there were."""

  def __init__(self, plan: StreamPlan, stream: int):
    super().__init__()
    self._plan, self._stream = plan, stream

  def __iter__(self):
    emitted = _Emitted()
    visits = _Visits(self._plan, self._stream, emitted)
    return _CountedRowIterator(iter(self._plan.packed(visits, self._stream)), emitted)


class _CountedRowIterator(grain.DatasetIterator):
  """State: that of grain's packer."""

  def __init__(self, rows: grain.DatasetIterator, emitted: _Emitted):
    super().__init__()
    self._packed, self._emitted = rows, emitted

  def __next__(self) -> dict:
    self._tell(self._packed.get_state())
    return next(self._packed)

  def _tell(self, state: dict) -> None:
    self._emitted.rows = state["counter"] - state["next_row"]

  def get_state(self) -> dict:
    return self._packed.get_state()

  def set_state(self, state: dict) -> None:
    self._tell(state)
    self._packed.set_state(state)


def empty_row(c: Any, channels: int) -> dict[str, np.ndarray]:
  """The arrays of a row that holds nothing, for a `PipelineConfig` and latents of Z channels."""
  L, S, M, cells = c.row_len, c.max_segments, c.text_row_len, int(np.prod(c.patch))
  row = {
    "patch": np.zeros((L, cells * channels), np.float32),
    "segment": np.full(L, PAD_SEGMENT, np.int32),
    "coord": np.zeros((L, 3), np.int32),
    "slot": np.zeros(L, np.int32),
    "grid": np.zeros((S, 3), np.int32),
    "fps": np.zeros(S, np.float32),
    "slots": np.zeros(S, np.int32),
    "text": np.zeros(M, np.int32),
    "text_segment": np.full(M, PAD_SEGMENT, np.int32),
    "clip": np.full(S, -1, np.int32),
  }
  if c.caption_shots:
    row["slot_text"], row["one_time"] = np.zeros(c.max_slots, np.int32), np.zeros(S, bool)
  if c.prompts is not None:
    row["known"] = np.zeros((L, cells * c.frames_per_latent), np.uint8)
    row["canvas"] = np.zeros((L, cells * channels), np.float32)
    if c.prompts.staged:
      row["staged"] = np.zeros(S, bool)
  return row


def build_row(plan: StreamPlan, visits: np.ndarray, kept: np.ndarray) -> dict:
  """Reads the clips of a row and lays them out; no visits give an empty row.

  Returns: the arrays of `pipeline.packed_rows` without their leading axis R.
  """
  c = plan.config
  row = empty_row(c, plan.table.channels)
  start = text_start = texts = slot = 0
  slots_left = c.max_slots - len(visits)
  for s, (visit, n) in enumerate(zip(visits, kept)):
    index, kind, _ = plan.choose(int(visit))
    clip, grid, end = plan.source[index], plan.table.grid_N3[index], start + int(n)
    patch_NP = plan.patchify(clip.latent_thwZ, c.patch)
    coord_N3 = np.stack(np.unravel_index(np.arange(len(patch_NP)), grid), axis=-1)
    stays = np.arange(len(patch_NP))
    if n < len(patch_NP):
      stays = np.sort(plan.rng(int(visit), _CELLS).permutation(len(patch_NP))[:n])
    row["patch"][start:end], row["coord"][start:end] = patch_NP[stays], coord_N3[stays]
    row["segment"][start:end] = s + 1
    own_times = staged = False
    if c.prompts is not None:
      known_thwF, canvas_thwZ, own_times, staged = plan.prompt(int(visit), clip)
      row["known"][start:end] = plan.patchify(known_thwF, c.patch)[stays]
      row["canvas"][start:end] = plan.patchify(canvas_thwZ, c.patch)[stays]
    row["slots"][s] = 1
    if (own_times or staged or kind == "shots") and grid[0] - 1 <= slots_left:
      row["slot"][start:end], row["slots"][s] = coord_N3[stays, 0], grid[0]
      slots_left -= grid[0] - 1
      if staged:
        row["staged"][s] = True
    elif kind == "shots":
      kind = "short"  # of which the text takes no more room
    row["grid"][s], row["clip"][s] = grid, index
    row["fps"][s] = clip.fps or 0.0
    words, number_q = plan.words(clip, kind, int(row["slots"][s]))
    if c.caption_shots:
      row["slot_text"][slot : slot + len(number_q)] = texts + 1 + number_q
      row["one_time"][s] = not own_times
    for number, ids in enumerate(map(plan.tokenize, words), texts + 1):
      text_end = text_start + len(ids)
      row["text"][text_start:text_end], row["text_segment"][text_start:text_end] = ids, number
      text_start = text_end
    start, texts, slot = end, texts + len(words), slot + len(number_q)
  return row


class Rows(grain.IterDataset):
  """Rows of several streams in turn; what worker processes run.

  Args:
    plan: of all streams.
    order: stream numbers; row i comes from stream order[i % len(order)].
    states: saved state of each stream, as JSON text; a stream without one starts anew.

  Every row carries "stream" and "state", the stream's JSON state after it. Where streams end, rows
  without clips follow without end.
  """

  def __init__(self, plan: StreamPlan, order: Sequence[int], states: dict[int, str]):
    super().__init__()
    self._plan, self._order, self._states = plan, list(order), dict(states)

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Keeps one worker's rows: grain deals them round robin, so every streams' nth."""
    del sequential_slice
    self._order = self._order[sl]

  def __iter__(self):
    return _RowIterator(self._plan, self._order, self._states)


class _RowIterator(grain.DatasetIterator):
  """Holds one packer per stream. Its state is kept by the batches, which know every stream."""

  def __init__(self, plan: StreamPlan, order: list[int], states: dict[int, str]):
    super().__init__()
    self._plan, self._order, self._next = plan, order, 0
    self._streams = {stream: iter(plan.packer(stream)) for stream in order}
    for stream in order:
      if stream in states:
        self._streams[stream].set_state(json.loads(states[stream]))

  def __next__(self) -> dict:
    stream = self._order[self._next % len(self._order)]
    self._next += 1
    try:
      packed = next(self._streams[stream])
    except StopIteration:
      packed = {"visits": np.zeros(0, np.int64), "kept": np.zeros(0, np.int64)}
    row = build_row(self._plan, packed["visits"], packed["kept"])
    return row | {"stream": stream, "state": json.dumps(self._streams[stream].get_state())}

  def get_state(self) -> dict:
    return {"next": self._next}

  def set_state(self, state: dict) -> None:
    if state["next"] != self._next:
      raise ValueError("rows are restored through PackedBatches, which saves every stream's state")
