"""Time, and what it means: the one owner of time direction, alpha, sigma and logSNR.

(1) x_time = alpha(time) x0 + sigma(time) eps,   time 0 = data, time 1 = noise
(2) alpha = 1 - time,  sigma = time              flow matching (rectified flow)
(3) log_snr = 2 ln(alpha / sigma)                falls from +inf to -inf
(4) velocity = d x_time / d time = eps - x0

Variance-preserving (VP) processes have a^2 + s^2 = 1. Every Gaussian process with the same logSNR
is the same process up to a scale, so one network serves both:

(5) x_flow = x_vp / (a + s),   time = s / (a + s)
(6) a = alpha / c,  s = sigma / c,  c = sqrt(alpha^2 + sigma^2),  x_vp = x_flow / c
(7) cosine VP: a = cos(pi u / 2), s = sin(pi u / 2), u in [0, 1]

Sources: (1, 2, 4) Liu et al. 2022 (arXiv 2209.03003) and Lipman et al. 2022 (arXiv 2210.02747),
whose time runs from noise to data; ours runs the other way, as in Esser et al. 2024 (arXiv
2403.03206). (3, 5, 6) Kingma et al. 2021 (arXiv 2107.00630), section 4. (7) Salimans & Ho 2022
(arXiv 2202.00512). All functions are elementwise, keep the shape of their argument and are
differentiable inside (0, 1).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DATA, NOISE = 0.0, 1.0
"""The two ends of time."""


def alpha(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """Weight of the data at `time`, Eq. 2."""
  return 1.0 - time


def sigma(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """Weight of the noise at `time`, Eq. 2."""
  return time


def alpha_rate(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """d alpha / d time."""
  return -jnp.ones_like(time)


def sigma_rate(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """d sigma / d time."""
  return jnp.ones_like(time)


def log_snr(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """Log signal-to-noise ratio, Eq. 3; +inf at 0 and -inf at 1."""
  return 2.0 * (jnp.log1p(-time) - jnp.log(time))


def log_snr_rate(time: Float[Array, "..."]) -> Float[Array, "..."]:
  """d log_snr / d time = -2 / (time (1 - time))."""
  return -2.0 / (time * (1.0 - time))


def time_of_log_snr(value: Float[Array, "..."]) -> Float[Array, "..."]:
  """Inverse of `log_snr`; the infinities give the ends of time."""
  return jax.nn.sigmoid(-0.5 * value)


def vp_of_time(time: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """The (a, s) with a^2 + s^2 = 1 and the same logSNR as `time`, Eq. 6."""
  c = jnp.sqrt(alpha(time) ** 2 + sigma(time) ** 2)
  return alpha(time) / c, sigma(time) / c


def time_of_vp(a: Float[Array, "..."], s: Float[Array, "..."]) -> Float[Array, "..."]:
  """Flow time of a VP pair, Eq. 5; a = 0 (zero terminal SNR) gives 1."""
  return s / (a + s)


def flow_of_vp(
  x_vp: Float[Array, "..."], a: Float[Array, "..."], s: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Noisy data of a VP process in flow coordinates, Eq. 5; a and s broadcast against x_vp."""
  return x_vp / (a + s)


def vp_of_flow(x: Float[Array, "..."], time: Float[Array, "..."]) -> Float[Array, "..."]:
  """Inverse of `flow_of_vp` at flow time `time`, Eq. 6."""
  a, s = vp_of_time(time)
  return x * (a + s)


def vp_cosine(u: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """The cosine VP schedule (a, s) at u in [0, 1], 0 = data, Eq. 7."""
  return jnp.cos(0.5 * jnp.pi * u), jnp.sin(0.5 * jnp.pi * u)


def vp_cosine_rate(u: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """(d a / d u, d s / d u) of `vp_cosine`."""
  a, s = vp_cosine(u)
  return -0.5 * jnp.pi * s, 0.5 * jnp.pi * a
