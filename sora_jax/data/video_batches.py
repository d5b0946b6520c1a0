"""Batches of pixels for the video VAE: one shape per batch, out of a small fixed set.

A bucket is one (frames, height, width); its batch holds as many clips as fit a budget of pixels, so
every bucket costs about the same and the step compiles once for each. Batch k follows from the seed
and k alone.
"""

import dataclasses
import itertools

import grain
import numpy as np

from sora_jax.data import workers
from sora_jax.data.crop import CROPS, crop
from sora_jax.data.table import ClipSource
from sora_jax.shapes import WHOLE, Grid, Share

_ENDLESS = 2**40
_BUCKET, _CUT = 0, 1
"""Purposes of a batch's random numbers. NumPy pads seeds with zeros, so all have one length:
(seed, purpose, step, clip)."""


@dataclasses.dataclass(frozen=True)
class VideoConfig:
  """Which cuts of the clips a VAE trains on.

  Attributes:
    sizes: (width, height) of the cuts, in pixels.
    frames: their lengths, 1 + 4k; every size comes with every length.
    batch_pixels: budget of a batch over all hosts, in pixels (frames x height x width x clips).
    seed: of the bucket, the clips and the cuts.
    crop: "none", or "square" to cut from the clips' centre squares alone.
    workers: processes that prepare batches; 0 prepares them in this one.
    prefetch: batches that each worker prepares ahead.
    share: which of a batch's clips this host makes.
  """

  sizes: tuple[tuple[int, int], ...] = ((64, 64),)
  frames: tuple[int, ...] = (1, 5, 9, 17)
  batch_pixels: int = 8 * 17 * 64 * 64
  seed: int = 0
  crop: str = "none"
  workers: int = 0
  prefetch: int = 2
  share: Share = WHOLE

  def __post_init__(self):
    if not all(isinstance(many, list | tuple) and many for many in (self.sizes, self.frames)):
      raise ValueError(
        f"sizes={self.sizes}, frames={self.frames}; give at least one of each, in a list"
      )
    if self.batch_pixels < 1:
      raise ValueError(f"batch_pixels={self.batch_pixels}; it must be at least 1")
    odd = [T for T in self.frames if T < 1 or T % 4 != 1]
    if odd:
      raise ValueError(f"frames={self.frames}: {odd} are not 1 + 4k")
    if self.crop not in CROPS:
      raise ValueError(f"crop={self.crop!r}; allowed: {', '.join(CROPS)}")
    if self.prefetch < 1 or self.workers < 0:
      raise ValueError(
        f"prefetch={self.prefetch}, workers={self.workers}; needed: prefetch >= 1, workers >= 0"
      )

  @property
  def buckets(self) -> list[Grid]:
    """Every (frames, height, width)."""
    return [Grid(T, H, W) for (W, H), T in itertools.product(self.sizes, self.frames)]

  def batch_size(self, bucket: Grid) -> int:
    """Clips in a batch of a bucket over all hosts, the same for any number of them.

    Raises: ValueError if the hosts cannot share it out evenly.
    """
    clips = max(1, self.batch_pixels // bucket.size)
    if clips % self.share.of:
      raise ValueError(
        f"batch_pixels={self.batch_pixels} makes a batch of {clips} clips of {bucket.t} frames of"
        f" {bucket.w}x{bucket.h}, which are no multiple of the {self.share.of} blocks that hosts"
        " share out; take other batch_pixels, or a mesh of fewer rows"
      )
    return clips


def scan_shapes(source: ClipSource) -> np.ndarray:
  """int64 [N, 3], (frames, height, width) of every clip; reads each once."""
  return np.array([source[i].pixel_shape for i in range(len(source))], np.int64).reshape(-1, 3)


def video_batches(
  source: ClipSource, config: VideoConfig, shapes_N3: np.ndarray | None = None
) -> grain.IterDataset:
  """Endless batches of random cuts; `iter()` of it saves and restores its place.

  A bucket takes the clips that are at least as large as it in every direction, and cuts them at a
  random time and place; a clip of the bucket's own size comes whole.

  Args:
    source: random access to `Clip`s with pixels; picklable if there are workers.
    config: sizes, lengths, budget.
    shapes_N3: pixel shapes of the clips if they are known; else every clip is read once.

  Returns: a data set of {"video": uint8 [B, T, H, W, 3], "clip": int32 [B]}, B = clips of this
    host. Iterators' state is {"step": number of batches}.

  Raises: ValueError naming buckets that no clip fills. Iterators raise RuntimeError if a worker
    process dies.
  """
  shapes_N3 = scan_shapes(source) if shapes_N3 is None else np.asarray(shapes_N3)
  if config.crop == "square":
    side_N = shapes_N3[:, 1:].min(axis=1)
    shapes_N3 = np.stack([shapes_N3[:, 0], side_N, side_N], axis=1)
  fits = [np.flatnonzero((shapes_N3 >= np.array(bucket)).all(axis=1)) for bucket in config.buckets]
  empty = [
    f"{b.t} frames of {b.w}x{b.h}" for b, clips in zip(config.buckets, fits) if not len(clips)
  ]
  if empty:
    largest = shapes_N3.max(axis=0, initial=0)
    raise ValueError(
      f"none of {len(shapes_N3)} clips is as large as {', '.join(empty)} (largest extents: "
      f"{largest[0]} frames, {largest[2]}x{largest[1]}); take smaller sizes or fewer frames"
    )
  return VideoBatches(_Cutter(source, config, tuple(fits)))


@dataclasses.dataclass(frozen=True)
class _Cutter:
  """Batch k as a function of k; `fits` lists the clips of each bucket."""

  source: ClipSource
  config: VideoConfig
  fits: tuple[np.ndarray, ...]

  def __call__(self, step: int) -> dict:
    c = self.config
    pick = int(np.random.default_rng((c.seed, _BUCKET, step, 0)).integers(len(self.fits)))
    bucket = c.buckets[pick]
    videos, clips = [], []
    for i in c.share.rows(c.batch_size(bucket)):
      rng = np.random.default_rng((c.seed, _CUT, step, i))
      index = int(rng.choice(self.fits[pick]))
      video_THWC = crop(self.source[index], c.crop).video_THWC
      free = np.array(video_THWC.shape[:3]) - np.array(bucket)
      t, y, x = (int(rng.integers(n + 1)) for n in free)
      videos.append(video_THWC[t : t + bucket.t, y : y + bucket.h, x : x + bucket.w])
      clips.append(index)
    return {"video": np.stack(videos), "clip": np.array(clips, np.int32)}


class VideoBatches(grain.IterDataset):
  """Batches of a cutter, in order; see `video_batches`."""

  def __init__(self, cutter: _Cutter):
    super().__init__()
    self._cutter = cutter

  def __iter__(self) -> "VideoBatchIterator":
    return VideoBatchIterator(self._cutter)


class VideoBatchIterator(grain.DatasetIterator):
  """State: the number of batches so far."""

  def __init__(self, cutter: _Cutter):
    super().__init__()
    self._cutter, self._step, self._batches = cutter, 0, None

  def start_prefetch(self) -> None:
    """Starts the workers."""
    if self._batches is None:
      c = self._cutter.config
      ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=c.prefetch)
      steps = grain.MapDataset.range(self._step, self._step + _ENDLESS)
      batches = steps.map(self._cutter).to_iter_dataset(ahead)
      self._batches = workers.iterate(batches, c.workers, c.prefetch)

  def __next__(self) -> dict:
    self._assert_not_closed()
    self.start_prefetch()
    batch = workers.advance(self._batches, self._step)
    self._step += 1
    return batch

  def get_state(self) -> dict:
    return {"step": self._step}

  def set_state(self, state: dict) -> None:
    self._release()
    self._step = state["step"]

  def _release(self) -> None:
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def close(self) -> None:
    """Stops the workers."""
    if not self._closed:
      self._closed = True
      self._release()
