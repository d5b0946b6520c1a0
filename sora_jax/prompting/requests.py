"""Requests for samples, packed into rows: the host's side of sampling.

A request is a latent to be made: its token grid, its text, its noise, and perhaps a latent to start
from. Requests of any sizes share rows of one static length, so one program serves them all.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from sora_jax.diffusion import sampler
from sora_jax.ops.packing import place
from sora_jax.ops.patchify import patchify
from sora_jax.shapes import Grid, Patch

EOS_LENGTH = 1
"""Tokens of the empty prompt in every tokenizer here."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One sample to be made.

  Attributes:
    text: the prompt; names the noise together with `seed` and `sample`.
    ids: its token ids.
    later: ((first frame of tokens, token ids), ...) of prompts that take over along the way; `text`
      should name them too.
    grid: (t, h, w) in tokens.
    fps: frames of pixels per second, 0 for a picture.
    guidance: strength for text, 1 = off.
    start_latent: `[t, h, w, Z]` in cells, noised to `start_time` and denoised again (SDEdit,
      arXiv 2108.01073); None starts from noise.
    start_time: in (0, 1], before the shift for size; 1 forgets `start_latent`.
    known: `[t, h, w, F]` in cells, 1 where a frame is known; None where nothing is.
    canvas: `[t, h, w, Z]`, latents of what is known; see `data.known`.
    image_guidance: strength for what is known, 1 = off.
    one_by_one: whether frames of tokens that are next to known ones are made before the rest; how
      far is for `sampling.Method.stages` to say.
    exact: `[t, h, w, Z]` in cells, latents as they will be wherever `is_exact`, bool [t, h, w]: the
      encoder sees nothing there that is not known. These are not left to the network. None: none.
  """

  text: str
  ids: tuple[int, ...]
  grid: Grid
  fps: float
  seed: int = 0
  sample: int = 0
  guidance: float = 1.0
  start_latent: np.ndarray | None = None
  start_time: float = 1.0
  known: np.ndarray | None = None
  canvas: np.ndarray | None = None
  image_guidance: float = 1.0
  later: tuple[tuple[int, tuple[int, ...]], ...] = ()
  exact: np.ndarray | None = None
  is_exact: np.ndarray | None = None
  one_by_one: bool = False

  def __post_init__(self):
    if (self.known is None) != (self.canvas is None):
      raise ValueError("known and canvas come together: which cells are known, and their latents")
    if (self.exact is None) != (self.is_exact is None):
      raise ValueError("exact and is_exact come together: latents, and which of them are exact")
    if not 0.0 < self.start_time <= 1.0:
      raise ValueError(f"start_time={self.start_time}; allowed: above 0, up to 1 (pure noise)")
    if not self.ids:
      raise ValueError("a request needs token ids; even the empty prompt has its end of text")
    if min(self.grid) < 1:
      raise ValueError(f"a grid of {tuple(self.grid)} tokens is empty")
    begins = [0, *(frame for frame, _ in self.later), self.grid[0]]
    if any(a >= b for a, b in zip(begins, begins[1:])) or not all(ids for _, ids in self.later):
      raise ValueError(
        f"prompts take over at frames {begins[1:-1]} of {self.grid[0]}; they must follow each "
        "other, and none may be empty"
      )

  @property
  def texts(self) -> list[tuple[int, ...]]:
    """Token ids of all prompts, in order."""
    return [self.ids, *(ids for _, ids in self.later)]

  @property
  def slots(self) -> int:
    """Time slots that it takes: one, or one for each frame of tokens if its prompt changes or they
    are made one by one."""
    return self.grid[0] if self.later or self.one_by_one else 1

  @property
  def text_of_slot(self) -> list[int]:
    """Which of `texts` each slot reads."""
    frames = np.arange(self.slots)
    return np.searchsorted([frame for frame, _ in self.later], frames, side="right").tolist()


@dataclasses.dataclass(frozen=True)
class RowShape:
  """Static shape of the rows that samples are made in.

  Attributes: row_len: L.  max_segments: S.  text_row_len: M.  rows: R, rows of one call.
    slots: Q, time slots; None = S, as long as no request takes more than one.
  """

  row_len: int
  max_segments: int
  text_row_len: int
  rows: int = 1
  slots: int | None = None


def shape_for(requests: Sequence[Request], base: RowShape) -> RowShape:
  """The rows for some requests: `base`, halved twice for a few small ones, for large ones 1.5, 2,
  3, 4, 6, ... times as long.

  The few steps keep the number of compiled programs small; what is sampled does not depend on them.
  """
  largest = max(r.grid.size for r in requests)
  total = sum(r.grid.size for r in requests)
  row_len = max(base.row_len // 4, 1)
  if total > row_len or len(requests) > base.max_segments:
    row_len = base.row_len
  while row_len < largest:
    row_len *= 2
  if row_len // 4 * 3 >= max(largest, base.row_len + 1):
    row_len = row_len // 4 * 3
  slots = None
  if (most := max(r.slots for r in requests)) > 1:
    slots = 2 * base.max_segments
    while slots < min(sum(r.slots for r in requests), most * base.max_segments):
      slots *= 2
  text_row_len, least = base.text_row_len, (slots or base.max_segments) * EOS_LENGTH
  while text_row_len < max(least, *(text_tokens(r) for r in requests)):
    text_row_len *= 2
  return dataclasses.replace(base, row_len=row_len, text_row_len=text_row_len, slots=slots)


def text_tokens(request: Request) -> int:
  """Text tokens of all its prompts together."""
  return sum(len(ids) for ids in request.texts)


def assign(requests: Sequence[Request], shape: RowShape) -> list[list[int]]:
  """Puts requests into rows, longest first, each into the first row with room.

  Returns: for each row the indices of its requests.  Raises: ValueError if one fits no row.
  """
  rows, left = [], []
  for i in sorted(range(len(requests)), key=lambda i: (-requests[i].grid.size, i)):
    need = requests[i].grid.size, text_tokens(requests[i]), 1, requests[i].slots
    fitting = (k for k, room in enumerate(left) if all(n <= r for n, r in zip(need, room)))
    k = next(fitting, len(rows))
    if k == len(rows):
      room = [shape.row_len, shape.text_row_len, shape.max_segments]
      room.append(shape.slots or shape.max_segments)
      if any(n > r for n, r in zip(need, room)):
        raise ValueError(
          f"request {i} ({requests[i].text!r}) needs {need[0]} tokens and {need[1]} text tokens; "
          f"a row has {room[0]} and {room[1]}. Ask for a smaller size, fewer frames or less text"
        )
      rows.append([])
      left.append(room)
    rows[k].append(i)
    left[k] = [r - n for n, r in zip(need, left[k])]
  return rows


def batches(
  requests: Sequence[Request],
  shape: RowShape,
  patch: Patch,
  channels: int,
  frames: int,
  null_ids: tuple[int, ...],
) -> list[tuple[dict[str, np.ndarray], list[list[int]]]]:
  """Packed inputs of the sampling program, one for each call of it.

  Args: patch: latent cells of a token.  channels: Z.  frames: F, of a latent frame.
    null_ids: ids of the empty prompt.
  Returns: (batch, indices of the requests of each row, in order of their segments). A batch has
    the tables of `ops.packing.place`; `text`, `text_segment`, `null_text`, `null_segment` [R, M];
    `slot_text` i32 [R, Q] if a prompt changes along the way; `key` u32 [R, S, 2] (data of the noise
    keys); `guidance`, `image_guidance`, `start_time` f32 [R, S]; `start`, `canvas`, `exact` f32
    [R, L, P], `known` f32 [R, L, cells F] and `is_exact` f32 [R, L, cells].
  """
  rows = assign(requests, shape)
  calls = []
  for first in range(0, len(rows), shape.rows):
    group = rows[first : first + shape.rows]
    group = group + [[]] * (shape.rows - len(group))
    calls.append((_batch(requests, group, shape, patch, channels, frames, null_ids), group))
  return calls


def _batch(requests, group, shape, patch, channels, frames, null_ids) -> dict[str, np.ndarray]:
  R, L, S, M = shape.rows, shape.row_len, shape.max_segments, shape.text_row_len
  tables = place([[(requests[i].grid, requests[i].fps) for i in row] for row in group], L, S)
  tables |= {
    name: np.zeros((R, M), np.int32)
    for name in ("text", "text_segment", "null_text", "null_segment")
  }
  tables["key"] = np.zeros((R, S, 2), np.uint32)
  for name in ("guidance", "image_guidance", "start_time"):
    tables[name] = np.ones((R, S), np.float32)
  for name, depth in (
    ("start", channels), ("canvas", channels), ("exact", channels), ("known", frames),
    ("is_exact", 1),
  ):  # fmt: skip
    tables[name] = np.zeros((R, L, patch.t * patch.h * patch.w * depth), np.float32)
  if shape.slots is not None:
    tables["slot_text"] = np.zeros((R, shape.slots), np.int32)
  for r, row in enumerate(group):
    if shape.slots is not None:
      _number_texts(tables["slot_text"][r], [requests[i] for i in row])
    texts = [ids for i in row for ids in requests[i].texts]
    _pack_text(tables, r, "text", "text_segment", texts)
    _pack_text(tables, r, "null_text", "null_segment", [null_ids] * len(texts))
    for s, i in enumerate(row):
      q = requests[i]
      tables["key"][r, s] = jax.random.key_data(sampler.sample_key(q.seed, q.text, q.sample))
      for name in ("guidance", "image_guidance", "start_time"):
        tables[name][r, s] = getattr(q, name)
      here = tables["segment"][r] == s + 1
      if q.slots > 1:
        tables["slots"][r, s], tables["slot"][r, here] = q.slots, tables["coord"][r, here, 0]
      marks = None if q.is_exact is None else q.is_exact[..., None]
      for name, cells in (
        ("start", q.start_latent), ("canvas", q.canvas), ("known", q.known), ("exact", q.exact),
        ("is_exact", marks),
      ):  # fmt: skip
        if cells is not None:
          tables[name][r, here] = patchify(np.asarray(cells, np.float32), patch)
  return tables


def _number_texts(slot_text_Q: np.ndarray, row: Sequence[Request]) -> None:
  """Writes which text of the row each of its slots reads, in the order of both."""
  slot = number = 0
  for request in row:
    slot_text_Q[slot : slot + request.slots] = np.add(request.text_of_slot, number + 1)
    slot, number = slot + request.slots, number + len(request.texts)


def _pack_text(tables, r: int, name: str, segment_name: str, texts) -> None:
  at = 0
  for s, ids in enumerate(texts):
    tables[name][r, at : at + len(ids)] = ids
    tables[segment_name][r, at : at + len(ids)] = s + 1
    at += len(ids)
