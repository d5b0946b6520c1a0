"""A model folder: the networks of one model, its tokenizer, and how it came to be.

    vae.safetensors   config: {"network": VAEConfig}
                      tree: {"params": ..., "stats": ...}
    text.safetensors  config: {"network": TextConfig, "tokenizer": "bytes" or "tokenizer.model"}
                      tree: parameters
    dit.safetensors   config: {"format": FORMAT, "network": DiTConfig, "diffusion": {"prediction",
                      "shift_reference", "shift_space", "shift_frames", "shift_high"}, "rows":
                      {"row_len", "max_segments", "text_row_len"}, "sampling": {"solver", "steps",
                      "grid", "extend_grid", "guidance", "guidance_interval", "fps"}, "prompts":
                      whether it has seen image and video prompts}
                      tree: parameters
    dit_high.safetensors  in some folders: a second transformer of the same shape, for high noise
                      config: {"format": FORMAT, "network": DiTConfig, "above": the time, before the
                      shift, above which it denoises instead of the first}
                      tree: parameters
    tokenizer.model   SentencePiece model, where the text encoder was trained with one
    provenance.json   config, command, seed, commit, hardware, time, legs, validation figures

Shipped models and the `model/` folder of a finished training run both look like this. A model is
replaced as a whole: the new files lie ready in a folder of their own, inside, and whoever finds
that, a reader too, moves them to their places.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from sora_jax.weights import store

TOKENIZER_NAME = "tokenizer.model"
PROVENANCE_NAME = "provenance.json"
READY = ".ready"
"""The folder of files that are to take the place of a model's; it is there once all of them are."""
FORMAT = 2
"""What a transformer's output means. 2: preconditioned ones give Eq. 5 of `ops/precondition.py`; 1,
and files that say nothing: they added a linear guess, and with today's code their samples are wrong
without a sign of it."""
DENOISERS = ("dit", store.HIGH)
"""Networks whose output FORMAT is about."""


@dataclasses.dataclass(frozen=True)
class Network:
  """Weights of one network with the config that builds it.  story: how they were made, if a file
  told it."""

  tree: dict
  config: dict
  story: dict | None = None


def write(
  path: str | os.PathLike,
  networks: Mapping[str, Network],
  tokenizer: bytes | None,
  provenance: dict,
  *,
  store_dtype: str | None = None,
) -> None:
  """Writes a model folder, whole or not at all; other files of a folder that is there stay.

  Args: networks: by name, all of "vae", "text" and "dit", and "dit_high" if there is one; those
    with a story of their own keep it, the others get `provenance`.  tokenizer: content of the
    SentencePiece model, or None for bytes.  store_dtype: see `store.save`.
  Raises: ValueError if a network is missing; OSError if the folder cannot be written.
  """
  if set(networks) - {store.HIGH} != set(store.NETWORKS):
    raise ValueError(f"got networks {sorted(networks)}; a model has {', '.join(store.NETWORKS)}")
  path = pathlib.Path(path)
  _end_writing(path)
  there = path.exists()
  temporary = path / ".partial" if there else path.with_name(f".{path.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for name, network in networks.items():
    config = plain(network.config) | ({"format": FORMAT} if name in DENOISERS else {})
    story = provenance if network.story is None else network.story
    path_of = temporary / f"{name}.safetensors"
    store.save(path_of, network.tree, config, story, store_dtype=store_dtype)
  if tokenizer is not None:
    (temporary / TOKENIZER_NAME).write_bytes(tokenizer)
  (temporary / PROVENANCE_NAME).write_text(json.dumps(provenance, indent=2) + "\n")
  if not there:
    temporary.rename(path)
    return
  for name in (f"{store.HIGH}.safetensors", TOKENIZER_NAME):
    if not (temporary / name).exists():
      (temporary / name).touch()  # empty: the file that bears this name is to go
  temporary.rename(path / READY)
  _end_writing(path)


def _end_writing(path: pathlib.Path) -> None:
  """Moves the files that a writer has made ready to their places; others may do so meanwhile.

  Raises: OSError that says what to do if that cannot be.
  """
  ready = path / READY
  try:
    for file in sorted(ready.iterdir()) if ready.is_dir() else ():
      with contextlib.suppress(FileNotFoundError):  # another has moved it
        if file.stat().st_size:
          os.replace(file, path / file.name)
        else:
          (path / file.name).unlink(missing_ok=True)
          file.unlink()
    with contextlib.suppress(FileNotFoundError):
      ready.rmdir()
  except OSError as error:
    raise OSError(
      f"{path} is being replaced by what lies in {ready}, and that cannot be ended:"
      f" {error.strerror}. Make it writable, and try again"
    ) from error


def read(path: str | os.PathLike) -> dict[str, Network]:
  """Reads the networks of a model folder.

  Raises: FileNotFoundError; OSError if it is being replaced and cannot be; ValueError, see `check`.
  """
  _end_writing(pathlib.Path(path))
  check(path)
  found = {}
  for name in (*store.NETWORKS, store.HIGH):
    file = pathlib.Path(path) / f"{name}.safetensors"
    if name in store.NETWORKS or file.exists():
      tree, config, told = store.load(file)
      found[name] = Network(tree, config, told["provenance"])
  return found


def check(path: str | os.PathLike) -> None:
  """Raises a ValueError if this version takes the transformer's output for what it is not."""
  for name in DENOISERS:
    file = pathlib.Path(path) / f"{name}.safetensors"
    if name == store.HIGH and not file.exists():
      continue
    got = store.read_config(file)[0].get("format", 1)
    if got != FORMAT:
      cure = (
        "install a newer version" if got > FORMAT else "train anew, or install the version of it"
      )
      raise ValueError(
        f"{file} holds a transformer of format {got}, where this version of sora_jax reads "
        f"{FORMAT}: {cure}"
      )


def boundary(networks: Mapping[str, Network]) -> float | None:
  """The time above which a model's second transformer denoises; None if it has one alone.

  Raises: ValueError if the two do not read and mean the same.
  """
  if store.HIGH not in networks:
    return None
  first, second = networks["dit"], networks[store.HIGH]
  store.check(second.tree, first.tree, f"{store.HIGH}, a model's second transformer,")
  differ = differences(first.config["network"], second.config["network"])
  if differ:
    raise ValueError(
      f"{store.HIGH}, a model's second transformer, differs from the first in {', '.join(differ)}; "
      "train it with the config of the first"
    )
  return float(second.config["above"])


def differences(first: Any, second: Any) -> list[str]:
  """Keys in which the configs of two networks differ, but for those of how they are computed."""
  first, second = plain(first), plain(second)
  keys = (first.keys() | second.keys()) - {"scan_unroll", "remat", "dtype"}
  return sorted(key for key in keys if first.get(key) != second.get(key))


def find(name: str | os.PathLike) -> pathlib.Path:
  """The model folder that a user means: a shipped name, a model folder, or a work directory.

  Raises: ValueError that says what there is; OSError as `read`.
  """
  shipped = store.shipped()
  if str(name) in shipped:
    return shipped[str(name)]
  path = pathlib.Path(name)
  for candidate in (path, path / "model"):
    _end_writing(candidate)
    if (candidate / "dit.safetensors").is_file():
      return candidate
  if path.is_dir():
    raise ValueError(
      f"{path} holds no model (no dit.safetensors, nor model/dit.safetensors); a training run "
      "writes model/ when it ends (run the same command again to resume it), or before, from its "
      f"newest checkpoint: python -m sora_jax.export --workdir={path}"
    )
  raise ValueError(
    f"no model {str(name)!r}: it is neither a folder nor a shipped name "
    f"({', '.join(shipped) or 'none is shipped'})"
  )


def plain(value: Any) -> Any:
  """JSON's view of configs: dataclasses and mappings become dicts, tuples become lists."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return plain(dataclasses.asdict(value))
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  return value


def frozen(value: Any) -> Any:
  """Undoes JSON for frozen dataclasses: lists become tuples, dicts stay dicts."""
  if isinstance(value, Mapping):
    return {key: frozen(item) for key, item in value.items()}
  return tuple(frozen(item) for item in value) if isinstance(value, (list, tuple)) else value
