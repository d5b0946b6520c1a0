"""Adding noise, the three things a network may predict, and the way between them.

(1) x = (1 - time) x0 + time eps
(2) v = eps - x0
(3) x0 = x - time v,   eps = x + (1 - time) v
(4) v = (x - x0) / time            from an x-prediction
(5) v = (eps - x) / (1 - time)     from an eps-prediction

Every conversion goes through the hub (x0, eps), in which v = eps - x0 always holds. Only (4) and
(5) divide; their denominator is kept at `floor` = 0.05 or more, as in JiT (Li & He 2025, arXiv
2511.13720), so that a network's error is not magnified without bound next to an end of time.
Inside the floor a conversion there and back is therefore not the identity. For a sampler, which
asks for x0 alone, that matters to an eps-prediction only: above time 0.95, where samples start
from noise, its x0 is wrong even if the network is perfect, and they are biased (of N(3, 1) their
mean is 2.67 to 2.92). An x- or a v-prediction yields its x0 without the floor.

Because the same affine map takes prediction and target from one space to another, an error in
space `loss` is `error_factor(prediction, loss, time)` times the error in the space of the
prediction: the loss in another space is a weight on the plain one (v-MSE = x-MSE / time^2 =
eps-MSE / (1 - time)^2 away from the floor). `time` must broadcast against x ([R, L, 1] in packed
rows). Results have the dtype of x.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sora_jax.diffusion import schedule

Kind = str
KINDS: tuple[Kind, ...] = ("x", "v", "eps")
"""What a network may predict: data, velocity, noise."""
FLOOR = 0.05
"""Smallest denominator of Eq. 4 and 5."""


class Hub(NamedTuple):
  """Data and noise as a prediction sees them; the velocity is eps - x0."""

  x0: Float[Array, "..."]
  eps: Float[Array, "..."]


def add_noise(
  x0: Float[Array, "..."], eps: Float[Array, "..."], time: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Mixes clean latents with noise, Eq. 1.

  Args: x0: normalised latents, unit variance.  eps: standard normal, like x0.  time: in [0, 1].
  Returns: noisy latents, in x0's shape and dtype.
  """
  return (schedule.alpha(time) * x0 + schedule.sigma(time) * eps).astype(x0.dtype)


def target(kind: Kind, x0: Float[Array, "..."], eps: Float[Array, "..."]) -> Float[Array, "..."]:
  """What a network of that kind should predict, Eq. 2. Raises ValueError for an unknown kind."""
  return from_hub(kind, Hub(x0, eps))


def from_hub(kind: Kind, hub: Hub) -> Float[Array, "..."]:
  """The prediction of that kind which a pair of data and noise stands for."""
  if kind == "x":
    return hub.x0
  if kind == "eps":
    return hub.eps
  if kind == "v":
    return hub.eps - hub.x0
  raise _unknown(kind)


def to_hub(
  kind: Kind,
  prediction: Float[Array, "..."],
  x: Float[Array, "..."],
  time: Float[Array, "..."],
  floor: float = FLOOR,
) -> Hub:
  """Data and noise that a prediction at the noisy point x implies, Eq. 3-5.

  Args: kind: what `prediction` is.  x: noisy latents.  floor: least denominator of Eq. 4 and 5.
  Raises: ValueError for an unknown kind.
  """
  if kind == "x":
    eps = prediction + (x - prediction) / jnp.maximum(time, floor)
    return Hub(prediction.astype(x.dtype), eps.astype(x.dtype))
  if kind == "eps":
    x0 = prediction - (prediction - x) / jnp.maximum(1.0 - time, floor)
    return Hub(x0.astype(x.dtype), prediction.astype(x.dtype))
  if kind == "v":
    x0 = x - time * prediction
    return Hub(x0.astype(x.dtype), (x + (1.0 - time) * prediction).astype(x.dtype))
  raise _unknown(kind)


def convert(
  source: Kind,
  wanted: Kind,
  prediction: Float[Array, "..."],
  x: Float[Array, "..."],
  time: Float[Array, "..."],
) -> Float[Array, "..."]:
  """Turns a prediction of one kind into another, through the hub."""
  return from_hub(wanted, to_hub(source, prediction, x, time))


def to_x0(
  kind: Kind, prediction: Float[Array, "..."], x: Float[Array, "..."], time: Float[Array, "..."]
) -> Float[Array, "..."]:
  """The clean latents that a prediction implies: what `denoise` hands to a solver."""
  return to_hub(kind, prediction, x, time).x0


def error_factor(
  prediction: Kind, loss: Kind, time: Float[Array, "..."], floor: float = FLOOR
) -> Float[Array, "..."]:
  """d(quantity of kind `loss`) / d(prediction) at a fixed noisy point; its square is the loss
  weight.

  Returns: an array like `time`, finite on all of [0, 1].  Raises: ValueError for an unknown kind.
  """
  zero = jnp.zeros_like(time)
  hub = to_hub(prediction, zero + 1.0, zero, time, floor)
  return from_hub(loss, hub)


def _unknown(kind) -> ValueError:
  return ValueError(f"a prediction is one of {KINDS}, not {kind!r}: set it to one of them")
