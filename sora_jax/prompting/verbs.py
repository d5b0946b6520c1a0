"""What a model does when it is prompted with images and videos: each verb lays out a timeline.

Every verb takes the arguments of `Model.make` as well: seed, guidance, image_guidance, steps, ...
"""

from typing import Any

import numpy as np

from sora_jax.data import transforms
from sora_jax.data.transforms import Size
from sora_jax.prompting import tasks


class Verbs:
  """The verbs; a class that has `make`, `defaults`, `patch`, `autoencoder` and `sampler`."""

  def animate(
    self, image: np.ndarray, prompt: str, size: Size | None = None, frames: int = 17,
    fps: float | None = None, at: int = 0, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A video in which a picture, uint8 [H, W, 3] or [1, H, W, 3], is frame `at`; see `make`."""
    image = as_video(image)
    size = self._size(image, frames, size)
    return self.make(tasks.animate(image, prompt, size, frames, self._fps(fps), at), **how)

  def extend(
    self, video: np.ndarray, prompt: str, forward: int = 0, backward: int = 0,
    size: Size | None = None, fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip, uint8 [T, H, W, 3], with frames after it, before it, or both; see `make`."""
    shown = min(len(video), tasks.CONTEXT) + forward + backward
    size = self._size(video, shown, size)
    line = tasks.extend(video, prompt, size, self._fps(fps), forward, backward)
    return self.make(line, **how)

  def connect(
    self, start: np.ndarray, end: np.ndarray, prompt: str, frames: int,
    size: Size | None = None, fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A video of `frames` frames that leads from one clip or picture to another; see `make`."""
    start, end = as_video(start), as_video(end)
    size = self._size(start, frames, size)
    return self.make(tasks.connect(start, end, prompt, size, frames, self._fps(fps)), **how)

  def loop(
    self, video: np.ndarray, prompt: str, frames: int, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip led back to its beginning: frame `frames` would equal frame 0; see `make`."""
    shown = min(len(video), tasks.CONTEXT)
    size = self._size(video, frames - len(video) + 2 * shown, size)
    return self.make(tasks.loop(video, prompt, size, frames, self._fps(fps)), **how)

  def edit(
    self, video: np.ndarray, prompt: str, strength: float, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip made again under a new prompt, the more freely the greater `strength`; see `make`."""
    size = self._size(video, len(video), size)
    return self.make(tasks.edit(video, prompt, size, self._fps(fps), strength), **how)

  def inpaint(
    self, video: np.ndarray, mask: np.ndarray, prompt: str, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip whose region mask, bool [H, W] or [T, H, W], is made anew; see `make`."""
    mask = mask[None] if mask.ndim == 2 else mask
    size = self._size(video, len(video), size)
    return self.make(tasks.inpaint(video, mask, prompt, size, self._fps(fps)), **how)

  def outpaint(
    self, video: np.ndarray, prompt: str, size: Size, fps: float | None = None, **how: Any
  ) -> np.ndarray | list[np.ndarray]:
    """A clip in the middle of a frame of another aspect ratio, the rest made; see `make`."""
    return self.make(tasks.outpaint(video, prompt, size, self._fps(fps)), **how)

  def interpolate(
    self, video: np.ndarray, prompt: str, factor: int, size: Size | None = None,
    fps: float | None = None, **how: Any,
  ) -> np.ndarray | list[np.ndarray]:  # fmt: skip
    """A clip at `factor` times its frame rate `fps`; see `make`."""
    size = self._size(video, (len(video) - 1) * factor + 1, size)
    return self.make(tasks.interpolate(video, prompt, size, self._fps(fps), factor), **how)

  def _fps(self, fps: float | None) -> float:
    return float(self.defaults["fps"] if fps is None else fps)

  def _size(self, video: np.ndarray, frames: int, size: Size | None) -> Size:
    """The size asked for, or the input's own, made smaller if it exceeds a row of training."""
    if size is not None:
      return size
    H, W = as_video(video).shape[1:3]
    cell = self.autoencoder.spatial * max(self.patch.h, self.patch.w)
    latents = (
      1 + (self._padded_frames(max(frames, 1), self.patch.t) - 1) // self.autoencoder.temporal
    )
    tokens = max(1, self.sampler.row_len // -(-latents // self.patch.t))
    if -(-H // cell) * -(-W // cell) <= tokens:
      return W, H
    return transforms.fit_size(W, H, tokens * cell * cell, cell)


def as_video(video: np.ndarray) -> np.ndarray:
  """uint8 [T, H, W, 3]; a picture [H, W, 3] becomes one frame.  Raises: ValueError."""
  video = np.asarray(video)
  video = video[None] if video.ndim == 3 else video
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
    raise ValueError(
      f"got {video.dtype} {video.shape}; a video is uint8 [T, H, W, 3] (a picture: video[None])"
    )
  return video
