"""Latents, made once and kept beside the clips: shards `latents-<hash8>-by<size>`, by index.

Canvases of image and video prompts, which are encoded as well, go into shards of their own name.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from sora_jax.data import crop, known, prompt_mix, records, shard_writer, transforms
from sora_jax.data.prompt_mix import PromptMix

CHUNK, CHUNK_BYTES = 1024, 1 << 28
"""Clips held in memory at a time, and bytes of their pixels from which on no more are."""
Encode = Callable[[np.ndarray], Any]
"""Video f32 [B, T, H, W, 3] in [-1, 1] to normalised latents [B, t, h, w, Z]."""


@dataclasses.dataclass(frozen=True)
class LatentConfig:
  """How latents are made.

  source: hash of the VAE's weights.  frames, size: f_t, and what width and height must be a
  multiple of (f_s times the patch).  batch: clips of one shape that are encoded together.  crop:
  "none" or "square".  cell: f_s.  prompts: of what canvases are made as well, or None.  tokens:
  most that a clip may take, each of `size` x `size` pixels of a latent frame; 0 = any number.
  """

  source: str
  frames: int
  size: int
  batch: int = 32
  crop: str = "none"
  cell: int = 1
  prompts: PromptMix | None = None
  tokens: int = 0

  @property
  def prefix(self) -> str:
    """Name of the shards; another size or crop, or other canvases, are another set."""
    name = f"latents-{self.source[:8]}-by{self.size}"
    name += "" if self.crop == "none" else f"-{self.crop}"
    name += f"-fit{self.tokens}" if self.tokens else ""
    if self.prompts is None:
      return name
    made_of = [
      prompt_mix.VERSION,
      self.prompts.variants,
      *self.prompts.shares[len(prompt_mix.PREFIX_KINDS) :],
    ]
    return f"{name}-prompts-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:8]}"


def cache(clips: records.ShardSource, config: LatentConfig, encode: Encode) -> records.ShardSource:
  """Returns the latents of a set of shards, made first if they are not there.

  Record i holds the captions, truth and pixel extent of clip i, its latent, and no pixels. Clips
  are edge-padded to what the model needs: frames to 1 + f_t k, sides to the multiple. Latents of
  other clips, made in another way, or of which shards are gone or cut short, are made anew.

  Raises: ValueError for a batch below 1, or if `encode` returns another number of latents;
  WriteError if the latents cannot be written.
  """
  found, why = _made(clips, config)
  if found is not None:
    return found
  if why:
    logging.info("%s: encoding them again", why)
  wanted = about(clips, config)
  with shard_writer.ShardWriter(
    clips.folder, prefix=config.prefix, config=wanted, overwrite=True
  ) as writer:
    for chunk in chunks(clips, config):
      for clip in encoded(chunk, config, encode):
        writer.write(clip)
      logging.info("encoded %d of %d clips in %s", len(writer), len(clips), clips.folder)
    found, _ = _made(clips, config)
    if found is not None:  # by a run that shares the folder, and that may be reading them
      writer.abort()
      return found
  return records.ShardSource(clips.folder, config.prefix)


def _made(
  clips: records.ShardSource, config: LatentConfig
) -> tuple[records.ShardSource | None, str]:
  """The latents that are there, or None and why they are not used; "" if there are none."""
  if not records.index_path(clips.folder, config.prefix).is_file():
    return None, ""
  try:
    found = records.ShardSource(clips.folder, config.prefix)
  except (FileNotFoundError, ValueError) as error:
    return None, f"latents that cannot be used ({str(error).split(';')[0]})"
  wanted, before = json.loads(json.dumps(about(clips, config))), found.config
  if before == wanted and len(found) == len(clips):
    return found, ""
  same = before.get("clips") == wanted["clips"] and len(found) == len(clips)
  what = "latents were made in another way" if same else "clips have changed"
  return None, f"the {what} in {clips.folder}"


def about(clips: records.ShardSource, config: LatentConfig) -> dict:
  """What the shards' index says of their making: all that the latents depend on."""
  made = dataclasses.asdict(config)
  del made["batch"], made["prompts"]  # the prefix tells what canvases there are
  return {"clips": clips.content, "latents": made}


def chunks(clips: records.ShardSource, config: LatentConfig) -> Iterator[list[records.Clip]]:
  """The clips as they are encoded, in order, as many at a time as memory should hold."""
  chunk, size = [], 0
  for i in range(len(clips)):
    chunk.append(prepared(clips[i], config))
    size += chunk[-1].video_THWC.nbytes
    if len(chunk) == CHUNK or size >= CHUNK_BYTES or i == len(clips) - 1:
      yield chunk
      chunk, size = [], 0


def prepared(clip: records.Clip, config: LatentConfig) -> records.Clip:
  """A clip as it is encoded: cut, or made smaller, where the config says so."""
  return crop.shrink(crop.crop(clip, config.crop), config.tokens, config.frames, config.size)


def encoded(clips: list, config: LatentConfig, encode: Encode) -> list:
  """Returns the clips with latents instead of pixels, in order."""
  shapes = [padded_shape(clip.video_THWC.shape, config) for clip in clips]

  def whole(i):
    return transforms.to_float(padded(clips[i].video_THWC, config))

  latents = in_batches(shapes, whole, config.batch, encode)
  canvases: list[tuple] = [()] * len(clips)
  for v in range(config.prompts.variants if config.prompts is not None else 0):
    masks = [mask_of(clip, x.shape[:3], v, config) for clip, x in zip(clips, latents)]

    def shown(i, masks=masks):
      return known.blanked(whole(i), masks[i][1], config.cell)

    found = in_batches(shapes, shown, config.batch, encode)
    for i, (latent_thwZ, (kind, mask_thwF)) in enumerate(zip(found, masks)):
      canvas_thwZ = known.canvas(latent_thwZ, mask_thwF).astype(np.float16)
      canvases[i] = (*canvases[i], records.Canvas(kind, mask_thwF, canvas_thwZ))
  return [
    dataclasses.replace(
      clip, video_THWC=None, latent_thwZ=latent_thwZ, latent_source=config.source, canvases=prompts
    )
    for clip, latent_thwZ, prompts in zip(clips, latents, canvases)
  ]


def in_batches(
  shapes: list[tuple], pixels: Callable[[int], np.ndarray], batch: int, encode: Encode
) -> list[np.ndarray]:
  """Encodes videos in batches of equal shape.  pixels: video i in [-1, 1].  Returns: latents.

  A shape's last batch is filled to the next power of two; to a quarter of a batch at least where
  there are whole ones, so that few programs are compiled.

  Raises: ValueError if `batch` is below 1, or if `encode` returns another number of latents.
  """
  if batch < 1:
    raise ValueError(
      f"data.encode_batch is {batch}; expected at least 1, the clips encoded together"
    )
  by_shape = collections.defaultdict(list)
  for i, shape in enumerate(shapes):
    by_shape[shape].append(i)
  out: list[Any] = [None] * len(shapes)
  for indices in by_shape.values():
    least = batch // 4 if len(indices) > batch else 1
    for start in range(0, len(indices), batch):
      part = indices[start : start + batch]
      size = min(batch, max(least, 1 << (len(part) - 1).bit_length()))
      video_BTHWC = np.stack([pixels(i) for i in part])
      repeated = np.repeat(video_BTHWC[-1:], size - len(part), axis=0)
      video_BTHWC = jnp.asarray(np.concatenate([video_BTHWC, repeated]))
      latent_BthwZ = np.asarray(encode(video_BTHWC), np.float32)
      if len(latent_BthwZ) != size:
        raise ValueError(f"encode returned {len(latent_BthwZ)} latents for {size} clips")
      for i, latent_thwZ in zip(part, latent_BthwZ):
        out[i] = latent_thwZ
  return out


def mask_of(clip: records.Clip, grid: tuple[int, ...], v: int, config: LatentConfig) -> tuple:
  """(kind, mask [t, h, w, F]) of variant v of a clip: a function of its id and v alone."""
  seed = int.from_bytes(hashlib.sha256(clip.id.encode()).digest()[:8], "little")
  rng = np.random.default_rng((seed, v))
  kind, known_Thw = config.prompts.variant(len(clip.video_THWC), grid[1:], rng)
  return kind, prompt_mix.variant_mask(known_Thw, grid[0], config.frames)


def padded(video_THWC: np.ndarray, config: LatentConfig) -> np.ndarray:
  """Edge-pads a video to whole latents and whole patches."""
  return transforms.pad_size(transforms.pad_frames(video_THWC, config.frames), config.size)


def padded_shape(shape: tuple[int, ...], config: LatentConfig) -> tuple[int, ...]:
  """The shape of `padded` of a video of this shape."""
  T, H, W, C = shape
  by = config.size
  return transforms.padded_frames(T, config.frames), -(-H // by) * by, -(-W // by) * by, C
