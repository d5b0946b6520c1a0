"""What is known of a video, at the grain of its latents: masks, and canvases to be encoded.

A latent cell covers f_s x f_s pixels of f_t frames (of one, in the first latent). Its frame is
known if all pixels of the cell are: nothing finer can be told to the network, so nothing finer is
shown to it. What is unknown is gray in the pixels that are encoded, and 0 in the latents of cells
without a known frame: neither an encoder's bias nor its view of neighbours tells of what is not
known. The same functions serve training and sampling, so that a network meets at sampling what it
was trained on.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

Array = TypeVar("Array")


def cell_mask(
  known_THW: Bool[np.ndarray, "T H W"], frames_per_latent: int, cell: int
) -> UInt8[np.ndarray, "t h w F"]:
  """Which frames of each latent cell are known; the first latent repeats its one frame's bit.

  Args: known_THW: of padded pixels: T = 1 + f_t k, H and W multiples of `cell`, which is f_s.
  Raises: ValueError if they are not.
  """
  T, H, W = known_THW.shape
  F = frames_per_latent
  if (T - 1) % F or H % cell or W % cell:
    raise ValueError(
      f"a mask of {T} frames of {W}x{H}; expected 1 + {F} k frames and sides that are multiples of "
      f"{cell}: pad it as the video is padded"
    )
  known_Thw = known_THW.reshape(T, H // cell, cell, W // cell, cell).all((2, 4))
  known_Thw = np.concatenate([np.repeat(known_Thw[:1], F - 1, axis=0), known_Thw])
  known_tFhw = known_Thw.reshape(-1, F, H // cell, W // cell)
  return known_tFhw.transpose(0, 2, 3, 1).astype(np.uint8)


def readers(begins: Sequence[int], frames: int, frames_per_latent: int) -> list[int]:
  """Which text each latent frame reads, of texts that hold from the frames `begins` on.

  It is the one that holds in the middle of its frames: a text may so be read by none.
  """
  latents, F = 1 + -(-(frames - 1) // frames_per_latent), frames_per_latent
  middle = np.minimum(np.maximum(0, F * (np.arange(latents) - 1) + 1 + F // 2), frames - 1)
  return (np.searchsorted(begins, middle, side="right") - 1).tolist()


def pixel_mask(mask_thwF: UInt8[np.ndarray, "t h w F"], cell: int) -> Bool[np.ndarray, "T H W"]:
  """The pixels that a cell mask calls known: inverse of `cell_mask` for masks of whole cells."""
  t, h, w, F = mask_thwF.shape
  known_Thw = mask_thwF.transpose(0, 3, 1, 2).reshape(t * F, h, w)[F - 1 :] > 0
  return known_Thw.repeat(cell, axis=1).repeat(cell, axis=2)


def blanked(
  video_THWC: Float[np.ndarray, "T H W C"], mask_thwF: UInt8[np.ndarray, "t h w F"], cell: int
) -> Float[np.ndarray, "T H W C"]:
  """Pixels in [-1, 1] as they are encoded: gray, which is 0, wherever a cell is not known."""
  return np.where(pixel_mask(mask_thwF, cell)[..., None], video_THWC, np.float32(0))


def exact_cells(
  mask_thwF: UInt8[np.ndarray, "t h w F"], reach: tuple[int, int] | None = None
) -> Bool[np.ndarray, "t h w"]:
  """Cells whose latents are the same whatever the unknown pixels are.

  Args: reach: latent frames before its own, and cells to each side, that an encoder sees; None for
    any, of a causal one: then all of the frame and of those before it must be known.
  """
  whole_thw = mask_thwF.all(-1)
  if reach is None:
    whole_t = np.logical_and.accumulate(whole_thw.all((1, 2)))
    return np.broadcast_to(whole_t[:, None, None], whole_thw.shape)
  before, side = reach  # beyond the video's edges there is nothing that could be unknown
  padded = np.pad(whole_thw, ((before, 0), (side, side), (side, side)), constant_values=True)
  shape = (before + 1, 2 * side + 1, 2 * side + 1)
  return np.lib.stride_tricks.sliding_window_view(padded, shape).all((3, 4, 5))


def canvas(latent_thwZ: Array, mask_thwF: Array) -> Array:
  """The encoded canvas as the network reads it: 0 in cells without a known frame."""
  return latent_thwZ * (mask_thwF.max(-1) > 0)[..., None]
