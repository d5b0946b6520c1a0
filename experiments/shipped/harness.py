"""What the scripts of this folder share: flags, progress, the models, the last line."""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sora_jax.data import transforms
from sora_jax.data.world import WorldConfig, prompts
from sora_jax.evaluation import arguments
from sora_jax.nn import vae
from sora_jax.tasks import autoencoder
from sora_jax.tasks.report import Wish
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

MODEL = flags.DEFINE_string("model", "tiny", "Shipped name, model folder or work directory.")
OUT = flags.DEFINE_string("out", "runs/shipped", "Folder of figures and pictures.")
DIT_SIZES = ("72x40", "56x40", "48x48", "40x56", "40x72")
"""One size in whole tokens for each of the aspect ratios 16:9, 4:3, 1:1, 3:4 and 9:16."""


def sizes(words: list[str], flag: str = "sizes") -> list[tuple[int, int]]:
  """["64x36"] to [(64, 36)].  Raises: ValueError that names the flag for what is no such list."""
  if not words:
    raise ValueError(f"--{flag} is empty; give WIDTHxHEIGHT in pixels, comma-separated")
  return [transforms.parse_size(word, flag) for word in words]


def counts(words: list[str], flag: str = "frames") -> list[int]:
  """["9", "17"] to [9, 17].  Raises: ValueError that names the flag for what is no such list."""
  found = [whole(word) for word in words]
  if not found or not all(found):
    raise ValueError(f"--{flag}={','.join(words)}; give whole numbers, comma-separated, like 9,17")
  return found


def whole(word: str) -> int:
  """A whole number above 0; 0 for a word that is none."""
  return int(word) if word.isascii() and word.isdigit() else 0


def size_name(size: tuple[int, int]) -> str:
  """(64, 36) to "64x36"."""
  return f"{size[0]}x{size[1]}"


class Progress:
  """Lines on standard error: how far, and how much longer."""

  def __init__(self, what: str, total: int, every: float = 10.0):
    self.what, self.total, self.done, self.every = what, total, 0, every
    self.started = self._said = time.perf_counter()

  def __call__(self, more: int = 1, note: str = "") -> None:
    self.done += more
    now = time.perf_counter()
    if now - self._said < self.every and self.done < self.total:
      return
    self._said, spent = now, now - self.started
    left = spent / self.done * (self.total - self.done)
    say(f"{self.what}: {self.done} of {self.total}, {spent:.0f} s, {left:.0f} s to go {note}")


def say(line: str) -> None:
  """A line of progress."""
  print(line, file=sys.stderr, flush=True)


def out() -> pathlib.Path:
  """The folder of what is written; made if it is not there. Asked for before the work begins, since
  it ends the script if nothing can be written there."""
  with arguments.refusing():
    return arguments.folder(OUT.value)


def finite(value):
  """A copy of figures in which None stands for what is not a number, as JSON has no word for it."""
  if isinstance(value, dict):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def keep(name: str, figures: dict, started: float) -> dict:
  """Writes what is known so far as NAME.json; returns it."""
  about = {"model": MODEL.value} | finite(figures)
  about["seconds"] = round(time.perf_counter() - started, 1)
  (out() / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
  return about


def finish(name: str, figures: dict, started: float) -> None:
  """Writes NAME.json and prints the figures as the last line."""
  print(json.dumps(keep(name, figures, started)))


class Autoencoder:
  """The VAE of a model; also of a folder that holds nothing but `vae.safetensors`."""

  def __init__(self, name: str):
    """Raises: ValueError for a name that is none, OSError or ValueError for damaged files."""
    path, shipped = pathlib.Path(name), store.shipped("vae.safetensors")
    places = (path, path / "vae.safetensors", path / "model" / "vae.safetensors")
    if name not in shipped and not any(place.is_file() for place in places):
      raise ValueError(
        f"no VAE {name!r}: it is neither a folder with vae.safetensors, nor such a file, nor a "
        f"shipped name ({', '.join(shipped) or 'none is shipped'}); train configs/vae.py:tiny first"
      )
    found = autoencoder.load_autoencoder(name)
    self.config, self.variables = found.network.config, jax.tree.map(jnp.asarray, found.variables)
    self._encode = jax.jit(vae.encode, static_argnums=0)
    self._decode = jax.jit(vae.decode, static_argnums=0)

  def encode(self, video_THWC: np.ndarray) -> jax.Array:
    """Normalised latents [t, h, w, Z] of uint8 frames."""
    video = transforms.pad_frames(video_THWC, self.config.temporal)
    video = transforms.to_float(transforms.pad_size(video, self.config.spatial))
    return self._encode(self.config, self.variables, jnp.asarray(video)[None])[0]

  def decode(self, latent_thwZ: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 frames of latents, cropped to a shape [T, H, W, 3]."""
    T, H, W, _ = shape
    video = np.asarray(self._decode(self.config, self.variables, latent_thwZ[None])[0])
    return transforms.to_uint8(video[:T, :H, :W])

  def __call__(self, video_THWC: np.ndarray) -> np.ndarray:
    """A reconstruction."""
    return self.decode(self.encode(video_THWC), video_THWC.shape)


def trained_world(folder: pathlib.Path) -> WorldConfig | None:
  """The world that a model's transformer was trained on, as its file says; None if it does not."""
  story = store.load(folder / "dit.safetensors")[2]["provenance"] or {}
  data = story.get("config", {}).get("data", {})
  return WorldConfig(**data["world"]) if data.get("source") == "world" else None


def trained_worlds(folder: pathlib.Path, newest: int) -> list[WorldConfig]:
  """The worlds of the `newest` last legs of each of a model's transformers, the last first, each
  once: legs that they share, and legs that went on with a world, count once. Empty where its files
  tell of none."""
  found: dict[WorldConfig, None] = {}
  for name in folder_lib.DENOISERS:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
      continue
    story = store.load(path)[2]["provenance"] or {}
    legs = story.get("legs") or [story]
    for leg in reversed(legs[-newest:]):
      data = leg.get("config", {}).get("data", {})
      if data.get("source") == "world":
        found.setdefault(WorldConfig(**data["world"]))
  return list(found)


def plain_world(folder: pathlib.Path) -> WorldConfig:
  """That world, narrowed to clips of constant motion in the plain style, each word once: what was
  trained on more often is not asked for more often. The default world's words for a model whose
  file tells of none, which is said."""
  trained = trained_world(folder)
  if trained is None:
    say(f"{folder} tells of no training on the world: asked in the words of the default one")
    trained = WorldConfig()
  words = {
    name: tuple(dict.fromkeys(getattr(trained, name)))
    for name in ("colors", "shapes", "backgrounds", "directions")
  }
  return dataclasses.replace(
    trained, levels=(1,), motions=("constant",), image_fraction=0.0, styles=("plain",), **words
  )


def wishes(
  world: WorldConfig,
  count: int,
  split: str,
  asked: Sequence[tuple[int, int]],
  frames: Sequence[int],
  seed: int,
) -> list[Wish]:
  """`count` wishes for each size asked for, the sizes in turn, no two groups with the same prompts.

  Args: frames: lengths, taken in turn.  seed: of the prompts.
  """
  groups = []
  for k, size in enumerate(asked):
    group = []
    for j, number in enumerate(frames):
      seeded = dataclasses.replace(world, seed=1000 + seed + 10 * k + j)
      some = count // len(frames) + (j < count % len(frames))
      if some:
        found = prompts(seeded, some, size=size, frames=number, split=split)
        group += [Wish(text, size, number, float(truth["fps"]), truth) for text, truth in found]
    groups.append(group)
  return [wish for turn in zip(*groups) for wish in turn]


def above(videos: list[np.ndarray], gap: int = 2) -> np.ndarray:
  """Videos of one shape as one, below each other."""
  T, _, W, _ = videos[0].shape
  line = np.full((T, gap, W, 3), 255, np.uint8)
  parts = [part for video in videos for part in (video, line)]
  return np.concatenate(parts[:-1], axis=1)
