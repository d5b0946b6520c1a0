"""Verbs: the size of what they make, and what they refuse before anything is made."""

import types

import numpy as np
import pytest

from sora_jax.prompting import tasks, verbs
from sora_jax.shapes import Patch


class Recorder(verbs.Verbs):
  """Keeps the timelines that it is asked to make; what they leave open becomes black."""

  defaults, patch = {"fps": 8.0}, Patch(1, 2, 2)
  autoencoder = types.SimpleNamespace(temporal=4, spatial=2)

  def __init__(self, row_len=56, prompted=True):
    self.lines, self.prompted = [], prompted
    self.sampler = types.SimpleNamespace(row_len=row_len)

  def make(self, line, **how):
    self.lines.append(line)
    return self.finish(line, np.zeros_like(line.pixels_THWC))


def video(frames, width=16, height=8):
  """By default 4x2 tokens a frame."""
  return np.full((frames, height, width, 3), 7, np.uint8)


@pytest.mark.parametrize(
  ("call", "shown"),
  [
    (lambda model: model.animate(video(1), "p", frames=13), 13),
    (lambda model: model.extend(video(20), "p", forward=4), 13),
    (lambda model: model.extend(video(20), "p", backward=4), 13),
    (lambda model: model.extend(video(20), "p", forward=2, backward=2), 24),
    (lambda model: model.extend(video(5), "p", forward=4), 9),
    (lambda model: model.connect(video(20), video(15), "p", 41), 24),
    (lambda model: model.connect(video(4), video(15), "p", 25), 19),
    (lambda model: model.loop(video(20), "p", 28), 26),
    (lambda model: model.loop(video(6), "p", 14), 20),
    (lambda model: model.edit(video(9), "p"), 9),
    (lambda model: model.interpolate(video(5), "p", 3), 13),
  ],
)
def test_a_clip_is_made_smaller_if_what_is_shown_of_it_exceeds_a_row(call, shown):
  tokens = (1 + -(-(shown - 1) // 4)) * 8
  for row_len, fits in ((tokens, True), (tokens - 1, False)):
    model = Recorder(row_len)
    made = call(model)
    assert model.lines[0].frames == shown
    assert (made.shape[1:3] == (8, 16)) == fits and made.shape[2] <= 16


@pytest.mark.parametrize(("size", "expected"), [(None, verbs.DEFAULT_SIZE), ((12, 8), (12, 8))])
def test_a_loop_from_text_has_one_size_from_its_first_half_on(size, expected):
  model = Recorder(row_len=8)
  made = model.loop(None, "p", 16, size)
  assert [line.size for line in model.lines] == [expected] * 2
  assert made.shape == (16, *expected[::-1], 3)
  assert [len(each) for each in model.loop(None, "p", 6, size, seed=[0, 1])] == [6, 6]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda m: m.loop(None, "p", tasks.GUARD), "frames is 5; a loop made from text has at least 6"),
    (lambda m: m.loop(None, [(0, "a"), (20, "b")], 18), r"prompts begin at frames \[0, 20\] of 18"),
    (lambda m: m.loop(None, "p", 16, (0, 8)), "size is 0x8"),
    (lambda m: m.loop(None, "p", 10**9), "frames is 1000000000; at most 100000 are made at once"),
    (lambda m: m.loop(video(5), "p", 10**9), "frames is 1000000005; at most 100000"),
    (lambda m: m.animate(video(1), "p", frames=10**9), "frames is 1000000000; at most 100000"),
    (lambda m: m.animate(video(1), "p", (8, 8), 10**9), "frames is 1000000000; at most 100000"),
    (lambda m: m.extend(video(20), "p", backward=10**9), "frames is 1000000009; at most 100000"),
    (lambda m: m.connect(video(1), video(1), "p", 10**9), "frames is 1000000000; at most 100000"),
    (lambda m: m.interpolate(video(2), "p", 10**9), "frames is 1000000001; at most 100000"),
    (lambda m: m.extend(video(0), "p", 1, size=(8, 8)), r"got uint8 \(0, 8, 16, 3\); a video is"),
    (
      lambda m: m.edit(video(2) / 255, "p", size=(8, 8)),
      r"got float64 \(2, 8, 16, 3\); a video is",
    ),
    (lambda m: m.outpaint(video(0), "p", (32, 8)), r"got uint8 \(0, 8, 16, 3\); a video is"),
    (lambda m: m.interpolate(video(2) / 255, "p", 2, (16, 8)), r"got float64 \(2, 8, 16, 3\)"),
    (lambda m: m.inpaint(video(0), np.ones((8, 16), bool), "p"), r"got uint8 \(0, 8, 16, 3\)"),
    (lambda m: m.loop(np.zeros((9, 8, 16)), "p", 16), r"got float64 \(1, 9, 8, 16\)"),
  ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(call, message):
  model = Recorder()
  with pytest.raises(ValueError, match=message):
    call(model)
  assert not model.lines


def test_a_loop_from_text_asks_first_whether_it_can_be_led_back():
  model = Recorder(prompted=False)
  with pytest.raises(ValueError, match="has not seen image or video prompts .* generate and edit"):
    model.loop(None, "p", 16)
  assert not model.lines
