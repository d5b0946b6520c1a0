"""Laws of the packed pipeline: order, exactly once, restore, workers, hosts."""

import dataclasses
import json
import multiprocessing
import os
import signal

import grain
import numpy as np
import pytest

from sora_jax.data.packing import TokenDrop
from sora_jax.data.pipeline import PackedBatches, PipelineConfig, packed_rows
from sora_jax.data.records import Clip
from sora_jax.data.stats import PackStats
from sora_jax.data.table import scan
from sora_jax.ops.patchify import patchify
from sora_jax.shapes import Share

GRIDS = [(1, 4, 4), (1, 4, 6), (1, 6, 4), (3, 4, 4), (3, 4, 6), (3, 6, 4), (5, 4, 6), (5, 6, 4)]
TINY = PipelineConfig(
  rows=2, row_len=96, max_segments=8, text_row_len=64, streams=4, window=16, seed=3
)


def make_clips(count, grids=GRIDS, channels=2):
  rng = np.random.default_rng(0)
  clips = []
  for i in range(count):
    t, h, w = grids[i % len(grids)]
    clips.append(
      Clip(
        id=f"clip {i}",
        video_THWC=None,
        fps=None if t == 1 else 8.0,
        captions={"short": f"s{i}", "long": f"long {i}"},
        truth={},
        latent_thwZ=rng.standard_normal((t, h, w, channels)).astype(np.float32),
        latent_source="test",
        pixel_shape=(4 * t - 3, 8 * h, 8 * w),
      )
    )
  return clips


def tokenize(text):
  return [ord(c) for c in text] + [1]


def tokenize_and_check_backend(text):
  import jax._src.xla_bridge as xla_bridge

  if multiprocessing.parent_process() is not None:
    assert not xla_bridge.backends_are_initialized(), "a worker initialised a jax backend"
  return tokenize(text)


def dataset(config=TINY, count=40, clips=None, words=tokenize):
  return packed_rows(clips or make_clips(count), config, patchify, words)


def take(data, count):
  iterator = iter(data)
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def with_(**changes):
  return dataclasses.replace(TINY, **changes)


def visited(batches):
  return sorted(int(i) for b in batches for i in b["clip"].ravel() if i >= 0)


def test_arrays_of_a_batch():
  batch = take(dataset(), 1)[0]
  shapes = {name: (a.shape, a.dtype.name) for name, a in batch.items()}
  assert shapes == {
    "patch": ((2, 96, 8), "float32"),
    "segment": ((2, 96), "int32"),
    "coord": ((2, 96, 3), "int32"),
    "slot": ((2, 96), "int32"),
    "grid": ((2, 8, 3), "int32"),
    "fps": ((2, 8), "float32"),
    "slots": ((2, 8), "int32"),
    "text": ((2, 64), "int32"),
    "text_segment": ((2, 64), "int32"),
    "clip": ((2, 8), "int32"),
  }


def test_every_segment_is_its_clip():
  clips = make_clips(40)
  config = with_(caption_dropout=0.3)
  texts = set()
  for batch in take(dataset(config, clips=clips), 6):
    for r in range(2):
      used = np.flatnonzero(batch["clip"][r] >= 0)
      assert (batch["slots"][r] == (batch["clip"][r] >= 0)).all()
      assert list(used) == list(range(len(used)))
      runs = batch["segment"][r][np.flatnonzero(np.diff(batch["segment"][r], prepend=-1))]
      assert list(runs[runs > 0]) == [s + 1 for s in used], "segments are contiguous runs"
      for s in used:
        clip = clips[batch["clip"][r, s]]
        here = batch["segment"][r] == s + 1
        np.testing.assert_array_equal(
          batch["patch"][r, here], patchify(clip.latent_thwZ, config.patch)
        )
        grid = batch["grid"][r, s]
        np.testing.assert_array_equal(
          np.ravel_multi_index(batch["coord"][r, here].T, grid), np.arange(grid.prod())
        )
        assert batch["fps"][r, s] == (clip.fps or 0)
        ids = list(batch["text"][r, batch["text_segment"][r] == s + 1])
        kinds = [k for k, c in ({"": ""} | clip.captions).items() if tokenize(c) == ids]
        assert len(kinds) == 1
        texts.add(kinds[0])
      assert not batch["patch"][r, batch["segment"][r] == 0].any()
  assert texts == {"", "short", "long"}


def shot_clips():
  """Clips of which every second one has two shots, the second from frame 5 on (latent frame 2)."""
  clips = make_clips(24, [(5, 4, 4), (3, 4, 4), (1, 4, 4)])
  for clip in clips[::2]:
    if clip.latent_thwZ.shape[0] == 5:
      clip.captions["shots"] = f"0 {clip.captions['short']}a\n5 {clip.captions['short']}b"
  return clips


def test_each_latent_frame_reads_the_caption_of_its_shot():
  config = with_(caption_shots=0.7, max_slots=16, caption_dropout=0.2, caption_long=0.0)
  clips, kinds = shot_clips(), set()
  for batch in take(dataset(config, clips=clips), 8):
    for r in range(2):
      owner = np.repeat(np.arange(8), batch["slots"][r])
      for s in np.flatnonzero(batch["clip"][r] >= 0):
        clip = clips[batch["clip"][r, s]]
        read = batch["slot_text"][r, : len(owner)][owner == s]
        texts = [
          bytes(ids[:-1].tolist()).decode()
          for ids in (batch["text"][r, batch["text_segment"][r] == n] for n in np.unique(read))
        ]
        here = batch["segment"][r] == s + 1
        assert batch["one_time"][r, s]
        if len(texts) == 2:
          kinds.add("shots")
          assert texts == [clip.captions["short"] + "a", clip.captions["short"] + "b"]
          assert read.tolist() == [read[0]] * 2 + [read[0] + 1] * 3
          np.testing.assert_array_equal(batch["slot"][r, here], batch["coord"][r, here, 0])
        else:
          assert texts in ([clip.captions["short"]], [""]) and set(read) == {read[0]}
          kinds.add("dropped" if texts == [""] else "short")
          assert not batch["slot"][r, here].any()
      assert not batch["slot_text"][r, len(owner) :].any()
      assert batch["text_segment"][r].max() == batch["slot_text"][r].max()
  assert kinds == {"shots", "short", "dropped"}


def test_shots_that_find_no_slots_left_read_the_short_caption():
  config = with_(caption_shots=1.0, caption_dropout=0.0, caption_long=0.0, max_slots=14)
  clips, slots = shot_clips(), set()
  for batch in take(dataset(config, clips=clips), 6):
    assert (batch["slots"].sum(1) <= 14).all()
    for r, s in np.argwhere(batch["clip"] >= 0):
      if "shots" in clips[batch["clip"][r, s]].captions:
        slots.add(int(batch["slots"][r, s]))
  assert slots == {1, 5}


def test_a_caption_of_shots_that_cannot_be_read_names_its_clip():
  clips = shot_clips()
  for words in ("5 late", "0 one\n0 two", "0 one\nx two", "0"):
    clips[0].captions["shots"] = words
    with pytest.raises(ValueError, match="'clip 0': shot .* expected FRAME and a caption"):
      dataset(with_(caption_shots=0.5), clips=clips)


def test_a_finite_pass_shows_every_clip_once_and_no_token_is_lost():
  clips = make_clips(41)
  batches = list(dataset(with_(repeat=False), clips=clips))
  assert visited(batches) == list(range(41))
  total = sum(len(patchify(c.latent_thwZ, TINY.patch)) for c in clips)
  assert sum(int((b["segment"] > 0).sum()) for b in batches) == total
  assert all(b["segment"].shape == (2, 96) for b in batches)


def test_a_finite_pass_of_fewer_clips_than_streams_is_padded():
  batches = list(dataset(with_(repeat=False, rows=8, streams=8), count=3))
  assert visited(batches) == [0, 1, 2] and len(batches) == 1


def test_an_endless_pass_shows_every_clip_once_per_epoch():
  plan = dataset(count=11)._plan
  order = [plan.clip_index(q) for q in range(33)]
  for epoch in range(3):
    assert sorted(order[11 * epoch : 11 * epoch + 11]) == list(range(11))
  assert order[:11] != order[11:22]


def test_rows_hold_several_aspects_and_lengths_and_are_full():
  stats = PackStats()
  mixed = 0
  for batch in take(dataset(), 40):
    stats.add(batch)
    for grid_S3 in batch["grid"]:
      grids = {tuple(g) for g in grid_S3 if g[0]}
      mixed += len({h / w for _, h, w in grids}) >= 3 and len({t for t, _, _ in grids}) >= 3
  figures = stats.to_dict()
  assert mixed > 10
  assert figures["fill"] > 0.95
  assert figures["rows"] == 80 and sum(figures["sizes"].values()) == figures["segments"]
  assert set(figures["sizes"]) == {"x".join(map(str, (t, h // 2, w // 2))) for t, h, w in GRIDS}


def test_one_stream_of_rows_whatever_the_workers():
  alone = take(dataset(with_(workers=0)), 5)
  shared = take(dataset(with_(workers=2), words=tokenize_and_check_backend), 5)
  np.testing.assert_equal(shared, alone)


def test_state_restores_at_every_step_and_across_workers():
  clips = make_clips(9, [(5, 16, 16), (1, 16, 16), (3, 16, 12)])
  config = with_(row_len=640, window=6, token_drop=TokenDrop(steps=12, share=1.0))
  data = dataset(config, clips=clips)
  iterator = iter(data)
  states, batches = [], []
  for _ in range(9):
    states.append(json.loads(json.dumps(iterator.get_state())))
    batches.append(next(iterator))
  for step, state in enumerate(states):
    again = iter(data)
    again.set_state(state)
    assert again.get_state() == state
    np.testing.assert_equal(
      [next(again) for _ in range(min(2, 9 - step))], batches[step : step + 2]
    )
  again = iter(dataset(dataclasses.replace(config, workers=2), clips=clips))
  again.set_state(states[1])
  np.testing.assert_equal([next(again) for _ in range(3)], batches[1:4])
  assert again.get_state() == states[4]
  again.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_grains_own_checkpoint_law(prefetch):
  data = dataset(with_(repeat=False, prefetch=prefetch), count=30)
  grain.experimental.assert_equal_output_after_checkpoint(data)


@pytest.mark.parametrize("blocks", [((0, 1), (2, 3)), ((0, 2), (1, 3))])
def test_hosts_share_the_rows_of_every_step(blocks):
  whole = take(dataset(with_(rows=4, streams=8)), 5)
  shares = [Share(held, 4) for held in blocks]
  parts = [take(dataset(with_(rows=4, streams=8, share=share)), 5) for share in shares]
  for step, batch in enumerate(whole):
    for name, array in batch.items():
      for share, part in zip(shares, parts):
        np.testing.assert_array_equal(part[step][name], array[share.rows(4)], err_msg=name)


def test_hosts_end_a_finite_pass_together():
  config = with_(rows=4, streams=8, repeat=False)
  parts = [list(dataset(dataclasses.replace(config, share=Share((h,), 2)))) for h in (0, 1)]
  assert len(parts[0]) == len(parts[1])
  assert visited(parts[0] + parts[1]) == list(range(40))


def test_one_hosts_state_serves_two():
  config = with_(rows=4, streams=8)
  iterator = iter(dataset(config))
  next(iterator)
  state, expected = iterator.get_state(), next(iterator)
  second = iter(dataset(dataclasses.replace(config, share=Share((1,), 2))))
  second.set_state(state)
  np.testing.assert_array_equal(next(second)["patch"], expected["patch"][2:])


def test_a_state_that_lacks_streams_is_refused():
  state = iter(dataset(with_(streams=2))).get_state()
  with pytest.raises(ValueError, match=r"lacks streams \[2, 3\].*keep streams=4"):
    iter(dataset()).set_state(state)


def test_a_killed_worker_is_one_clear_error():
  iterator = iter(dataset(with_(workers=2)))
  next(iterator)
  for child in multiprocessing.active_children():
    if "grain" in child.name:
      os.kill(child.pid, signal.SIGKILL)
  with pytest.raises(RuntimeError, match="data worker died while step .* exit code -9"):
    for _ in range(100):
      next(iterator)
  iterator.close()


def test_clips_too_long_for_a_row_are_named():
  clips = make_clips(8) + make_clips(1, grids=[(5, 16, 16)])
  clips[-1] = dataclasses.replace(clips[-1], id="the giant")
  with pytest.raises(ValueError, match=r"1 of 9 clips .*'the giant' \(320 tokens"):
    dataset(clips=clips)
  batches = list(dataset(with_(too_long="skip", repeat=False), clips=clips))
  assert visited(batches) == list(range(8))


def test_text_too_long_for_a_row_is_named():
  clips = make_clips(3)
  clips[1] = dataclasses.replace(clips[1], captions={"short": "x", "long": "y" * 99})
  with pytest.raises(ValueError, match=r"'clip 1' \(6 tokens, 100 text ids\)"):
    dataset(clips=clips)
  dataset(with_(caption_long=0.0), clips=clips)  # never read, it takes no room
  with pytest.raises(ValueError, match="100 text ids"):
    dataset(with_(caption_long=1.0), clips=clips)


def test_bad_latents_are_named():
  clips = make_clips(3)
  clips[0] = dataclasses.replace(clips[0], latent_thwZ=None)
  clips[2] = dataclasses.replace(clips[2], latent_thwZ=np.zeros((1, 3, 4, 2), np.float32))
  with pytest.raises(ValueError, match="'clip 0' holds no latents.*'clip 2' latent grid"):
    scan(clips, TINY.patch, tokenize)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"rows": 0}, "at least 1"),
    ({"caption_dropout": 1.5}, "a share"),
    ({"workers": 3}, "divide"),
    ({"share": Share((0,), 2), "rows": 3}, "multiple of 2"),
    ({"share": Share((0, 3), 4), "rows": 4, "streams": 6}, "streams a multiple of rows"),
    ({"drop_to_fill": 0.5}, "drop_to_fill"),
    ({"too_long": "crop"}, "too_long"),
  ],
)
def test_impossible_configs_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    with_(**changes)


def test_dropping_fades_out_and_keeps_the_place_of_what_stays():
  grids = [(5, 16, 16), (1, 16, 16), (1, 8, 8)]
  clips = make_clips(30, grids)
  config = with_(row_len=640, rows=1, streams=2, token_drop=TokenDrop(steps=20, share=1.0))
  shares = []
  for batch in take(dataset(config, clips=clips), 60):
    real = sum(batch["grid"][0].prod(axis=1))
    shares.append(int((batch["segment"] > 0).sum()) / real)
    for s, grid in enumerate(batch["grid"][0]):
      here = batch["segment"][0] == s + 1
      if not here.any():
        continue
      assert here.sum() >= min(64, grid.prod())
      whole = patchify(clips[batch["clip"][0, s]].latent_thwZ, config.patch)
      place = np.ravel_multi_index(batch["coord"][0, here].T, grid)
      assert (np.diff(place) > 0).all()
      np.testing.assert_array_equal(batch["patch"][0, here], whole[place])
  assert 0.7 < np.mean(shares[:8]) < 0.95
  assert shares[-20:] == [1.0] * 20


def test_drop_to_fill_fills_rows():
  grids = [(5, 16, 16), (3, 16, 12), (1, 16, 16), (1, 16, 20)]
  config = with_(row_len=700, rows=2, drop_to_fill=0.03, window=64)
  fills = {}
  for slack in (0.0, 0.03):
    stats = PackStats()
    for batch in take(
      dataset(dataclasses.replace(config, drop_to_fill=slack), clips=make_clips(60, grids)), 30
    ):
      stats.add(batch)
    fills[slack] = stats.fill
  assert fills[0.03] > fills[0.0] + 0.02


def test_num_steps_of_an_endless_pass_is_refused():
  data = dataset()
  assert isinstance(data, PackedBatches)
  with pytest.raises(ValueError, match="repeat=False"):
    data.num_steps()
