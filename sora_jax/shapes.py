"""The dimension key, and the few words that every room shares.

Array names end in their axes. Upper case counts pixels or tokens, lower case the latent grid:

  B clips in a batch            R packed rows (sequences on the device)
  T H W frames, height, width   L / M row length: queries / keys (text)
  C pixel channels (3)          S segments (clips) per row
  t h w latent frames, h, w     N patches (tokens) of one clip
  Z latent channels             P patch vector = pt * ph * pw * Z
  D model width                 F hidden width of the MLP
  A attention heads             K size of one head
  E condition width             U width of the text embedding
  J points of a sampling grid   V text vocabulary
  Q time slots of a row

`x0` is data and `eps` noise; time runs from 0 (data) to 1 (noise).
"""

from typing import NamedTuple

PAD_SEGMENT = 0
"""Segment id of padding; the clips of a row are numbered from 1."""


class Patch(NamedTuple):
  """Size of a spacetime patch, in latent cells."""

  t: int
  h: int
  w: int


class Grid(NamedTuple):
  """A clip's extent in time, height and width, in whatever unit the context says."""

  t: int
  h: int
  w: int

  @property
  def size(self) -> int:
    """Number of cells."""
    return self.t * self.h * self.w


class Share(NamedTuple):
  """What a host loads of each batch: some of its `of` equal blocks of rows, lowest first.

  They need not follow each other: a TPU host's chips are a tile of the torus that a mesh's rows run
  through.
  """

  blocks: tuple[int, ...] = (0,)
  of: int = 1

  def rows(self, total: int) -> list[int]:
    """Which of a batch's rows these are.  Raises: ValueError if its blocks are not equal."""
    if total % self.of:
      raise ValueError(
        f"{total} rows cannot be {self.of} equal blocks; take a multiple of {self.of}"
      )
    per = total // self.of
    return [block * per + row for block in self.blocks for row in range(per)]


WHOLE = Share()
"""All of a batch."""
