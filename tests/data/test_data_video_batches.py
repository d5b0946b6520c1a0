"""Pixel batches for the VAE: cuts are real, order is fixed, buckets have one shape each."""

import collections
import dataclasses
import multiprocessing
import os
import signal

import grain
import numpy as np
import pytest

from sora_jax.data.crop import crop
from sora_jax.data.records import Clip
from sora_jax.data.video_batches import VideoConfig, video_batches
from sora_jax.shapes import Share

CONFIG = VideoConfig(
  sizes=((8, 8), (16, 8)), frames=(1, 5), batch_pixels=2 * 5 * 8 * 16, seed=1, prefetch=1
)


def make_clips():
  """Clips whose pixels tell where they are: channels hold time, row and column."""
  clips = []
  for i, (T, H, W) in enumerate([(9, 8, 16), (5, 12, 20), (1, 16, 16), (7, 8, 8)]):
    video_THWC = np.stack(np.indices((T, H, W)), axis=-1).astype(np.uint8)
    clips.append(Clip(id=f"clip {i}", video_THWC=video_THWC, fps=8.0, latent_source="x"))
  return clips


def take(config, count):
  iterator = iter(video_batches(make_clips(), config))
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def test_cuts_are_contiguous_and_as_their_bucket_says():
  clips, shapes, starts = make_clips(), set(), set()
  for batch in take(CONFIG, 60):
    B, T, H, W, _ = batch["video"].shape
    shapes.add((B, T, H, W))
    for video_THWC, index in zip(batch["video"], batch["clip"]):
      t, y, x = (int(n) for n in video_THWC[0, 0, 0])
      starts.add((index, t, y, x))
      source_THWC = clips[index].video_THWC
      np.testing.assert_array_equal(video_THWC, source_THWC[t : t + T, y : y + H, x : x + W])
  assert shapes == {(20, 1, 8, 8), (4, 5, 8, 8), (10, 1, 8, 16), (2, 5, 8, 16)}
  assert {index for index, *_ in starts} == {0, 1, 2, 3} and len(starts) > 50
  assert all(max(start[axis] for start in starts) > 0 for axis in (1, 2, 3))


def test_every_row_of_every_bucket_takes_all_clips():
  video_THWC = np.zeros((9, 4, 4, 3), np.uint8)
  clips = [Clip(id=f"clip {i}", video_THWC=video_THWC, fps=8.0) for i in range(6)]
  config = VideoConfig(sizes=((4, 4),), frames=(1, 5, 9), batch_pixels=2 * 9 * 4 * 4)
  iterator = iter(video_batches(clips, config, np.array([[9, 4, 4]] * 6)))
  taken = collections.defaultdict(set)
  for batch in (next(iterator) for _ in range(200)):
    for row, index in enumerate(batch["clip"][:2]):
      taken[batch["video"].shape[1], row].add(int(index))
  assert taken == {(T, row): set(range(6)) for T in (1, 5, 9) for row in (0, 1)}


def test_the_checkpoint_law():
  data = video_batches(make_clips(), CONFIG)
  grain.experimental.assert_equal_output_after_checkpoint(
    grain.experimental.LimitIterDataset(data, 4)
  )
  iterator = iter(data)
  batches = [next(iterator) for _ in range(4)]
  again = iter(data)
  again.set_state({"step": 2})
  np.testing.assert_equal([next(again), next(again)], batches[2:])


def test_workers_change_nothing():
  np.testing.assert_equal(take(dataclasses.replace(CONFIG, workers=2), 4), take(CONFIG, 4))


def test_a_killed_worker_is_one_clear_error():
  iterator = iter(video_batches(make_clips(), dataclasses.replace(CONFIG, workers=1)))
  next(iterator)
  for child in multiprocessing.active_children():
    if "grain" in child.name:
      os.kill(child.pid, signal.SIGKILL)
  with pytest.raises(RuntimeError, match="data worker died while step"):
    for _ in range(100):
      next(iterator)
  iterator.close()


def test_hosts_share_a_batch():
  config = dataclasses.replace(CONFIG, batch_pixels=2 * CONFIG.batch_pixels)
  shares = [Share((0, 2), 4), Share((1, 3), 4)]
  parts = [take(dataclasses.replace(config, share=share), 6) for share in shares]
  for whole, *held in zip(take(config, 6), *parts):
    for share, part in zip(shares, held):
      mine = whole["video"][share.rows(len(whole["video"]))]
      np.testing.assert_array_equal(part["video"], mine)


def test_a_bucket_that_nothing_fills_is_named():
  with pytest.raises(ValueError, match=r"5 frames of 64x8 \(largest extents: 9 frames, 20x16\)"):
    video_batches(make_clips(), dataclasses.replace(CONFIG, sizes=((64, 8),)))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"frames": (4,)}, "1 \\+ 4k"), ({"sizes": ()}, "at least one"), ({"crop": "oval"}, "allowed"),
    ({"batch_pixels": 0}, "batch_pixels=0; it must be at least 1"),
    ({"batch_pixels": -4}, "batch_pixels=-4; it must be at least 1"),
  ],
)  # fmt: skip
def test_impossible_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)


def test_square_crop_takes_the_centre():
  clip = make_clips()[1]
  square = crop(clip, "square")
  np.testing.assert_array_equal(square.video_THWC, clip.video_THWC[:, :, 4:16])
  assert square.pixel_shape == (5, 12, 12) and square.truth["crop"] == [4, 0, 12, 12]
  assert crop(clip, "none") is clip and crop(make_clips()[2], "square").truth == {}
  with pytest.raises(ValueError, match="allowed: none, square"):
    crop(clip, "round")
  batch = next(
    iter(video_batches([clip], dataclasses.replace(CONFIG, sizes=((8, 8),), crop="square")))
  )
  assert (batch["video"][..., 2] >= 4).all() and (batch["video"][..., 2] < 16).all()
