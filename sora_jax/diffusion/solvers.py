"""Solvers: how to go from one time of a grid to the next, given E[x0 | x] at some of them.

With r = t' / t (t the time now, t' the next one) and D the data predicted, all are built from

(1) x' = r x + (1 - r) D

Euler: D = x0(x, t), order 1. The same step is DDIM with eta = 0 and DPM-Solver++ of order 1.
Heun: trapezoid rule on the velocity (x - x0) / t, order 2, two evaluations a step, the last Euler.
DDIM: Song et al. 2020 (arXiv 2010.02502), Eq. 12 and 16, in flow coordinates.
2M: DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2: D extrapolated in half logSNR.
UniPC: Zhao et al. 2023 (arXiv 2302.04867), B2(h), order 2 or 3: a predictor like 2M's, and a
  corrector that spends no evaluation; both are (1) with D a weighted sum of predictions.
Flow-SDE: dx = (v + churn eps) dt + sqrt(2 churn t) dw backwards in time; Ma et al. 2024 (arXiv
  2401.08740), section 3, with w = 2 churn t. Any churn has the same marginals. D is held over a
  step and what is linear in x integrated exactly, so that noise falls with t on any grid.

Between 1 and 0 the step in logSNR does not shrink next to the ends of an even grid, so there 2M and
UniPC end at order 2 whatever their nominal order, and only from about 40 steps on.

A `Solver` is three pure functions. `plan(times_J)` gives a table with one row per evaluation,
`init(noise)` the state, and `step(state, x0, row, draw)` the next state; `state.x` is where the
next evaluation happens. All coefficients are worked out in `plan`, outside the scan. Times do not
increase along J; a token whose time stays as it is (a clean prompt at 0) is left alone, and 1 and
0 are legal: the infinite logSNR there only lowers the order of one step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sora_jax.diffusion import schedule, unipc_weights

Draw = Callable[[Any], Any]
"""Fresh standard normal noise shaped like x, from the number of the evaluation."""


class Solver(NamedTuple):
  """One way to integrate from noise to data; see the module's text."""

  name: str
  plan: Callable[[Array], dict[str, Array]]
  init: Callable[[Array], NamedTuple]
  step: Callable[..., NamedTuple]
  stochastic: bool = False


class PointState(NamedTuple):
  """State of a solver without memory."""

  x: Array


class HeunState(NamedTuple):
  """`base` and `slope` are the point and velocity at the start of the step."""

  x: Array
  base: Array
  slope: Array


class MultistepState(NamedTuple):
  """`base` is the last corrected point, `past` the predictions before, newest first."""

  x: Array
  base: Array
  past: tuple[Array, ...]


def ratio(top: Float[Array, "..."], bottom: Float[Array, "..."]) -> Float[Array, "..."]:
  """t' / t, and 1 where t is 0: a clean token stays."""
  return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), 1.0)


def euler() -> Solver:
  """Euler's method, order 1, one evaluation a step; exact for a single data point."""

  def plan(times_J):
    return {"at": _every(times_J), "r": ratio(times_J[1:], times_J[:-1])}

  def step(state, x0, row, draw):
    return PointState(_mix(state.x, (row["r"], state.x), (1.0 - row["r"], x0)))

  return Solver("euler", plan, PointState, step)


def heun() -> Solver:
  """Heun's method (trapezoid), order 2, 2 N - 1 evaluations for N steps: the last is Euler's."""

  def plan(times_J):
    steps = times_J.shape[0] - 1
    at = np.concatenate([[0], np.repeat(np.arange(1, steps), 2)])  # 0 1 1 2 2 ... N-1 N-1
    corrects = np.arange(2 * steps - 1) % 2 == 1
    start = np.arange(2 * steps - 1) // 2
    span = times_J[start + 1] - times_J[start]
    now = times_J[at]
    inverse = jnp.where(now > 0, 1.0 / jnp.where(now > 0, now, 1.0), 0.0)
    # A corrector evaluates at the end of its step, where the next predictor then starts anew.
    return {
      "at": at.astype(np.int32),
      "corrects": jnp.asarray(corrects),
      "span": span,
      "inverse": inverse,
    }

  def step(state, x0, row, draw):
    slope = _mix(state.x, (row["inverse"], state.x), (-row["inverse"], x0))
    ahead = _mix(state.x, (1.0, state.x), (row["span"], slope))
    half = 0.5 * row["span"]
    corrected = _mix(state.x, (1.0, state.base), (half, state.slope), (half, slope))
    corrected = jnp.where(row["inverse"] > 0, corrected, state.x)  # no slope at time 0: Euler
    fix = row["corrects"]
    return HeunState(jnp.where(fix, corrected, ahead), jnp.where(fix, corrected, state.x), slope)

  return Solver("heun", plan, lambda x: HeunState(x, x, jnp.zeros_like(x)), step)


def ddim(eta: float | int = 0.0) -> Solver:
  """DDIM; eta in [0, 1] is the share of fresh noise (0 = none and Euler's path, 1 = ancestral
  DDPM).

  x' = (1 - t') x0 + t' (sqrt(1 - k^2) eps + k z),  k = eta / s sqrt(1 - (a / a')^2) with the VP
  pair (a, s) of t.
  """
  if not 0.0 <= eta <= 1.0:
    raise ValueError(f"eta of DDIM is between 0 (no noise) and 1 (ancestral), not {eta}")

  def plan(times_J):
    now, then = times_J[:-1], times_J[1:]
    a, s = schedule.vp_of_time(now)
    next_a, _ = schedule.vp_of_time(then)
    kept = ratio(a**2, next_a**2)
    share = eta * jnp.sqrt(jnp.clip(1.0 - kept, 0.0, 1.0)) / jnp.where(s > 0, s, 1.0)
    share = jnp.clip(share, 0.0, 1.0)
    old = jnp.sqrt(1.0 - share**2) * ratio(then, now)
    return {
      "at": _every(times_J),
      "x": old,
      "x0": (1.0 - then) - old * (1.0 - now),
      "z": then * share,
    }

  return Solver("ddim", plan, PointState, _affine_step(eta > 0), eta > 0)


def flow_sde(churn: float | int = 1.0) -> Solver:
  """The reverse SDE, exact for a single data point; weak order 1; no noise in the step to time 0.

  x' = r^(1 + churn) x + ((1 - t') - r^(1 + churn) (1 - t)) D + t' sqrt(1 - r^(2 churn)) z; with a
  churn of 0 this is Euler's step.
  """
  if churn < 0:
    raise ValueError(f"churn of the flow SDE is 0 or more, not {churn}")

  def plan(times_J):
    now, then = times_J[:-1], times_J[1:]
    r = ratio(then, now)
    old = r ** (1.0 + churn)
    return {
      "at": _every(times_J),
      "x": old,
      "x0": (1.0 - then) - old * (1.0 - now),
      "z": then * jnp.sqrt(jnp.clip(1.0 - r ** (2.0 * churn), 0.0, 1.0)),
    }

  return Solver("flow_sde", plan, PointState, _affine_step(churn > 0), churn > 0)


def dpmpp_2m() -> Solver:
  """DPM-Solver++(2M): order 2, one evaluation a step; the first and last steps have order 1."""
  return _multistep("dpmpp_2m", order=2, corrects=False)


def unipc(order: int = 2) -> Solver:
  """UniPC with B2(h), order 2 or 3, one evaluation a step; the order falls to 1 at both ends."""
  if order not in (2, 3):
    raise ValueError(f"UniPC is here with order 2 or 3, not {order}")
  return _multistep(f"unipc{order}", order, corrects=True)


def by_name(name: str) -> Solver:
  """A solver with its usual settings. Raises ValueError for an unknown name."""
  if name not in SOLVERS:
    raise ValueError(f"no solver {name!r}; there are {', '.join(SOLVERS)}")
  return SOLVERS[name]()


def _multistep(name: str, order: int, corrects: bool) -> Solver:
  """Predictor (2M, UniP) and corrector (UniC) as weighted sums; weights from `unipc_weights`."""

  def plan(times_J):
    table = {"at": _every(times_J), "predict": unipc_weights.predictor(times_J, order)}
    if corrects:
      table["correct"] = unipc_weights.corrector(times_J, order)
    return table

  def init(noise):
    return MultistepState(noise, noise, (jnp.zeros_like(noise),) * order)

  def step(state, x0, row, draw):
    base = state.x
    if corrects:
      weights = row["correct"]
      parts = zip(weights, (state.base, x0, *state.past), strict=True)
      base = _mix(state.x, *parts)
    known = (x0, *state.past[:-1])
    x = _mix(state.x, *zip(row["predict"], (base, *known), strict=True))
    return MultistepState(x, base, known)

  return Solver(name, plan, init, step)


def _affine_step(noisy: bool):
  """A step that is a weighted sum of the point, the prediction and (if noisy) fresh noise."""

  def step(state, x0, row, draw):
    parts = [(row["x"], state.x), (row["x0"], x0)]
    if noisy:
      parts.append((row["z"], draw(row["at"])))
    return PointState(_mix(state.x, *parts))

  return step


def _every(times_J):
  """Evaluations at every grid point but the last."""
  return np.arange(times_J.shape[0] - 1, dtype=np.int32)


def _mix(like, *parts):
  """Sum of weight * array in float32 or better, in the dtype of `like`."""
  return sum(weight * array for weight, array in parts).astype(like.dtype)


SOLVERS: dict[str, Callable[[], Solver]] = {
  "euler": euler,
  "heun": heun,
  "ddim": ddim,
  "ddpm": lambda: ddim(1.0),
  "dpmpp_2m": dpmpp_2m,
  "unipc2": lambda: unipc(2),
  "unipc3": lambda: unipc(3),
  "flow_sde": flow_sde,
}
"""Solvers by the name a config gives."""
