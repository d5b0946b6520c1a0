"""Solvers: orders against closed forms, one contract for all, parity with diffusers."""

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


def solve(solver, x0_of, noise, grid, draw=None):
  """Integrates with an exact denoiser; `grid` [J, ...]."""
  return jax.jit(lambda x, g: sampler.integrate(solver, lambda p, j: x0_of(p, g[j]), x, g, draw))(
    jnp.asarray(noise), jnp.asarray(grid, jnp.float32)
  )


def both_x0(x, time):
  """Row 0 is Gaussian data, row 1 the mixture."""
  return jnp.stack([exact.gaussian_x0(x[0], time), exact.mixture_x0(x[1], time)])


def both_points(time):
  return np.stack([exact.gaussian_point(NOISE, time), exact.mixture_point(NOISE, time)])


def slopes(solver, ends, steps):
  """Slope of log error against log step between two times, and the last error, of both data."""
  errors = []
  for number in steps:
    start = both_points(ends[0]).astype(np.float32)
    got = solve(solver, both_x0, start, np.linspace(*ends, number + 1))
    errors.append(np.sqrt(np.mean((np.asarray(got) - both_points(ends[1])) ** 2, axis=1)))
  return np.log(errors[0] / errors[1]) / np.log(steps[1] / steps[0]), errors[1]


@pytest.mark.parametrize(
  "name, order",
  [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc2", 2), ("unipc3", 2)],
)
def test_order_inside_the_ends(name, order):
  # Heun and UniPC finish with a step of order 1, which leaves order 2 overall.
  got, error = slopes(solvers.by_name(name), (0.9, 0.3), (16, 48))
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
  got, error = slopes(solvers.by_name(name), (1.0, 0.0), (80, 320))
  assert (got > order - 0.15).all(), (got, error)
  assert (error < limit).all(), (got, error)


@pytest.mark.parametrize("name", solvers.SOLVERS)
class TestContract:
  """What every solver owes."""

  def draw(self, shape):
    return lambda e: jax.random.normal(jax.random.fold_in(jax.random.key(7), e), shape)

  def test_exact_for_a_single_data_point(self, name):
    got = solve(
      solvers.by_name(name),
      lambda x, t: jnp.full_like(x, 0.3),
      NOISE,
      np.linspace(1.0, 0.0, 6),
      self.draw(NOISE.shape),
    )
    np.testing.assert_allclose(got, np.full(23, 0.3), atol=2e-6)

  @pytest.mark.parametrize("steps, dtype", [(1, jnp.float32), (2, jnp.bfloat16), (7, jnp.float32)])
  def test_keeps_dtype_and_stays_finite(self, name, steps, dtype):
    got = solve(
      solvers.by_name(name),
      lambda x, t: exact.mixture_x0(x, t).astype(x.dtype),
      jnp.asarray(NOISE, dtype),
      np.linspace(1.0, 0.0, steps + 1),
      self.draw(NOISE.shape),
    )
    assert got.dtype == dtype and np.isfinite(np.asarray(got, np.float32)).all()
    assert np.abs(np.asarray(got, np.float32)).max() < 4

  def test_no_retrace_for_another_grid(self, name):
    @jax.jit
    def run(x, grid):
      return sampler.integrate(
        solvers.by_name(name),
        lambda p, j: exact.gaussian_x0(p, grid[j]),
        x,
        grid,
        self.draw(NOISE.shape),
      )

    run(jnp.asarray(NOISE), sampler.uniform_grid(5))
    run(jnp.asarray(NOISE) + 1, times.shift(3.0, sampler.uniform_grid(5)))
    assert run._cache_size() == 1

  def test_the_network_is_traced_once(self, name):
    calls = []

    def denoise(x, j):
      calls.append(1)
      return 0.5 * x

    grid = sampler.uniform_grid(9)
    jax.make_jaxpr(
      lambda x: sampler.integrate(solvers.by_name(name), denoise, x, grid, self.draw(NOISE.shape))
    )(jnp.asarray(NOISE))
    assert len(calls) == 1

  def test_grids_per_token_equal_runs_apart(self, name):
    base = np.linspace(1.0, 0.0, 7)
    shifts = np.asarray([1.0, 2.5, 4.0])
    grid = (shifts * base[:, None] / (1 + (shifts - 1) * base[:, None]))[:, None, :, None]
    noise = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    fresh = np.random.default_rng(2).standard_normal((20, 2, 3, 4)).astype(np.float32)
    solver = solvers.by_name(name)
    together = solve(solver, exact.mixture_x0, noise, grid, lambda e: jnp.asarray(fresh)[e])
    for token in range(3):
      alone = solve(
        solver,
        exact.mixture_x0,
        noise[:, token],
        grid[:, 0, token, 0],
        lambda e, token=token: jnp.asarray(fresh)[e][:, token],
      )
      np.testing.assert_allclose(together[:, token], alone, atol=1e-5)

  def test_clean_tokens_stay(self, name):
    base = np.linspace(1.0, 0.0, 7)
    grid = np.stack([base, np.zeros(7), np.maximum(base - 0.5, 0.0)], axis=1)[:, None, :, None]
    noise = np.random.default_rng(1).standard_normal((1, 3, 4)).astype(np.float32)
    got = solve(
      solvers.by_name(name),
      lambda x, t: jnp.where(t > 0, exact.gaussian_x0(x, t), x),
      noise,
      grid,
      self.draw(noise.shape),
    )
    np.testing.assert_array_equal(np.asarray(got)[:, 1], noise[:, 1])
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("name, steps", [("ddpm", 400), ("flow_sde", 100)])
def test_stochastic_solvers_reach_the_distribution(name, steps):
  noise = np.asarray(jax.random.normal(jax.random.key(0), (20000,)))
  got = solve(
    solvers.by_name(name),
    exact.gaussian_x0,
    noise,
    np.linspace(1.0, 0.0, steps + 1),
    lambda e: jax.random.normal(jax.random.fold_in(jax.random.key(1), e), (20000,)),
  )
  # 20,000 samples give 0.7 % (standard error 0.002) of the deviation; the rest is the step size.
  assert float(jnp.mean(got)) == pytest.approx(exact.MEAN, abs=0.01)
  assert float(jnp.std(got)) == pytest.approx(exact.DEVIATION, rel=0.02)
  path = solve(solvers.euler(), exact.gaussian_x0, noise, np.linspace(1.0, 0.0, 101))
  assert abs(np.corrcoef(np.asarray(got), np.asarray(path))[0, 1]) < 0.5  # the noise did enter


def test_zero_noise_makes_both_stochastic_solvers_euler():
  grid = np.linspace(1.0, 0.0, 9)
  expected = solve(solvers.euler(), exact.mixture_x0, NOISE, grid)
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
    got = np.asarray(solve(solvers.heun(), denoise, basis, grid))
  matrix = (got[1:] - got[:1]).T
  error = np.linalg.norm(matrix @ matrix.T - covariance) / np.linalg.norm(covariance)
  assert error < 0.01, error
  np.testing.assert_allclose(got[0], mean, atol=5e-3)


PARITY = {
  "euler": solvers.euler,
  "heun": solvers.heun,
  "dpmpp_2m": solvers.dpmpp_2m,
  "unipc2": solvers.unipc,
  "unipc3": lambda: solvers.unipc(3),
  "ddim": solvers.ddim,
  "ddim_noisy": lambda: solvers.ddim(0.7),
}


def check_parity(paths, name):
  fresh = jnp.asarray(paths["fresh"])
  got = solve(
    PARITY[name](), exact.mixture_x0, paths["noise"], paths[f"{name}/times"], lambda e: fresh[e]
  )
  # Heun's last interior time is 0.001, where its velocity magnifies float32 rounding.
  np.testing.assert_allclose(got, paths[f"{name}/end"], atol=1e-5)


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_golden_paths(name):
  with np.load(GOLDEN / "schedulers.npz") as paths:
    check_parity(paths, name)


@pytest.mark.oracle
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
    (lambda: solve(solvers.ddim(1.0), exact.gaussian_x0, NOISE, np.ones(3)), "draw"),
    (lambda: solve(solvers.euler(), exact.gaussian_x0, NOISE, np.ones(1)), "2 times"),
  ],
)
def test_errors_name_the_value(make, said):
  with pytest.raises(ValueError, match=said):
    make()
