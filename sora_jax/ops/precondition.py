"""Inputs and outputs of unit variance for a network that predicts data, channel by channel.

(1) x = (1 - t) x0 + t eps, variance D = (1 - t)^2 s^2 + t^2 if a channel of x0 has deviation s
(2) the network reads x / sqrt(D)
(3) x0 = (1 - t) s^2 / D x + s t / sqrt(D) F: the best linear guess, and F, the network's output,
    times the deviation of what that guess leaves

Channels may differ a hundredfold in s. Read as they are, the largest sets what layer norm divides
by, and a network has to learn to undo that. Source: Karras et al. 2022 (arXiv 2206.00364), table 1
and appendix B.6, for this process, and with a deviation for each channel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAST = 0.02
"""Least deviation of a channel: those that hold nothing are not magnified without bound."""


def enter(
  cells_RLnC: Float[Array, "R L n C"], time_RL: Float[Array, "R L"], spread_Z: Float[Array, "Z"]
) -> Float[Array, "R L n C"]:
  """Cells as a network reads them, Eq. 2: noisy Z, anything between, and, if C > Z, clean Z."""
  Z, C = len(spread_Z), cells_RLnC.shape[-1]
  spread = jnp.maximum(spread_Z, LEAST)[None, None, None]
  time = time_RL[..., None, None]
  noisy = cells_RLnC[..., :Z] * jax.lax.rsqrt(variance(time, spread))
  if C < 2 * Z:
    return jnp.concatenate([noisy, cells_RLnC[..., Z:]], axis=-1)
  return jnp.concatenate(
    [noisy, cells_RLnC[..., Z : C - Z], cells_RLnC[..., C - Z :] / spread], axis=-1
  )


def leave(
  out_RLnZ: Float[Array, "R L n Z"], noisy_RLnZ: Float[Array, "R L n Z"],
  time_RL: Float[Array, "R L"], spread_Z: Float[Array, "Z"],
) -> Float[Array, "R L n Z"]:  # fmt: skip
  """Predicted data, Eq. 3, from the network's output and the noisy cells as they were."""
  spread = jnp.maximum(spread_Z, LEAST)[None, None, None]
  time = time_RL[..., None, None]
  D = variance(time, spread)
  return (1.0 - time) * spread**2 / D * noisy_RLnZ + spread * time * jax.lax.rsqrt(D) * out_RLnZ


def variance(time: Float[Array, "..."], spread: Float[Array, "..."]) -> Float[Array, "..."]:
  """D of Eq. 1."""
  return ((1.0 - time) * spread) ** 2 + time**2
