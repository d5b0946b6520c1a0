"""Tasks as timelines: each lays out what is known; making the rest is one and the same model's job.

Videos are uint8 [T, H, W, 3], pictures T = 1. A size is (width, height); inputs of another size are
scaled to cover it, and what sticks out is cut. Every function raises a ValueError that names the
argument, its value and what would do. A prompt may change along the result; see `timeline.blank`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from sora_jax.data import transforms
from sora_jax.data.transforms import Size
from sora_jax.prompting import timeline
from sora_jax.prompting.timeline import Prompt, Timeline

Video = UInt8[np.ndarray, "_ _ _ 3"]

CONTEXT = 9
"""Frames of a longer clip that the model is shown on each side of what it makes."""
EDIT = 0.6
"""Time to which `edit` noises a clip by default: motion and layout stay, the rest may change."""
BLEND = 0.6
"""Time to which the cross-fade between connected clips is noised; 1 = nothing is left of it. At 0.6
its shades are, by which backgrounds pass evenly."""
GUARD = 5
"""Least number of frames on each side of a seam that tell a motion, not only a place."""


def animate(
  image: Video, prompt: Prompt, size: Size | None, frames: int, fps: float, at: int = 0
) -> Timeline:
  """A video in which a picture is frame `at`."""
  if len(image) != 1:
    raise ValueError(f"image has {len(image)} frames; animate takes one picture (see extend)")
  if not 0 <= at < frames:
    raise ValueError(f"at is {at}; a video of {frames} frames has frames 0 to {frames - 1}")
  return timeline.blank(prompt, frames, size or size_of(image), fps).place(fitted(image, size), at)


def extend(
  video: Video, prompt: Prompt, size: Size | None, fps: float, forward: int = 0, backward: int = 0
) -> Timeline:
  """A clip with `forward` frames after it and `backward` frames before it."""
  if min(forward, backward) < 0 or forward + backward == 0:
    raise ValueError(
      f"forward is {forward}, backward {backward}; give how many frames to add on either side"
    )
  video = fitted(video, size)
  if forward and backward:
    shown, before, after = video, None, None
  elif forward:
    before, shown, after = *split(video, len(video) - CONTEXT), None
  else:
    before, (shown, after) = None, split(video, CONTEXT)
  frames = backward + len(shown) + forward
  empty = timeline.blank(prompt, frames, size_of(video), fps, length(before), length(after))
  return dataclasses.replace(
    empty.place(shown, backward), before_THWC=before, after_THWC=after, goes_on=True
  )


def connect(
  start: Video, end: Video, prompt: Prompt, size: Size | None, frames: int, fps: float,
  strength: float = BLEND,
) -> Timeline:  # fmt: skip
  """A video of `frames` frames that begins with one clip, ends with another, and leads over.

  With a `strength` below 1 the way begins as a cross-fade, noised to that time; 1 leaves all to the
  model.
  """
  start, end = fitted(start, size), fitted(end, size or size_of(start))
  gap = frames - len(start) - len(end)
  if gap < 1:
    raise ValueError(
      f"frames is {frames}, but the clips have {len(start)} and {len(end)}; a transition needs at "
      f"least {len(start) + len(end) + 1} frames, or shorter clips"
    )
  before, start = split(start, len(start) - CONTEXT)
  end, after = split(end, CONTEXT)
  shown = len(start) + gap + len(end)
  empty = timeline.blank(prompt, shown, size_of(start), fps, length(before), length(after))
  known = empty.place(start).place(end, len(start) + gap)
  faded = np.concatenate([start, cross_fade(start[-1], end[0], gap), end])
  return dataclasses.replace(
    known, before_THWC=before, after_THWC=after, start_THWC=faded if strength < 1 else None,
    strength=strength,
  )  # fmt: skip


def loop(video: Video, prompt: Prompt, size: Size | None, frames: int, fps: float) -> Timeline:
  """A clip led back to its own beginning: frame `frames` would equal frame 0.

  The model is shown the clip's end, the gap, and the clip's beginning once more behind it, with its
  prompts: up to CONTEXT frames of it, so that the motion closes, not only the place.
  """
  if len(video) < GUARD:
    raise ValueError(f"the clip has {len(video)} frames; a loop's motion needs at least {GUARD}")
  if frames <= len(video):
    raise ValueError(
      f"frames is {frames}, but the clip has {len(video)}; a loop needs room to lead back, for "
      f"example {2 * len(video)}"
    )
  video = fitted(video, size)
  before, shown = split(video, len(video) - CONTEXT)
  again, inside = video[:CONTEXT], frames - length(before)
  prompt = timeline.repeated(prompt, frames, len(again))
  empty = timeline.blank(prompt, inside + len(again), size_of(video), fps, length(before))
  known = empty.place(shown).place(again, inside)
  return dataclasses.replace(known, before_THWC=before, keep=inside)


def edit(
  video: Video, prompt: Prompt, size: Size | None, fps: float, strength: float = EDIT
) -> Timeline:
  """SDEdit (arXiv 2108.01073): a clip noised to time `strength` and denoised under a new prompt."""
  video = fitted(video, size)
  empty = timeline.blank(prompt, len(video), size_of(video), fps)
  return dataclasses.replace(empty, start_THWC=video, strength=strength)


def inpaint(
  video: Video, mask_THW: Bool[np.ndarray, "_ _ _"], prompt: Prompt, size: Size | None, fps: float
) -> Timeline:
  """A clip of which a region is made anew.  mask_THW: true where; one frame serves all."""
  if mask_THW.shape[1:] != video.shape[1:3] or len(mask_THW) not in (1, len(video)):
    raise ValueError(
      f"mask has {len(mask_THW)} frames of {mask_THW.shape[2]}x{mask_THW.shape[1]}, the video "
      f"{len(video)} of {video.shape[2]}x{video.shape[1]}; draw it at the video's size, for one "
      "frame or all"
    )
  if not mask_THW.any():
    raise ValueError("mask is black everywhere; white is what is to be made")
  mask = np.where(mask_THW[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=-1)
  video, mask = fitted(video, size), fitted(mask, size)
  known_THW = np.broadcast_to(mask[..., 0] == 0, video.shape[:3])
  empty = timeline.blank(prompt, len(video), size_of(video), fps)
  return empty.place(video, mask_THW=known_THW)


def outpaint(video: Video, prompt: Prompt, size: Size, fps: float) -> Timeline:
  """A clip in the middle of a larger frame, scaled so that it just fits inside."""
  width, height = size
  H, W = video.shape[1:3]
  scale = min(width / W, height / H)
  inner = min(width, round(W * scale)), min(height, round(H * scale))
  if inner == tuple(size):
    raise ValueError(
      f"size is {width}x{height}, the shape of the clip ({W}x{H}): there is nothing to add; ask "
      "for another aspect ratio"
    )
  corner = (width - inner[0]) // 2, (height - inner[1]) // 2
  empty = timeline.blank(prompt, len(video), size, fps)
  return empty.place(transforms.resize(video, inner), corner=corner)


def interpolate(
  video: Video, prompt: Prompt, size: Size | None, fps: float, factor: int
) -> Timeline:
  """`factor` times the frame rate: (T - 1) factor + 1 frames, every factor-th of them known."""
  if factor < 2 or len(video) < 2:
    raise ValueError(
      f"factor is {factor} and the clip has {len(video)} frames; both must be at least 2"
    )
  video = fitted(video, size)
  made = timeline.blank(prompt, (len(video) - 1) * factor + 1, size_of(video), fps * factor)
  for k in range(len(video)):
    made.pixels_THWC[k * factor], made.known_THW[k * factor] = video[k], True
  return made


def fitted(video: Video, size: Size | None) -> Video:
  """A video scaled to cover a size; as it is for None."""
  return video if size is None else transforms.cover(video, size)


def size_of(video: Video) -> Size:
  """(width, height) of a video."""
  return video.shape[2], video.shape[1]


def cross_fade(
  first_HWC: UInt8[np.ndarray, "H W 3"], last_HWC: UInt8[np.ndarray, "H W 3"], frames: int
) -> UInt8[np.ndarray, "T H W 3"]:
  """The frames between two pictures, mixed of both."""
  share_T111 = np.arange(1, frames + 1)[:, None, None, None] / (frames + 1)
  mixed = (1 - share_T111) * first_HWC.astype(np.float32) + share_T111 * last_HWC
  return np.round(mixed).astype(np.uint8)


def hidden(*clips: Video) -> int:
  """Frames of clips that the model is not shown, if it is shown one end of each."""
  return sum(max(0, len(clip) - CONTEXT) for clip in clips)


def length(video: Video | None) -> int:
  """Frames of a video, 0 of none."""
  return 0 if video is None else len(video)


def split(video: Video, at: int) -> Sequence[Video | None]:
  """The frames before `at` and those from it on; None where there are none."""
  at = min(max(at, 0), len(video))
  parts = video[:at], video[at:]
  return [part if len(part) else None for part in parts]
