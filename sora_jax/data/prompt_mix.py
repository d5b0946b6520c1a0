"""Image and video prompts of training: which frames and regions of a clip the model is told.

A kind says what is known. Two of them are whole latents from the first on, and a causal
autoencoder's latents of a clip's beginning are those of the clip: they cost nothing. For all others
what is known is encoded at its place with the rest gray, beforehand: each clip carries a few
variants, and a visit takes one of them.

Shares: Open-Sora 1.1 and 2 (reports v03, 2503.09642) mask 30 to 50 % of clips; the kinds are those
of the tasks in `prompting/tasks.py`.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, UInt8

from sora_jax.data import known

VERSION = 2
"""Of how variants are drawn; 1 knew at most half of a clip's beginning or end."""
PREFIX_KINDS = ("first", "head")
VARIANT_KINDS = ("tail", "ends", "both", "keyframes", "random", "boxes")


@dataclasses.dataclass(frozen=True)
class PromptMix:
  """Shares of the kinds among videos; what they leave of 1 is text alone.

  Attributes:
    first: the first frame.  head: the first whole latents, from two on: one frame tells a place, a
      second latent how fast things move.  tail: the last k frames.  ends: the first and the last.
    both: the first k and the last l, l sometimes 0.
    keyframes: every m-th.  random: any.  boxes: a region of all frames.
    pictures: share of boxes among pictures.
    dropout: share of visits whose prompt is left out, for guidance; text is left out on its own.
    variants: V, encoded for each clip.
    noise: most that a canvas is noised to, a time; half the prompts are noised evenly up to it.
    frame_times: share of visits in which each latent frame has a time of its own.
    near_noise: share of visits with a prompt whose times are near pure noise, see
      `diffusion.times.near_noise`.
    staged: share of visits with a prompt in which the latent frames next to what is known are ahead
      of the others, as where these are made one after the other, see `diffusion.times.staged`.
  """

  first: float = 0.15
  head: float = 0.10
  tail: float = 0.07
  ends: float = 0.06
  both: float = 0.06
  keyframes: float = 0.06
  random: float = 0.05
  boxes: float = 0.05
  pictures: float = 0.1
  dropout: float = 0.1
  variants: int = 2
  noise: float = 0.25
  frame_times: float = 0.15
  near_noise: float = 0.0
  staged: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name != "variants" and not 0 <= value <= 1:
        raise ValueError(f"{field.name}={value}; it is a share, between 0 and 1")
    if sum(self.shares) > 1 + 1e-9:
      raise ValueError(f"the shares of {', '.join(KINDS)} add up to {sum(self.shares):g}, above 1")
    if self.variants < 1:
      raise ValueError(f"variants={self.variants}; it must be at least 1")

  @property
  def shares(self) -> tuple[float, ...]:
    """Of KINDS, in order."""
    return tuple(getattr(self, kind) for kind in KINDS)

  def kind(self, frames: int, rng: np.random.Generator) -> str | None:
    """The kind of one visit to a clip of `frames` latent frames; None = text alone."""
    draw, dropped = rng.random(2)
    if dropped < self.dropout:
      return None
    if frames == 1:
      return "boxes" if draw < self.pictures else None
    place = int(np.searchsorted(np.cumsum(self.shares), draw, side="right"))
    return KINDS[place] if place < len(KINDS) else None

  def variant(self, frames: int, cells: tuple[int, int], rng: np.random.Generator):
    """The kind and the known cells, bool [T, h, w], of one variant of a clip.

    Args: frames: T, in pixels, without padding.  cells: (h, w) of the latent.
    """
    shares = np.array([getattr(self, kind) for kind in VARIANT_KINDS])
    kind = "boxes"
    if frames > 2 and shares.any():
      kind = str(rng.choice(VARIANT_KINDS, p=shares / shares.sum()))
    if kind == "boxes":
      return kind, np.broadcast_to(box(cells, rng), (frames, *cells))
    return kind, np.broadcast_to(frames_known(kind, frames, rng)[:, None, None], (frames, *cells))


KINDS = (*PREFIX_KINDS, *VARIANT_KINDS)


def frames_known(kind: str, frames: int, rng: np.random.Generator) -> Bool[np.ndarray, "T"]:
  """Which frames a variant of a kind knows; at least one is known and one is not."""
  known_T, most = np.zeros(frames, bool), max(1, 2 * frames // 3)
  if kind == "tail":
    known_T[-int(rng.integers(1, most + 1)) :] = True
  elif kind == "ends":
    known_T[[0, -1]] = True
  elif kind == "both":
    start, end = int(rng.integers(1, most + 1)), int(rng.integers(1, max(2, frames // 3 + 1)))
    known_T[:start] = True
    if rng.random() < 0.75 and start + end < frames:
      known_T[-end:] = True
  elif kind == "keyframes":
    known_T[:: int(rng.integers(2, max(1, frames // 2) + 2))] = True
  else:
    known_T[:] = rng.random(frames) < rng.random()
    known_T[rng.integers(frames)] = True
    if known_T.all():
      known_T[rng.integers(frames)] = False
  return known_T


def box(cells: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
  """A known region: a box, all but a box, or a strip across the frame, as reframing leaves it.

  It is part of the frame, unless that is a single cell: then it is all of it.
  """
  h, w = cells
  height, width = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
  style = 0 if h * w == 1 else rng.integers(3)
  if style == 2 or (height, width) == (h, w):
    across = rng.random() < 0.5 if min(h, w) > 1 else w > 1
    height, width = (h, max(1, w // 2)) if across else (max(1, h // 2), w)
  y, x = int(rng.integers(0, h - height + 1)), int(rng.integers(0, w - width + 1))
  inside = np.zeros((h, w), bool)
  inside[y : y + height, x : x + width] = True
  return ~inside if style == 1 else inside


def prefix_mask(
  kind: str, grid: tuple[int, int, int], frames_per_latent: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "t h w F"]:
  """The cell mask of a kind that is known in whole latents from the first on: of "head" two to two
  thirds of them, of two latents one."""
  mask = np.zeros((*grid, frames_per_latent), np.uint8)
  least = min(2, grid[0] - 1)
  most = max(least, 2 * grid[0] // 3)
  mask[: 1 if kind == "first" else int(rng.integers(least, most + 1))] = 1
  return mask


def variant_mask(
  known_Thw: Bool[np.ndarray, "T h w"], latents: int, frames_per_latent: int
) -> UInt8[np.ndarray, "t h w F"]:
  """The cell mask of a variant; frames that pad a clip to whole latents are not known."""
  extra = 1 + (latents - 1) * frames_per_latent - len(known_Thw)
  padded = np.concatenate([known_Thw, np.zeros((extra, *known_Thw.shape[1:]), bool)])
  return known.cell_mask(padded, frames_per_latent, 1)
