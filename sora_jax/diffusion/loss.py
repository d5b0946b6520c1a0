"""The loss of a packed batch, and the same loss seen by time.

(1) loss = sum_seg w_seg mean_tok(error) / sum_seg w_seg,   w_seg = (tokens in the loss)^gamma

gamma = 0 weighs every clip alike, 1 every token alike. Numerator and denominator are returned
apart: over devices or accumulated batches each is summed, and divided once at the end; a mean of
means would be wrong, since segments and tokens differ in number from row to row. (Patch n' Pack,
Dehghani et al. 2023, arXiv 2307.06304, packs; the weights are this project's.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sora_jax.diffusion import process, segments


class PackedLoss(NamedTuple):
  """Numerator and denominator, to be summed over rows, devices and accumulated batches."""

  numerator: Float[Array, ""]
  denominator: Float[Array, ""]
  segment_RS: Float[Array, "R S"]  # mean error of each segment, 0 where it has no token in the loss
  valid_RS: Bool[Array, "R S"]  # segments with at least one token in the loss

  @property
  def value(self) -> Float[Array, ""]:
    """The loss of these rows alone."""
    return self.numerator / jnp.maximum(self.denominator, 1e-12)


def token_error(
  prediction_RLP: Float[Array, "R L P"],
  target_RLP: Float[Array, "R L P"],
  time_RL: Float[Array, "R L"],
  kind: process.Kind,
  space: process.Kind,
  floor: float = process.FLOOR,
) -> Float[Array, "R L"]:
  """Mean squared error of each token, float32, in the space of the loss.

  Args: kind: what the network predicts; `target_RLP` is `process.target(kind, x0, eps)`.  space:
    where the error is measured; it enters as the weight error_factor^2.  floor: least denominator
    of that factor, see `process`.
  """
  difference_RLP = prediction_RLP.astype(jnp.float32) - target_RLP.astype(jnp.float32)
  return (
    jnp.mean(difference_RLP**2, axis=-1) * process.error_factor(kind, space, time_RL, floor) ** 2
  )


def packed_loss(
  error_RL: Float[Array, "R L"],
  segment_RL: Int[Array, "R L"],
  num_segments: int,
  gamma: float | int = 1.0,
  counted_RL: Bool[Array, "R L"] | None = None,
) -> PackedLoss:
  """Weighs the errors of tokens by segment, Eq. 1.

  Args: error_RL: error of each token; whatever stands at padding is ignored, in the gradient too.
    gamma: exponent of the segment's weight.  counted_RL: tokens in the loss (given, clean tokens
    are not); default all but padding.
  """
  if counted_RL is not None:
    segment_RL = jnp.where(counted_RL, segment_RL, 0)
  tokens_RS = segments.count(segment_RL, num_segments)
  valid_RS = tokens_RS > 0
  safe_RS = jnp.maximum(tokens_RS, 1.0)
  mean_RS = segments.total(error_RL, segment_RL, num_segments) / safe_RS
  weight_RS = jnp.where(valid_RS, safe_RS**gamma, 0.0)
  return PackedLoss(jnp.sum(weight_RS * mean_RS), jnp.sum(weight_RS), mean_RS, valid_RS)
