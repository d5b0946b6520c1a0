"""Turns a folder of films and photographs into shards, whatever the files hold.

Each file is decoded in a process of its own, with a limit on memory and on time, into a spool
folder; only a file that turned out whole is moved into the shards. So a file that crashes a
decoder, hangs it or unfolds to gigabytes costs one line of the report and nothing else. A disk
that is full is no fault of a file: it ends the job.
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator

import numpy as np

from sora_jax.data import clips, pictures, records, shard_writer
from sora_jax.data.captions import Captions, shown_name
from sora_jax.data.clips import MediaError
from sora_jax.data.records import Clip
from sora_jax.data.shard_writer import ShardWriter, WriteError

SUFFIXES = frozenset(
  ".3g2 .3gp .avi .flv .gif .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .webm "
  ".wmv .y4m .apng .avif .bmp .jpeg .jpg .png .ppm .tif .tiff .webp".split()
)
"""Names that are taken for media; any other file is media if its first bytes say so."""

_SAME_RATE = 1.01  # rates whose ratio is less are one
_ROUNDING_S, _GIF_ROUNDING_S = 0.002, 0.01  # by how much coarse clocks falsify a span of time

# how Python, the allocator, a thread that got no stack and a library's loader say it
_OUT_OF_MEMORY = (
  "MemoryError", "Cannot allocate memory", "Resource temporarily unavailable",
  "failed to map segment",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class IngestConfig:
  """How files become clips.

  Attributes:
    short_side: frames are shrunk (never enlarged) to this short side, at their own aspect.
    fps: faster films, and faster parts of others, are thinned to this rate; 0 keeps every frame.
    max_frames: longer films are cut into clips of this many frames; 0 never cuts.
    min_frames: a shorter rest of a cut film is dropped.
    max_pixels: a file with larger frames is rejected before one is allocated.
    salvage: keeps the frames before the damage of a partly decodable film.
    processes: files decoded at once.
    max_memory: bytes of address space that decoding one file may add.
    timeout: seconds that decoding one file may take.
  """

  short_side: int = 64
  fps: float = 12.0
  max_frames: int = 17
  min_frames: int = 5
  max_pixels: int = clips.MAX_PIXELS
  salvage: bool = False
  processes: int = 2
  max_memory: int = 4 << 30
  timeout: float = 600.0

  def __post_init__(self):
    for name in ("short_side", "max_pixels", "processes", "max_memory", "timeout"):
      if getattr(self, name) <= 0:
        raise ValueError(f"{name}={getattr(self, name)}; expected a positive number")
    for name in ("fps", "max_frames", "min_frames"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)}; expected 0 (off) or a positive number")
    if self.max_frames and self.min_frames > self.max_frames:
      raise ValueError(f"min_frames={self.min_frames} is above max_frames={self.max_frames}")


def find_media(root: pathlib.Path, skip: pathlib.Path | None = None) -> tuple[list, list]:
  """(media files, other files) under a folder, sorted; hidden ones and `skip` in it passed over.

  Links to folders are followed, after all else, and no folder is searched under two names.
  """
  media, others, searched = [], [], {skip} - {root.resolve()}
  tops = collections.deque([root])
  while tops:
    for folder, folders, names in os.walk(tops.popleft()):
      here = pathlib.Path(folder)
      real = here.resolve()
      if real in searched:
        folders.clear()
        continue
      searched.add(real)
      folders[:] = sorted(name for name in folders if not name.startswith("."))
      tops.extend(here / name for name in folders if os.path.islink(here / name))
      for name in sorted(names):
        if not name.startswith("."):
          path = here / name
          (media if _is_media(path) else others).append(path)
  return sorted(media), sorted(others)


def ingest(
  root: pathlib.Path,
  folder: pathlib.Path,
  config: IngestConfig,
  *,
  overwrite: bool = False,
  progress: Callable[[int, int, int, int], None] | None = None,
) -> dict:
  """Decodes every media file under `root` into shards in `folder`.

  Args: progress: called as (files done, files, bytes done, bytes) after each file.
  Returns: the report: `kept`, `rejected`, `ignored`, `warnings`, `num_clips`, `config`.
  Raises: FileNotFoundError; FileExistsError if `folder` holds a finished set and `overwrite` is
  off; ValueError if there is no media file; WriteError if `folder` cannot be written, which leaves
  a former set and nothing else. With nothing kept no shard is written, a former set stays, and
  `num_clips` is 0.
  """
  if not root.is_dir():
    raise FileNotFoundError(f"no folder {root}")
  media, others = find_media(root, folder.resolve())
  if not media:
    raise ValueError(f"{root} holds no video or picture (of {len(others)} files)")
  captions = Captions(root)
  jobs = [(path, shown_name(path, root), captions.of(path)) for path in media]
  report = {"kept": [], "rejected": [], "ignored": [shown_name(path, root) for path in others]}
  total, done = sum(_bytes(path) for path in media), 0
  writer = ShardWriter(folder, config=dataclasses.asdict(config), overwrite=overwrite)
  shard_writer.remove_unfinished(folder, ".spool")
  spool = folder / f".spool.{shard_writer.owner()}"
  try:
    with contextlib.closing(_decode_all(jobs, spool, config)) as results:
      for k, result in enumerate(results):
        if "reason" in result:
          report["rejected"].append({"file": jobs[k][1], "reason": result["reason"]})
        else:
          report["kept"].append({"file": jobs[k][1], **result})
          _move(spool / str(k), writer)
        shutil.rmtree(spool / str(k), ignore_errors=True)
        done += _bytes(media[k])
        if progress is not None:
          progress(k + 1, len(media), done, total)
    report |= {"num_clips": len(writer), "warnings": captions.warnings}
    report["config"] = dataclasses.asdict(config)
    if len(writer):
      writer.close()
  finally:
    writer.abort()
    shutil.rmtree(spool, ignore_errors=True)
  return report


def decode_file(path: str, name: str, captions: dict, spool: str, config: IngestConfig) -> dict:
  """Decodes one file into shards of its own in `spool`.

  Returns: the file's line in the report: `width`, `height`, `num_frames`, `fps` as displayed, and
  `clips`, `stored_size`, `stored_frames`; or `reason` alone.
  Raises: WriteError if `spool` cannot be written.
  """
  try:
    with clips.Reader(path, short_side=config.short_side, max_pixels=config.max_pixels) as reader:
      with ShardWriter(spool) as writer:
        stored = _store(reader, name, captions, writer, config)
      if reader.damage and not config.salvage:
        raise MediaError(reader.damage)
      line = {
        "width": reader.size[0],
        "height": reader.size[1],
        "num_frames": reader.num_frames,
        "fps": None if reader.fps is None else round(reader.fps, 3),
        **stored,
      }
      return line | ({"damage": reader.damage} if reader.damage else {})
  except MediaError as error:
    reason = pictures.one_line(error, path)
  except Exception as error:  # one bad file must not end the job, whatever it does to a decoder
    reason = f"{type(error).__name__}: {pictures.one_line(error, path)}"
    if isinstance(error, WriteError) and not any(sign in reason for sign in _OUT_OF_MEMORY):
      raise
  if any(sign in reason for sign in _OUT_OF_MEMORY):
    flag = f"--max_memory_gb={config.max_memory / 2**30:.4g}"
    reason = f"needs more than max_memory={config.max_memory} bytes, {flag} ({reason})"
  return {"reason": reason}


def thin(frames: Iterator, rate: float | None, fps: float) -> Iterator[tuple[float, np.ndarray]]:
  """Yields (time in seconds, frame), of `frames` that are such pairs too, at a rate of about `fps`.

  Where the declared `rate` is faster: the frame on screen at each k / fps. Else every frame, but
  where time stamps run faster than `fps`, those that are not yet due. All where `fps` is 0.
  """
  if rate is None or not fps:
    yield from frames
    return
  if not _is_faster(rate, fps):
    yield from _due(frames, fps)
    return
  slack = 0.25 / rate  # jitter of time stamps
  shown, k = None, 0
  for time_s, frame_HWC in frames:
    while shown is not None and k / fps + slack < time_s:
      yield k / fps, shown
      k += 1
    shown = frame_HWC
  if shown is not None and k / fps <= time_s + slack:
    yield k / fps, shown


def _is_faster(rate: float, fps: float) -> bool:
  return bool(fps) and rate > fps * _SAME_RATE


def _due(frames: Iterator, fps: float) -> Iterator[tuple[float, np.ndarray]]:
  """Drops what comes much earlier than 1 / fps after what was kept; stamps may jitter by a quarter.

  Frames whose time does not advance are kept: their stamps tell nothing.
  """
  gap, slack = 1 / (fps * _SAME_RATE), 0.25 / fps
  former, due = None, 0.0
  for time_s, frame_HWC in frames:
    if former is None or time_s <= former:
      due = time_s
    former = time_s
    if time_s >= due - slack:
      yield time_s, frame_HWC
      due = max(due, time_s) + gap


def _store(reader, name: str, captions: dict, writer, config: IngestConfig) -> dict:
  """Cuts the frames into clips and writes them; returns what the report says about them."""
  frames = reader.frames()
  start = next(frames)  # before it, the rate of an animation is not known
  pieces, held, first = [], [], start[1].shape
  for shown in thin(itertools.chain([start], frames), reader.rate, config.fps):
    held.append(shown)
    if config.max_frames and len(held) == config.max_frames:
      pieces.append(_spool(writer, name, captions, held, len(pieces), reader, config))
      held = []
  if held and (not pieces or len(held) >= config.min_frames):
    pieces.append(_spool(writer, name, captions, held, len(pieces), reader, config))
  return {"clips": len(pieces), "stored_frames": sum(pieces), "stored_size": [first[1], first[0]]}


def _spool(writer, name, captions, held, piece, reader, config) -> int:
  times, frames = zip(*held)
  fps = _rate(times, reader, config.fps)
  clip_id = name if not piece else f"{name}#{piece}"
  writer.write(Clip(id=clip_id, video_THWC=np.stack(frames), fps=fps, captions=captions))
  return len(held)


def _rate(times: tuple[float, ...], reader, fps: float) -> float | None:
  """Frames per second of a piece: the film's, or its own if its times (seconds) differ from that.

  The rate that a film was thinned to; None for a single frame.
  """
  if len(times) == 1:
    return None
  if _is_faster(reader.rate, fps):
    return fps
  gaps, span = len(times) - 1, times[-1] - times[0]
  slack = max((_SAME_RATE - 1) * span, _GIF_ROUNDING_S if reader.is_picture else _ROUNDING_S)
  return reader.fps if span <= 0 or abs(gaps / reader.fps - span) <= slack else gaps / span


def _decode_all(jobs: list, spool: pathlib.Path, config: IngestConfig) -> Iterator[dict]:
  """Results in the order of the jobs, from at most `processes` children at once.

  Raises: WriteError once a child could not write its spool.
  """
  context = multiprocessing.get_context("forkserver")  # a clean parent: no threads, no accelerator
  context.set_forkserver_preload(["sora_jax.data.ingest"])
  running, results, following = {}, {}, 0
  try:
    for k in range(len(jobs)):
      while k not in results:
        ahead = 2 * config.processes  # bounds the spool on disk
        while following < min(len(jobs), k + ahead) and len(running) < config.processes:
          running[following] = _start(context, jobs[following], spool / str(following), config)
          following += 1
        results |= _collect(running, config)
      yield results.pop(k)
  finally:
    for process, _, _ in running.values():
      process.kill()
      process.join()


def _start(context, job, spool: pathlib.Path, config: IngestConfig) -> tuple:
  receiver, sender = context.Pipe(duplex=False)
  path, name, captions = job
  arguments = (sender, str(path), name, captions, str(spool), config)
  process = context.Process(target=_child, args=arguments, daemon=True)
  process.start()
  sender.close()
  return process, receiver, time.monotonic() + config.timeout


def _collect(running: dict, config: IngestConfig) -> dict[int, dict]:
  """Waits for a child to end or to run out of time; results by job."""
  nearest = min(deadline for _, _, deadline in running.values()) - time.monotonic()
  pipes = [receiver for _, receiver, _ in running.values()]
  multiprocessing.connection.wait(pipes, timeout=max(0.0, nearest))
  results = {}
  for k, (process, receiver, deadline) in list(running.items()):
    if receiver.poll():
      try:
        results[k] = receiver.recv()
      except EOFError:
        process.join()
        results[k] = {"reason": f"the decoder died with exit code {process.exitcode}"}
      if isinstance(results[k], WriteError):
        raise results[k]
    elif time.monotonic() >= deadline:
      results[k] = {"reason": f"takes longer than timeout={config.timeout:g} seconds to decode"}
    else:
      continue
    process.kill()
    process.join()
    receiver.close()
    del running[k]
  return results


def _child(sender, path, name, captions, spool, config) -> None:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) if _has_proc() else 0
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = pages * resource.getpagesize() + config.max_memory
  if pages and (hard == resource.RLIM_INFINITY or limit < hard):
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  try:
    result = decode_file(path, name, captions, spool, config)
  except WriteError as error:
    result = error
  sender.send(result)
  sender.close()


def _has_proc() -> bool:
  return pathlib.Path("/proc/self/statm").exists()


def _move(spool: pathlib.Path, writer: ShardWriter) -> None:
  source = records.ShardSource(spool)
  for i in range(len(source)):
    writer.write_bytes(source.read_bytes(i))


def _is_media(path: pathlib.Path) -> bool:
  if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait forever
    return False
  if path.suffix.lower() in SUFFIXES:
    return True
  try:
    with path.open("rb") as file:
      head = file.read(32)
  except OSError:
    return False
  film = head[4:8] == b"ftyp" or head.startswith((b"\x1a\x45\xdf\xa3", b"OggS", b"FLV\1"))
  return film or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or pictures.is_picture(head)


def _bytes(path: pathlib.Path) -> int:
  try:
    return path.stat().st_size
  except OSError:
    return 0
