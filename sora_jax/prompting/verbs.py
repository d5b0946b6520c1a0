"""What a model does when it is prompted with images and videos: each verb lays out a timeline.

Every verb takes the arguments of `Model.make` as well: seed, guidance, image_guidance, steps, ...
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from sora_jax.data import transforms
from sora_jax.data.transforms import Size
from sora_jax.prompting import long as long_lib
from sora_jax.prompting import requests, tasks, timeline
from sora_jax.prompting.timeline import Prompt, Timeline, as_video
from sora_jax.shapes import Grid

DEFAULT_SIZE = (96, 64)
"""(width, height) of what is made from text alone, loops among it."""


class Verbs:
  """The verbs; a class with `make`, `defaults`, `prompted`, `patch`, `autoencoder`, `sampler`."""

  def animate(
    self, image: np.ndarray, prompt: Prompt, size: Size | None = None, frames: int = 17,
    fps: float | None = None, at: int = 0, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A video in which a picture, uint8 [H, W, 3] or [1, H, W, 3], is frame `at`; see `make`."""
    image = as_video(image)
    size = self._size(image, frames, size)
    return self.make(tasks.animate(image, prompt, size, frames, self._fps(fps), at), **how)

  def extend(
    self, video: np.ndarray, prompt: Prompt, forward: int = 0, backward: int = 0,
    size: Size | None = None, fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip, uint8 [T, H, W, 3], with frames after it, before it, or both; see `make`."""
    video = as_video(video)
    hidden = 0 if forward and backward else tasks.hidden(video)
    size = self._size(video, len(video) - hidden + forward + backward, size)
    line = tasks.extend(video, prompt, size, self._fps(fps), forward, backward)
    return self.make(line, **how)

  def connect(
    self, start: np.ndarray, end: np.ndarray, prompt: Prompt, frames: int,
    size: Size | None = None, fps: float | None = None, strength: float = tasks.BLEND, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A video of `frames` frames that leads from one clip or picture to another; see `make`.

    strength: below 1, the way between them begins as a cross-fade and is made the less freely.
    """
    start, end = as_video(start), as_video(end)
    size = self._size(start, frames - tasks.hidden(start, end), size)
    line = tasks.connect(start, end, prompt, size, frames, self._fps(fps), strength)
    return self.make(line, **how)

  def loop(
    self, video: np.ndarray | None, prompt: Prompt, frames: int, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip led back to its beginning: frame `frames` would equal frame 0; see `make`.

    video: None makes the clip from text first, the first half of the loop; `size` then is
      DEFAULT_SIZE if it is not given.
    """
    seeds = how.get("seed", 0)
    if video is None and np.ndim(seeds):
      return [self.loop(None, prompt, frames, size, fps, **{**how, "seed": n}) for n in seeds]
    if video is None:
      size, half = size or DEFAULT_SIZE, max(tasks.GUARD, frames // 2)
      if frames <= half:
        raise ValueError(f"frames is {frames}; a loop made from text has at least {half + 1}")
      self._check_prompted()
      timeline.blank(prompt, frames, size, self._fps(fps))  # refuses what the loop could not have
      line = timeline.blank(timeline.until(prompt, half), half, size, self._fps(fps))
      video = self.make(line, **how)
    video = as_video(video)
    again = min(len(video), tasks.CONTEXT)
    size = self._size(video, frames - tasks.hidden(video) + again, size)
    return self.make(tasks.loop(video, prompt, size, frames, self._fps(fps)), **how)

  def edit(
    self, video: np.ndarray, prompt: Prompt, strength: float = tasks.EDIT,
    size: Size | None = None, fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip made again under a new prompt, the more freely the greater `strength`; see `make`."""
    video = as_video(video)
    size = self._size(video, len(video), size)
    return self.make(tasks.edit(video, prompt, size, self._fps(fps), strength), **how)

  def inpaint(
    self, video: np.ndarray, mask: np.ndarray, prompt: Prompt, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip whose region mask, bool [H, W] or [T, H, W], is made anew; see `make`."""
    video, mask = as_video(video), mask[None] if mask.ndim == 2 else mask
    size = self._size(video, len(video), size)
    return self.make(tasks.inpaint(video, mask, prompt, size, self._fps(fps)), **how)

  def outpaint(
    self, video: np.ndarray, prompt: Prompt, size: Size, fps: float | None = None, **how: Any
  ) -> np.ndarray | list[np.ndarray]:
    """A clip in the middle of a frame of another aspect ratio, the rest made; see `make`."""
    return self.make(tasks.outpaint(as_video(video), prompt, size, self._fps(fps)), **how)

  def interpolate(
    self, video: np.ndarray, prompt: Prompt, factor: int, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip at `factor` times its frame rate `fps`; see `make`."""
    video = as_video(video)
    size = self._size(video, (len(video) - 1) * factor + 1, size)
    return self.make(tasks.interpolate(video, prompt, size, self._fps(fps), factor), **how)

  def long(
    self, prompt: str | Sequence[tuple[float | int, str]], frames: int, size: Size = DEFAULT_SIZE,
    fps: float | None = None, seed: int = 0, *, window: int = long_lib.WINDOW,
    context: int = tasks.GUARD, ratio: int = long_lib.RATIO,
    least_fps: float | int = long_lib.LEAST_FPS, batch: int = long_lib.BATCH,
    kept: long_lib.Kept | None = None, progress: Callable[[str], None] | None = None, **how: Any,
  ) -> Iterator[np.ndarray]:  # fmt: skip
    """A video of any length from text, in chunks as they are made; see `prompting/long.py`.

    All windows have one shape, so one program is compiled (two if image_guidance is not 1, which
    means nothing in the first window).
    Args: prompt: text, or pairs (seconds, text), the first at 0: each frame has the text in force.
      window: frames of one call, as in training.
      context: frames that a window knows of the one before.  ratio, least_fps: of key frames, see
      `long.plan`.  batch: most windows of key frames sampled together: as many of these as the row
      of one holds.  kept: finished windows by (level, index), for example {}, so that a second
      call goes on where the first ended.  how: arguments of `make`.
    Yields: uint8 [k, height, width, 3], together exactly `frames` frames.
    Raises: ValueError, before anything is made.
    """
    timeline.blank("", 1, size, self._fps(fps))  # refuses a size or rate that none can have
    plan = long_lib.plan(
      frames, self._fps(fps), window=window, context=context, ratio=ratio, least_fps=least_fps
    )
    if plan.windows > 1:
      self._check_prompted(
        "its windows would not hang together", f"ask for at most {window} frames, not {frames}"
      )
    film = long_lib.Film(
      plan, long_lib.script_of(prompt), tuple(size), seed,
      lambda lines, seeds: self.make(lines, seed=seeds, **how),
      min(batch, self._row_holds(size, window)), kept, progress,
    )  # fmt: skip
    return film.chunks()

  def finish(self, line: Timeline, decoded_THWC: np.ndarray) -> np.ndarray:
    """What a timeline knows in its place among decoded pixels, which are blended with it.

    Args: decoded_THWC: uint8 [T, H, W, 3].  Returns: uint8 [n, H, W, 3], all of the result.
    """
    return line.finish(line.blended(decoded_THWC, self.autoencoder.spatial))

  def _row_holds(self, size: Size, frames: int) -> int:
    """How many videos fit into the row that one of them alone is sampled in."""
    p, f_s = self.patch, self.autoencoder.spatial
    multiple = math.lcm(p.h, p.w)
    w, h = (-(-side // (f_s * multiple)) * multiple for side in size)
    t = 1 + (self._padded_frames(frames, p.t) - 1) // self.autoencoder.temporal
    grid = Grid(t // p.t, h // p.h, w // p.w)
    base = requests.RowShape(self.sampler.row_len, 1, 1)
    row = requests.shape_for([requests.Request("", (0,), grid, 0.0)], base)
    return max(1, row.row_len // grid.size)

  def _check_prompted(
    self, so: str = "it would ignore them", instead: str = "use generate and edit"
  ) -> None:
    """Raises a ValueError if the transformer has not seen image and video prompts in training."""
    if not self.prompted:
      raise ValueError(
        f"this model has not seen image or video prompts in training, so {so}; train one with "
        f"config.data.prompts.on=True, or {instead}"
      )

  def _fps(self, fps: float | None) -> float:
    return float(self.defaults["fps"] if fps is None else fps)

  def _padded_frames(self, frames: int, latents: int) -> int:
    """Frames of the least multiple of latent frames that holds a video."""
    f_t = self.autoencoder.temporal
    t = -(-(1 + -(-(frames - 1) // f_t)) // latents) * latents
    return 1 + (t - 1) * f_t

  def _size(self, video: np.ndarray, frames: int, size: Size | None) -> Size:
    """The size asked for, or the input's own, made smaller if it exceeds a row of training; says
    so.

    Args: video: as `as_video` gives it.  frames: shown to the model.  Raises: ValueError for more
      than are made at once.
    """
    timeline.check_frames(frames)
    if size is not None:
      return size
    H, W = video.shape[1:3]
    cell = self.autoencoder.spatial * max(self.patch.h, self.patch.w)
    latents = (
      1 + (self._padded_frames(max(frames, 1), self.patch.t) - 1) // self.autoencoder.temporal
    )
    tokens = max(1, self.sampler.row_len // -(-latents // self.patch.t))
    if -(-H // cell) * -(-W // cell) <= tokens:
      return W, H
    fitting = transforms.fit_size(W, H, tokens * cell * cell, cell)
    logging.warning(
      "made at %dx%d, because %d frames of the input's %dx%d are more than a row of training holds;"
      " name a size to have it nevertheless", *fitting, frames, W, H,
    )  # fmt: skip
    return fitting
