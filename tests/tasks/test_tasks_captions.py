"""Captions of other clips: every clip reads one, its own texts are none, and the gain is theirs."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.records import Clip
from sora_jax.diffusion import loss as loss_lib
from sora_jax.ops import packing
from sora_jax.ops.patchify import patchify
from sora_jax.tasks import captions
from sora_jax.tasks.clips import Sources
from sora_jax.tasks.text_to_video import DiffusionConfig, HeldOutLoss, TextToVideo
from sora_jax.train.task import Ratio

IDS = {1: (5, 6), 2: (7, 8, 9), 3: (4,), 4: (3, 2)}


def batch_of(rows, words=9, slot_text=None, slots=None):
  """A batch of the texts' numbers in IDS, by row; with slot_text also of those of each slot."""
  S = max(map(len, rows))
  text, segment = np.zeros((2, len(rows), words), np.int32)
  for r, row in enumerate(rows):
    ids = [(n, s) for s, number in enumerate(row, 1) for n in IDS[number]]
    text[r, : len(ids)], segment[r, : len(ids)] = np.array(ids).reshape(-1, 2).T
  one = np.array([[1] * len(row) + [0] * (S - len(row)) for row in rows], np.int32)
  batch = {"text": text, "text_segment": segment, "slots": one}
  return batch if slot_text is None else batch | {"slot_text": slot_text, "slots": slots}


def read_in(batch):
  """The texts' numbers in IDS, by row, in the order in which they lie."""
  number = {ids: n for n, ids in IDS.items()}
  return [
    [number[tuple(text[segment == s])] for s in range(1, segment.max() + 1)]
    for text, segment in zip(batch["text"], batch["text_segment"])
  ]


def test_each_clip_reads_the_caption_of_the_one_before_it_across_rows():
  batch = batch_of([[1], [2, 3], [4]])
  others, changed_RS = captions.exchanged(batch)
  assert read_in(others) == [[4], [1, 2], [3]]
  np.testing.assert_array_equal(changed_RS, batch["slots"] > 0)
  for name, array in batch.items():
    assert (others[name].shape, others[name].dtype) == (array.shape, array.dtype)


def test_a_caption_that_says_the_same_or_finds_no_room_is_passed_by():
  others, changed_RS = captions.exchanged(batch_of([[1], [1], [4], [2]], words=3))
  assert read_in(others) == [[2], [2], [1], [4]] and changed_RS.all()
  others, changed_RS = captions.exchanged(batch_of([[1, 3], [2]], words=3))
  assert read_in(others) == [[3, 1], [3]] and changed_RS[0].all() and changed_RS[1, 0]
  others, changed_RS = captions.exchanged(batch_of([[2], [2]]))
  assert read_in(others) == [[2], [2]] and not changed_RS.any()


def test_captions_of_shots_are_those_of_another_clip_and_stay_in_order():
  slot_text = np.array([[1, 1, 2, 3, 0], [1, 0, 0, 0, 0]], np.int32)
  slots = np.array([[3, 1], [1, 0]], np.int32)
  batch = batch_of([[1, 2, 3], [4]], 9, slot_text, slots)  # two shots, and two clips of one text
  others, changed_RS = captions.exchanged(batch)
  assert read_in(others) == [[4, 1], [3]]
  np.testing.assert_array_equal(others["slot_text"], [[1, 1, 1, 2, 0], [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(changed_RS, slots > 0)
  alone, changed_RS = captions.exchanged({name: array[:1] for name, array in batch.items()})
  assert read_in(alone) == [[3, 1]] and changed_RS.all()
  slot_text, slots = np.array([[1, 1, 2]], np.int32), np.array([[3]], np.int32)
  lone, changed_RS = captions.exchanged(batch_of([[1, 2]], 9, slot_text, slots))
  assert read_in(lone) == [[1, 2]] and not changed_RS.any()


class Reader(TextToVideo):
  """A task without networks: its loss is 1 for tokens that read another text than their clip's."""

  def __init__(self, clips):
    config = PipelineConfig(
      rows=3, row_len=8, max_segments=4, text_row_len=8, streams=3, caption_dropout=0.0
    )
    given = {"diffusion": DiffusionConfig(), "pipeline": config, "mesh": None}
    for name, value in (given | {"sources": Sources([], clips)}).items():
      object.__setattr__(self, name, value)

  def _rows(self, source, config):
    return packed_rows(source, config, patchify, lambda text: [ord(c) for c in text])

  def loss(self, params, batch, key, progress):
    segment_RL, S = batch["segment"], batch["grid"].shape[1]
    mean_RS = packing.segment_sums(batch["text"].astype(jnp.float32), batch["text_segment"], S)
    own_RL = batch["patch"][..., 0]  # a clip's latent is its caption's id
    error_RL = (packing.take_segments(mean_RS, segment_RL) != own_RL).astype(jnp.float32)
    packed = loss_lib.packed_loss(error_RL, segment_RL, S, self.diffusion.gamma)
    return Ratio(packed.numerator, packed.denominator), {}


def clips_of(words, tokens):
  return [
    Clip(
      id=str(i), captions={"short": word}, pixel_shape=(1, 2, 2 * n),
      latent_thwZ=np.full((1, 2, 2 * n, 1), ord(word), np.float32),
    )
    for i, (word, n) in enumerate(zip(words, tokens))
  ]  # fmt: skip


@pytest.mark.parametrize("tokens", [[5, 6, 7, 8], [1, 2, 7, 8]])
def test_the_gain_is_of_clips_that_read_another_caption_lone_in_their_rows_or_not(tokens):
  figures = HeldOutLoss(Reader(clips_of("abcd", tokens)), 3)(None, 0, None)
  assert figures == pytest.approx({"loss": 0.0, "caption_gain": 1.0}, abs=1e-6)


def test_there_is_no_gain_where_no_clip_can_read_another_caption():
  assert HeldOutLoss(Reader(clips_of("aaaa", [5, 6, 7, 8])), 2)(None, 0, None) == {"loss": 0.0}


def test_clips_that_keep_their_caption_do_not_thin_the_gain(monkeypatch):
  exchanged = captions.exchanged

  def of_other_rows(batch):
    others, changed_RS = exchanged(batch)
    changed_RS[0] = False
    for name in ("text", "text_segment"):
      others[name][0] = batch[name][0]
    return others, changed_RS

  monkeypatch.setattr(captions, "exchanged", of_other_rows)
  figures = HeldOutLoss(Reader(clips_of("abcd", [5, 6, 7, 8])), 3)(None, 0, None)
  assert figures == pytest.approx({"loss": 0.0, "caption_gain": 1.0}, abs=1e-6)
