"""The one switch of the square-crop ablation: a clip as it is, or its centre square."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

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
