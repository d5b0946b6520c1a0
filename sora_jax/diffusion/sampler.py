"""Sampling: a grid of times, a solver, a scan; and the noise a sample starts from.

`integrate` is the whole sampler. `denoise(x, j)` gives E[x0 | x] at point j of the grid; guidance,
prompts, layout and the network live inside it. Times may differ per segment or per token: they
broadcast against x behind their first axis ([J, R, L, 1] in packed rows).

The noise of a sample is a function of the seed, the text of the prompt, the number of the sample
and the position (t, y, x) in the latent grid, and of nothing else: it is drawn cell by cell, so
packing, the extent of the grid, batch and devices cannot change it.
"""

import hashlib
import itertools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sora_jax.diffusion import solvers
from sora_jax.shapes import Grid, Patch


def integrate(
  solver: solvers.Solver,
  denoise: Callable | Sequence[Callable],
  noise: Float[Array, "..."],
  times_J: Float[Array, "J ..."],
  draw: solvers.Draw | None = None,
) -> Float[Array, "..."]:
  """Takes noise to data along a grid of times, in one scan with one call of `denoise` in it.

  Args: denoise: (x, j) -> x0 at grid point j (a traced int32); or such a function for each point
    but the last, where runs of evaluations by one function are one scan.  noise: x at the first
    time of the grid.  times_J: not increasing along J, `times_J[0]` where `noise` lives; behind the
    first axis it broadcasts against x.  draw: fresh noise like x from the number of the evaluation,
    for solvers that are stochastic.
  Returns: x at the last time of the grid, in the shape and dtype of `noise`.
  Raises: ValueError for a grid without a step, for another number of functions than of points,
    and for a stochastic solver without `draw`.
  """
  if times_J.shape[0] < 2:
    raise ValueError(f"a grid needs at least 2 times, got {times_J.shape[0]}")
  if solver.stochastic and draw is None:
    raise ValueError(f"{solver.name} draws noise at each step: pass draw=..., see noise_at")

  table = solver.plan(times_J.astype(jnp.float32))
  steps = times_J.shape[0] - 1
  functions = [denoise] * steps if callable(denoise) else list(denoise)
  if len(functions) != steps:
    raise ValueError(f"{len(functions)} functions for the {steps} points of a grid; give each one")
  state, done = solver.init(noise), 0
  for function, run in itertools.groupby(functions[j] for j in table["at"]):

    def body(state, row, function=function):
      x0 = function(state.x, row["at"]).astype(noise.dtype)
      return solver.step(state, x0, row, draw), None

    here = slice(done, done + len(list(run)))
    rows = jax.tree.map(operator.itemgetter(here), table)
    state, done = jax.lax.scan(body, state, rows)[0], here.stop
  return state.x


def uniform_grid(steps: int, start: float | int = 1.0) -> Float[Array, "J"]:
  """Equidistant times from `start` to 0, steps + 1 of them; start below 1 to edit (SDEdit)."""
  _check_steps(steps, start)
  return jnp.asarray(np.linspace(start, 0.0, steps + 1), jnp.float32)


def quadratic_grid(steps: int) -> Float[Array, "J"]:
  """Times (1 - j / steps)^2: short steps at the end, where a shift would leave a long one.

  A shift by a takes the last of a uniform grid's times, 1 / steps, to a / (a + steps - 1): 0.32 for
  a = 9 in 20 steps. One prediction from there decides all that is fainter than that noise.
  Source: the quadratic times of Song et al. 2020 (arXiv 2010.02502), appendix D.2.
  """
  _check_steps(steps)
  return jnp.asarray(np.linspace(1.0, 0.0, steps + 1) ** 2, jnp.float32)


def leap_grid(steps: int, to: float = 0.1) -> Float[Array, "J"]:
  """One step from 1 to the time `to`, the rest quadratic: for data that is all but certain.

  The first step mixes the noise with E[x0 | what is known] (Eq. 1 of `solvers`), so samples lie
  around the mean of what is possible instead of being drawn from all of it: their squared error is
  at best half as large, their variety less, and what has several ways to go on is blurred.
  """
  _check_steps(steps, to)
  rest = to * np.linspace(1.0, 0.0, steps) ** 2 if steps > 1 else [0.0]
  return jnp.asarray(np.concatenate([[1.0], rest]), jnp.float32)


def staged_grid(name: str, steps: int, stages: int) -> Float[Array, "J K"]:
  """A grid for each of `stages` parts of a clip that are made one after the other.

  Part k stays at pure noise for k steps, takes the first step of the grid called `name` by itself,
  and waits there until the last part has come after; the rest of the way they go together. One
  stage: the grid as it is. Frames at noise levels of their own: Chen et al. 2024 (arXiv
  2407.01392).
  Raises: ValueError for more stages than steps, or less than one.
  """
  if not 1 <= stages <= steps:
    raise ValueError(f"stages={stages}; allowed: 1 (all at once) up to the {steps} steps")
  first, second, *rest = np.asarray(GRIDS[name](steps - stages + 1))
  parts = [[first] * (k + 1) + [second] * (stages - k) + rest for k in range(stages)]
  return jnp.asarray(np.stack(parts, axis=1))


def karras_grid(
  steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> Float[Array, "J"]:
  """Times whose noise-to-data ratio t / (1 - t) follows Karras et al. 2022 (arXiv 2206.00364), Eq.
  5, then 0.

  The first time is 1 itself, not high / (1 + high), so that the grid begins at pure noise.
  """
  _check_steps(steps)
  ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho
  return jnp.asarray(np.concatenate([[1.0], ramp[1:] / (1.0 + ramp[1:]), [0.0]]), jnp.float32)


def linear_quadratic_grid(steps: int, threshold: float = 0.025) -> Float[Array, "J"]:
  """Half the steps even inside [1 - threshold, 1], the rest quadratic with a continuous slope down
  to 0.

  Source: Movie Gen (arXiv 2410.13720), section 3.4.2, in the closed form that LTX-Video uses. At
    least 2 steps.
  """
  _check_steps(steps)
  even = steps // 2
  if even == 0:
    return uniform_grid(steps)
  rest = steps - even
  slope = threshold / even
  bend = (1.0 - threshold - slope * rest) / rest**2
  index = np.arange(rest + 1)
  done = np.concatenate([slope * np.arange(even), threshold + slope * index + bend * index**2])
  return jnp.asarray(np.clip(1.0 - done, 0.0, 1.0), jnp.float32)


def sample_key(seed: int, text: str, sample: int = 0) -> Key[Array, ""]:
  """The key of a sample: SHA-256 of (seed, sample, text), on the host; any integers, any text."""
  digest = hashlib.sha256(f"{int(seed)}\n{int(sample)}\n{text}".encode()).digest()
  words = np.frombuffer(digest[:8], dtype="<u4").astype(np.uint32)
  return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def noise_cells(
  seed: int, text: str, sample: int, grid: Grid, channels: int
) -> Float[Array, "t h w Z"]:
  """Normal noise of one sample, float32; a cell has the same in every grid that holds it."""
  axes = np.meshgrid(*(np.arange(extent, dtype=np.int32) for extent in grid), indexing="ij")
  cell_N3 = np.stack(axes, axis=-1).reshape(-1, 3)
  number = len(cell_N3)
  rows = max(256, 1 << (number - 1).bit_length())  # few sizes, so few programs
  cell_N3 = np.pad(cell_N3, ((0, rows - number), (0, 0)))
  key_N = jnp.broadcast_to(sample_key(seed, text, sample), (rows,))
  noise_NZ = _draw_cells(key_N, jnp.asarray(cell_N3), channels)
  return noise_NZ[:number].reshape(*grid, channels)


def noise_at(
  key_RS: Key[Array, "R S"],
  segment_RL: Int[Array, "R L"],
  coord_RL3: Int[Array, "R L 3"],
  patch: Patch,
  channels: int,
) -> Float[Array, "R L P"]:
  """The noise of packed samples, patch by patch in the order (pt ph pw Z), float32; 0 at padding.

  Equal to patchifying `noise_cells` of each segment. Works under jit with one shape for all
  layouts.
  Args: key_RS: `sample_key` of each segment (any key where unused); `fold_keys` first for noise
    inside the steps. coord_RL3: (t, y, x) of each token in the token grid.  patch: latent cells of
    a token.
  """
  R, L = segment_RL.shape
  offsets = np.stack(np.meshgrid(*(np.arange(p) for p in patch), indexing="ij"), axis=-1).reshape(
    -1, 3
  )
  size = np.asarray(patch, np.int32)
  cell_RLn3 = coord_RL3[:, :, None, :] * size[None, None, None, :] + offsets[None, None, :, :]
  index_RL = jnp.maximum(segment_RL - 1, 0)
  key_RL = jax.vmap(lambda key_S, index_L: key_S[index_L])(key_RS, index_RL)
  key_RLn = jnp.broadcast_to(key_RL[:, :, None], (R, L, len(offsets)))
  noise = _draw_cells(key_RLn.reshape(-1), cell_RLn3.reshape(-1, 3), channels)
  noise_RLP = noise.reshape(R, L, len(offsets) * channels)
  return jnp.where((segment_RL > 0)[..., None], noise_RLP, 0.0)


def fold_keys(key_RS: Key[Array, "R S"], number: Int[Array, ""] | int) -> Key[Array, "R S"]:
  """Keys for one evaluation's noise: `draw = lambda e: noise_at(fold_keys(key_RS, e), ...)`."""
  return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(key_RS)


@jax.jit(static_argnums=2)
def _draw_cells(key_N, cell_N3, channels):
  """Normal noise [N, Z] of N cells, each from its own key and its own position only."""

  def one(key, cell_3):
    for axis in range(3):
      key = jax.random.fold_in(key, cell_3[axis].astype(jnp.uint32))
    return jax.random.normal(key, (channels,), jnp.float32)

  return jax.vmap(one)(key_N, cell_N3)


def _check_steps(steps: int, start: float | int = 1.0):
  if steps < 1 or not 0.0 < start <= 1.0:
    raise ValueError(
      f"a grid needs steps >= 1 and 0 < start <= 1, got steps={steps}, start={start}"
    )


GRIDS: dict[str, Callable] = {
  "uniform": uniform_grid,
  "quadratic": quadratic_grid,
  "leap": leap_grid,
  "karras": karras_grid,
  "linear_quadratic": linear_quadratic_grid,
}
"""Grids by the name a config gives."""
