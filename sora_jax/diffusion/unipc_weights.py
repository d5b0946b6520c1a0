"""Coefficients of the multistep solvers 2M and UniPC on a grid of times.

Work in half logSNR, l = ln((1 - t) / t). Over one step of length h the solution is
x' = r x + (1 - r) D, where D is the mean of the data prediction m over the step with an exponential
weight. m is replaced by the polynomial through known predictions at nodes p_k = (l_k - l) / h: the
past (p < 0), now (p = 0) and, for a corrector, the end (p = 1). The weight of the monomial p^k is

(1) b_k = k! phi_{k+1}(-h) / phi_1(-h),   phi_k(z) = sum_n z^n / (n + k)!

which tends to 1/(k + 1) for small steps and to 1 for long ones. (UniPC, Zhao et al. 2023, arXiv
2302.04867, section 3, B2(h); like the authors, the two lowest rules use 1/2 instead of b_1.) The
weights below are Lagrange's, written in q = 1 / p, which is 0 for a node at infinite logSNR (time
1): that node then drops out by itself.

All functions give a tuple of arrays with a leading axis of steps, the rest shaped as the times are.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SERIES = 12
"""Terms of the series for phi, which holds to float32 for arguments up to 1."""
TINY = 1e-30


def predictor(times_J: Float[Array, "J ..."], order: int) -> tuple[Float[Array, "N ..."], ...]:
  """Weights of (x, m_now, m_1 back, m_2 back, ...), `order` predictions, for every step."""
  nodes = _nodes(times_J, order)
  used = _orders(times_J, order)
  b_1, b_2, _ = _moments(nodes["h"])
  q_1, q_2 = nodes["q"]
  second = (0.5 * q_1, jnp.zeros_like(q_1))
  third = _predict_3(b_1, b_2, q_1, q_2)
  back = _choose(used, (second, third))
  back = [jnp.where(nodes["plain"], 0.0, w) for w in back][: order - 1]
  r = nodes["r"]
  return (r, (1.0 - r) * (1.0 - sum(back)), *((1.0 - r) * w for w in back))


def corrector(times_J: Float[Array, "J ..."], order: int) -> tuple[Float[Array, "N ..."], ...]:
  """Weights of (x, m_end, m_start, m_1 back, ...) that redo the step that led to each grid point
  but the last.

  Row j corrects the step from j - 1 to j, x and m_start being those at j - 1. Row 0 keeps x, as
  nothing led there.
  """
  nodes = _nodes(times_J, order)
  used = _orders(times_J, order)
  b_1, b_2, b_3 = _moments(nodes["h"])
  q_1, q_2 = nodes["q"]
  zero = jnp.zeros_like(q_1)
  first = (zero + 0.5, zero, zero)
  second = ((b_2 * q_1 - b_1) / (q_1 - 1.0), (b_1 - b_2) * q_1**2 / (q_1 - 1.0), zero)
  third = _correct_3(b_1, b_2, b_3, q_1, q_2)
  weights = _choose(used, (second, third), first)
  weights = [jnp.where(nodes["plain"], 0.0, w) for w in weights][:order]
  r = nodes["r"]
  rows = (r, *((1.0 - r) * w for w in weights))
  start = (1.0 - r) * (1.0 - sum(weights))
  rows = (rows[0], rows[1], start, *rows[2:])
  keep = (1.0,) + (0.0,) * (len(rows) - 1)
  return tuple(jnp.concatenate([jnp.full_like(w[:1], k), w[:-1]]) for w, k in zip(rows, keep))


def _nodes(times_J, order):
  """Of each step: ratio r of times, length h, q of two past nodes, where order 1 must do."""
  now, then = times_J[:-1], times_J[1:]
  half_log_snr = jnp.log(jnp.maximum(1.0 - times_J, TINY)) - jnp.log(jnp.maximum(times_J, TINY))
  l_now = half_log_snr[:-1]
  h = half_log_snr[1:] - l_now
  q = []
  for back in (1, 2):
    past = jnp.concatenate([times_J[:1]] * back + [times_J[:-1]])[: now.shape[0]]
    l_past = jnp.concatenate([half_log_snr[:1]] * back + [half_log_snr[:-1]])[: now.shape[0]]
    gap = l_past - l_now
    usable = (past < 1.0) & (gap < 0)
    q.append(jnp.where(usable, h / jnp.where(usable, gap, 1.0), 0.0))
  r = jnp.where(now > 0, then / jnp.where(now > 0, now, 1.0), 1.0)
  return {"r": r, "h": h, "q": tuple(q), "plain": (then <= 0) | (h <= 0)}


def _orders(times_J, order):
  """Order of each step, 1 at both ends of the grid, shaped to broadcast against the times."""
  steps = times_J.shape[0] - 1
  index = np.arange(steps)
  used = np.minimum(order, np.minimum(index + 1, steps - index))
  return used.reshape((steps,) + (1,) * (times_J.ndim - 1))


def _choose(used, higher, first=None):
  """Weights by the order of each step: `first` (default zeros), higher[0] for 2, [1] for 3."""
  second, third = higher
  if first is None:
    first = tuple(jnp.zeros_like(w) for w in second)
  return [
    jnp.where(used == 1, w_1, jnp.where(used == 2, w_2, w_3))
    for w_1, w_2, w_3 in zip(first, second, third, strict=True)
  ]


def _moments(h):
  """b_1, b_2, b_3 of Eq. 1 for steps h > 0, to float32 precision for short and for long ones."""
  z = -h
  near = jnp.abs(z) < 1.0
  z_near, z_far = jnp.where(near, z, 0.0), jnp.where(near, -1.0, z)
  far = jnp.expm1(z_far) / z_far
  phi = [jnp.where(near, _phi_series(z_near, 1), far)]
  for k in (1, 2, 3):
    far = (far - 1.0 / math.factorial(k)) / z_far
    phi.append(jnp.where(near, _phi_series(z_near, k + 1), far))
  return tuple(math.factorial(k) * phi[k] / phi[0] for k in (1, 2, 3))


def _phi_series(z, k):
  """phi_k(z) = sum_n z^n / (n + k)!, by Horner's rule."""
  value = jnp.zeros_like(z)
  for n in reversed(range(SERIES)):
    value = value * z + 1.0 / math.factorial(n + k)
  return value


def _predict_3(b_1, b_2, q_1, q_2):
  """Weights of two past nodes."""
  apart = _nonzero(q_2 - q_1)
  return (b_2 * q_2 - b_1) * q_1**2 / apart, -(b_2 * q_1 - b_1) * q_2**2 / apart


def _correct_3(b_1, b_2, b_3, q_1, q_2):
  """Weights of the end and of two past nodes."""
  apart = _nonzero(q_2 - q_1)
  end = (q_1 * q_2 * b_3 - (q_1 + q_2) * b_2 + b_1) / ((q_1 - 1.0) * (q_2 - 1.0))
  w_1 = (q_2 * b_3 - (q_2 + 1.0) * b_2 + b_1) * q_1**3 / (apart * (1.0 - q_1))
  w_2 = -(q_1 * b_3 - (q_1 + 1.0) * b_2 + b_1) * q_2**3 / (apart * (1.0 - q_2))
  return end, w_1, w_2


def _nonzero(value):
  """The value, 1 where it is 0 (nodes that coincide carry no weight)."""
  return jnp.where(value == 0, 1.0, value)
