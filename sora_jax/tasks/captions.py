"""Captions of other clips: what a model that reads its own must find wrong."""

import itertools

import numpy as np

from sora_jax.shapes import PAD_SEGMENT


def exchanged(batch: dict) -> tuple[dict, np.ndarray]:
  """A packed batch whose clips read the captions of other clips, on the host.

  Each takes that of the nearest clip before it in the batch, across rows, that says something else
  and for which its row has room; one that finds none keeps its own. Captions of shots go together:
  a clip's latent frames share out those of the other clip, in order, and read the first of them
  where they share a time slot.

  Returns: the batch, and bool [R, S], which clips read another caption than before.
  """
  R, M = batch["text"].shape
  clips = [(int(r), int(s)) for r, s in np.argwhere(batch["slots"] > 0)]
  own = [_texts_of(batch, r, s) for r, s in clips]
  room = [M - sum(_size(own[i]) for i, (row, _) in enumerate(clips) if row == r) for r in range(R)]
  read, changed_RS = list(own), np.zeros(batch["slots"].shape, bool)
  for i, (r, s) in enumerate(clips):
    for back in range(1, len(clips)):
      other = own[i - back]
      found = [other[q * len(other) // len(own[i])] for q in range(len(own[i]))]
      more = _size(found) - _size(own[i])
      if found != own[i] and more <= room[r]:
        read[i], changed_RS[r, s] = found, True
        room[r] -= more
        break
  return batch | _tables(batch, clips, read), changed_RS


def _texts_of(batch: dict, r: int, s: int) -> list[tuple]:
  """Ids of the text that each slot of a clip reads; one for all slots without captions of shots."""
  numbers = [s + 1]
  if "slot_text" in batch:
    start = int(batch["slots"][r, :s].sum())
    numbers = batch["slot_text"][r, start : start + int(batch["slots"][r, s])]
  return [tuple(batch["text"][r, batch["text_segment"][r] == n].tolist()) for n in numbers]


def _size(texts: list[tuple]) -> int:
  """Ids that the texts of one clip's slots take, of slots that go on with a text only once."""
  return sum(len(ids) for ids, _ in itertools.groupby(texts))


def _tables(batch: dict, clips: list[tuple[int, int]], read: list[list[tuple]]) -> dict:
  """The arrays that tell what clips read, for the texts of their slots."""
  names = ("text", "text_segment", "slot_text")
  tables = {name: np.zeros_like(batch[name]) for name in names if name in batch}
  tables["text_segment"][:] = PAD_SEGMENT
  for r, of_row in itertools.groupby(zip(clips, read), lambda pair: pair[0][0]):
    start = slot = number = 0
    for _, texts in of_row:
      for ids, same in itertools.groupby(texts):
        number, end, slots = number + 1, start + len(ids), len(list(same))
        tables["text"][r, start:end], tables["text_segment"][r, start:end] = ids, number
        if "slot_text" in tables:
          tables["slot_text"][r, slot : slot + slots] = number
        start, slot = end, slot + slots
  return tables
