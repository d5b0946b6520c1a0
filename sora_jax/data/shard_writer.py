"""Writes sets of shards: a set is finished or not there, and a former one stays until it is.

Unfinished files name the process that writes them, so that what a killed one left can be told from
what another is writing: on this machine, on another host, or in another container.
"""

import collections
import contextlib
import errno
import glob
import hashlib
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator

from array_record.python import array_record_module

from sora_jax.data.records import (
  INDEX_VERSION,
  RECORD_VERSION,
  Clip,
  from_bytes,
  index_path,
  json_text,
  to_bytes,
)

_OPTIONS = "group_size:1,zstd:3"  # one record per chunk: a read decompresses one clip
_DIGITS = "[0-9]" * 5


class WriteError(OSError):
  """Shards could not be written, because a disk is full for one; the message says where and why."""


class ShardWriter:
  """Writes clips into shards; nothing bears its final name before `close`.

  Use as a context manager: an error inside leaves nothing behind, and what a killed writer of this
  set left on this machine is removed when the next one starts.

  Args:
    folder: made if missing.
    shard_size: clips per shard at most.
    prefix: name of the set; a folder may hold several ("clips", "latents-0a1b2c3d").
    config: JSON-able, kept in the index: what made the set.
    overwrite: replaces a finished set of this prefix; False refuses.
    shard_bytes: a shard that holds so many bytes is followed by another.

  Raises: FileExistsError if there is a finished set and `overwrite` is off; ValueError for limits
  that are not positive; WriteError, from all methods, if the folder cannot be written.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    shard_size: int = 1024,
    prefix: str = "clips",
    *,
    config: dict | None = None,
    overwrite: bool = False,
    shard_bytes: int = 1 << 28,
  ):
    if shard_size < 1 or shard_bytes < 1:
      raise ValueError(f"shard_size={shard_size}, shard_bytes={shard_bytes}; both must be positive")
    self.folder, self.prefix = pathlib.Path(folder), prefix
    self._limits, self._config = (shard_size, shard_bytes), json.loads(json.dumps(config or {}))
    if index_path(folder, prefix).exists() and not overwrite:
      raise FileExistsError(
        f"{self.folder} already holds a finished set of shards {prefix!r}; "
        "choose another folder, or replace it with --overwrite (in Python overwrite=True)"
      )
    with self._told():
      self.folder.mkdir(parents=True, exist_ok=True)
      remove_unfinished(self.folder, f".{prefix}-")
    self._counts: list[int] = []
    self._shapes: collections.Counter[str] = collections.Counter()
    self._writer, self._bytes, self._done = None, 0, False
    self._content, self._owner = hashlib.sha256(), owner()

  def __len__(self) -> int:
    """Clips written so far."""
    return sum(self._counts)

  def write(self, clip: Clip) -> None:
    """Appends a clip."""
    self.write_bytes(to_bytes(clip))

  def write_bytes(self, record: bytes) -> None:
    """Appends what `to_bytes` gave, perhaps in another process."""
    if self._done:
      raise ValueError(f"the writer of {self.prefix!r} in {self.folder} is closed")
    T, H, W = from_bytes(record).pixel_shape
    shard_size, shard_bytes = self._limits
    if self._writer and (self._counts[-1] >= shard_size or self._bytes >= shard_bytes):
      self._close_shard()
    with self._told():
      if self._writer is None:
        path = self._temporary(len(self._counts))
        self._counts.append(0)
        self._bytes = 0
        self._writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
      self._writer.write(record)
    self._content.update(record)
    self._counts[-1] += 1
    self._bytes += len(record)
    self._shapes[f"{T}x{H}x{W}"] += 1

  def close(self) -> None:
    """Finishes the set, in place of a former one.

    At any moment one of both sets is whole. A shard's name tells what the set holds, so that none
    takes the place of another's; shards and index are on disk before the index, in one step, takes
    the place of the former one; only then do the former shards go. A process that dies in between
    leaves at most shards that no index lists, which go when a set of this prefix is next closed.

    Raises: ValueError if there is no clip; WriteError, and a former set is as it was, or, where the
    last step alone could not be brought to disk, its shards are still there beside this set.
    """
    if self._done:
      return
    if not self._counts:
      raise ValueError(f"no clip was written to {self.prefix!r} in {self.folder}")
    self._close_shard()
    temporaries = [self._temporary(k) for k in range(len(self._counts))]
    index = self._index([path.stat().st_size for path in temporaries])
    names = [shard["file"] for shard in index["shards"]]
    with self._told():
      self._temporary("index").write_text(json_text(index))
      for path in (*temporaries, self._temporary("index")):
        _sync(path)
      for name, path in zip(names, temporaries):
        os.replace(path, self.folder / name)
      _sync(self.folder)
      os.replace(self._temporary("index"), index_path(self.folder, self.prefix))
      self._done = True
      _sync(self.folder)
    shards = f"{glob.escape(self.prefix)}-{_DIGITS}-of-{_DIGITS}*.array_record"
    for path in self.folder.glob(shards):
      if path.name not in names:
        path.unlink(missing_ok=True)

  def abort(self) -> None:
    """Removes what was written so far."""
    if self._done:
      return
    self._done = True
    writer, self._writer = self._writer, None
    if writer:
      with contextlib.suppress(RuntimeError):  # a full disk: what it could not write goes as well
        writer.close()
    for part in (*range(len(self._counts)), "index"):
      self._temporary(part).unlink(missing_ok=True)

  def _index(self, sizes: list[int]) -> dict:
    content = self._content.hexdigest()
    made = json.dumps([content, self._counts, sizes])
    end = f"of-{len(sizes):05d}-{hashlib.sha256(made.encode()).hexdigest()[:8]}.array_record"
    shards = [
      {"file": f"{self.prefix}-{k:05d}-{end}", "count": count, "bytes": size}
      for k, (count, size) in enumerate(zip(self._counts, sizes))
    ]
    return {
      "version": INDEX_VERSION,
      "record_version": RECORD_VERSION,
      "count": len(self),
      "content": content,
      "shards": shards,
      "shapes_THW": dict(sorted(self._shapes.items())),
      "config": self._config,
    }

  def _temporary(self, part: int | str) -> pathlib.Path:
    part = part if isinstance(part, str) else f"{part:05d}"
    return self.folder / f".{self.prefix}-{part}.tmp.{self._owner}"

  def _close_shard(self) -> None:
    writer, self._writer = self._writer, None
    with self._told():
      writer.close()

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    """Says of what goes wrong while writing where it was and what to do."""
    try:
      yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError, of a full disk too
      reason = str(error).split(";")[0].removeprefix("write() failed: ")
      raise WriteError(
        f"{self.folder} cannot be written: {getattr(error, 'strerror', None) or reason}. Make room "
        "there, or make it writable, and run the same command again"
      ) from error

  def __enter__(self) -> "ShardWriter":
    return self

  def __exit__(self, error_type, error, trace) -> None:
    if error_type is not None:
      self.abort()
      return
    try:
      self.close()
    except BaseException:
      self.abort()
      raise


def owner() -> str:
  """Names this process at the end of an unfinished file's name: HOST.NAMESPACE.PROCESS.

  The number of a process says something only within its host and, in containers, its namespace.
  """
  return f"{_place()}.{os.getpid()}"


def remove_unfinished(folder: pathlib.Path, stem: str) -> None:
  """Removes files and folders `STEM*.OWNER` whose `owner` ran on this machine and is gone."""
  for path in folder.glob(f"{glob.escape(stem)}*.{glob.escape(_place())}.*"):
    number = path.name.rpartition(".")[2]
    if not number.isdigit() or _runs(int(number)):
      continue
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)


def _place() -> str:
  try:
    namespace = os.stat("/proc/self/ns/pid").st_ino
  except OSError:  # no Linux, no namespaces
    namespace = 0
  return f"{platform.node()}.{namespace}"


def _runs(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def _sync(path: pathlib.Path) -> None:
  """Returns once a file's bytes, or a folder's names, are on disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
      raise  # some systems have no such thing for folders
  finally:
    os.close(handle)
