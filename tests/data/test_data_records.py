"""Records and shards: round trip, random access, and every way a set of shards can be broken."""

import json
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import safetensors.numpy

from sora_jax.data import records
from sora_jax.data.records import Clip, ShardSource
from sora_jax.data.shard_writer import ShardWriter


def make_clip(i, frames=3, with_latent=False):
  rng = np.random.default_rng(i)
  return Clip(
    id=f"clip-{i}",
    video_THWC=rng.integers(0, 256, (frames, 6 + i % 3, 8, 3), dtype=np.uint8),
    fps=None if frames == 1 else 12.5,
    captions={"short": f"a räd circle {i}", "long": "…"},
    truth={"position": [[0.5, i]] * frames, "cut": None},
    latent_thwZ=rng.normal(size=(1, 2, 2, 4)).astype(np.float32) if with_latent else None,
    latent_source="ab12" if with_latent else None,
  )


def assert_same(got, want):
  for name in ("video_THWC", "latent_thwZ"):
    a, b = getattr(got, name), getattr(want, name)
    assert (a is None) == (b is None)
    if a is not None:
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)
  for name in ("id", "fps", "captions", "truth", "latent_source", "pixel_shape"):
    assert getattr(got, name) == getattr(want, name), name


def write(folder, count, **options):
  with ShardWriter(folder, **options) as writer:
    for i in range(count):
      writer.write(make_clip(i))
  return folder


@pytest.mark.parametrize("with_latent", [False, True])
@pytest.mark.parametrize("frames", [1, 5])
def test_a_record_round_trips(frames, with_latent):
  clip = make_clip(7, frames, with_latent)
  got = records.from_bytes(records.to_bytes(clip))
  assert_same(got, clip)
  assert got.num_frames == frames
  assert got.size == (8, 7)


def test_a_clip_gives_the_same_bytes_each_time_which_any_safetensors_library_reads():
  clip = make_clip(3, with_latent=True)
  (data,) = {records.to_bytes(clip) for _ in range(20)}
  tensors = safetensors.numpy.load(data)
  assert sorted(tensors) == ["latent", "video"]
  np.testing.assert_array_equal(tensors["video"], clip.video_THWC)
  np.testing.assert_array_equal(tensors["latent"], clip.latent_thwZ)


def test_a_latent_record_keeps_the_pixel_shape():
  latent_thwZ = np.ones((2, 3, 4, 5), np.float32)
  clip = Clip(id="x", latent_thwZ=latent_thwZ, latent_source="h", pixel_shape=(5, 12, 16))
  got = records.from_bytes(records.to_bytes(clip))
  assert got.video_THWC is None
  assert (got.num_frames, got.size) == (5, (16, 12))
  with pytest.raises(ValueError, match="pixel_shape"):
    Clip(id="x", latent_thwZ=latent_thwZ)


def test_views_that_are_not_contiguous_are_stored_as_seen():
  clip = make_clip(1)
  turned = Clip(id="t", video_THWC=clip.video_THWC.transpose(0, 2, 1, 3)[:, ::-1], fps=8.0)
  got = records.from_bytes(records.to_bytes(turned))
  np.testing.assert_array_equal(got.video_THWC, turned.video_THWC)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"video_THWC": np.zeros((2, 4, 4, 3), np.float32)}, "uint8"),
    ({"video_THWC": np.zeros((2, 4, 4), np.uint8)}, r"\[T, H, W, 3\]"),
    ({"video_THWC": np.zeros((0, 4, 4, 3), np.uint8)}, r"\(0, 4, 4, 3\)"),
    ({"latent_thwZ": np.zeros((1, 1, 1, 1), np.float64)}, "float32"),
    ({"fps": 0.0}, "fps"),
    ({"pixel_shape": (9, 9, 9)}, "pixel_shape"),
  ],
)
def test_a_clip_checks_its_arrays(changes, message):
  good = {"id": "a", "video_THWC": np.zeros((2, 4, 4, 3), np.uint8), "fps": 8.0}
  with pytest.raises(ValueError, match=message):
    Clip(**(good | changes))


def test_truth_must_be_json():
  video_THWC = np.zeros((1, 2, 2, 3), np.uint8)
  for truth in ({"a": np.zeros(2)}, {"a": float("nan")}):
    with pytest.raises(ValueError, match="JSON"):
      records.to_bytes(Clip(id="a", video_THWC=video_THWC, truth=truth))


def test_bytes_that_are_no_record_are_refused():
  data = records.to_bytes(make_clip(0))
  for bad in (b"", b"hello", data[:40], data[:-1], bytes(len(data))):
    with pytest.raises(ValueError, match="record"):
      records.from_bytes(bad)
  with pytest.raises(ValueError, match="version 7"):
    records.from_bytes(data.replace(b'"version":"1"', b'"version":"7"'))


def test_shards_give_every_clip_at_its_index(tmp_path):
  source = ShardSource(write(tmp_path / "new" / "set", 7, shard_size=3, config={"level": 1}))
  assert len(source) == 7
  assert source.config == {"level": 1}
  for i in (6, 0, 3, 2, -1, np.int64(5)):
    assert_same(source[i], make_clip(int(i) % 7))
  with pytest.raises(IndexError, match="7"):
    source[7]
  assert source.shapes_THW == {(3, 6, 8): 3, (3, 7, 8): 2, (3, 8, 8): 2}


def test_two_sets_share_a_folder(tmp_path):
  write(tmp_path, 2)
  write(tmp_path, 3, prefix="latents-0a")
  assert (len(ShardSource(tmp_path)), len(ShardSource(tmp_path, "latents-0a"))) == (2, 3)


def test_broken_sets_say_what_is_wrong(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder"):
    ShardSource(tmp_path / "none")
  folder = write(tmp_path / "set", 2)
  with pytest.raises(FileNotFoundError, match="'latents'.*found: clips"):
    ShardSource(folder, "latents")
  index_path = records.index_path(folder)
  index = json.loads(index_path.read_text())
  shard = folder / index["shards"][0]["file"]
  whole = shard.read_bytes()
  shard.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=f"{len(whole) // 2} bytes of {len(whole)}"):
    ShardSource(folder)
  shard.write_bytes(bytes(len(whole)))
  with pytest.raises(ValueError, match="0 of 2 clips"):
    ShardSource(folder)[0]
  shard.unlink()
  with pytest.raises(FileNotFoundError, match="missing"):
    ShardSource(folder)
  index_path.write_text(json.dumps(index | {"version": 9}))
  with pytest.raises(ValueError, match="index version 9"):
    ShardSource(folder)
  index_path.write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    ShardSource(folder)


def test_no_changed_bit_of_a_shard_is_read_as_a_clip(tmp_path):
  folder = write(tmp_path, 3)
  source = ShardSource(folder)
  clips = [source.read_bytes(i) for i in range(3)]
  path = folder / source.index["shards"][0]["file"]
  whole, noticed = path.read_bytes(), 0
  for at in np.flatnonzero(np.frombuffer(whole, np.uint8))[::25]:
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
    changed = ShardSource(folder)
    for i in range(3):
      try:
        assert changed.read_bytes(i) == clips[i]
      except ValueError as error:
        assert f"shard {path} is damaged" in str(error) and "Copy it again, or delete" in str(error)
        noticed += 1
  assert noticed > 10


def test_a_shard_of_another_size_is_not_read_as_the_one_that_was_opened(tmp_path):
  source = ShardSource(write(tmp_path / "a", 3))
  path = tmp_path / "a" / source.index["shards"][0]["file"]
  with ShardWriter(tmp_path / "b") as writer:
    for i in range(3):
      writer.write(make_clip(i, frames=900))
  (other,) = (tmp_path / "b").glob("*.array_record")
  os.replace(other, path)
  with pytest.raises(
    ValueError, match=rf"shard {path} is damaged \(it holds \d+ bytes\); expected"
  ):
    source[0]


def test_a_set_that_another_run_replaces_is_not_read_on(tmp_path):
  source = ShardSource(write(tmp_path, 2))
  with ShardWriter(tmp_path, overwrite=True) as writer:
    for clip in reversed(list(source)):  # as many clips, as many bytes
      writer.write(clip)
  source._readers.clear()  # who has a shard open reads on; a worker that starts has not
  with pytest.raises(ValueError, match="was replaced while it was read.* a folder of its own"):
    source[0]
  assert ShardSource(tmp_path)[0].id == "clip-1"


def _ids(source, queue):
  queue.put([source[i].id for i in range(len(source))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning")
def test_a_source_travels_to_other_processes(tmp_path, method):
  source = ShardSource(write(tmp_path, 4, shard_size=2))
  assert source[0].id == "clip-0"  # open a reader before the process starts
  context = multiprocessing.get_context(method)
  queue = context.Queue()
  process = context.Process(target=_ids, args=(source, queue))
  process.start()
  assert queue.get(timeout=60) == [f"clip-{i}" for i in range(4)]
  process.join()
  assert not pickle.loads(pickle.dumps(source))._readers


def test_threads_may_read_at_once(tmp_path):
  source = ShardSource(write(tmp_path, 6, shard_size=2))
  wrong = []

  def read(seed):
    for i in np.random.default_rng(seed).integers(0, 6, 50):
      if source[i].id != f"clip-{i}":
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
