"""Latents, made once and kept beside the clips: shards `latents-<hash8>`, aligned by index."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from sora_jax.data import crop, records, transforms

CHUNK = 1024
"""Clips held in memory at a time."""
Encode = Callable[[np.ndarray], Any]
"""Video f32 [B, T, H, W, 3] in [-1, 1] to normalised latents [B, t, h, w, Z]."""


@dataclasses.dataclass(frozen=True)
class LatentConfig:
  """How latents are made.

  source: hash of the VAE's weights.  frames, size: f_t, and what width and height must be a
  multiple of (f_s times the patch).  batch: clips of one shape that are encoded together.  crop:
  "none" or "square".
  """

  source: str
  frames: int
  size: int
  batch: int = 32
  crop: str = "none"

  @property
  def prefix(self) -> str:
    """Name of the shards; another crop is another set."""
    return f"latents-{self.source[:8]}" + ("" if self.crop == "none" else f"-{self.crop}")


def cache(clips: records.ShardSource, config: LatentConfig, encode: Encode) -> records.ShardSource:
  """Returns the latents of a set of shards, made first if they are not there.

  Record i holds the captions, truth and pixel extent of clip i, its latent, and no pixels. Clips
  are edge-padded to what the model needs: frames to 1 + f_t k, sides to the multiple.
  """
  if not records.index_path(clips.folder, config.prefix).is_file():
    with records.ShardWriter(clips.folder, prefix=config.prefix, config=about(config)) as writer:
      for start in range(0, len(clips), CHUNK):
        stop = min(start + CHUNK, len(clips))
        chunk = [crop.crop(clips[i], config.crop) for i in range(start, stop)]
        for clip in encoded(chunk, config, encode):
          writer.write(clip)
        logging.info("encoded %d of %d clips in %s", stop, len(clips), clips.folder)
  found = records.ShardSource(clips.folder, config.prefix)
  if len(found) != len(clips):
    raise ValueError(
      f"{clips.folder} holds {len(clips)} clips but {len(found)} latents {config.prefix!r}; delete"
      f" {records.index_path(clips.folder, config.prefix).name} to make them again"
    )
  return found


def about(config: LatentConfig) -> dict:
  """What the shards' index says of their making."""
  return {"latents": dataclasses.asdict(config)}


def encoded(clips: list, config: LatentConfig, encode: Encode) -> list:
  """Returns the clips with latents instead of pixels, in order; batches are of equal shape."""
  by_shape = collections.defaultdict(list)
  videos = [padded(clip.video_THWC, config) for clip in clips]
  for i, video in enumerate(videos):
    by_shape[video.shape].append(i)
  out: list[Any] = [None] * len(clips)
  for indices in by_shape.values():
    for start in range(0, len(indices), config.batch):
      part = indices[start : start + config.batch]
      full = part + [part[-1]] * (config.batch - len(part))
      video_BTHWC = transforms.to_float(np.stack([videos[i] for i in full]))
      latent_BthwZ = np.asarray(encode(jnp.asarray(video_BTHWC)), np.float32)
      for i, latent_thwZ in zip(part, latent_BthwZ):
        out[i] = dataclasses.replace(
          clips[i], video_THWC=None, latent_thwZ=latent_thwZ, latent_source=config.source
        )
  return out


def padded(video_THWC: np.ndarray, config: LatentConfig) -> np.ndarray:
  """Edge-pads a video to whole latents and whole patches."""
  return transforms.pad_size(transforms.pad_frames(video_THWC, config.frames), config.size)
