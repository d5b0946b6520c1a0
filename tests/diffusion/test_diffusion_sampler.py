"""Grids of times, and noise that belongs to a sample and not to its packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import sampler, solvers, times
from sora_jax.shapes import Grid, Patch

Z = 4


@pytest.mark.parametrize("name", sampler.GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_grids_fall_from_noise_to_data(name, steps):
  grid = np.asarray(sampler.GRIDS[name](steps))
  assert grid.shape == (steps + 1,) and grid[0] == 1.0 and grid[-1] == 0.0
  assert (np.diff(grid) < 0).all()


def test_known_grids():
  np.testing.assert_allclose(times.shift(3.0, sampler.uniform_grid(4)), [1, 0.9, 0.75, 0.5, 0])
  np.testing.assert_allclose(sampler.uniform_grid(3, start=0.6), [0.6, 0.4, 0.2, 0.0], atol=1e-7)
  np.testing.assert_allclose(sampler.quadratic_grid(4), [1, 9 / 16, 1 / 4, 1 / 16, 0], atol=1e-7)
  np.testing.assert_allclose(sampler.leap_grid(3, 0.4), [1, 0.4, 0.1, 0], atol=1e-7)
  karras = np.asarray(sampler.karras_grid(18), np.float64)
  ratio = karras[1:-1] / (1 - karras[1:-1])
  np.testing.assert_allclose(ratio[-1], 0.002, rtol=1e-3)
  np.testing.assert_allclose(np.diff(ratio ** (1 / 7), 2), 0.0, atol=1e-4)
  half = np.asarray(sampler.linear_quadratic_grid(40))
  assert half[20] == pytest.approx(0.975)
  np.testing.assert_allclose(np.diff(half[:21]), -0.025 / 20, rtol=1e-3)
  np.testing.assert_allclose(np.diff(half[20:], 3), 0.0, atol=1e-6)


def test_parts_of_a_clip_take_the_first_step_of_a_grid_in_turn():
  np.testing.assert_array_equal(
    sampler.staged_grid("quadratic", 5, 1)[:, 0], sampler.quadratic_grid(5)
  )
  found = sampler.staged_grid("quadratic", 6, 3)
  wait, last, end = np.asarray(sampler.quadratic_grid(4))[[1, 2, 3]]
  want = [[1, 1, 1], [wait, 1, 1], [wait, wait, 1], [wait] * 3, [last] * 3, [end] * 3, [0, 0, 0]]
  np.testing.assert_array_equal(found, want)
  for stages in (0, 5):
    with pytest.raises(ValueError, match=f"stages={stages}; allowed: 1 .* to the 4 steps"):
      sampler.staged_grid("leap", 4, stages)


def test_impossible_grids_are_refused():
  for make in (lambda: sampler.uniform_grid(0), lambda: sampler.uniform_grid(3, start=2.0),
               lambda: sampler.leap_grid(3, 0.0)):  # fmt: skip
    with pytest.raises(ValueError, match="got"):
      make()


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "unipc2"])
def test_points_may_have_functions_of_their_own(name):
  """Two functions in three runs: what one function makes that asks where it is."""
  solver, grid, noise = solvers.by_name(name), sampler.uniform_grid(6), jnp.asarray([1.0, -2.0])
  early, late = (lambda x, j, a=a: a * x + 0.1 * j for a in (0.3, 0.7))
  each = [early, early, late, late, late, early]
  is_late = jnp.asarray([f is late for f in each])
  whole = sampler.integrate(
    solver, lambda x, j: jnp.where(is_late[j], late(x, j), early(x, j)), noise, grid
  )
  np.testing.assert_allclose(sampler.integrate(solver, each, noise, grid), whole, rtol=1e-6)
  assert not np.allclose(sampler.integrate(solver, early, noise, grid), whole, rtol=1e-2)
  with pytest.raises(ValueError, match="5 functions for the 6 points"):
    sampler.integrate(solver, each[1:], noise, grid)


def cells(grid, seed=0, text="a red circle", sample=0):
  return np.asarray(sampler.noise_cells(seed, text, sample, Grid(*grid), Z))


def test_noise_is_a_function_of_the_cell():
  whole = cells((5, 7, 6))
  for grid in ((1, 1, 1), (2, 7, 3), (5, 6, 5)):
    t, h, w = grid
    np.testing.assert_array_equal(cells(grid), whole[:t, :h, :w])


def test_noise_depends_on_seed_prompt_and_number():
  base = cells((2, 3, 3))
  others = (cells((2, 3, 3), seed=1), cells((2, 3, 3), text=""), cells((2, 3, 3), sample=1))
  for other in others:
    assert (other != base).all()
  assert np.isfinite(cells((1, 2, 2), seed=2**70, text="ünïcode \n", sample=-3)).all()


def test_noise_is_normal_and_uncorrelated():
  noise = cells((12, 24, 24)).astype(np.float64)
  assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1.0, abs=0.01)
  for axis in range(4):
    near = np.moveaxis(noise, axis, 0)
    assert abs(np.mean(near[1:] * near[:-1])) < 0.02


def test_noise_is_pinned():
  """The same seed must give the same video in every version of the project."""
  got = sampler.noise_cells(0, "a red circle", 0, Grid(1, 1, 1), 4)
  np.testing.assert_allclose(got.ravel(), PINNED, atol=1e-6)


PINNED = [0.49044269, -0.02559668, -0.54189801, 1.97196186]


def tokens_of(grid):
  """Token coordinates in the order t, y, x."""
  axes = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
  return np.stack(axes, axis=-1).reshape(-1, 3)


def patchified(noise, patch):
  """Patches of a latent grid in the order (pt ph pw Z), written out."""
  t, h, w = (n // p for n, p in zip(noise.shape, patch))
  parts = noise.reshape(t, patch.t, h, patch.h, w, patch.w, -1)
  return parts.transpose(0, 2, 4, 1, 3, 5, 6).reshape(t * h * w, -1)


@pytest.mark.parametrize("patch", [Patch(1, 2, 2), Patch(2, 3, 1)])
def test_packed_noise_is_the_noise_of_the_cells(patch):
  grids = [(2, 3, 2), (1, 4, 5), (3, 1, 1)]
  keys = [sampler.sample_key(5, f"prompt {i}", i) for i in range(3)]
  unused = sampler.sample_key(0, "")

  def row(order, length):
    coord, segment = np.zeros((length, 3), np.int32), np.zeros(length, np.int32)
    start, spans = 0, {}
    for number, i in enumerate(order):
      spans[i] = slice(start, start + int(np.prod(grids[i])))
      coord[spans[i]], segment[spans[i]] = tokens_of(grids[i]), number + 1
      start = spans[i].stop
    table = jnp.stack([keys[i] for i in order] + [unused] * (4 - len(order)))
    return coord, segment, table, spans

  draw = jax.jit(lambda k, s, c: sampler.noise_at(k, s, c, patch, Z))
  for order, length in (((0, 1, 2), 40), ((2, 0, 1), 40), ((1,), 31)):
    coord, segment, table, spans = row(order, length)
    got = np.asarray(draw(table[None], jnp.asarray(segment)[None], jnp.asarray(coord)[None]))[0]
    for i in order:
      extent = [n * p for n, p in zip(grids[i], patch)]
      alone = cells((6, 12, 10), seed=5, text=f"prompt {i}", sample=i)
      alone = alone[: extent[0], : extent[1], : extent[2]]
      np.testing.assert_array_equal(got[spans[i]], patchified(alone, patch))
    np.testing.assert_array_equal(got[segment == 0], 0.0)


def test_noise_of_a_step_differs_and_ignores_the_order(key):
  keys = jnp.stack([sampler.sample_key(0, "a"), sampler.sample_key(0, "b")])
  coord = jnp.asarray([[[0, 0, 0], [0, 0, 1], [0, 0, 0]]])
  segment = jnp.asarray([[1, 1, 2]])

  def draw(number, table, ids):
    folded = sampler.fold_keys(table[None], number)
    return np.asarray(sampler.noise_at(folded, ids, coord, Patch(1, 1, 1), Z))[0]

  first = draw(0, keys, segment)
  assert (first != draw(1, keys, segment)).all()
  swapped = draw(0, keys[::-1], jnp.asarray([[2, 2, 1]]))
  np.testing.assert_array_equal(swapped, first)
