"""Inputs and outputs of unit variance for a network that predicts data, channel by channel.

A clip is taken for a level that all its cells share, and what each cell adds to it:

(1) x0 = m + r, m of variance M (one for the clip), r of variance S (one for each cell)
(2) x = a x0 + t eps, a = 1 - t, so that x - a m has variance V = a^2 S + t^2
(3) m given all cells x of a clip: precision 1 / P = 1 / M + sum a^2 / V, mean P sum a x / V
(4) the network reads (x - a mean) / sqrt(V - a^2 P), and mean / sqrt(M)
(5) x0 = mean + sqrt(S + P (1 - 2 a^2 S / V)) F, with F the network's output; the root is the
    deviation of x0 from the mean, which each cell has drawn towards itself

Channels may differ a hundredfold in S, and a background in M as much again. Read as they are, the
largest sets what layer norm divides by, and a network has to learn to undo that. Where no two cells
share a level (M = 0) this is, channel by channel, the preconditioning of Karras et al. 2022 (arXiv
2206.00364, table 1 and appendix B.6) for the process (2), without their skip; the rest is the
posterior of a hierarchical normal model (Gelman et al., Bayesian Data Analysis, section 5.4).

There is no skip on purpose. The best linear guess a S / V (x - a mean) lets through the noise that
a cell of average variance would need; most cells, of a plain background, are far from average, and
to take that noise back F would have to hold a token's every entry. A network that is hardly wider
than a token cannot, and its samples keep grain that a sampler's further steps do not take away.
Without the guess what F cannot hold is left out instead: see experiments/latents, and Li & He 2025
(arXiv 2511.13720).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.ops import packing

LEAST = 0.02
"""Least deviation of a channel: those that hold nothing are not magnified without bound."""


class Level(NamedTuple):
  """What noisy cells say of the level of their clip, for each token, Eq. 3; and the token's time.

  Broadcast over the cells of a token: `[R, L, 1, Z]`, the time `[R, L, 1, 1]`.
  """

  mean: Array
  variance: Array
  time: Array


def estimate_level(
  noisy_RLnZ: Float[Array, "R L n Z"], time_RL: Float[Array, "R L"],
  segment_RL: Int[Array, "R L"], num_segments: int,
  spread_Z: Float[Array, "Z"], level_Z: Float[Array, "Z"],
) -> Level:  # fmt: skip
  """Estimates the level of every segment of packed rows.

  Args:
    noisy_RLnZ: n cells of each token. time_RL, segment_RL: of each token; segment 0 is padding.
    spread_Z, level_Z: square roots of S and M.
  """
  a, V = 1.0 - time_RL[..., None], conditional(time_RL[..., None], spread_Z[None, None])
  n = noisy_RLnZ.shape[2]
  parts_RLX = jnp.concatenate([n * a**2 / V, a / V * noisy_RLnZ.sum(2)], axis=-1)
  sums_RSX = packing.vector_sums(parts_RLX, segment_RL, num_segments)
  sums_RLX = packing.take_segments(sums_RSX, segment_RL)
  precision_RLZ, weighted_RLZ = jnp.split(sums_RLX, 2, axis=-1)
  M = level_Z[None, None] ** 2
  variance_RLZ = M / (1.0 + M * precision_RLZ)
  return Level(
    (variance_RLZ * weighted_RLZ)[:, :, None], variance_RLZ[:, :, None],
    time_RL[..., None, None],
  )  # fmt: skip


def enter(
  cells_RLnC: Float[Array, "R L n C"], level: Level, spread_Z: Float[Array, "Z"]
) -> Float[Array, "R L n C"]:
  """Cells as a network reads them, Eq. 4: noisy Z, anything between, and, if C > Z, clean Z."""
  Z, C = len(spread_Z), cells_RLnC.shape[-1]
  spread, a = spread_Z[None, None, None], 1.0 - level.time
  V = conditional(level.time, spread)
  variance = jnp.maximum(V - a**2 * level.variance, 1e-4 * V)
  noisy = (cells_RLnC[..., :Z] - a * level.mean) * jax.lax.rsqrt(variance)
  if C < 2 * Z:
    return jnp.concatenate([noisy, cells_RLnC[..., Z:]], axis=-1)
  clean = cells_RLnC[..., C - Z :] / jnp.maximum(spread, LEAST)
  return jnp.concatenate([noisy, cells_RLnC[..., Z : C - Z], clean], axis=-1)


def leave(
  out_RLnZ: Float[Array, "R L n Z"], level: Level, spread_Z: Float[Array, "Z"]
) -> Float[Array, "R L n Z"]:
  """Predicted data, Eq. 5, from the network's output."""
  spread, a = spread_Z[None, None, None], 1.0 - level.time
  S = jnp.maximum(spread, LEAST) ** 2
  variance = S + level.variance * (1.0 - 2.0 * a**2 * S / conditional(level.time, spread))
  return level.mean + jnp.sqrt(jnp.maximum(variance, 1e-4 * S)) * out_RLnZ


def conditional(time: Float[Array, "..."], spread: Float[Array, "..."]) -> Float[Array, "..."]:
  """V of Eq. 2."""
  return ((1.0 - time) * jnp.maximum(spread, LEAST)) ** 2 + time**2
