"""Clips on disk: one versioned record per clip, many records per ArrayRecord shard.

A record is a safetensors container (tensors `video` uint8 [T, H, W, 3], `latent` float32
[t, h, w, Z], and of each prompt n `known_n` uint8 [t, h, w, F] and `canvas_n` float16
[t, h, w, Z], all optional) whose metadata holds the rest as JSON; `docs/data.md` documents it to
the byte. A set of shards is `PREFIX-00000-of-00004.array_record`, ... and `PREFIX.index.json`,
which is written last: a folder without the index holds no finished set. Record and shard stay in
one file although it is long: neither is read or written without the other.
"""

import collections
import dataclasses
import hashlib
import json
import operator
import os
import pathlib
import struct
from typing import NamedTuple, SupportsIndex

import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

RECORD_VERSION = 1
"""Layout of one record; a reader refuses any other."""
INDEX_VERSION = 1
"""Layout of `PREFIX.index.json`."""
_WRITER_OPTIONS = "group_size:1,zstd:3"  # one record per chunk: a read decompresses one clip
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access, no threads
_DTYPES = {"U8": np.dtype(np.uint8), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


class Canvas(NamedTuple):
  """A prompt of a clip: what kind, which frames of each latent cell are known, and their latents.

  known_thwF: uint8.  latent_thwZ: float16, 0 in cells of which nothing is known.
  """

  kind: str
  known_thwF: np.ndarray
  latent_thwZ: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """One training clip, or a picture (T = 1).

  Attributes:
    id: names the clip within its data set.
    video_THWC: uint8 [T, H, W, 3], or None in shards that hold latents alone.
    fps: frames per second; None for pictures.
    captions: texts by kind: "short", "long"; "shots" has a line `FRAME text` for each shot.
    truth: JSON-able ground truth, per-frame lists allowed; {} for filmed clips.
    latent_thwZ: float32 [t, h, w, Z] normalised posterior mean, or None.
    latent_source: hash of the VAE weights that made the latent, or None.
    pixel_shape: (T, H, W) of the pixels; read off `video_THWC` where that is present.
    canvases: prompts made beforehand, see `data/prompt_mix.py`.
  """

  id: str
  video_THWC: np.ndarray | None = None
  fps: float | int | None = None
  captions: dict[str, str] = dataclasses.field(default_factory=dict)
  truth: dict = dataclasses.field(default_factory=dict)
  latent_thwZ: np.ndarray | None = None
  latent_source: str | None = None
  pixel_shape: tuple[int, int, int] | None = None
  canvases: tuple[Canvas, ...] = ()

  def __post_init__(self):
    video, latent = self.video_THWC, self.latent_thwZ
    if video is not None:
      if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(
          f"clip {self.id!r}: video is {video.dtype} {video.shape}; expected uint8 [T, H, W, 3]"
        )
      shape = tuple(int(n) for n in video.shape[:3])
      if self.pixel_shape is not None and tuple(self.pixel_shape) != shape:
        raise ValueError(f"clip {self.id!r}: pixel_shape {self.pixel_shape} but video {shape}")
      object.__setattr__(self, "pixel_shape", shape)
    elif self.pixel_shape is None:
      raise ValueError(f"clip {self.id!r} has no video; give pixel_shape=(T, H, W)")
    if latent is not None and (latent.dtype != np.float32 or latent.ndim != 4):
      raise ValueError(
        f"clip {self.id!r}: latent is {latent.dtype} {latent.shape}; expected float32 [t, h, w, Z]"
      )
    if self.fps is not None and not self.fps > 0:
      raise ValueError(f"clip {self.id!r}: fps {self.fps}; expected a positive number or None")

  @property
  def num_frames(self) -> int:
    """Frames of the pixels, T."""
    return self.pixel_shape[0]

  @property
  def size(self) -> tuple[int, int]:
    """(width, height) of the pixels."""
    return self.pixel_shape[2], self.pixel_shape[1]


def to_bytes(clip: Clip) -> bytes:
  """Packs a clip into one record. Raises: ValueError if `captions` or `truth` are not JSON."""
  tensors = {}
  if clip.video_THWC is not None:
    tensors["video"] = np.ascontiguousarray(clip.video_THWC)
  if clip.latent_thwZ is not None:
    tensors["latent"] = np.ascontiguousarray(clip.latent_thwZ)
  for n, canvas in enumerate(clip.canvases):
    tensors[f"known_{n}"] = np.ascontiguousarray(canvas.known_thwF, np.uint8)
    tensors[f"canvas_{n}"] = np.ascontiguousarray(canvas.latent_thwZ, np.float16)
  T, H, W = clip.pixel_shape
  about = {
    "id": clip.id,
    "fps": clip.fps,
    "frames": T,
    "height": H,
    "width": W,
    "captions": clip.captions,
    "truth": clip.truth,
    "latent_source": clip.latent_source,
  }
  if clip.canvases:
    about["canvases"] = [canvas.kind for canvas in clip.canvases]
  try:
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f"clip {clip.id!r}: captions and truth must be JSON: {error}") from error
  metadata = {"format": "sora_jax.clip", "version": str(RECORD_VERSION), "clip": text}
  return safetensors.numpy.save(tensors, metadata)


def from_bytes(data: bytes) -> Clip:
  """Reads a record; the arrays are read-only views into `data`.

  Raises: ValueError for bytes that are no record, a damaged record or another version.
  """
  header, start = _header(data)
  metadata = header.get("__metadata__") or {}
  if metadata.get("format") != "sora_jax.clip":
    raise ValueError("not a clip record: the metadata does not say format=sora_jax.clip")
  if metadata.get("version") != str(RECORD_VERSION):
    raise ValueError(
      f"record version {metadata.get('version')}; this package reads version {RECORD_VERSION}. "
      "Build the shards again, or install the version of sora_jax that wrote them"
    )
  about = json.loads(metadata["clip"])
  return Clip(
    id=about["id"],
    video_THWC=_tensor(data, start, header.get("video")),
    fps=about["fps"],
    captions=about["captions"],
    truth=about["truth"],
    latent_thwZ=_tensor(data, start, header.get("latent")),
    latent_source=about["latent_source"],
    pixel_shape=(about["frames"], about["height"], about["width"]),
    canvases=tuple(
      Canvas(kind, *(_tensor(data, start, header[f"{name}_{n}"]) for name in ("known", "canvas")))
      for n, kind in enumerate(about.get("canvases", ()))
    ),
  )


def _header(data: bytes) -> tuple[dict, int]:
  """The JSON header of a safetensors buffer and the offset of its first tensor."""
  try:
    (length,) = struct.unpack_from("<Q", data)
    if 8 + length > len(data):
      raise ValueError(f"header of {length} bytes in {len(data)} bytes")
    header = json.loads(data[8 : 8 + length])
  except (struct.error, ValueError) as error:
    raise ValueError(f"not a clip record, or a damaged one: {error}") from error
  return header, 8 + length


def _tensor(data: bytes, start: int, entry: dict | None) -> np.ndarray | None:
  if entry is None:
    return None
  dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
  begin, end = entry["data_offsets"]
  count = int(np.prod(shape, dtype=np.int64))
  if end - begin != count * dtype.itemsize or start + end > len(data):
    raise ValueError(f"damaged record: tensor {dtype} {shape} at {begin}:{end} of {len(data)}")
  return np.frombuffer(data, dtype, count, start + begin).reshape(shape)


class ShardWriter:
  """Writes clips into shards; nothing bears its final name before `close`.

  Use as a context manager: an error inside leaves no shard behind.

  Args:
    folder: made if missing.
    shard_size: clips per shard at most.
    prefix: name of the set; a folder may hold several ("clips", "latents-0a1b2c3d").
    config: JSON-able, kept in the index: what made the set.
    overwrite: replaces a finished set of this prefix; False refuses.
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
        "choose another folder or pass overwrite=True"
      )
    self.folder.mkdir(parents=True, exist_ok=True)
    self._counts: list[int] = []
    self._shapes: collections.Counter[str] = collections.Counter()
    self._writer, self._bytes, self._done = None, 0, False
    self._content = hashlib.sha256()

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
    if self._writer is None:
      path = self._temporary(len(self._counts))
      self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
      self._counts.append(0)
      self._bytes = 0
    self._writer.write(record)
    self._content.update(record)
    self._counts[-1] += 1
    self._bytes += len(record)
    self._shapes[f"{T}x{H}x{W}"] += 1

  def close(self) -> None:
    """Gives the shards their names and writes the index. Raises: ValueError if there is no clip."""
    if self._done:
      return
    if not self._counts:
      raise ValueError(f"no clip was written to {self.prefix!r} in {self.folder}")
    self._close_shard()
    temporaries = [self._temporary(k) for k in range(len(self._counts))]
    shards = [
      {"file": shard_name(self.prefix, k, len(self._counts)), "count": count}
      for k, count in enumerate(self._counts)
    ]
    for shard, path in zip(shards, temporaries):
      shard["bytes"] = path.stat().st_size
    index = {
      "version": INDEX_VERSION,
      "record_version": RECORD_VERSION,
      "count": len(self),
      "content": self._content.hexdigest(),
      "shards": shards,
      "shapes_THW": dict(sorted(self._shapes.items())),
      "config": self._config,
    }
    index_path(self.folder, self.prefix).unlink(missing_ok=True)
    for old in self.folder.glob(f"{self.prefix}-?????-of-?????.array_record"):
      old.unlink()
    for shard, path in zip(shards, temporaries):
      os.replace(path, self.folder / shard["file"])
    write_json(index_path(self.folder, self.prefix), index)
    self._done = True

  def abort(self) -> None:
    """Removes what was written so far."""
    if self._done:
      return
    if self._writer:
      self._close_shard()
    for k in range(len(self._counts)):
      self._temporary(k).unlink(missing_ok=True)
    self._done = True

  def _temporary(self, k: int) -> pathlib.Path:
    return self.folder / f".{self.prefix}-{k:05d}.{os.getpid()}.tmp"

  def _close_shard(self) -> None:
    self._writer.close()
    self._writer = None

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


class ShardSource:
  """Random access to a set of shards: `source[i]` is clip i.

  Picklable; every process opens its own readers when it first reads, so it may be forked, spawned
  and read from threads.

  Raises: FileNotFoundError for a missing folder, set or shard; ValueError for a truncated shard or
  another version.
  """

  def __init__(self, folder: str | os.PathLike, prefix: str = "clips"):
    self.folder, self.prefix = pathlib.Path(folder), prefix
    self.index = _read_index(self.folder, prefix)
    self._starts = np.cumsum([0] + [shard["count"] for shard in self.index["shards"]])
    for shard in self.index["shards"]:
      path = self.folder / shard["file"]
      if not path.is_file():
        raise FileNotFoundError(f"shard {path} is missing; build the shards again")
      if path.stat().st_size != shard["bytes"]:
        raise ValueError(
          f"shard {path} holds {path.stat().st_size} bytes of {shard['bytes']}: it is truncated or "
          "was replaced; copy or build the shards again"
        )
    self._readers: dict = {}

  @property
  def config(self) -> dict:
    """What made the set, as given to the writer."""
    return self.index["config"]

  @property
  def content(self) -> str:
    """Names the set by what it holds: SHA-256 of all records; "" in sets of older versions."""
    return self.index.get("content", "")

  @property
  def shapes_THW(self) -> dict[tuple[int, int, int], int]:
    """How many clips have each (frames, height, width), without reading a clip."""
    items = self.index["shapes_THW"].items()
    return {tuple(int(n) for n in name.split("x")): count for name, count in items}

  def __len__(self) -> int:
    return self.index["count"]

  def __getitem__(self, i: SupportsIndex) -> Clip:
    return from_bytes(self.read_bytes(i))

  def read_bytes(self, i: SupportsIndex) -> bytes:
    """The record of clip i as stored. Raises: IndexError; ValueError naming a shard that is gone or
    has changed, which the checksums of its chunks tell."""
    i = operator.index(i)
    if not -len(self) <= i < len(self):
      raise IndexError(f"clip {i} of {len(self)} in {self.folder}")
    i %= len(self)
    k = int(np.searchsorted(self._starts, i, side="right")) - 1
    try:
      record = self._reader(k).read([i - int(self._starts[k])])[0]
    except RuntimeError as error:
      raise self._fault(k, f"clip {i}: {str(error).split(' (')[0]}") from error
    if not record:
      raise self._fault(k, f"clip {i} cannot be read")
    return record

  def _reader(self, k: int):
    key = (os.getpid(), k)  # a reader opened before a fork is not used after it
    if key not in self._readers:
      shard = self.index["shards"][k]
      path = self.folder / shard["file"]
      reader = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
      if not reader.ok() or reader.num_records() != shard["count"]:
        raise self._fault(k, f"it holds {reader.num_records()} of {shard['count']} clips")
      self._readers.setdefault(key, reader)
    return self._readers[key]

  def _fault(self, k: int, why: str) -> ValueError:
    """What to raise about shard k; the set was whole when it was opened."""
    shard = self.index["shards"][k]
    path = self.folder / shard["file"]
    what = f"is damaged ({why})" if path.is_file() else "is missing"
    return ValueError(
      f"shard {path} {what}; expected the {shard['count']} clips and {shard['bytes']} bytes that "
      "were written. Copy or build the shards again, then run the same command again"
    )

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_readers": {}}

  def __repr__(self) -> str:
    return f"ShardSource({str(self.folder)!r}, prefix={self.prefix!r}, clips={len(self)})"


def shard_name(prefix: str, k: int, count: int) -> str:
  """File name of shard k of `count`."""
  return f"{prefix}-{k:05d}-of-{count:05d}.array_record"


def index_path(folder: str | os.PathLike, prefix: str = "clips") -> pathlib.Path:
  """Where the index of a set lies; it exists only once the set is finished."""
  return pathlib.Path(folder) / f"{prefix}.index.json"


def write_json(path: str | os.PathLike, value: dict) -> None:
  """Writes indented JSON whole or not at all."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
  os.replace(temporary, path)


def _read_index(folder: pathlib.Path, prefix: str) -> dict:
  if not folder.is_dir():
    raise FileNotFoundError(f"no folder {folder} of shards; build it first")
  path = index_path(folder, prefix)
  if not path.is_file():
    found = sorted(p.name.removesuffix(".index.json") for p in folder.glob("*.index.json"))
    raise FileNotFoundError(
      f"{folder} holds no finished set of shards {prefix!r} "
      f"(found: {', '.join(found) or 'none'}); build it first, or build it again if that was killed"
    )
  try:
    index = json.loads(path.read_text())
    version, record_version = index["version"], index["record_version"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error!r}); build the shards again") from error
  if (version, record_version) != (INDEX_VERSION, RECORD_VERSION):
    raise ValueError(
      f"{path}: index version {version}, record version {record_version}; this package reads "
      f"{INDEX_VERSION} and {RECORD_VERSION}. Build the shards again"
    )
  return index
