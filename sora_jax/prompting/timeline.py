"""The timeline: a video to be made, and what is known of it.

Frames, clips and regions that are known lie at their places in a video of T frames; the rest is to
be made. A task (`prompting/tasks.py`) is no more than a way to lay out a timeline, and the sampler
knows nothing of tasks.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from sora_jax.data import known
from sora_jax.data.transforms import Size
from sora_jax.prompting.orders import MAX_FRAMES


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
  """A video to be made.

  Attributes:
    prompt: text.  fps: frames per second.
    later: ((frame, text), ...) of prompts that take over along the way; see `latent_prompts`.
    goes_on: whether a clip is gone on with, for which a model may have a grid of times of its own.
    pixels_THWC: uint8, what is known at its place; elsewhere 0.
    known_THW: where pixels are known.
    start_THWC: uint8 video that is noised to time `strength` and denoised again, or None; 0 leaves
      it as the autoencoder gives it back, 1 forgets it.
    before_THWC, after_THWC: frames that the result begins and ends with and that the model is not
      shown: of a long clip only the frames next to what is made.
    keep: frames of the timeline that are part of the result; None = all. A loop shows the model its
      own beginning once more, behind its end.
  """

  prompt: str
  fps: float
  pixels_THWC: UInt8[np.ndarray, "T H W 3"]
  known_THW: Bool[np.ndarray, "T H W"]
  start_THWC: UInt8[np.ndarray, "T H W 3"] | None = None
  strength: float = 1.0
  before_THWC: UInt8[np.ndarray, "b H W 3"] | None = None
  after_THWC: UInt8[np.ndarray, "a H W 3"] | None = None
  keep: int | None = None
  later: tuple[tuple[int, str], ...] = ()
  goes_on: bool = False

  def __post_init__(self):
    if not 0 <= self.strength <= 1:
      raise ValueError(f"strength is {self.strength}; it must lie between 0 and 1")
    if self.start_THWC is not None and self.start_THWC.shape != self.pixels_THWC.shape:
      raise ValueError(
        f"the video to start from has shape {self.start_THWC.shape}, the timeline "
        f"{self.pixels_THWC.shape}; resize it first"
      )
    begins = [0, *(frame for frame, _ in self.later), self.frames]
    if any(a >= b for a, b in zip(begins, begins[1:])):
      raise ValueError(
        f"prompts take over at frames {begins[1:-1]} of {self.frames}; they must follow each other "
        f"from frame 1 on"
      )

  @property
  def frames(self) -> int:
    """T, frames shown to the model."""
    return len(self.pixels_THWC)

  @property
  def size(self) -> Size:
    """(width, height) in pixels."""
    return self.pixels_THWC.shape[2], self.pixels_THWC.shape[1]

  def latent_prompts(self, frames_per_latent: int) -> list[tuple[int, str]]:
    """[(first latent frame, prompt)] from 0 on: each reads what holds in the middle of its frames.

    A prompt that holds in the middle of no latent frame is read by none.
    """
    parts, found = [(0, self.prompt), *self.later], []
    begins = [frame for frame, _ in parts]
    for k, number in enumerate(known.readers(begins, self.frames, frames_per_latent)):
      if not found or parts[number][1] != found[-1][1]:
        found.append((k, parts[number][1]))
    return found

  def place(
    self,
    video_THWC: np.ndarray,
    at: int = 0,
    corner: tuple[int, int] = (0, 0),
    mask_THW: Bool[np.ndarray, "k h w"] | None = None,
  ) -> "Timeline":
    """A timeline on which a video is known, too.

    Args: video_THWC: uint8 [k, h, w, 3], or a picture [h, w, 3].  at: frame of the timeline where
      it begins.  corner: (x, y) of its upper left corner.  mask_THW: where it is known; None =
      everywhere.
    Raises: ValueError if it sticks out, or is no video (see `as_video`).
    """
    video_THWC = as_video(video_THWC)
    k, h, w, _ = video_THWC.shape
    x, y = corner
    T, H, W = self.known_THW.shape
    if min(at, x, y) < 0 or at + k > T or y + h > H or x + w > W:
      raise ValueError(
        f"a video of {k} frames of {w}x{h} at frame {at} and ({x}, {y}) does not fit in {T} frames "
        f"of {W}x{H}; ask for more frames or a larger size, or give a smaller video"
      )
    box = np.s_[at : at + k, y : y + h, x : x + w]
    mask_THW = np.ones((k, h, w), bool) if mask_THW is None else mask_THW
    pixels_THWC, known_THW = self.pixels_THWC.copy(), self.known_THW.copy()
    pixels_THWC[box] = np.where(mask_THW[..., None], video_THWC, pixels_THWC[box])
    known_THW[box] |= mask_THW
    return dataclasses.replace(self, pixels_THWC=pixels_THWC, known_THW=known_THW)

  def blended(
    self, made_THWC: UInt8[np.ndarray, "T H W 3"], reach: float | int
  ) -> UInt8[np.ndarray, "T H W 3"]:
    """What was made, so that known regions, once in their places, do not show by their edge.

    The autoencoder gives no pixel back quite as it was. By how much it missed the nearest known
    pixel of the same frame is added to what was made, times exp(-distance / reach): a feathered,
    local form of seamless cloning (Pérez et al. 2003). Frames that are known as a whole or not at
    all stay as they are.

    Args: reach: in pixels.
    """
    from scipy import ndimage  # a tenth of the package's import, for the few that need it

    made_THWC, before = made_THWC.copy(), None
    for k, known_HW in enumerate(self.known_THW):
      if known_HW.all() or not known_HW.any():
        continue
      if before is None or (known_HW != before).any():
        away_HW, near = ndimage.distance_transform_edt(~known_HW, return_indices=True)
        weight_HW1, before = np.exp(-away_HW / reach)[..., None], known_HW
      missed_HWC = (self.pixels_THWC[k].astype(np.float32) - made_THWC[k])[tuple(near)]
      moved_HWC = np.rint(made_THWC[k] + weight_HW1 * missed_HWC)
      made_THWC[k] = np.where(known_HW[..., None], made_THWC[k], np.clip(moved_HWC, 0, 255))
    return made_THWC

  def finish(self, made_THWC: UInt8[np.ndarray, "T H W 3"]) -> UInt8[np.ndarray, "n H W 3"]:
    """The result: known pixels bit by bit as they were given, what was made elsewhere."""
    video_THWC = np.where(self.known_THW[..., None], self.pixels_THWC, made_THWC)[: self.keep]
    parts = [self.before_THWC, video_THWC, self.after_THWC]
    return np.concatenate([part for part in parts if part is not None])


Prompt = str | Sequence[tuple[int, str]]
"""A text, or several with the frames of the result at which they take over, the first at 0."""


def blank(
  prompt: Prompt, frames: int, size: Size, fps: float, skipped: int = 0, behind: int = 0
) -> Timeline:
  """A timeline of which nothing is known.

  Args: skipped, behind: frames of the result that lie before the timeline, and behind it.
  Raises: ValueError for an impossible extent, or prompts that do not follow each other.
  """
  width, height = size
  if frames < 1:
    raise ValueError(f"frames is {frames}; a video has at least 1")
  check_frames(frames)
  if min(size) < 1:
    raise ValueError(f"size is {width}x{height}; both must be at least 1")
  if not 0 < fps <= 1000:
    raise ValueError(f"fps is {fps}; it must be above 0, at most 1000")
  shape = frames, height, width
  first, later = ordered(prompt, frames, skipped, behind)
  pixels_THWC = np.zeros((*shape, 3), np.uint8)
  return Timeline(first, fps, pixels_THWC, np.zeros(shape, bool), later=later)


def check_frames(frames: int) -> None:
  """Raises a ValueError for more frames than are made at once."""
  if frames > MAX_FRAMES:
    raise ValueError(f"frames is {frames}; at most {MAX_FRAMES} are made at once")


def ordered(
  prompt: Prompt, frames: int, skipped: int = 0, behind: int = 0
) -> tuple[str, tuple[tuple[int, str], ...]]:
  """The prompt that a timeline begins with, and those that take over; see `blank`."""
  if isinstance(prompt, str):
    return prompt, ()
  begins = [int(frame) for frame, _ in prompt]
  end = skipped + frames
  last = end + behind
  if begins[:1] != [0] or any(a >= b for a, b in zip(begins, [*begins[1:], last])):
    raise ValueError(
      f"prompts begin at frames {begins} of {last}; the first begins at 0, each later one "
      "after the one before it"
    )
  first = [text for frame, text in prompt if frame <= skipped][-1]
  return first, tuple((frame - skipped, text) for frame, text in prompt if skipped < frame < end)


def until(prompt: Prompt, frames: int) -> Prompt:
  """The part of a prompt that concerns the first frames of a result."""
  if isinstance(prompt, str):
    return prompt
  return [(frame, text) for frame, text in prompt if frame < frames]


def repeated(prompt: Prompt, frames: int, again: int) -> Prompt:
  """The prompt of a result of `frames` frames behind which its first `again` come once more.

  Raises: ValueError for prompts that do not follow each other within the result.
  """
  ordered(prompt, frames)
  if isinstance(prompt, str):
    return prompt
  more = [(frames + frame, text) for frame, text in until(prompt, again)]
  return [*prompt, *(more[1:] if more[0][1] == prompt[-1][1] else more)]


def as_video(video: np.ndarray) -> UInt8[np.ndarray, "T H W 3"]:
  """uint8 [T, H, W, 3]; a picture [H, W, 3] becomes one frame.  Raises: ValueError."""
  video = np.asarray(video)
  video = video[None] if video.ndim == 3 else video
  if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
    raise ValueError(
      f"got {video.dtype} {video.shape}; a video is uint8 [T, H, W, 3] (a picture: video[None])"
    )
  return video
