"""What is done to a clip before it is encoded: nothing, its centre square, or a smaller size.

`crop` is the one switch of the square-crop ablation; `shrink` keeps a clip within a token budget.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from sora_jax.data import transforms

if TYPE_CHECKING:
  from sora_jax.data.records import Clip

CROPS = ("none", "square")


def crop(clip: "Clip", mode: str) -> "Clip":
  """Returns the clip itself ("none"), or its largest centred square ("square").

  Ground truth stays in the pixels of the whole frame; a cropped clip's `truth["crop"]` says where
  the square lies in it: [x, y, width, height]. Latents of the whole frame are dropped.

  Raises: ValueError for another mode, and for a clip without pixels.
  """
  if mode not in CROPS:
    raise ValueError(f"data.crop={mode!r}; allowed: {', '.join(CROPS)}")
  if mode == "none":
    return clip
  if clip.video_THWC is None:
    raise ValueError(f"clip {clip.id!r} holds no pixels; crop it before its latents are cached")
  H, W = clip.video_THWC.shape[1:3]
  side = min(H, W)
  if H == W:
    return clip
  y, x = (H - side) // 2, (W - side) // 2
  return dataclasses.replace(
    clip,
    video_THWC=np.ascontiguousarray(clip.video_THWC[:, y : y + side, x : x + side]),
    pixel_shape=None,
    latent_thwZ=None,
    latent_source=None,
    truth=clip.truth | {"crop": [x, y, side, side]},
  )


def shrink(clip: "Clip", tokens: int, frames_per_latent: int, cell: int) -> "Clip":
  """Returns a clip of its own aspect that takes at most `tokens`, of `cell` x `cell` pixels each.

  Ground truth stays in the pixels of the original; `truth["shrunk"]` says the new size, [width,
  height]. A clip that fits, or whose frames alone are too many, is returned as it is: the packer
  names the latter. tokens = 0 is no limit.

  Raises: ValueError for a clip without pixels that does not fit.
  """
  T, H, W = clip.pixel_shape
  latents = 1 + (transforms.padded_frames(T, frames_per_latent) - 1) // frames_per_latent
  each = tokens // latents
  if not tokens or not each or -(-H // cell) * -(-W // cell) <= each:
    return clip
  if clip.video_THWC is None:
    raise ValueError(f"clip {clip.id!r} holds no pixels; shrink it before its latents are cached")
  video_THWC = transforms.fit(clip.video_THWC, each * cell * cell, cell)
  return dataclasses.replace(
    clip,
    video_THWC=video_THWC,
    pixel_shape=None,
    latent_thwZ=None,
    latent_source=None,
    truth=clip.truth | {"shrunk": [video_THWC.shape[2], video_THWC.shape[1]]},
  )
