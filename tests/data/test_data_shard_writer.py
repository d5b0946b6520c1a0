"""Writing shards: a full disk, a killed writer and a former set, at every step of the way."""

import contextlib
import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from sora_jax.data import shard_writer
from sora_jax.data.records import Clip, ShardSource, index_path
from sora_jax.data.shard_writer import ShardWriter, WriteError


def make_clip(i, size=8):
  video_THWC = np.random.default_rng(i).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
  return Clip(id=f"clip-{i}", video_THWC=video_THWC, fps=12.0)


def write(folder, clips, **options):
  with ShardWriter(folder, **options) as writer:
    for i in clips:
      writer.write(make_clip(i))
  return folder


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def ids(folder):
  return [clip.id for clip in ShardSource(folder)]


@contextlib.contextmanager
def files_of_at_most(limit):
  """A disk that takes no more than `limit` bytes of a file."""
  former = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_finished_set_is_its_shards_and_an_index(tmp_path):
  source = ShardSource(write(tmp_path / "new" / "set", range(7), shard_size=3))
  shards = [shard["file"] for shard in source.index["shards"]]
  assert sorted(contents(source.folder)) == [*shards, "clips.index.json"]
  tag = shards[0][-21:-13]
  assert shards == [f"clips-{k:05d}-of-00003-{tag}.array_record" for k in range(3)]
  again = ShardSource(write(tmp_path / "again", range(7), shard_size=3))
  assert again.index["shards"] == source.index["shards"]
  other = ShardSource(write(tmp_path / "other", range(1, 8), shard_size=3))
  assert other.index["shards"][0]["file"] != shards[0]


def test_a_shard_is_also_bounded_in_bytes(tmp_path):
  source = ShardSource(write(tmp_path, range(4), shard_bytes=1))
  assert [shard["count"] for shard in source.index["shards"]] == [1, 1, 1, 1]
  assert ids(tmp_path)[3] == "clip-3"


def test_a_failed_write_leaves_nothing(tmp_path):
  with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path) as writer:
    writer.write(make_clip(0))
    assert not list(tmp_path.glob("clips*")), "a final name before close"
    raise RuntimeError("stop")
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match="no clip"):
    write(tmp_path, [])
  assert not list(tmp_path.iterdir())


def test_a_finished_set_is_replaced_only_on_request(tmp_path):
  write(tmp_path, range(5), shard_size=2)
  with pytest.raises(FileExistsError, match="with --overwrite .in Python overwrite=True"):
    write(tmp_path, [0])
  assert len(ShardSource(write(tmp_path, [0], overwrite=True))) == 1
  assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("stop", [None, KeyError])
def test_a_full_disk_is_said_in_one_line_and_costs_nothing(tmp_path, stop):
  write(tmp_path, [0])
  before = contents(tmp_path)
  message = f"^{tmp_path} cannot be written: File too large. Make room there, .* again$"
  with files_of_at_most(60_000):
    with pytest.raises(stop or WriteError, match=None if stop else message):
      with ShardWriter(tmp_path, overwrite=True) as writer:
        writer.write(make_clip(1, size=200))
        if stop:
          raise stop
  assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(WriteError, match=f"^{tmp_path / 'file' / 'set'} cannot be written: Not a"):
    ShardWriter(tmp_path / "file" / "set")


def test_a_disk_that_is_full_once_the_index_comes_keeps_the_former_set(tmp_path, monkeypatch):
  write(tmp_path, range(3), shard_size=2)
  before = contents(tmp_path)

  def full(path, *_, **__):
    path.touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with pytest.raises(OSError, match="No space left on device"), monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "write_text", full)
    write(tmp_path, range(3, 6), shard_size=2, overwrite=True)
  assert contents(tmp_path) == before


class Killed(BaseException):
  pass


@pytest.mark.parametrize("new", [range(9, 12), range(9, 10), range(3)])
def test_whenever_a_writer_dies_one_set_is_whole(tmp_path, monkeypatch, new):
  deaths, finished = 0, False
  former = [f"clip-{i}" for i in range(3)]
  while not finished:
    folder = write(tmp_path / str(deaths), range(3), shard_size=2)
    (folder / "clips-00000-of-00001.array_record").touch()  # named as in older versions
    writer = ShardWriter(folder, shard_size=2, overwrite=True)
    for i in new:
      writer.write(make_clip(i))
    left = deaths

    def dying(function):
      def call(*args, **kwargs):
        nonlocal left
        if not left:
          raise Killed
        left -= 1
        return function(*args, **kwargs)

      return call

    with monkeypatch.context() as patch:
      calls = (os, "replace"), (os, "fsync"), (pathlib.Path, "unlink"), (pathlib.Path, "write_text")
      for where, name in calls:
        patch.setattr(where, name, dying(getattr(where, name)))
      try:
        writer.close()
        finished = True
      except Killed:
        deaths += 1
    found = ids(folder)
    assert found in (former, [f"clip-{i}" for i in new]), f"death {deaths}"
    writer.abort()
    assert not list(folder.glob(".*"))
    write(folder, [20], overwrite=True)
    assert len(list(folder.iterdir())) == 2 and ids(folder) == ["clip-20"]
  assert deaths >= 3 and found == [f"clip-{i}" for i in new]


def test_what_an_index_lists_is_on_disk_before_it_and_the_index_before_former_shards_go(
  tmp_path, monkeypatch
):
  former = ShardSource(write(tmp_path, range(3), shard_size=2)).index["shards"]
  told = []

  def telling(function, name_of):
    def call(path, *args, **kwargs):
      told.append((function.__name__, name_of(path, *args).name))
      return function(path, *args, **kwargs)

    return call

  of_handle = lambda handle: pathlib.Path(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: E731
  with monkeypatch.context() as patch:
    patch.setattr(os, "fsync", telling(os.fsync, of_handle))
    patch.setattr(os, "replace", telling(os.replace, lambda _, to: pathlib.Path(to)))
    patch.setattr(pathlib.Path, "unlink", telling(pathlib.Path.unlink, lambda path: path))
    write(tmp_path, range(3, 6), shard_size=2, overwrite=True)
  shards = [shard["file"] for shard in ShardSource(tmp_path).index["shards"]]
  own = [f".clips-{part}.tmp.{shard_writer.owner()}" for part in ("00000", "00001", "index")]
  index = told.index(("replace", "clips.index.json"))
  assert told[: index + 2] == [
    *(("fsync", name) for name in own),
    *(("replace", name) for name in shards),
    ("fsync", tmp_path.name),
    ("replace", "clips.index.json"),
    ("fsync", tmp_path.name),
  ]
  assert sorted(told[index + 2 :]) == sorted(("unlink", shard["file"]) for shard in former)


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch, number, passes):
  sync = os.fsync

  def refusing(handle):
    if os.path.isdir(f"/proc/self/fd/{handle}"):
      raise OSError(number, os.strerror(number))
    sync(handle)

  monkeypatch.setattr(os, "fsync", refusing)
  if passes:
    assert ids(write(tmp_path, [0])) == ["clip-0"]
    return
  with pytest.raises(WriteError, match="cannot be written: Input/output error"):
    write(tmp_path, [0])


def test_a_set_that_is_written_twice_at_once_is_read_on(tmp_path):
  first, second = ShardWriter(tmp_path, shard_size=1), ShardWriter(tmp_path, shard_size=1)
  second._owner += "1"  # as of another process
  for writer in (first, second):
    for i in range(3):
      writer.write(make_clip(i))
  first.close()
  source = ShardSource(tmp_path)
  second.close()
  assert [clip.id for clip in source] == ["clip-0", "clip-1", "clip-2"] == ids(tmp_path)


def killed_writer(folder):
  script = f"""
import os, signal, numpy as np
from sora_jax.data.records import Clip
from sora_jax.data.shard_writer import ShardWriter
writer = ShardWriter({str(folder)!r}, 1)
for i in range(2):
  writer.write(Clip(id="a", video_THWC=np.zeros((1, 8, 8, 3), np.uint8)))
os.kill(os.getpid(), signal.SIGKILL)
"""
  assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
  return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_and_what_others_write_stays(tmp_path):
  left = killed_writer(tmp_path)
  assert len(left) == 2 and all(name.startswith(".clips-0000") for name in left)
  gone = left[0].rpartition(".")[2]
  place = shard_writer.owner().rpartition(".")[0]
  others = [
    f".clips-00000.tmp.{place}.{os.getppid()}",  # runs
    f".clips-00000.tmp.elsewhere.{place.rpartition('.')[2]}.{gone}",  # another host
    f".clips-00000.tmp.{place}0.{gone}",  # another container
    f".latents-00000.tmp.{place}.{gone}",  # another set
  ]
  for name in others:
    (tmp_path / name).touch()
  with ShardWriter(tmp_path) as writer:
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    writer.write(make_clip(0))
  assert sorted(path.name for path in tmp_path.glob(".*")) == sorted(others)
  assert index_path(tmp_path).is_file()
