"""Guidance: pushing a prediction away from what the condition does not ask for.

(1) guided = free + scale (cond - free)                               classifier-free; scale 1 = off
(2) guided = free + image (with_image - free) + text (with_both - with_image)      two conditions
(3) out = guided (phi std(cond) / std(guided) + 1 - phi)              rescale, std over one
segment's own tokens
(4) guided = cond + (scale - 1) (orthogonal + eta parallel)           adaptive projected guidance
(APG)
(5) guided = s free + scale (cond - s free),  s = <cond, free> / |free|^2         CFG-Zero*

(1) is affine with weights that sum to 1, so in x0, eps or velocity it is the same at a given noisy
point; (3) and (4) are meant for x0, (5) for the velocity. Norms, products and deviations are per
segment, so a clip is guided alike in any company; padding stays 0.
Sources: (1) Ho & Salimans 2022 (arXiv 2207.12598). (2) Brooks et al. 2022 (arXiv 2211.09800), Eq.
3. (3) Lin et al. 2023 (arXiv 2305.08891), Eq. 14-16. (4) Sadat et al. 2024 (arXiv 2410.02416),
without its momentum. (5) Fan et al. 2025 (arXiv 2503.18886). The interval: Kynkaanniemi et al.
2024 (arXiv 2404.07724).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sora_jax.diffusion import segments

TINY = 1e-12


def guide(
  cond: Float[Array, "*shape"],
  free: Float[Array, "*shape"],
  scale: Float[Array, "..."] | float | int,
) -> Float[Array, "*shape"]:
  """Classifier-free guidance, Eq. 1; `scale` broadcasts, and 1 gives exactly `cond`."""
  return (cond + (scale - 1.0) * (cond - free)).astype(cond.dtype)


def guide_two(
  both: Float[Array, "*shape"],
  image: Float[Array, "*shape"],
  free: Float[Array, "*shape"],
  text_scale: Float[Array, "..."] | float | int,
  image_scale: Float[Array, "..."] | float | int,
) -> Float[Array, "*shape"]:
  """Guidance with two strengths, Eq. 2; both 1 gives exactly `both`.

  Args: both: prediction under text and image prompt.  image: under the image prompt alone.  free:
    under neither.
  """
  push = (text_scale - 1.0) * (both - image) + (image_scale - 1.0) * (image - free)
  return (both + push).astype(both.dtype)


ALL_TIMES = (0.0, 1.0)
"""The interval in which guidance always acts."""


def checked_interval(interval: Sequence[float | int]) -> tuple[float, float]:
  """An interval of times for `in_interval`.  Raises: ValueError if it is none."""
  if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
    raise ValueError(f"guidance_interval is {tuple(interval)}; it must be LOW,HIGH within 0 and 1")
  return float(interval[0]), float(interval[1])


def in_interval(time_J: Float[Array, "J"], interval: Sequence[float | int]) -> Bool[Array, "J"]:
  """Times above interval[0] and up to interval[1], where guidance is to act (Kynkäänniemi et al.
  2024); (0, 1) is everywhere, as nothing is predicted at time 0."""
  return (time_J > interval[0]) & (time_J <= interval[1])


def rescale(
  guided_RLP: Float[Array, "R L P"],
  cond_RLP: Float[Array, "R L P"],
  segment_RL: Int[Array, "R L"],
  num_segments: int,
  phi: float | int = 0.7,
) -> Float[Array, "R L P"]:
  """Gives each segment back a part `phi` of its deviation before guidance, Eq. 3; padding is 0."""
  before_RS = _deviation(cond_RLP, segment_RL, num_segments)
  after_RS = _deviation(guided_RLP, segment_RL, num_segments)
  factor_RS = phi * before_RS / jnp.maximum(after_RS, TINY) + (1.0 - phi)
  factor_RL = segments.spread(factor_RS, segment_RL)
  return _scaled(guided_RLP, factor_RL)


def guide_projected(
  cond_RLP: Float[Array, "R L P"],
  free_RLP: Float[Array, "R L P"],
  scale: Float[Array, "..."] | float | int,
  segment_RL: Int[Array, "R L"],
  num_segments: int,
  *,
  eta: float | int = 0.0,
  max_norm: float | int = 0.0,
) -> Float[Array, "R L P"]:
  """Adaptive projected guidance on x0, Eq. 4.

  Args: eta: share kept of the part parallel to `cond`, which saturates; 1 (and no limit) is plain
    guidance. max_norm: the difference of a segment is shortened to this length; 0 = no limit.
  """
  difference_RLP = _masked(cond_RLP - free_RLP, segment_RL)
  if max_norm > 0:
    length_RS = jnp.sqrt(_dot(difference_RLP, difference_RLP, segment_RL, num_segments))
    shorter_RS = jnp.minimum(1.0, max_norm / jnp.maximum(length_RS, TINY))
    difference_RLP = _scaled(difference_RLP, segments.spread(shorter_RS, segment_RL))
  along_RS = _projection(difference_RLP, cond_RLP, segment_RL, num_segments)
  parallel_RLP = _scaled(cond_RLP, segments.spread(along_RS, segment_RL))
  push_RLP = difference_RLP - (1.0 - eta) * parallel_RLP
  return _masked(cond_RLP + (scale - 1.0) * push_RLP, segment_RL).astype(cond_RLP.dtype)


def guide_zero_star(
  cond_RLP: Float[Array, "R L P"],
  free_RLP: Float[Array, "R L P"],
  scale: Float[Array, "..."] | float | int,
  segment_RL: Int[Array, "R L"],
  num_segments: int,
) -> Float[Array, "R L P"]:
  """CFG-Zero* on velocities, Eq. 5: the free prediction is first scaled to fit `cond` best.

  The paper also sets the velocity of the first step or two to zero: hand the solver x0 = x there.
  """
  fit_RS = _projection(cond_RLP, free_RLP, segment_RL, num_segments)
  fitted_RLP = _scaled(free_RLP, segments.spread(fit_RS, segment_RL))
  return _masked(fitted_RLP + scale * (cond_RLP - fitted_RLP), segment_RL).astype(cond_RLP.dtype)


def _masked(value_RLP, segment_RL):
  """Zero at padding."""
  return jnp.where((segment_RL > 0)[..., None], value_RLP, jnp.zeros((), value_RLP.dtype))


def _scaled(value_RLP, factor_RL):
  """Times a factor per token, in the value's dtype; a factor 0 gives 0 whatever the value."""
  product_RLP = factor_RL[..., None] * value_RLP
  return jnp.where(factor_RL[..., None] == 0, 0.0, product_RLP).astype(value_RLP.dtype)


def _dot(a_RLP, b_RLP, segment_RL, num_segments):
  """Inner product of two predictions over each segment, float32 [R, S]."""
  product_RL = jnp.sum(a_RLP.astype(jnp.float32) * b_RLP.astype(jnp.float32), axis=-1)
  return segments.total(product_RL, segment_RL, num_segments)


def _projection(a_RLP, b_RLP, segment_RL, num_segments):
  """<a, b> / <b, b> of each segment [R, S]."""
  square_RS = _dot(b_RLP, b_RLP, segment_RL, num_segments)
  return _dot(a_RLP, b_RLP, segment_RL, num_segments) / jnp.maximum(square_RS, TINY)


def _deviation(value_RLP, segment_RL, num_segments):
  """Standard deviation over all tokens and channels of each segment, float32 [R, S]."""
  value_RLP = value_RLP.astype(jnp.float32)
  number_RS = jnp.maximum(segments.count(segment_RL, num_segments), 1.0)
  mean_RS = segments.total(jnp.mean(value_RLP, axis=-1), segment_RL, num_segments) / number_RS
  centred_RLP = value_RLP - segments.spread(mean_RS, segment_RL)[..., None]
  square_RL = jnp.mean(centred_RLP**2, axis=-1)
  return jnp.sqrt(segments.total(square_RL, segment_RL, num_segments) / number_RS)
