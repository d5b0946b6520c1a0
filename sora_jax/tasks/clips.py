"""Where a task's clips come from: a rendered world, or shards made from a folder of videos."""

import collections
import dataclasses
import json
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from sora_jax.data import records
from sora_jax.data.world import World, WorldConfig, build

SOURCES = ("world", "clips")


class Sources(NamedTuple):
  """Clips to train on and clips to look at; random access, picklable."""

  train: Any
  validation: Any


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
  """Names as in `configs/base.py` under `data`; `world` is None for other sources."""

  source: str
  folder: Path
  validation_clips: int
  world: WorldConfig | None = None
  processes: int = 2

  def __post_init__(self):
    if self.source not in SOURCES:
      raise ValueError(f"data.source is {self.source!r}; allowed: {', '.join(SOURCES)}")
    if self.validation_clips < 1 or self.processes < 1:
      raise ValueError(
        f"data.validation_clips={self.validation_clips}, data.processes={self.processes};"
        " both must be at least 1"
      )
    if self.source == "clips" and not records.index_path(self.folder, "clips").is_file():
      raise ValueError(
        f"data.folder is {str(self.folder)!r}, which holds no finished shards; make them with"
        " python -m sora_jax.prepare --input=DIR --output=DIR"
      )


class Subset(Sequence):
  """Some clips of a source, by index."""

  def __init__(self, source: Any, indices: Sequence[int]):
    self.source, self.indices = source, tuple(int(i) for i in indices)

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, i):
    return self.source[self.indices[operator.index(i)]]


def open_sources(config: ClipsConfig, wrap: Callable = lambda shards: shards) -> Sources:
  """Opens the clips, rendering a world first if the folder does not hold it yet.

  wrap: called with every set of shards; what it returns (such as their latents, aligned by index)
  is used in its place.
  """
  if config.source == "world":
    held = dataclasses.replace(config.world, split="validation", num_clips=config.validation_clips)
    worlds = {"train": config.world, "validation": held}
    return Sources(
      **{n: wrap(rendered(w, config.folder / n, config.processes)) for n, w in worlds.items()}
    )
  source = wrap(records.ShardSource(config.folder))
  films = [re.sub(r"#\d+\Z", "", source[i].id) for i in range(len(source))]
  train, validation = split(films, config.validation_clips)
  return Sources(Subset(source, train), Subset(source, validation))


def split(films: list[str], validation: int) -> tuple[list[int], list[int]]:
  """Keeps about `validation` clips apart: those of whole films, evenly spread; at most half.

  Films of more clips than that are trained on; where all are, the smallest is kept apart. Clips of
  a single film are split as if each were a film, with a warning.
  Args: films: of each clip, what it was cut from (`prepare` names clips "FILM#NUMBER").
  Returns: indices of clips to train on, and of those kept apart.
  Raises: ValueError if there are fewer than two clips.
  """
  if len(films) < 2:
    raise ValueError(f"{len(films)} clips cannot be split into training and validation; add clips")
  clips_of = collections.defaultdict(list)
  if len(set(films)) == 1:
    logging.warning(
      "all %d clips are cut from one film, %s: those kept for validation resemble those trained on;"
      " add films",
      len(films),
      films[0],
    )
    films = [str(i) for i in range(len(films))]
  for i, film in enumerate(films):
    clips_of[film].append(i)
  apart, most = [], min(max(validation, 1), len(films) // 2)
  fitting = [clips for clips in clips_of.values() if len(clips) <= most]
  fitting = fitting or [min(clips_of.values(), key=len)]
  step = max(2, sum(map(len, fitting)) // max(validation, 1))
  step = min(step, len(fitting))
  for clips in fitting[step - 1 :: step]:
    if not apart or len(apart) + len(clips) <= most:
      apart += clips
  kept = set(apart)
  return [i for i in range(len(films)) if i not in kept], sorted(kept)


def rendered(world: WorldConfig, folder: Path, processes: int) -> records.ShardSource:
  """The shards of a world, rendered into `folder` if they are not there.

  Raises: ValueError if the folder holds another world; what `ShardSource` raises if its shards are
  damaged or gone, and how to have them rendered again.
  """
  if not records.index_path(folder, "clips").is_file():
    World(world)
    logging.info("rendering %d clips into %s", world.num_clips, folder)
    build(world, folder, processes, progress=_Progress("rendered"))
  source = records.ShardSource(folder)
  about, wanted = source.config, json.loads(json.dumps(dataclasses.asdict(world)))
  made = about["world"] if "world" in about else {}
  if made != wanted:
    names = [name for name in wanted if name not in made or made[name] != wanted[name]]
    raise ValueError(
      f"{folder} holds another world (other values of {', '.join(names)}); set data.folder to a new"
      " folder, or delete this one"
    )
  return source


class _Progress:
  """Logs about every tenth of the way."""

  def __init__(self, verb: str):
    self._verb, self._next = verb, 0.1

  def __call__(self, done: int, total: int) -> None:
    if done >= self._next * total:
      logging.info("%s %d of %d", self._verb, done, total)
      self._next = done / total + 0.1
