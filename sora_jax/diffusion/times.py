"""Times to train at: stratified, logit-normal, shifted by the size of each segment.

(1) shift(a, time) = a time / (1 + (a - 1) time), which lowers logSNR by 2 ln a; shift(a, shift(b,
.)) = shift(ab, .)
(2) a_segment = clip((tokens per latent frame / reference)^space * (latent frames)^frames, 1, 7)
(3) u_i = (rank_i + U) / N over the N valid slots of the whole batch, in a random order
(4) time = low + (high - low) sigmoid(mean + std ndtri(u)) for most slots, time = low + (high -
low) u for a `uniform` share of them

Sources: (1) and the square root in (2): Esser et al. 2024 (arXiv 2403.03206), section 5.3.2; the
factor for length: Open-Sora 2.0 (arXiv 2503.09642), with exponent 1/2. (3) CogVideoX (arXiv
2408.06072), explicit uniform sampling, there per data-parallel rank. (4) logit-normal: arXiv
2403.03206, Eq. 19; the uniform share gives the ends gradient. JiT (arXiv 2511.13720) counts time
from noise to data: its mean -0.8 is +0.8 here. Tables have one entry per time slot of each row
([R, Q]); slots without tokens are masked by `valid_RQ`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from sora_jax.diffusion import segments

EDGE = 1e-6
"""Quantiles are kept this far from 0 and 1, where the normal quantile is infinite."""
NEAR = 0.8
"""Least time, before the shift, that is near pure noise: the first fifth of a sampler's steps."""
WAITING = 0.2, 0.4
"""Times, before the shift, at which what was made first may wait for the rest; see `staged`."""


@dataclasses.dataclass(frozen=True)
class ShiftConfig:
  """Eq. 2. Training and sampling must use the same one."""

  reference: float | int = 64.0  # tokens per latent frame that need no shift
  space: float | int = 0.5  # exponent of the tokens per latent frame
  frames: float | int = 0.25  # exponent of the latent frames; 0 = length does not matter
  low: float | int = 1.0
  high: float | int = 7.0

  def __post_init__(self):
    if self.reference <= 0 or not 0 < self.low <= self.high:
      raise ValueError(
        f"a shift needs reference > 0 and 0 < low <= high; got reference={self.reference}, "
        f"low={self.low}, high={self.high}"
      )


@dataclasses.dataclass(frozen=True)
class TimeConfig:
  """Eq. 4: distribution of training times before the shift."""

  mean: float | int = 0.0
  std: float | int = 1.0
  uniform: float | int = 0.1  # share of slots drawn uniformly, in [0, 1]
  low: float | int = 0.0  # the part of the way that is trained lies above it
  high: float | int = 1.0  # and below this

  def __post_init__(self):
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(f"times need 0 <= low < high <= 1; got low={self.low}, high={self.high}")
    if not 0 <= self.uniform <= 1 or self.std <= 0:
      raise ValueError(
        f"times need 0 <= uniform <= 1 and std > 0; got uniform={self.uniform}, std={self.std}"
      )


def shift(a: Float[Array, "..."] | float | int, time: Float[Array, "..."]) -> Float[Array, "..."]:
  """Moves times towards noise (a > 1) or data (a < 1), Eq. 1; keeps both ends and the order."""
  return a * time / (1.0 + (a - 1.0) * time)


def segment_shift(
  grid_RS3: Int[Array, "R S 3"], config: ShiftConfig, patch_frames: int = 1
) -> Float[Array, "R S"]:
  """The shift a of each segment, Eq. 2; 1 for unused segments (grid of zeros).

  Args: grid_RS3: (t, y, x) tokens of each segment.  patch_frames: latent frames of one token.
  """
  grid_RS3 = grid_RS3.astype(jnp.float32)
  space_RS = grid_RS3[..., 1] * grid_RS3[..., 2]
  used_RS = space_RS * grid_RS3[..., 0] > 0
  frames_RS = jnp.where(used_RS, grid_RS3[..., 0] * patch_frames, 1.0)
  space_RS = jnp.where(used_RS, space_RS / config.reference, 1.0)
  a_RS = jnp.clip(space_RS**config.space * frames_RS**config.frames, config.low, config.high)
  return jnp.where(used_RS, a_RS, 1.0)


def slot_shift(
  shift_RS: Float[Array, "R S"], slot_segment_RQ: Int[Array, "R Q"]
) -> Float[Array, "R Q"]:
  """The shift of each time slot's segment; 1 for unused slots (segment 0)."""
  return segments.spread(shift_RS, slot_segment_RQ, padding=1.0)


def stratify(key: Key[Array, ""], valid_RQ: Bool[Array, "R Q"]) -> Float[Array, "R Q"]:
  """Quantiles that cover [0, 1) evenly over all valid slots of the batch, Eq. 3.

  One offset U is shared, the order is random: each slot alone is uniform, and each of the N equal
  parts of [0, 1) holds exactly one. Slots that are not valid get 0.
  """
  order_key, offset_key = jax.random.split(key)
  valid = valid_RQ.reshape(-1)
  draw = jnp.where(valid, jax.random.uniform(order_key, valid.shape), 2.0)
  rank = jnp.argsort(jnp.argsort(draw)).astype(jnp.float32)
  number = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
  u = (rank + jax.random.uniform(offset_key)) / number
  return jnp.where(valid, u, 0.0).reshape(valid_RQ.shape)


def quantile_times(u: Float[Array, "..."], config: TimeConfig) -> Float[Array, "..."]:
  """Times at quantiles u of the mixture in Eq. 4: u below `uniform` falls into the uniform part.

  Both parts are even in u, so what was stratified stays so inside each.
  """
  part = config.uniform
  flat = u / part if part > 0 else u
  rest = (u - part) / (1.0 - part) if part < 1 else u
  normal = jax.scipy.special.ndtri(jnp.clip(rest, EDGE, 1.0 - EDGE))
  time = jnp.where(u < part, flat, jax.nn.sigmoid(config.mean + config.std * normal))
  return config.low + (config.high - config.low) * time


def training_times(
  key: Key[Array, ""],
  valid_RQ: Bool[Array, "R Q"],
  shift_RQ: Float[Array, "R Q"],
  config: TimeConfig,
) -> Float[Array, "R Q"]:
  """Times of one training step in [0, 1], from the key and the layout alone; 0 if unused."""
  time_RQ = shift(shift_RQ, quantile_times(stratify(key, valid_RQ), config))
  return jnp.where(valid_RQ, time_RQ, 0.0)


def near_noise(
  key: Key[Array, ""],
  time_RQ: Float[Array, "R Q"],
  shift_RQ: Float[Array, "R Q"],
  chosen_RQ: Bool[Array, "R Q"],
  low: float | int = 0.0,
) -> Float[Array, "R Q"]:
  """Times in which those of chosen slots are drawn anew, evenly from [NEAR, 1] before the shift, or
  from [low, 1] where only times above `low` are trained and that is higher.

  There a sampler decides where things are, and only there has a network to work that out from what
  it is told: at lower noise it sees it in the noisy latents.
  """
  early_RQ = shift(shift_RQ, _near(jax.random.uniform(key, time_RQ.shape), low))
  return jnp.where(chosen_RQ, early_RQ, time_RQ)


def _near(u: Float[Array, "..."], low: float | int) -> Float[Array, "..."]:
  """Times near pure noise, before the shift, at quantiles u from the noise on."""
  return 1.0 - (1.0 - max(NEAR, low)) * u


def staged(
  key: Key[Array, ""],
  time_RQ: Float[Array, "R Q"],
  shift_RQ: Float[Array, "R Q"],
  away_RQ: Int[Array, "R Q"],
  segment_RQ: Int[Array, "R Q"],
  chosen_RS: Bool[Array, "R S"],
  low: float | int = 0.0,
) -> Float[Array, "R Q"]:
  """Times in which slots of chosen segments are made one after the other, from what is known on.

  Slots up to some distance are at one time from the range WAITING, those beyond it at one near pure
  noise: what `diffusion.sampler.staged_grid` passes through. The distance is drawn evenly, at least
  1 and less than the largest of the segment; segments that have no such distance stay as they are.
  Frames with noise levels of their own: Chen et al. 2024 (arXiv 2407.01392).

  Args: away_RQ: distance from what is known, see `ops.packing.slots_away`.  segment_RQ: of each
    slot, 0 = unused.  low: as in `near_noise`.
  """
  hot_RQS = segments.one_hot(segment_RQ, chosen_RS.shape[1])
  farthest_RS = (hot_RQS * away_RQ[..., None]).max(1)
  draw_3RS = jax.random.uniform(key, (3, *chosen_RS.shape))
  front_RS = 1.0 + jnp.floor(draw_3RS[0] * (farthest_RS - 1.0))
  least = max(WAITING[0], low)
  wait_RS = least + min(WAITING[1] - WAITING[0], 1.0 - least) * draw_3RS[1]
  near_RS = _near(draw_3RS[2], low)
  chosen_RS = chosen_RS & (farthest_RS > 1) & (farthest_RS < away_RQ.shape[1])
  of_slots = lambda table_RS: segments.spread(table_RS.astype(jnp.float32), segment_RQ)  # noqa: E731
  ahead_RQ = away_RQ <= of_slots(front_RS)
  plain_RQ = jnp.where(ahead_RQ, of_slots(wait_RS), of_slots(near_RS))
  return jnp.where(of_slots(chosen_RS) > 0, shift(shift_RQ, plain_RQ), time_RQ)


def token_times(time_RQ: Float[Array, "R Q"], slot_RL: Int[Array, "R L"]) -> Float[Array, "R L"]:
  """Time of each token, by its slot in the row's table (0-based)."""
  return jnp.take_along_axis(time_RQ, slot_RL, axis=1)
