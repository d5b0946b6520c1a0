"""Solvers: orders against closed forms, one contract for all, parity with diffusers."""

import functools
import pathlib
import sys

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import sampler, solvers, times

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NOISE = np.linspace(-2.2, 2.2, 23).astype(np.float32)


@functools.cache
def program(solver, x0_of):
  """The compiled sampler for (noise, grid, fresh noise of each evaluation)."""

  def run(x, grid, fresh):
    return sampler.integrate(
      solver, lambda p, j: x0_of(p, grid[j]), x, grid, None if fresh is None else lambda e: fresh[e]
    )

  # Parity is of rounding as well: fusions are emitted as outside of tests (conftest.py).
  return jax.jit(run, compiler_options={"xla_cpu_use_fusion_emitters": True})


def solve(solver, x0_of, noise, grid, fresh=None):
  """Integrates with an exact denoiser; `solver` by name or itself, `grid` [J, ...]."""
  solver = by_name(solver) if isinstance(solver, str) else solver
  return program(solver, x0_of)(jnp.asarray(noise), jnp.asarray(grid, jnp.float32), fresh)


by_name = functools.cache(solvers.by_name)


def fresh_like(noise, evaluations=16):
  return jnp.asarray(
    np.random.default_rng(2).standard_normal((evaluations, *np.shape(noise))), jnp.float32
  )


def both_x0(x, time):
  """Row 0 is Gaussian data, row 1 the mixture."""
  return jnp.stack([exact.gaussian_x0(x[0], time), exact.mixture_x0(x[1], time)])


def both_points(time):
  return np.stack([exact.gaussian_point(NOISE, time), exact.mixture_point(NOISE, time)])


def slopes(name, ends, steps):
  """Slope of log error against log step between two times, and the last error, of both data."""
  errors = []
  for number in steps:
    start = both_points(ends[0]).astype(np.float32)
    got = solve(name, both_x0, start, np.linspace(*ends, number + 1))
    errors.append(np.sqrt(np.mean((np.asarray(got) - both_points(ends[1])) ** 2, axis=1)))
  return np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]), errors[1]


@pytest.mark.parametrize(
  "name, order",
  [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc2", 2), ("unipc3", 2)],
)
def test_order_inside_the_ends(name, order):
  # Heun and UniPC finish with a step of order 1, which leaves order 2 overall.
  got, error = slopes(name, (0.9, 0.3), (16, 48))
  assert (np.abs(got - order) < 0.25).all(), got
  assert (error < (2e-2 if order == 1 else 2e-3)).all(), error


@pytest.mark.parametrize(
  "name, order, limit",
  [
    ("euler", 1, 5e-3),
    ("heun", 2, 1e-4),
    ("dpmpp_2m", 1.65, 1e-3),
    ("unipc2", 2, 4e-4),
    ("unipc3", 1.8, 4e-4),
  ],
)
def test_order_from_noise_to_data(name, order, limit):
  got, error = slopes(name, (1.0, 0.0), (80, 320))
  assert (got > order - 0.15).all(), (got, error)
  assert (error < limit).all(), (got, error)


EVEN = sampler.uniform_grid(7)


def point_x0(x, time):
  """Data that is a single point."""
  return jnp.full_like(x, 0.3)


def odd_x0(x, time):
  """At time 0 a network may say anything: nobody should listen."""
  return jnp.where(time > 0, exact.gaussian_x0(x, time), 9.0)


@pytest.mark.parametrize("name", solvers.SOLVERS)
class TestContract:
  """What every solver owes."""

  def test_exact_for_a_single_data_point(self, name):
    got = solve(name, point_x0, NOISE, np.linspace(1.0, 0.0, 8), fresh_like(NOISE))
    np.testing.assert_allclose(got, np.full(23, 0.3), atol=2e-6)

  @pytest.mark.parametrize("steps, dtype", [(1, jnp.float32), (2, jnp.bfloat16), (7, jnp.float32)])
  def test_keeps_dtype_and_stays_finite(self, name, steps, dtype):
    noise = jnp.asarray(NOISE, dtype)
    grid = np.linspace(1.0, 0.0, steps + 1)
    got = solve(name, exact.mixture_x0, noise, grid, fresh_like(NOISE))
    assert got.dtype == dtype and np.isfinite(np.asarray(got, np.float32)).all()
    assert np.abs(np.asarray(got, np.float32)).max() < 4

  def test_one_program_and_one_trace_of_the_network(self, name):
    traces = []

    def x0_of(x, time):
      traces.append(1)
      return exact.gaussian_x0(x, time)

    for shift in (1.0, 3.0):
      solve(name, x0_of, NOISE + shift, times.shift(shift, EVEN), fresh_like(NOISE))
    assert program(by_name(name), x0_of)._cache_size() == 1
    assert len(traces) == 1

  def test_grids_per_token_equal_runs_apart(self, name):
    grid = np.stack([np.asarray(times.shift(a, EVEN)) for a in (1.0, 2.5, 4.0)], axis=1)
    noise = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    fresh = fresh_like(noise)
    together = solve(name, exact.mixture_x0, noise, grid[:, None, :, None], fresh)
    for token in range(3):
      alone = solve(name, exact.mixture_x0, noise[:, token], grid[:, token], fresh[:, :, token])
      np.testing.assert_allclose(together[:, token], alone, atol=1e-5)

  def test_clean_tokens_stay(self, name):
    """A token at time 0 throughout, and one that arrives early, beside an ordinary one."""
    even = np.asarray(EVEN)
    grid = np.stack([even, np.zeros_like(even), np.maximum(even - 0.5, 0.0)], axis=1)
    noise = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    got = solve(name, odd_x0, noise, grid[:, None, :, None], fresh_like(noise))
    np.testing.assert_array_equal(np.asarray(got)[:, 1], noise[:, 1])
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "dpmpp_2m", "unipc2"])
def test_a_token_that_arrives_early_is_done(name):
  early = np.maximum(np.asarray(EVEN) - 0.5, 0.0)
  grid = np.stack([np.asarray(EVEN), early], axis=1)[:, None, :, None]
  noise = np.random.default_rng(1).standard_normal((2, 2, 4)).astype(np.float32)
  got = solve(name, odd_x0, noise, grid)
  alone = solve(name, odd_x0, noise[:, 1], early[: np.flatnonzero(early == 0)[0] + 1])
  np.testing.assert_allclose(got[:, 1], alone, atol=1e-5)


@pytest.mark.parametrize("name, steps", [("ddpm", 400), ("flow_sde", 400)])
def test_stochastic_solvers_reach_the_distribution(name, steps):
  noise = np.asarray(jax.random.normal(jax.random.key(0), (20000,)))
  got = solve(
    name,
    exact.gaussian_x0,
    noise,
    np.linspace(1.0, 0.0, steps + 1),
    jax.random.normal(jax.random.key(1), (steps, 20000)),
  )
  # 20,000 samples give 0.7 % (standard error 0.002) of the deviation; the rest is the step size.
  assert float(jnp.mean(got)) == pytest.approx(exact.MEAN, abs=0.01)
  assert float(jnp.std(got)) == pytest.approx(exact.DEVIATION, rel=0.02)
  path = solve("euler", exact.gaussian_x0, noise, np.linspace(1.0, 0.0, 101))
  assert abs(np.corrcoef(np.asarray(got), np.asarray(path))[0, 1]) < 0.5  # the noise did enter


@pytest.mark.parametrize("name", ["ddpm", "flow_sde", solvers.flow_sde(3.0)])
@pytest.mark.parametrize("grid, shift", [("quadratic", 1.0), ("uniform", 3.0)])
def test_the_noise_that_is_left_is_that_of_the_time(name, grid, shift):
  """Of a single data point, before the last step: the noise over the time is 1."""
  times_J = np.asarray(times.shift(shift, sampler.GRIDS[grid](20)))[:-1]
  noise = np.asarray(jax.random.normal(jax.random.key(0), (20000,)))
  fresh = jax.random.normal(jax.random.key(1), (19, 20000))
  got = solve(name, point_x0, noise, times_J, fresh)
  mean = 0.3 * (1.0 - times_J[-1])
  left = (np.asarray(got) - mean) / times_J[-1]
  # 20,000 samples give a deviation to 0.5 % (standard error) and a mean to 0.007
  assert np.std(left) == pytest.approx(1.0, rel=0.02) and abs(np.mean(left)) < 0.03


def test_zero_noise_makes_both_stochastic_solvers_euler():
  grid = np.linspace(1.0, 0.0, 9)
  expected = solve("euler", exact.mixture_x0, NOISE, grid)
  for solver in (solvers.ddim(0.0), solvers.flow_sde(0.0)):
    assert not solver.stochastic
    np.testing.assert_allclose(solve(solver, exact.mixture_x0, NOISE, grid), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["open", "loop"])
def test_covariance_of_linear_gaussian_videos(kind):
  """Frames of an AR(1) video: the map from noise is affine, so its covariance is exact."""
  frames = 12
  gap = np.abs(np.arange(frames)[:, None] - np.arange(frames)[None])
  if kind == "loop":
    gap = np.minimum(gap, frames - gap)
  covariance = 0.8**gap
  mean = np.linspace(-0.5, 1.0, frames)

  def denoise(x, time):
    a = 1.0 - time
    noisy = a**2 * covariance + time**2 * np.eye(frames)
    return mean + a * jnp.linalg.solve(noisy, (x - a * mean[None]).T).T @ covariance

  grid = np.linspace(1.0, 0.0, 41)
  basis = np.concatenate([np.zeros((1, frames)), np.eye(frames)]).astype(np.float32)
  with jax.numpy_rank_promotion("allow"):
    got = np.asarray(solve("heun", denoise, basis, grid))
  matrix = (got[1:] - got[:1]).T
  error = np.linalg.norm(matrix @ matrix.T - covariance) / np.linalg.norm(covariance)
  assert error < 0.01, error
  np.testing.assert_allclose(got[0], mean, atol=5e-3)


PARITY = {
  "euler": "euler",
  "heun": "heun",
  "dpmpp_2m": "dpmpp_2m",
  "unipc2": "unipc2",
  "unipc3": "unipc3",
  "ddim": "ddim",
  "ddim_noisy": solvers.ddim(0.7),
}


def check_parity(paths, name):
  got = solve(
    PARITY[name],
    exact.mixture_x0,
    paths["noise"],
    paths[f"{name}/times"],
    jnp.asarray(paths["fresh"]),
  )
  # Heun's last interior time is 0.001, where its velocity magnifies float32 rounding.
  np.testing.assert_allclose(got, paths[f"{name}/end"], atol=1e-5)


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_golden_paths(name):
  with np.load(GOLDEN / "schedulers.npz") as paths:
    check_parity(paths, name)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_parity_with_diffusers_live(monkeypatch):
  pytest.importorskip("diffusers")
  pytest.importorskip("torch")
  monkeypatch.setattr(sys, "path", [str(GOLDEN), *sys.path])
  import make_schedulers

  paths = make_schedulers.paths()
  for name in PARITY:
    check_parity(paths, name)


@pytest.mark.parametrize(
  "make, said",
  [
    (lambda: solvers.by_name("euller"), "euller"),
    (lambda: solvers.ddim(2.0), "2.0"),
    (lambda: solvers.unipc(5), "5"),
    (lambda: solvers.flow_sde(-1.0), "-1"),
    (lambda: solve("ddpm", exact.gaussian_x0, NOISE, np.ones(3)), "draw"),
    (lambda: solve("euler", exact.gaussian_x0, NOISE, np.ones(1)), "2 times"),
  ],
)
def test_errors_name_the_value(make, said):
  with pytest.raises(ValueError, match=said):
    make()
