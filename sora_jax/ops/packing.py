"""What the device does with segment ids: time slots, per-segment gathers, masks, unpacking.

A row of L tokens holds up to S segments (clips), numbered from 1 in contiguous runs; 0 is padding.
Each token names a time slot of its own segment; the row's table of Q slots holds the time of each.
One mechanism so serves one time per clip, clean prompt tokens, and one time per latent frame.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sora_jax.shapes import PAD_SEGMENT, Grid


class Layout(NamedTuple):
  """Where everything lies in packed rows: all that a network needs beside the tokens.

  Attributes:
    segment_RL: segment of each token, 0 = padding, 1..S.
    coord_RL3: (t, y, x) of each token in its segment's token grid.
    slot_RL: slot of each token in the row's table of times (padding points at slot 0).
    slot_segment_RQ: segment that owns each slot, 0 = unused.
    grid_RS3: token grid (t, h, w) of each segment, 0 = unused segment.
    fps_RS: frames of pixels per second of each segment, 0 for pictures and unused segments.
    text_segment_RM: text that each text token is part of, 0 = padding; texts are numbered from 1 in
      the order of what reads them, so a segment's only text has the segment's number.
    slot_text_RQ: text that each slot reads; None = that of its segment. A clip whose prompt changes
      has a slot, and with it a text, for each latent frame.
  """

  segment_RL: Array
  coord_RL3: Array
  slot_RL: Array
  slot_segment_RQ: Array
  grid_RS3: Array
  fps_RS: Array
  text_segment_RM: Array
  slot_text_RQ: Array | None = None

  @property
  def text_RL(self) -> Array:
    """Text that each token reads, 0 = none."""
    if self.slot_text_RQ is None:
      return self.segment_RL
    text_RL = jnp.take_along_axis(self.slot_text_RQ, self.slot_RL, axis=1, mode="clip")
    return jnp.where(self.segment_RL != PAD_SEGMENT, text_RL, PAD_SEGMENT)


def slot_table(
  segment_RL: Int[Array, "R L"],
  slot_RL: Int[Array, "R L"],
  slots_RS: Int[Array, "R S"],
  num_slots: int,
) -> tuple[Int[Array, "R L"], Int[Array, "R Q"]]:
  """Numbers the time slots of a row one after the other, segment by segment.

  Args:
    segment_RL: segment of each token.
    slot_RL: slot of each token WITHIN its segment, from 0.
    slots_RS: number of slots of each segment, 0 where unused.
    num_slots: Q, the size of the row's table. Rows whose segments ask for more lose the excess:
      their tokens point at the last slot, so check `slots_RS.sum(1) <= num_slots` on the host.
  Returns: the slot of each token in the row's table, and the segment that owns each slot.
  """
  end_RS = jnp.cumsum(slots_RS, axis=1)
  start_RS = end_RS - slots_RS
  start_RL = take_segments(start_RS, segment_RL)
  global_RL = jnp.clip(start_RL + slot_RL, 0, num_slots - 1)
  global_RL = jnp.where(segment_RL == PAD_SEGMENT, 0, global_RL)
  index_Q = jnp.arange(num_slots)
  started_RQS = index_Q[None, :, None] >= end_RS[:, None, :]
  owner_RQ = 1 + started_RQS.sum(-1)
  owner_RQ = jnp.where(index_Q[None, :] < end_RS[:, -1:], owner_RQ, PAD_SEGMENT)
  return global_RL, owner_RQ.astype(segment_RL.dtype)


def layout_of(batch: dict, num_slots: int | None = None) -> Layout:
  """Layout of a packed batch as the pipeline yields it.

  Args:
    batch: dict with `segment`, `coord`, `slot`, `slots`, `grid`, `fps` and `text_segment`; with
      `slot_text` i32 [R, Q] too where prompts change within clips.
    num_slots: Q; by default that of `slot_text`, or else the number of segments S.
  Returns: the `Layout`.
  """
  slots_RS = jnp.asarray(batch["slots"])
  slot_text_RQ = None if "slot_text" not in batch else jnp.asarray(batch["slot_text"])
  if num_slots is None:
    num_slots = (slots_RS if slot_text_RQ is None else slot_text_RQ).shape[1]
  segment_RL = jnp.asarray(batch["segment"])
  slot_RL, slot_segment_RQ = slot_table(segment_RL, jnp.asarray(batch["slot"]), slots_RS, num_slots)
  return Layout(
    segment_RL=segment_RL,
    coord_RL3=jnp.asarray(batch["coord"]),
    slot_RL=slot_RL,
    slot_segment_RQ=slot_segment_RQ,
    grid_RS3=jnp.asarray(batch["grid"]),
    fps_RS=jnp.asarray(batch["fps"]),
    text_segment_RM=jnp.asarray(batch["text_segment"]),
    slot_text_RQ=slot_text_RQ,
  )


def take_segments(table_RSX: Array, segment_RL: Int[Array, "R L"]) -> Array:
  """Gives each token its segment's entry of a per-segment table; padding gets 0.

  Args:
    table_RSX: `[R, S, ...]`, entry s - 1 belongs to segment s.
    segment_RL: segment of each token (or of each slot).
  Returns: `[R, L, ...]` in the table's dtype.
  """
  index_RL = jnp.maximum(segment_RL - 1, 0)
  taken = jax.vmap(lambda table, index: jnp.take(table, index, axis=0, mode="clip"))(
    table_RSX, index_RL
  )
  real = (segment_RL != PAD_SEGMENT).reshape(*segment_RL.shape, *(1,) * (taken.ndim - 2))
  return jnp.where(real, taken, jnp.zeros((), taken.dtype))


def take_slots(time_RQ: Float[Array, "R Q"], slot_RL: Int[Array, "R L"]) -> Float[Array, "R L"]:
  """Gives each token the entry of its time slot (padding points at slot 0)."""
  return jnp.take_along_axis(time_RQ, slot_RL, axis=1, mode="clip")


def same_times(
  time_RQ: Float[Array, "R Q"], layout: Layout, slots_RS: Int[Array, "R S"],
  same_RS: Bool[Array, "R S"],
) -> Float[Array, "R Q"]:  # fmt: skip
  """Times in which all slots of the segments named by `same_RS` have that of their first slot."""
  first_RS = jnp.cumsum(slots_RS, axis=1) - slots_RS
  first_RS = jnp.take_along_axis(time_RQ, first_RS, axis=1, mode="clip")
  same_RQ = take_segments(same_RS, layout.slot_segment_RQ)
  return jnp.where(same_RQ, take_segments(first_RS, layout.slot_segment_RQ), time_RQ)


def slots_away(
  told_RL: Bool[Array, "R L"], slot_RL: Int[Array, "R L"], slot_segment_RQ: Int[Array, "R Q"]
) -> Int[Array, "R Q"]:
  """How many slots of its segment lie between each slot and the nearest one with a token that is
  told something, that one counted: 0 for such a slot itself; Q where a segment has none.
  """
  Q = slot_segment_RQ.shape[1]
  index_Q = jnp.arange(Q)
  told_RQ = ((slot_RL[:, None, :] == index_Q[None, :, None]) & told_RL[:, None, :]).any(-1)
  gap_1QQ = jnp.abs(index_Q[None, :, None] - index_Q[None, None, :])
  seen_RQQ = (slot_segment_RQ[:, :, None] == slot_segment_RQ[:, None, :]) & told_RQ[:, None, :]
  return jnp.where(seen_RQQ, gap_1QQ, Q).min(-1)


def members(segment_RL: Int[Array, "R L"], num_segments: int) -> Bool[Array, "R S L"]:
  """Which tokens belong to which segment, entry s - 1 for segment s."""
  index_S = 1 + jnp.arange(num_segments, dtype=segment_RL.dtype)
  return segment_RL[:, None, :] == index_S[None, :, None]


def segment_sums(
  values_RL: Float[Array, "R L"], segment_RL: Int[Array, "R L"], num_segments: int
) -> Float[Array, "R S"]:
  """Sums a per-token value over each segment; padding is left out, whatever it holds."""
  member_RSL = members(segment_RL, num_segments)
  return jnp.where(member_RSL, values_RL[:, None, :], 0.0).sum(-1)


def vector_sums(
  values_RLX: Float[Array, "R L X"], segment_RL: Int[Array, "R L"], num_segments: int
) -> Float[Array, "R S X"]:
  """`segment_sums` of vectors, as one matrix product, in full float32 on accelerators, too."""
  values_RLX = jnp.where((segment_RL != PAD_SEGMENT)[..., None], values_RLX, 0.0)
  member_RSL = members(segment_RL, num_segments).astype(values_RLX.dtype)
  full = jax.lax.Precision.HIGHEST
  return jnp.einsum("RSL,RLX->RSX", member_RSL, values_RLX, precision=full)


def segment_lengths(segment_RL: Int[Array, "R L"], num_segments: int) -> Int[Array, "R S"]:
  """Number of tokens of each segment."""
  return members(segment_RL, num_segments).sum(-1)


def shared_segment(
  segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"]
) -> Bool[Array, "R L M"]:
  """Which queries may see which keys: those of the same segment, padding never."""
  same = segment_RL[:, :, None] == segment_RM[:, None, :]
  return same & (segment_RL != PAD_SEGMENT)[:, :, None]


def unpack(values: np.ndarray | Array, segment_RL: np.ndarray | Array) -> list[list[np.ndarray]]:
  """Splits packed values by segment, on the host.

  Args:
    values: `[R, L, ...]`. segment_RL: segment of each token.
  Returns: for each row, the segments' values `[N, ...]` in order of their number.
  """
  values, segment_RL = np.asarray(values), np.asarray(segment_RL)
  return [
    [row[segment == number] for number in range(1, segment.max(initial=0) + 1)]
    for row, segment in zip(values, segment_RL)
  ]


def token_coords(grid: Sequence[int]) -> np.ndarray:
  """Coordinates (t, y, x) of the tokens of a grid, int32 `[N, 3]`, in patchify's order."""
  return np.indices(tuple(grid), dtype=np.int32).reshape(3, -1).T


def place(
  rows: Sequence[Sequence[tuple[Sequence[int], float]]],
  row_len: int,
  max_segments: int,
) -> dict[str, np.ndarray]:
  """Lays segments out in rows, on the host: the tables of a packed batch without its contents.

  Args:
    rows: for each row, its segments as (token grid (t, h, w), frames per second, 0 = picture).
    row_len: L. max_segments: S.
  Returns: `segment`, `coord`, `slot`, `grid`, `fps`, `slots` as the pipeline yields them.
  Raises: ValueError if a row holds too many tokens or segments.
  """
  R = len(rows)
  out = {
    "segment": np.zeros((R, row_len), np.int32),
    "coord": np.zeros((R, row_len, 3), np.int32),
    "slot": np.zeros((R, row_len), np.int32),
    "grid": np.zeros((R, max_segments, 3), np.int32),
    "fps": np.zeros((R, max_segments), np.float32),
    "slots": np.zeros((R, max_segments), np.int32),
  }
  for r, row in enumerate(rows):
    lengths = [Grid(*grid).size for grid, _ in row]
    if sum(lengths) > row_len or len(row) > max_segments:
      raise ValueError(
        f"row {r} needs {sum(lengths)} tokens in {len(row)} segments; a row has {row_len} tokens "
        f"and {max_segments} segments; raise row_len or max_segments, or use more rows"
      )
    start = 0
    for s, ((grid, fps), length) in enumerate(zip(row, lengths)):
      here = slice(start, start + length)
      out["segment"][r, here] = s + 1
      out["coord"][r, here] = token_coords(grid)
      out["grid"][r, s], out["fps"][r, s], out["slots"][r, s] = grid, fps, 1
      start += length
  return out
