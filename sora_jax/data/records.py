"""Clips on disk: one versioned record per clip, many records per ArrayRecord shard.

A record is a safetensors container (tensors `video` uint8 [T, H, W, 3], `latent` float32
[t, h, w, Z], and of each prompt n `known_n` uint8 [t, h, w, F] and `canvas_n` float16
[t, h, w, Z], all optional) whose metadata holds the rest as JSON; `docs/data.md` documents it to
the byte. A set of shards is `PREFIX-00000-of-00004-0a1b2c3d.array_record`, ... and
`PREFIX.index.json`, which is written last: a folder without the index holds no finished set.
`data/shard_writer.py` writes sets; here they are read.
"""

import dataclasses
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
  """Packs a clip into one record, the same clip into the same bytes.

  Raises: ValueError if `captions` or `truth` are not JSON.
  """
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
  data = safetensors.numpy.save(tensors, metadata)
  header, start = _header(data)  # its metadata are in another order each time
  head = json.dumps(header, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
  head += b" " * (-len(head) % 8)
  return struct.pack("<Q", len(head)) + head + data[start:]


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


class ShardSource:
  """Random access to a set of shards: `source[i]` is clip i.

  Picklable; every process opens its own readers when it first reads, so it may be forked, spawned
  and read from threads.

  Raises: FileNotFoundError for a missing folder, set or shard; ValueError for a truncated shard, a
  damaged index or another version.
  """

  def __init__(self, folder: str | os.PathLike, prefix: str = "clips"):
    self.folder, self.prefix = pathlib.Path(folder), prefix
    self.index = _read_index(self.folder, prefix)
    self._starts = np.cumsum([0] + [shard["count"] for shard in self.index["shards"]])
    for shard in self.index["shards"]:
      path = self.folder / shard["file"]
      if not path.is_file():
        raise FileNotFoundError(f"shard {path} is missing; {self._remedy()}")
      if path.stat().st_size != shard["bytes"]:
        raise ValueError(
          f"shard {path} holds {path.stat().st_size} bytes of {shard['bytes']}: it is truncated or "
          f"was replaced; {self._remedy()}"
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
    has changed, which its size and the checksums of its chunks tell, or a set that was replaced."""
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
      if (size := path.stat().st_size) != shard["bytes"]:  # whole, but not what was opened
        raise self._fault(k, f"it holds {size} bytes")
      self._readers.setdefault(key, reader)
    return self._readers[key]

  def _fault(self, k: int, why: str) -> ValueError:
    """What to raise about shard k; the set was whole when it was opened."""
    shard = self.index["shards"][k]
    path = self.folder / shard["file"]
    what = f"is damaged ({why})" if path.is_file() else "is missing"
    remedy = self._remedy()
    if self._was_replaced():
      return ValueError(
        f"the set {self.prefix!r} in {self.folder} was replaced while it was read, by a run that "
        f"shares the folder: shard {path} {what}. Give each run a folder of its own, then run the "
        "same command again"
      )
    return ValueError(
      f"shard {path} {what}; expected the {shard['count']} clips and {shard['bytes']} bytes that "
      f"were written. {remedy[0].upper()}{remedy[1:]}"
    )

  def _was_replaced(self) -> bool:
    try:
      return _read_index(self.folder, self.prefix)["shards"] != self.index["shards"]
    except (OSError, ValueError):
      return False

  def _remedy(self) -> str:
    index = index_path(self.folder, self.prefix)
    return f"copy it again, or delete {index} and run the command that made the set again"

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_readers": {}}

  def __repr__(self) -> str:
    return f"ShardSource({str(self.folder)!r}, prefix={self.prefix!r}, clips={len(self)})"


def index_path(folder: str | os.PathLike, prefix: str = "clips") -> pathlib.Path:
  """Where the index of a set lies; it exists only once the set is finished."""
  return pathlib.Path(folder) / f"{prefix}.index.json"


def write_json(path: str | os.PathLike, value: dict) -> None:
  """Writes indented JSON whole or not at all."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(json_text(value))
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def json_text(value: dict) -> str:
  """Indented JSON, as `write_json` writes it."""
  return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
    raise ValueError(
      f"{path} is damaged ({error!r}); copy it again, or delete it and run the command that made "
      "the set again"
    ) from error
  if (version, record_version) != (INDEX_VERSION, RECORD_VERSION):
    raise ValueError(
      f"{path}: index version {version}, record version {record_version}; this package reads "
      f"{INDEX_VERSION} and {RECORD_VERSION}. Delete it and run the command that made the set "
      "again, or install the version of sora_jax that wrote it"
    )
  return index
