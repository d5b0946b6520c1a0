"""Streams that drop tokens: for how long, the same from every state, and states of before."""

import dataclasses
import json

import numpy as np

from sora_jax.data.packing import TokenDrop
from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.records import Clip
from sora_jax.ops.patchify import patchify

WHOLE = PipelineConfig(
  rows=4, row_len=256, max_segments=8, text_row_len=64, streams=4, window=8, caption_dropout=0.0
)


def batches_of(steps):
  """Batches whose rows one whole clip fills little more than half, less what is dropped of it."""
  rng = np.random.default_rng(0)
  clips = [
    Clip(
      id=f"clip {i}", fps=8.0, captions={"short": f"s{i}"}, pixel_shape=(9, 160, 80),
      latent_thwZ=rng.standard_normal((3, 20, 10, 2)).astype(np.float32),
    )
    for i in range(16)
  ]  # fmt: skip
  drop = TokenDrop(steps=steps, share=1.0) if steps else None
  config = dataclasses.replace(WHOLE, token_drop=drop)
  return iter(packed_rows(clips, config, patchify, lambda text: [ord(c) for c in text] + [1]))


def kept(batch):
  return (batch["segment"] > 0).sum() / batch["grid"].prod(-1).sum()


def test_dropping_ends_at_its_share_of_the_steps_in_rows_that_are_not_full():
  iterator = batches_of(200)
  shares = [kept(next(iterator)) for _ in range(200)]
  assert np.mean(shares[:140]) < 0.85
  assert np.mean(shares[140:170]) < 0.95 and min(shares[175:]) == 1.0


def test_dropping_is_the_same_from_every_state():
  iterator = batches_of(24)
  states, batches = [], []
  for _ in range(32):
    states.append(json.loads(json.dumps(iterator.get_state())))
    batches.append(next(iterator))
  assert min(map(kept, batches[:16])) < 1 == kept(batches[-1])
  for step in (0, 1, *range(5, 32, 4)):
    again = batches_of(24)
    again.set_state(states[step])
    assert again.get_state() == states[step]
    np.testing.assert_equal([next(again) for _ in range(32 - step)], batches[step:])


def former(state):
  """A state as it was before rows were counted."""
  streams = {stream: json.loads(text) for stream, text in state["streams"].items()}
  for told in streams.values():
    assert set(told["parent"]) == {"next", "tokens", "rows", "gaps"}
    told["parent"] = {name: told["parent"][name] for name in ("next", "tokens")}
  return state | {"streams": {stream: json.dumps(told) for stream, told in streams.items()}}


def test_states_of_before_rows_were_counted_go_on_as_they_began():
  iterator = batches_of(60)
  first = next(iterator)
  early, rest = former(iterator.get_state()), [next(iterator) for _ in range(59)]
  again = batches_of(60)
  again.set_state(early)
  np.testing.assert_equal([next(again) for _ in range(59)], rest)
  assert kept(first) < 1 == kept(rest[-1])
  iterator = batches_of(60)
  for _ in range(40):
    next(iterator)
  again.set_state(former(iterator.get_state()))
  assert [kept(next(again)) for _ in range(20)][-1] == 1


def test_states_of_streams_that_drop_nothing_are_as_they_were():
  (text, *_) = batches_of(0).get_state()["streams"].values()
  assert json.loads(text)["parent"] == {"next": 0, "tokens": 0}
