"""Data with a known posterior mean E[x0 | x], and where its flow takes a noise sample."""

import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

MEAN, DEVIATION = 0.7, 0.3
CENTRES, DEVIATIONS, SHARES = (-0.8, 0.9), (0.25, 0.4), (0.35, 0.65)


def gaussian_x0(x, time):
  """E[x0 | x] of N(MEAN, DEVIATION^2)."""
  a, variance = 1.0 - time, DEVIATION**2
  return MEAN + a * variance / (a * a * variance + time * time) * (x - a * MEAN)


def gaussian_point(z, time):
  """Where the flow that starts at the noise z is at `time`."""
  a = 1.0 - time
  return a * MEAN + np.sqrt(a * a * DEVIATION**2 + time * time) * z


def mixture_x0(x, time):
  """E[x0 | x] of the two-part mixture."""
  a, weights, means = 1.0 - time, [], []
  for centre, deviation, share in zip(CENTRES, DEVIATIONS, SHARES):
    variance = a * a * deviation**2 + time * time
    gap = x - a * centre
    weights.append(share / jnp.sqrt(variance) * jnp.exp(-0.5 * gap * gap / variance))
    means.append(centre + a * deviation**2 / variance * gap)
  return (weights[0] * means[0] + weights[1] * means[1]) / (weights[0] + weights[1])


def mixture_point(z, time):
  """In one dimension the flow keeps quantiles: solves CDF_time(x) = Phi(z) by bisection."""
  a = 1.0 - time
  spread = [np.sqrt(a * a * d * d + time * time) for d in DEVIATIONS]

  def one(quantile):
    def gap(x):
      parts = zip(SHARES, CENTRES, spread)
      return sum(w * stats.norm.cdf(x, a * c, s) for w, c, s in parts) - quantile

    return optimize.brentq(gap, -8.0, 8.0, xtol=1e-12)

  return np.asarray([one(q) for q in stats.norm.cdf(np.asarray(z, np.float64))])
