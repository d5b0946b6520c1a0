"""Weights files: one network per safetensors file, flat names, its config and provenance as JSON.

A tree of parameters is a nested dict of arrays; the leaf `tree["a"]["b"]` is the tensor "a/b".
The file's metadata holds three JSON strings: `config` (what builds the network), `provenance` (how
the weights came to be; may be null) and `dtypes` (tensors stored narrower than they are used).
No pickle anywhere. Published weights in Hugging Face's sharded layout are read by `Shards`.
"""

import hashlib
import importlib.resources
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import flax.core
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from flax import linen as nn
from flax import traverse_util

MAX_SHIPPED_BYTES = 12 * 1024 * 1024
"""Limit on one shipped file."""
NETWORKS = ("vae", "text", "dit")
"""Files `<network>.safetensors` of a model folder."""
HIGH = "dit_high"
"""One more in some: a second transformer, for high noise alone."""
INDEX_NAME = "model.safetensors.index.json"
_STORE_DTYPES = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

Tree = dict
"""Nested dict of arrays."""


def flatten(tree: Mapping) -> dict[str, np.ndarray]:
  """Names every leaf by its path, "a/b/c", sorted; flax's axis-name boxes are taken off.

  Raises: ValueError for a leaf that is no array, or a key that is no string or holds a slash.
  """
  tree = nn.meta.unbox(flax.core.unfreeze(tree) if isinstance(tree, flax.core.FrozenDict) else tree)
  flat = {}

  def walk(node, prefix):
    for key, value in node.items():
      if not isinstance(key, str) or not key or "/" in key:
        raise ValueError(f"key {key!r} under {prefix!r}: keys must be strings without a slash")
      name = f"{prefix}/{key}" if prefix else key
      if isinstance(value, Mapping):
        walk(value, name)
      elif hasattr(value, "shape") and hasattr(value, "dtype"):
        flat[name] = np.asarray(value)
      else:
        raise ValueError(
          f"{name} is a {type(value).__name__}; a tree to save is nested dicts of arrays"
        )

  walk(tree, "")
  return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, np.ndarray]) -> Tree:
  """Inverse of `flatten`."""
  tree: Tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def save(
  path: str | os.PathLike,
  tree: Mapping,
  config: dict,
  provenance: dict | None = None,
  *,
  store_dtype: str | None = None,
) -> int:
  """Writes a tree whole or not at all: to a temporary file beside `path`, then renamed.

  The same arguments give the same bytes.

  Args: config: JSON-able, what rebuilds the network.  provenance: JSON-able, how it was trained.
    store_dtype: "float16" or "bfloat16" halves the float32 tensors on disk; they load as float32.
  Returns: the file's size in bytes.  Raises: ValueError for an unknown dtype, an empty tree, a tree
  that is not nested dicts of arrays, values that are not finite, or a config that is not JSON.
  """
  if store_dtype is not None and store_dtype not in _STORE_DTYPES:
    raise ValueError(f"store_dtype={store_dtype!r}; allowed: None, {', '.join(_STORE_DTYPES)}")
  tensors, dtypes = {}, {}
  for name, value in flatten(tree).items():
    stored = value
    if store_dtype is not None and value.dtype == np.float32:
      with np.errstate(over="ignore"):
        stored = value.astype(_STORE_DTYPES[store_dtype])
      dtypes[name] = "float32"
    if stored.dtype.kind not in "iub" and not np.isfinite(stored.astype(np.float32)).all():
      raise ValueError(f"{path}: {name} is not finite as {stored.dtype}; nothing was written")
    tensors[name] = np.array(stored, order="C")
  if not tensors:
    raise ValueError(f"{path}: the tree holds no array; nothing was written")
  try:
    metadata = {
      "config": json.dumps(config),
      "provenance": json.dumps(provenance),
      "dtypes": json.dumps(dtypes),
    }
  except TypeError as error:
    raise ValueError(f"{path}: config and provenance must be JSON: {error}") from error
  return _write_atomically(pathlib.Path(path), *_ordered(safetensors.numpy.save(tensors, metadata)))


def load(path: str | os.PathLike, like: Mapping | None = None) -> tuple[Tree, dict, dict]:
  """Reads what `save` wrote: (tree of numpy arrays, config, metadata).

  Args: like: optional template (arrays or `jax.eval_shape` results) that the tree must match.
  Returns: metadata holds `provenance` and `path`.  Raises: FileNotFoundError; ValueError for a
  damaged file, a file of another kind, or a tensor that does not match the template.
  """
  path = pathlib.Path(path)
  config, metadata = read_config(path)
  with _open(path) as file:
    flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  for name, dtype in metadata.pop("dtypes").items():
    flat[name] = flat[name].astype(dtype)
  tree = unflatten(dict(sorted(flat.items())))
  if like is not None:
    check(tree, like, str(path))
  return tree, config, metadata


def read_config(path: str | os.PathLike) -> tuple[dict, dict]:
  """Reads the config and the metadata of weights, no tensor.

  Returns: metadata holds `provenance`, `path` and `dtypes`, those of tensors that are stored as
  another one.  Raises: FileNotFoundError; ValueError for a damaged file or one of another kind.
  """
  path = pathlib.Path(path)
  with _open(path) as file:
    said = file.metadata() or {}
  if "config" not in said:
    raise ValueError(
      f"{path} is a safetensors file without a config, so not one of this project's weights; "
      "write it with sora_jax.weights.store.save, or import it (nn/text_import.py)"
    )
  return json.loads(said["config"]), {
    "provenance": json.loads(said.get("provenance", "null")), "path": str(path),
    "dtypes": json.loads(said.get("dtypes", "{}")),
  }  # fmt: skip


def check(tree: Mapping, like: Mapping, source: str = "weights") -> None:
  """Raises a ValueError that names the tensors in which a tree differs from a template."""
  got, want = _shapes(tree), _shapes(like)
  problems = [f"{name}: missing, expected {want[name]}" for name in want if name not in got]
  problems += [f"{name}: not expected, got {got[name]}" for name in got if name not in want]
  problems += [
    f"{name}: expected {want[name]}, got {got[name]}"
    for name in want
    if name in got and got[name] != want[name]
  ]
  if problems:
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    raise ValueError(
      f"{source} does not fit the network: {'; '.join(problems[:5])}{more}. "
      "Build the network from the config stored in the file, or choose the file made for it"
    )


def filled(tree: Mapping, fresh: Mapping) -> dict:
  """Returns a tree with what it lacks taken from a fresh one; logs the names."""
  got, new = flatten(tree), traverse_util.flatten_dict(fresh, sep="/")
  if missing := sorted(new.keys() - got.keys()):
    logging.info("%d parameters start anew: %s", len(missing), ", ".join(missing))
  return traverse_util.unflatten_dict({**new, **got}, sep="/")


def hash_of(source: Mapping | str | os.PathLike) -> str:
  """Names weights by content: 64 hex digits over names, dtypes, shapes and bytes of the tensors.

  A path gives the hash of the tree that `load` returns; config and provenance do not count.
  """
  tree = source if isinstance(source, Mapping) else load(source)[0]
  digest = hashlib.sha256()
  for name, value in flatten(tree).items():
    digest.update(f"{name}\0{value.dtype.name}\0{value.shape}\0".encode())
    digest.update(np.array(value, order="C").tobytes())
  return digest.hexdigest()


def shipped(file: str = "dit.safetensors") -> dict[str, pathlib.Path]:
  """Model folders that come with the package and hold `file`, by name."""
  root = pathlib.Path(str(importlib.resources.files("sora_jax.weights")))
  return {p.name: p for p in sorted(root.iterdir()) if (p / file).is_file()}


class Shards(Mapping):
  """Tensors of a Hugging Face safetensors checkpoint by name, each read when asked for.

  Args: path: a `.safetensors` file, an index file, or a folder that holds `model.safetensors` or
  `model.safetensors.index.json` with its shards.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    self._file_of = self._locate()

  def _locate(self) -> dict[str, pathlib.Path]:
    path = self.path
    if path.is_dir():
      names = (INDEX_NAME, "model.safetensors")
      path = next((path / name for name in names if (path / name).is_file()), None)
      if path is None:
        raise FileNotFoundError(f"{self.path} holds none of {', '.join(names)}")
    if path.suffix != ".json":
      with _open(path) as file:
        return dict.fromkeys(file.keys(), path)
    if not path.is_file():
      raise FileNotFoundError(f"no index file {path}")
    try:
      weight_map = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path} is not an index of safetensors shards: {error!r}") from error
    file_of = {name: path.parent / file for name, file in weight_map.items()}
    missing = sorted({p.name for p in file_of.values() if not p.is_file()})
    if missing:
      raise FileNotFoundError(f"{path} names shards that are not there: {', '.join(missing)}")
    return file_of

  def __getitem__(self, name: str) -> np.ndarray:
    with _open(self._file_of[name]) as file:
      return file.get_tensor(name)

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor, without reading it."""
    with _open(self._file_of[name]) as file:
      return tuple(file.get_slice(name).get_shape())

  def __iter__(self) -> Iterator[str]:
    return iter(self._file_of)

  def __len__(self) -> int:
    return len(self._file_of)


def _open(path: pathlib.Path):
  """A safetensors file open for reading; errors name the file and what to do."""
  if not path.is_file():
    raise FileNotFoundError(f"no weights file {path}")
  try:
    return safetensors.safe_open(path, framework="numpy")
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is damaged or no safetensors file ({path.stat().st_size} bytes: {error}); "
      "copy or make it again"
    ) from error


def _shapes(tree: Mapping, prefix: str = "") -> dict[str, tuple[int, ...]]:
  """Shapes by name; unlike `flatten`, abstract leaves are welcome."""
  tree = nn.meta.unbox(tree)
  shapes = {}
  for key, value in tree.items():
    name = f"{prefix}/{key}" if prefix else key
    if isinstance(value, Mapping):
      shapes.update(_shapes(value, name))
    else:
      shapes[name] = tuple(value.shape)
  return shapes


def _ordered(data: bytes) -> tuple[bytes, memoryview]:
  """The same file, in two parts that share its tensors, with its metadata sorted: the library
  writes them in an order drawn anew."""
  size = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + size])
  header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
  return len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]


def _write_atomically(path: pathlib.Path, *parts: bytes | memoryview) -> int:
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.writelines(parts)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise
  return sum(len(part) for part in parts)
