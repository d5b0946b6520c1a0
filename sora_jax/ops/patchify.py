"""Cuts latents into spacetime patches and puts them back; the one owner of the patch order.

A patch of `pt x ph x pw` latent cells becomes one vector whose entries run over (pt, ph, pw, Z),
the channel fastest; patches run over (time, height, width), width fastest. Only reshape and
transpose are used, so the same functions take NumPy arrays on the host and JAX arrays on the
device, and unpatchify gives back every bit.
"""

from collections.abc import Sequence
from typing import TypeVar

from sora_jax.shapes import Grid, Patch

Array = TypeVar("Array")


def token_grid(latent_grid: Sequence[int], patch: Sequence[int]) -> Grid:
  """Number of patches along time, height and width.

  Args:
    latent_grid: extent of the latent in cells, (t, h, w).
    patch: size of a patch in cells.
  Returns: the grid of tokens; its `size` is the number of tokens.
  Raises: ValueError if the latent is not a whole number of patches.
  """
  cells, patch = Grid(*latent_grid), Patch(*patch)
  if min(cells) < 1 or min(patch) < 1 or any(c % p for c, p in zip(cells, patch)):
    raise ValueError(
      f"a latent grid of {tuple(cells)} cells is not a whole number of {tuple(patch)} patches; "
      f"pad the video before it is encoded, or choose another patch"
    )
  return Grid(*(c // p for c, p in zip(cells, patch)))


def patchify(latent: Array, patch: Sequence[int]) -> Array:
  """Cuts latents `[..., t, h, w, Z]` into patches `[..., N, P]`, N = t h w / (pt ph pw).

  Args:
    latent: one clip `[t, h, w, Z]` or any number of leading axes; NumPy or JAX.
    patch: size of a patch in cells.
  Returns: `[..., N, P]` in the same library and dtype, P = pt * ph * pw * Z.
  Raises: ValueError if the grid is not a whole number of patches.
  """
  if latent.ndim < 4:
    raise ValueError(f"a latent has axes [..., t, h, w, Z], got the shape {latent.shape}")
  *lead, t, h, w, Z = latent.shape
  grid = token_grid((t, h, w), patch)
  n = len(lead)
  cut = latent.reshape(*lead, grid.t, patch[0], grid.h, patch[1], grid.w, patch[2], Z)
  order = (*range(n), n, n + 2, n + 4, n + 1, n + 3, n + 5, n + 6)
  return cut.transpose(order).reshape(*lead, grid.size, patch[0] * patch[1] * patch[2] * Z)


def unpatchify(patches: Array, grid: Sequence[int], patch: Sequence[int]) -> Array:
  """Puts patches `[..., N, P]` back into latents `[..., t, h, w, Z]`.

  Args:
    patches: as `patchify` gives them.
    grid: the grid of TOKENS, (t, h, w) with t * h * w = N; see `token_grid`.
    patch: size of a patch in cells.
  Returns: the latents; t, h, w in cells.
  Raises: ValueError if N or P disagree with the grid or the patch.
  """
  grid, cells = Grid(*grid), patch[0] * patch[1] * patch[2]
  *lead, N, P = patches.shape
  if N != grid.size or P % cells:
    raise ValueError(
      f"patches of shape {patches.shape} do not fill a grid of {tuple(grid)} tokens "
      f"({grid.size}) with {tuple(patch)} patches of {cells} cells"
    )
  n, Z = len(lead), P // cells
  cut = patches.reshape(*lead, *grid, *patch, Z)
  order = (*range(n), n, n + 3, n + 1, n + 4, n + 2, n + 5, n + 6)
  return cut.transpose(order).reshape(
    *lead, grid.t * patch[0], grid.h * patch[1], grid.w * patch[2], Z
  )


def cell_channels(latent_channels: int, frames_per_latent: int) -> int:
  """Channels of a cell that enters the transformer: noisy Z, known mask per frame, canvas Z."""
  return 2 * latent_channels + frames_per_latent


def join_cells(noisy: Array, known: Array, canvas: Array, patch: Sequence[int]) -> Array:
  """Joins three patchified tensors cell by cell into the tokens that the transformer reads.

  Each cell becomes [noisy Z | known mask, one per pixel frame that it covers | canvas Z], which
  is what patchify would give for latents that were concatenated before being cut.

  Args:
    noisy: `[..., P]` noisy latents. known: `[..., cells * frames_per_latent]`, 1 where the pixel
      frame is known. canvas: `[..., P]` latents of the known canvas.
    patch: size of a patch in cells.
  Returns: `[..., cells * (2 Z + frames_per_latent)]`.
  Raises: ValueError if a last axis is not a whole number of cells.
  """
  cells = patch[0] * patch[1] * patch[2]
  parts = []
  for name, part in (("noisy", noisy), ("known", known), ("canvas", canvas)):
    if part.shape[-1] % cells:
      raise ValueError(f"{name} has {part.shape[-1]} entries a token, not a multiple of {cells}")
    parts.append(part.reshape(*part.shape[:-1], cells, part.shape[-1] // cells))
  joined = noisy.__array_namespace__().concatenate(parts, axis=-1)
  return joined.reshape(*noisy.shape[:-1], cells * joined.shape[-1])
