"""A table of every clip's lengths: all that packing needs to know before it reads a latent."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from sora_jax.shapes import Patch

NAMED = 5
"""How many clips an error names; the rest are counted."""


@runtime_checkable
class ClipSource(Protocol):
  """Random access to clips: `ShardSource`, the world, or a list of `Clip`."""

  def __len__(self) -> int: ...

  def __getitem__(self, index) -> Any: ...


@dataclasses.dataclass(frozen=True)
class ClipTable:
  """Lengths of N clips, by index.

  Attributes:
    grid_N3: int32, token grid (t, h, w).
    text_N3: int32, number of text ids of the short and the long caption and of all shots' captions
      (of the short one if that is longer), 0 of a clip without shots.
    empty_text: number of text ids of the empty caption.
    channels: Z, channels of the latents.
  """

  grid_N3: np.ndarray
  text_N3: np.ndarray
  empty_text: int
  channels: int

  @property
  def tokens_N(self) -> np.ndarray:
    """int64, tokens of each clip."""
    return self.grid_N3.prod(axis=1, dtype=np.int64)


def caption(clip: Any, long: bool) -> str:
  """The long or the short caption; the other one where a clip has only one, "" where none."""
  first, second = ("long", "short") if long else ("short", "long")
  return clip.captions.get(first) or clip.captions.get(second) or ""


def shots(clip: Any) -> list[tuple[int, str]]:
  """(first frame, caption) of each shot; none where a clip tells none.  Raises: ValueError."""
  found = []
  for line in (clip.captions.get("shots") or "").splitlines():
    frame, _, text = line.strip().partition(" ")
    if not frame.isdecimal() or not text or (int(frame) <= found[-1][0] if found else frame != "0"):
      raise ValueError(
        f"clip {clip.id!r}: shot {line!r}; expected FRAME and a caption, the first at 0, each "
        "after the one before"
      )
    found.append((int(frame), text))
  return found


def scan(source: ClipSource, patch: Patch, tokenize: Callable[[str], list[int]]) -> ClipTable:
  """Reads every clip once and keeps its lengths.

  Raises: ValueError for an empty source, and, naming them, for clips without latents, with
    another number of channels, or whose latent is not a whole number of patches.
  """
  if not len(source):
    raise ValueError("the data set holds no clips")
  grids, texts, faults, channels = [], [], [], None
  for index in range(len(source)):
    clip = source[index]
    fault, latent_thwZ = None, clip.latent_thwZ
    if latent_thwZ is None:
      fault = "holds no latents; encode it first"
    else:
      channels = channels or latent_thwZ.shape[-1]
      if latent_thwZ.shape[-1] != channels:
        fault = f"has {latent_thwZ.shape[-1]} latent channels, the first clip {channels}"
      elif any(n % p for n, p in zip(latent_thwZ.shape, patch)):
        fault = f"latent grid {latent_thwZ.shape[:3]} is no multiple of the patch {tuple(patch)}"
    if fault:
      faults.append(f"{clip.id!r} {fault}")
      continue
    grids.append([n // p for n, p in zip(latent_thwZ.shape, patch)])
    lengths = [len(tokenize(caption(clip, long))) for long in (False, True)]
    parts = sum(len(tokenize(text)) for _, text in shots(clip))
    texts.append([*lengths, max(parts, lengths[0]) if parts else 0])
  if faults:
    raise ValueError(f"clips that cannot be packed: {_listed(faults)}")
  return ClipTable(
    np.array(grids, np.int32), np.array(texts, np.int32), len(tokenize("")), int(channels)
  )


def usable(
  table: ClipTable, source: ClipSource, row_len: int, text_row_len: int, caption_long: float,
  caption_shots: float, skip: bool,
) -> np.ndarray:  # fmt: skip
  """Indices (int64) of the clips that fit a row with any caption that will be read.

  Args: caption_long, caption_shots: shares of visits that read these captions; of kinds that no
    visit reads, the length does not count.  skip: leave clips that do not fit out with a warning,
    instead of raising.

  Raises: ValueError naming the clips that do not fit, with their lengths; also if none fits.
  """
  shares = (1 - caption_long, caption_long, caption_shots)
  read = [kind for kind, share in enumerate(shares) if share > 0]
  tokens_N, text_N = table.tokens_N, table.text_N3[:, read].max(axis=1)
  fits_N = (tokens_N <= row_len) & (text_N <= text_row_len) & (table.empty_text <= text_row_len)
  if not fits_N.all():
    long = [
      f"{source[int(i)].id!r} ({tokens_N[i]} tokens, {text_N[i]} text ids)"
      for i in np.flatnonzero(~fits_N)[:NAMED]
    ]
    message = (
      f"{(~fits_N).sum()} of {len(fits_N)} clips are too long for a row of {row_len} tokens and "
      f"{text_row_len} text ids: {_listed(long, int((~fits_N).sum()))}"
    )
    if not skip or not fits_N.any():
      raise ValueError(f"{message}. Lengthen the row, or set too_long=skip to train without them")
    logging.warning("%s; they are left out", message)
  return np.flatnonzero(fits_N)


def _listed(names: list[str], count: int | None = None) -> str:
  count = len(names) if count is None else count
  more = f" and {count - NAMED} more" if count > NAMED else ""
  return "; ".join(names[:NAMED]) + more
