"""Encoding and decoding in tiles that equal the whole: each is computed with a halo, then cut.

The halo is the receptive field, found by walking the network backwards; nothing is blended. Tiles
need attention to be absent or in fixed windows. Tiles are the outer loop and chunks of time the
inner one, so memory is one tile by `temporal` frames, whatever the size and length of the clip.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sora_jax.nn import vae_streaming
from sora_jax.nn.vae import VAEConfig


class Span(NamedTuple):
  """Cells [start, stop) along one axis."""

  start: int
  stop: int


class Tile(NamedTuple):
  """What to read, what of the result to keep, and where it goes, along one axis."""

  read: Span
  keep: Span
  write: Span


def encoder_needs(config: VAEConfig, span: Span) -> Span:
  """Pixels that reach the latents of `span`, along one axis; may lie outside the frame."""
  a, b = span
  a, b = a - 1, b + 1  # conv_out; quant is 1x1x1
  a, b = _mid_needs(config, a, b)
  for i in reversed(range(len(config.mult))):
    if i < len(config.space_down) and config.space_down[i]:
      a, b = 2 * a, 2 * (b - 1) + 3
    a, b = a - 2 * config.res_blocks, b + 2 * config.res_blocks
  a, b = a - 1, b + 1  # conv_in
  return Span(a * config.stem_patch, b * config.stem_patch)


def decoder_needs(config: VAEConfig, span: Span) -> Span:
  """Latents that reach the pixels of `span`, along one axis; may lie outside the frame."""
  p = config.stem_patch
  a, b = span.start // p, -(-span.stop // p)
  a, b = a - 1, b + 1  # conv_out
  for i in range(len(config.mult)):
    if i and config.space_down[i - 1]:
      a, b = (a - 1) // 2, -(-(b + 1) // 2)
    a, b = a - 2 * (config.res_blocks + 1), b + 2 * (config.res_blocks + 1)
  a, b = _mid_needs(config, a, b)
  return Span(a - 1, b + 1)  # conv_in


def _mid_needs(config, a, b):
  """Two convolutions, whole windows, two convolutions, at the coarsest level."""
  a, b = a - 2, b + 2
  if config.mid_attention == "frame":
    raise ValueError(
      "mid_attention='frame' sees whole frames, so no halo is wide enough; "
      "use a network with mid_attention 'window' or 'none'"
    )
  if config.mid_attention == "window":
    a, b = a // config.window * config.window, -(-b // config.window) * config.window
  return a - 2, b + 2


def plan(config: VAEConfig, cells: int, tile: int, decoding: bool) -> list[Tile]:
  """Tiles of at most `tile` latent cells along an axis of `cells`, without halo.

  Reads start where strides and attention windows do, so that a tile's grid is the frame's; all are
  of one length, so that one program serves them. For decoding, `read` is in latents and `keep` and
  `write` in pixels; for encoding the reverse. Raises: ValueError for an empty tile.
  """
  if tile < 1:
    raise ValueError(f"tile={tile}; a tile has at least one latent cell")
  f, align = config.spatial, config.window if config.mid_attention == "window" else 1
  starts = range(0, cells, tile)
  spans = [Span(start, min(start + tile, cells)) for start in starts]
  reads = [_read(config, span, cells, align, decoding) for span in spans]
  length = max(stop - start for start, stop in reads)
  length = min(cells, length + (cells - length) % align)
  tiles = []
  for (start, stop), read in zip(spans, reads):
    low = min(read.start, cells - length)
    read, keep = Span(low, low + length), Span(start - low, stop - low)
    if decoding:
      tiles.append(Tile(read, Span(keep.start * f, keep.stop * f), Span(start * f, stop * f)))
    else:
      tiles.append(Tile(Span(read.start * f, read.stop * f), keep, Span(start, stop)))
  return tiles


def _read(config, span, cells, align, decoding):
  """Latent cells to read for the cells of `span`, inside the frame."""
  f = config.spatial
  if decoding:
    need = decoder_needs(config, Span(span.start * f, span.stop * f))
  else:
    need = encoder_needs(config, span)
    need = Span(need.start // f, -(-need.stop // f))
  return Span(max(0, need.start // align * align), min(cells, need.stop))


def decode_tiled(
  config: VAEConfig, variables: Mapping, latent_BthwZ: np.ndarray, tile: int = 32
) -> np.ndarray:
  """`vae.decode` of normalised latents in tiles of `tile` cells, on the host.

  Returns: float32 [B, T, H, W, 3] in [-1, 1]. Raises: ValueError for attention over whole frames.
  """
  B, t, h, w, _ = latent_BthwZ.shape
  f = config.spatial
  video = np.empty((B, 1 + config.temporal * (t - 1), h * f, w * f, 3), np.float32)
  for y in plan(config, h, tile, True):
    for x in plan(config, w, tile, True):
      part = latent_BthwZ[:, :, slice(*y.read), slice(*x.read)]
      T = 0
      for frames in vae_streaming.decode_stream(config, variables, part):
        place = (slice(None), slice(T, T + frames.shape[1]), slice(*y.write), slice(*x.write))
        video[place] = frames[:, :, slice(*y.keep), slice(*x.keep)]
        T += frames.shape[1]
  return video


def encode_tiled(
  config: VAEConfig, variables: Mapping, video_BTHWC: np.ndarray, tile: int = 32
) -> np.ndarray:
  """`vae.encode` in tiles of `tile` latent cells, on the host; sides are multiples of `spatial`.

  Returns: float32 [B, t, h, w, Z], normalised. Raises: ValueError for sizes that do not fit, or
  attention over whole frames.
  """
  B, T, H, W, _ = video_BTHWC.shape
  if H % config.spatial or W % config.spatial:
    raise ValueError(f"{W}x{H} is no multiple of {config.spatial}; pad it with sora_jax.nn.vae.fit")
  t, h, w = config.latent_shape(T, H, W)
  latent = np.empty((B, t, h, w, config.latent), np.float32)
  for y in plan(config, h, tile, False):
    for x in plan(config, w, tile, False):
      part = video_BTHWC[:, :, slice(*y.read), slice(*x.read)]
      stream = vae_streaming.encode_stream(config, variables, (part[:, i] for i in range(T)))
      for i, cells in enumerate(stream):
        place = (slice(None), slice(i, i + 1), slice(*y.write), slice(*x.write))
        latent[place] = cells[:, :, slice(*y.keep), slice(*x.keep)]
  return latent
