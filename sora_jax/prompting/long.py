"""Long videos: windows of one shape; key frames first, then what lies between them.

A model makes clips of W frames. A longer video is planned on levels: level 0 is the video itself,
level k holds every stride-th frame of it. The coarsest level is made by windows one after the
other, each knowing the last frames of the one before; on every finer level the frames of the
coarser one are known, and a window fills the gaps between them, both ends known. The frame rate of
a level is the video's divided by its stride, and a model knows only rates that it has been trained
at: levels end where the next would fall below the least of them, and where one window holds all.

Key frames between the coarsest level and the video need only key frames: they are independent, and
several are sampled packed together. On level 0 a window also knows the last frames of the window
before it, because a few frames tell a motion and one tells only a place: there they are made one
by one. Levels are streams: a window is made when a finer level asks for it, frames come out in
order from the first windows on, and what is held at once, on the host as on the device, depends on
the window, the batch and the number of levels, not on the length of the video (only the plan's few
numbers for each window do).

Sources: key frames, then their gaps, with both ends known: NUWA-XL (Yin et al. 2023, arXiv
2303.12346); Video LDM (Blattmann et al. 2023, arXiv 2304.08818), section 3.2. One after the other:
the latter's prediction model.
"""

import bisect
import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from sora_jax.data.transforms import Size
from sora_jax.prompting import timeline
from sora_jax.prompting.tasks import GUARD, Video
from sora_jax.prompting.timeline import Timeline

WINDOW = 17
"""Frames of a window: the longest clip of training."""
RATIO = 4
"""Most frames of a level for one of the next coarser."""
LEAST_FPS = 8.0
"""The least frame rate of the procedural world, in frames per second."""
BATCH = 4
"""Most windows of key frames that are sampled in one call."""
MAX_FRAMES = 10_000_000
_LEVELS = 64
_LINE = re.compile(r"(\S+?)(?:\s*:(?!\d)\s*|\s+(?![\s:]))(.+)")
"""SECONDS: PROMPT; "1:30 a" is no line of it, whatever its writer meant."""


@dataclasses.dataclass(frozen=True)
class Window:
  """One call of a model; frames are counted on the window's own level.

  Attributes: level: 0 = the video.  index: its place on the level.  start: the first frame shown.
    first, stop: it adds the frames [first, stop).  known: the frames shown that are known.
  """

  level: int
  index: int
  start: int
  first: int
  stop: int
  known: tuple[int, ...]

  @property
  def made(self) -> list[int]:
    """The frames that it makes: added, and not known before."""
    known = set(self.known)
    return [frame for frame in range(self.first, self.stop) if frame not in known]

  @property
  def noise(self) -> int:
    """A number that names the window, whatever the length of the video; 0 for the first."""
    return self.index * _LEVELS + self.level


@dataclasses.dataclass(frozen=True)
class Level:
  """Every `stride`-th frame of the video.

  Attributes: count: its frames.  step: every step-th is on the next level; 0 on the coarsest.
    windows: in order.  free: whether they know nothing of each other.
  """

  stride: int
  count: int
  step: int
  windows: tuple[Window, ...]
  free: bool


@dataclasses.dataclass(frozen=True)
class Plan:
  """A video of `frames` frames, `fps` a second, in windows of `window`; levels, finest first."""

  frames: int
  fps: float | int
  window: int
  levels: tuple[Level, ...]

  @property
  def windows(self) -> int:
    """Windows of all levels."""
    return sum(len(level.windows) for level in self.levels)


def plan(
  frames: int,
  fps: float | int,
  *,
  window: int = WINDOW,
  context: int = GUARD,
  ratio: int = RATIO,
  least_fps: float | int = LEAST_FPS,
) -> Plan:
  """Levels and windows of a video.

  A level's step is the largest up to `ratio`, and up to what a window adds to its context, that
  keeps the next level at `least_fps` or above; without any, the level is the coarsest.
  Args: fps: frames per second.  window: W.  context: frames that a window knows of the one before.
    ratio: 1 = no key frames.  least_fps: 0 = as many levels as it takes for one window.
  Raises: ValueError naming the argument.
  """
  if not 1 <= frames <= MAX_FRAMES:
    raise ValueError(f"frames is {frames}; a long video has 1 to {MAX_FRAMES}")
  if not 0 < fps <= 1000:
    raise ValueError(f"fps is {fps}; it must be above 0, at most 1000")
  if not 1 <= context < window:
    raise ValueError(f"context is {context}; it must be at least 1 and below window, {window}")
  if ratio < 1:
    raise ValueError(f"ratio is {ratio}; it must be at least 1, which means no key frames")
  if not 0 <= least_fps < math.inf:
    raise ValueError(f"least_fps is {least_fps}; it must be a frame rate, or 0 for no limit")
  levels, stride, count = [], 1, frames
  while True:
    least = least_fps * stride * (1 - 1e-9)
    steps = range(min(ratio, window - context), 1, -1)
    step = next((q for q in steps if count > window and fps / q >= least), 0)
    if not step:
      windows = _chain(len(levels), count, window, context)
      return Plan(frames, fps, window, (*levels, Level(stride, count, 0, windows, False)))
    free = bool(levels)
    windows = _gaps(len(levels), count, window, 1 if free else context, step, free)
    levels.append(Level(stride, count, step, windows, free))
    stride, count = stride * step, -(-(count - 1) // step) + 1


def _chain(level: int, count: int, window: int, context: int) -> tuple[Window, ...]:
  """Windows that each know the last `context` frames before them; the last may stick out."""
  windows, start = [], 0
  while True:
    known = tuple(range(start, start + context)) if windows else ()
    stop = min(start + window, count)
    windows.append(Window(level, len(windows), start, start + len(known), stop, known))
    if stop == count:
      return tuple(windows)
    start += window - context


def _gaps(
  level: int, count: int, window: int, context: int, step: int, free: bool
) -> tuple[Window, ...]:
  """Windows that end on key frames and know those inside; unless `free`, all frames before, too.

  With key frames at all multiples of `step`, up to the first that is not below count - 1. A window
  reaches as far as leaves it `context` frames of the one before, to a key frame.
  """
  last = -(-(count - 1) // step) * step
  windows, end = [], -1
  while end < last:
    far = end + window - context if windows else window - 1
    before, end = end, min(far // step * step, last)
    start = end - window + 1 if windows else 0
    known = [
      frame
      for frame in range(start, end + 1)
      if frame % step == 0 or (frame <= before and not free)
    ]
    stop = min(end + 1, count)
    windows.append(Window(level, len(windows), start, before + 1, stop, tuple(known)))
  return tuple(windows)


@dataclasses.dataclass(frozen=True)
class Script:
  """Prompts and the seconds from which they hold: the first at 0, then rising."""

  parts: tuple[tuple[float, str], ...]

  def __post_init__(self):
    times = [seconds for seconds, _ in self.parts]
    if not times or times[0] != 0 or any(b <= a for a, b in zip(times, times[1:])):
      raise ValueError(f"a script's times are {times}; expected 0 and then rising seconds")

  def at(self, seconds: float | int) -> str:
    """The prompt in force."""
    times = [begin for begin, _ in self.parts]
    return self.parts[max(1, bisect.bisect_right(times, seconds + 1e-9)) - 1][1]

  def frames(self, fps: float | int, stop: int | None = None) -> list[tuple[int, str]]:
    """The prompts with the frames at which they take over, see `timeline.blank`.

    Of prompts that take over at the same frame, the last holds.
    Args: stop: frames of the video; None = any number.
    Raises: ValueError for a prompt that begins when the video has ended.
    """
    end = self.parts[-1][0]
    if stop is not None and end >= stop / fps:
      raise ValueError(
        f"a prompt at {end:g} s, but the video ends at {stop / fps:g} s; ask for more than "
        f"{math.floor(end * fps)} frames, or leave that prompt out"
      )
    found = {math.ceil(seconds * fps - 1e-9): text for seconds, text in self.parts}
    return [(frame, text) for frame, text in found.items() if stop is None or frame < stop]

  def between(self, start: int, stop: int, fps: float | int) -> list[tuple[int, str]]:
    """The prompts of the frames [start, stop), with their frames counted from `start`."""
    found = {0: self.at(start / fps)}
    found |= {frame - start: text for frame, text in self.frames(fps) if start < frame < stop}
    return list(found.items())


def script_of(prompt: str | Sequence[tuple[float | int, str]]) -> Script:
  """One prompt for all, or pairs (seconds, prompt), as a script.  Raises: ValueError."""
  parts = [(0.0, prompt)] if isinstance(prompt, str) else prompt
  return Script(tuple((float(seconds), str(text)) for seconds, text in parts))


def read_script(path: str | os.PathLike) -> Script:
  """A script from a UTF-8 text file with a line `SECONDS: prompt` for each prompt.

    0: a red circle moves right over a black background
    4.5: a red circle bounces over a black background

  Blanks on either side of the colon do not matter, and a blank may stand for it. Empty lines and
  those that begin with # are skipped. The first line is for second 0, and seconds rise.
  Raises: OSError; ValueError with file and line, and what was expected there.
  """
  parts = []
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: not UTF-8 text ({error}); save it as such") from error
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.strip().startswith("#"):
      continue
    found = _LINE.fullmatch(line.strip())
    first, text = found.groups() if found else ("nan", "")
    try:
      seconds = float(first)
    except ValueError:
      seconds = math.nan
    if not math.isfinite(seconds):
      raise ValueError(
        f"{path}:{number}: {line.strip()!r}; expected SECONDS: and a prompt, for example "
        '"4.5: a red circle moves right over a black background"'
      )
    if not parts and seconds != 0:
      raise ValueError(f"{path}:{number}: begins at {seconds:g} s; the first prompt must be at 0")
    if parts and seconds <= parts[-1][0]:
      raise ValueError(
        f"{path}:{number}: {seconds:g} s is not after {parts[-1][0]:g} s; put the lines in order"
      )
    parts.append((seconds, text))
  if not parts:
    raise ValueError(f"{path}: no prompt; expected lines of SECONDS: and a prompt, the first at 0")
  return Script(tuple(parts))


@runtime_checkable
class Make(Protocol):
  """Makes timelines, one seed for each: uint8 videos [W, H, W, 3] of their frames."""

  def __call__(self, lines: list[Timeline], seeds: list[int]) -> Sequence[np.ndarray]: ...


@runtime_checkable
class Kept(Protocol):
  """What windows have added, by (level, index); a dict, or a store that outlives the process."""

  def get(self, key: tuple[int, int]) -> np.ndarray | None: ...

  def __setitem__(self, key: tuple[int, int], video_THWC: np.ndarray) -> None: ...


@dataclasses.dataclass(eq=False)
class Film:
  """A plan carried out.

  Attributes: script: what each window shows.  size: (width, height) in pixels.  seed: below 2^64;
    the noise of a window is named by `seed + 2^64 window.noise`, so it is the same in a longer
    video.  make: the model.  batch: most windows of one call.  kept: finished windows, reused and
    added to, or None.  report: called with a line of text after each call.
  """

  plan: Plan
  script: Script
  size: Size
  seed: int
  make: Make
  batch: int = BATCH
  kept: Kept | None = None
  report: Callable[[str], None] | None = None

  def __post_init__(self):
    if not 0 <= self.seed < 2**64:
      raise ValueError(f"seed is {self.seed}; it must be at least 0, below 2^64")
    if self.batch < 1:
      raise ValueError(f"batch is {self.batch}; it must be at least 1")
    self.script.frames(self.plan.fps, self.plan.frames)  # refuses one that is too long
    self._done, self._made, self._frames, self._new, self._began = 0, 0, 0, 0, 0.0

  def chunks(self) -> Iterator[Video]:
    """The video in order, uint8 [k, H, W, 3] with k at most W; together exactly its frames."""
    self._began = time.monotonic()
    yield from self._stream(0)

  def _stream(self, number: int) -> Iterator[Video]:
    """A level's frames in order, window by window; asks the next level for key frames."""
    level = self.plan.levels[number]
    keys, pulled = self._single(number + 1) if level.step else iter(()), 0
    held: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
    size = self.batch if level.free else 1
    for i in range(0, len(level.windows), size):
      group = level.windows[i : i + size]
      while level.step and pulled * level.step < group[-1].start + self.plan.window:
        held[pulled * level.step] = next(keys)
        pulled += 1
      for window, chunk_THWC in zip(group, self._group(level, group, held)):
        held.update((window.first + j, frame_HWC) for j, frame_HWC in enumerate(chunk_THWC))
        yield chunk_THWC
      after = level.windows[i + size : i + size + 1]
      held = {at: frame for at, frame in held.items() if after and at >= after[0].start}

  def _single(self, number: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    for chunk_THWC in self._stream(number):
      yield from chunk_THWC

  def _group(self, level: Level, group: Sequence[Window], held: dict) -> list[Video]:
    """What windows add. All of one call are kept, or all are made: beside others bits differ."""
    names = [(window.level, window.index) for window in group]
    chunks = [None if self.kept is None else self.kept.get(name) for name in names]
    if any(chunk is None for chunk in chunks):
      lines = [self._line(level, window, held) for window in group]
      videos = self.make(lines, [self.seed + (window.noise << 64) for window in group])
      chunks = [
        video_THWC[window.first - window.start : window.stop - window.start].copy()
        for window, video_THWC in zip(group, videos)
      ]
      for name, chunk_THWC in zip(names, chunks):
        if self.kept is not None:
          self.kept[name] = chunk_THWC
      self._made += len(group)
      self._new += 0 if group[0].level else len(chunks[0])
    self._done += len(group)
    self._frames += 0 if group[0].level else len(chunks[0])
    self._tell()
    return chunks

  def _line(self, level: Level, window: Window, held: dict) -> Timeline:
    """The timeline of a window; each of its frames has the text in force."""
    rate, frames = self.plan.fps / level.stride, self.plan.window
    prompts = self.script.between(window.start, window.start + frames, rate)
    line = timeline.blank(prompts, frames, self.size, rate)
    for frame in window.known:
      line.pixels_THWC[frame - window.start] = held[frame]
      line.known_THW[frame - window.start] = True
    return line

  def _tell(self) -> None:
    if self.report is None:
      return
    total, said = self.plan.windows, f"{self._frames} of {self.plan.frames} frames"
    if self._made:
      spent = time.monotonic() - self._began
      left = round((total - self._done) * spent / self._made)
      said += f", {self._new / max(spent, 1e-9):.2f} frames/s, {left // 60}:{left % 60:02d} left"
    self.report(f"window {self._done} of {total}, {said}")
