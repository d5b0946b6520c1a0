"""Renders a world into shards, in several processes, always in the order of the indices."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator

from sora_jax.data import records, shard_writer
from sora_jax.data.world.config import WorldConfig
from sora_jax.data.world.dataset import World

CHUNK = 128  # clips that a process renders at a time


def build(
  config: WorldConfig,
  folder: str | os.PathLike,
  processes: int = 2,
  progress: Callable[[int, int], None] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes `World(config)` as shards of prefix "clips", whatever the number of processes.

  Args: processes: rendering processes; 0 or 1 render in this one.  progress: called with (clips
  done, clips in all) after every chunk.  overwrite: replaces a finished set; False refuses.
  Returns: the folder.  Raises: what ShardWriter raises; BrokenProcessPool if a process was killed.
  """
  folder = pathlib.Path(folder)
  total = len(World(config))
  about = {"world": dataclasses.asdict(config)}
  with shard_writer.ShardWriter(folder, config=about, overwrite=overwrite) as writer:
    for chunk in _chunks(config, total, processes):
      for record in chunk:
        writer.write_bytes(record)
      if progress is not None:
        progress(len(writer), total)
  return folder


def _chunks(config: WorldConfig, total: int, processes: int) -> Iterator[list[bytes]]:
  """Rendered chunks in order; at most two per process wait, so memory stays bounded."""
  starts = list(range(0, total, CHUNK))
  if processes <= 1 or len(starts) == 1:
    for start in starts:
      yield _render(config, start, min(start + CHUNK, total))
    return
  # spawn: a fork would copy the threads and locks of whatever the parent has running
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
    waiting: list[concurrent.futures.Future] = []
    try:
      for start in starts:
        waiting.append(pool.submit(_render, config, start, min(start + CHUNK, total)))
        if len(waiting) > 2 * processes:
          yield waiting.pop(0).result()
      while waiting:
        yield waiting.pop(0).result()
    finally:
      for future in waiting:
        future.cancel()


def _render(config: WorldConfig, start: int, stop: int) -> list[bytes]:
  world = World(config)
  return [records.to_bytes(world[i]) for i in range(start, stop)]
