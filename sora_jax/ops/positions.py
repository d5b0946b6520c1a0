"""Positions of tokens: rotary angles in real time and centred space, and fractions of the frame.

Rotary attention sees only differences of positions, so it serves any size and length but cannot say
where the frame ends; the fractional positions of NaViT (Dehghani et al. 2023, arXiv 2307.06304)
say that. Integer grid coordinates travel with the tokens; here they become positions:

  time    t * patch_t * 24 / fps, in units of one latent frame at 24 frames a second: a clip of 8
          frames a second has its latent frames three units apart. Pictures lie at 0.
  y, x    coordinate minus the middle of the segment's grid, in patches, so that a larger frame
          extends to both sides of what was trained.

Segments that reach farther than any in training can be brought back among angles that were trained,
each by its own scale, see `position_scale`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.ops.linear import settle
from sora_jax.ops.packing import take_segments

FPS_UNIT = 24.0
"""Frame rate at which neighbouring latent frames are one unit of time apart."""

METHODS = ("none", "interpolate", "ntk")
"""What to do with positions beyond those of training, see `frequencies`."""


def axis_sizes(head_size: int) -> tuple[int, int, int]:
  """Splits the entries of a head between time, height and width, as Wan 2.1 does.

  Height and width get 2 * (K // 6) entries each, time the rest: 128 -> (44, 42, 42).
  Raises: ValueError if the head size is odd or below 6.
  """
  if head_size % 2 or head_size < 6:
    raise ValueError(f"rotary positions need an even head size of at least 6, got {head_size}")
  side = 2 * (head_size // 6)
  return head_size - 2 * side, side, side


def frequencies(
  size: int, theta: float = 1e4, scale: float = 1.0, method: str = "none"
) -> Float[Array, "F"]:
  """Angles per unit of position: theta^(-2 i / size), i < size / 2.

  Args:
    size: entries of the axis (even). theta: base.
    scale: how many times farther positions reach than in training (1 = as trained).
    method: "none"; "interpolate" squeezes positions by `scale` (Chen et al. 2023, arXiv
      2306.15595); "ntk" stretches the base by scale^(size / (size - 2)), so that the fastest
      frequency stays and the slowest is divided by `scale` (bloc97 2023; Peng et al. 2023, arXiv
      2309.00071, section 3.1).
  Returns: float32 `[size / 2]`.
  Raises: ValueError for an unknown method.
  """
  if method not in METHODS:
    raise ValueError(f"rotary method {method!r}; choose none, interpolate or ntk")
  if method == "ntk" and size > 2:
    theta = theta * scale ** (size / (size - 2))
  squeeze = scale if method == "interpolate" else 1.0
  exponent = jnp.arange(0, size, 2, dtype=jnp.float32) / size
  return theta**-exponent / squeeze


class PositionScale(NamedTuple):
  """How many times farther than in training each segment reaches along t, y and x; 1 = no farther.

  Attributes:
    squeeze_RS3: what positions are divided by, as by the method "interpolate" of `frequencies`.
    stretch_RS3: what the slowest frequency is divided by, as by the method "ntk".
  """

  squeeze_RS3: Array
  stretch_RS3: Array


def position_scale(
  grid_RS3: Int[Array, "R S 3"],
  seconds_RS: Float[Array, "R S"],
  extent: tuple[float, float],
  methods: tuple[str, str],
) -> PositionScale:
  """The scale of each segment that is larger than the extent of training, exactly 1 for the others.

  The scale is the ratio of extents, as in the papers named in `frequencies`; in space it is that of
  the longer side for both axes, so that a frame keeps its proportions.
  Args:
    grid_RS3: token grids. seconds_RS: durations, 0 for pictures.
    extent: (seconds, side in tokens) of the longest clip and of the longest side in training.
    methods: of `METHODS`, one for time, one for space.
  Returns: float32 tables `[R, S, 3]`.
  Raises: ValueError for an unknown method.
  """
  if not set(methods) <= set(METHODS):
    raise ValueError(f"rotary methods {methods!r}; choose two of none, interpolate or ntk")
  side_RS = grid_RS3[..., 1:].max(-1).astype(jnp.float32)
  one_RS = jnp.ones_like(seconds_RS)
  # compared before it is divided: a ratio of equals may be off by a bit
  time_RS, space_RS = (
    jnp.where(size_RS > most, size_RS / most, one_RS)
    for size_RS, most in zip((seconds_RS, side_RS), extent)
  )

  def table(method):
    time = time_RS if methods[0] == method else one_RS
    space = space_RS if methods[1] == method else one_RS
    return jnp.stack([time, space, space], axis=-1)

  return PositionScale(table("interpolate"), table("ntk"))


def token_scale(
  scale: PositionScale, segment_RL: Int[Array, "R L"]
) -> tuple[Float[Array, "R L 3"], Float[Array, "R L 3"]]:
  """Squeeze and stretch `[R, L, 3]` of each token: those of its segment; padding has 1."""
  squeeze_RL3, stretch_RL3 = (jnp.maximum(take_segments(x, segment_RL), 1.0) for x in scale)
  return squeeze_RL3, stretch_RL3


def token_positions(
  coord_RL3: Int[Array, "R L 3"],
  segment_RL: Int[Array, "R L"],
  grid_RS3: Int[Array, "R S 3"],
  fps_RS: Float[Array, "R S"],
  patch_t: int = 1,
) -> Float[Array, "R L 3"]:
  """Real-time and centred positions of tokens, float32; padding lies at 0.

  Args:
    coord_RL3: grid coordinates. segment_RL: segment of each token. grid_RS3: token grids.
    fps_RS: frames of pixels per second, 0 for pictures.
    patch_t: latent frames per token.
  """
  rate_RS = jnp.where(fps_RS > 0, FPS_UNIT / jnp.where(fps_RS > 0, fps_RS, 1.0), 0.0)
  middle_RS2 = (grid_RS3[..., 1:] - 1).astype(jnp.float32) / 2
  rate_RL = take_segments(rate_RS, segment_RL)
  middle_RL2 = take_segments(middle_RS2, segment_RL)
  coord_RL3 = coord_RL3.astype(jnp.float32)
  time_RL1 = coord_RL3[..., :1] * (patch_t * rate_RL)[..., None]
  return jnp.concatenate([time_RL1, coord_RL3[..., 1:] - middle_RL2], axis=-1)


def rotary_angles(
  position_RL3: Float[Array, "R L 3"],
  head_size: int,
  theta: float = 1e4,
  scale: Sequence[float] = (1.0, 1.0, 1.0),
  method: str = "none",
  stretch_RL3: Float[Array, "R L 3"] | None = None,
) -> Float[Array, "R L Kh"]:
  """Angles of the rotary pairs of a head, time first, then height, then width.

  Args:
    position_RL3: from `token_positions`. head_size: K.
    scale, method: see `frequencies`, one scale for each of time, height and width.
    stretch_RL3: of `token_scale`, on top of these; tokens with 1 keep their angles to the bit.
  Returns: float32 `[R, L, K / 2]`.
  """
  parts = []
  for axis, size in enumerate(axis_sizes(head_size)):
    frequency = frequencies(size, theta, scale[axis], method)[None, None, :]
    if stretch_RL3 is not None:
      frequency = frequency * slowing(size, stretch_RL3[..., axis : axis + 1])
    parts.append(position_RL3[..., axis : axis + 1] * frequency)
  return jnp.concatenate(parts, axis=-1)


def slowing(size: int, stretch_RL1: Float[Array, "R L 1"]) -> Float[Array, "R L F"]:
  """What "ntk" multiplies frequencies by: (theta s^(d / (d - 2)))^(-2 i / d) over theta^(-2 i / d),
  which is s^(-2 i / (d - 2)), from 1 for i = 0 down to 1 / s for the last, i = d / 2 - 1.
  """
  exponent_F = jnp.arange(0, size, 2, dtype=jnp.float32) / max(size - 2, 1)
  slowed = stretch_RL1 ** -exponent_F[None, None, :]
  return jnp.where(stretch_RL1 > 1, slowed, 1.0)


def rotate(
  x_RLAK: Float[Array, "R L A K"], cos_RLk: Float[Array, "R L Kh"], sin_RLk: Float[Array, "R L Kh"]
) -> Float[Array, "R L A K"]:
  """Turns pairs (i, i + K/2) of every head by the token's angles (Su et al. 2021, Eq. 34).

  Args:
    x_RLAK: queries or keys. cos_RLk, sin_RLk: of `rotary_angles`, float32.
  Returns: the turned heads in x's dtype; products are formed in float32.
  """
  return turn(settle(x_RLAK), cos_RLk, sin_RLk)


@jax.custom_vjp
def turn(x_RLAK: Array, cos_RLk: Array, sin_RLk: Array) -> Array:
  """`rotate`, with its gradient as the turn back; angles get none."""
  half = x_RLAK.shape[-1] // 2
  cos, sin = cos_RLk[:, :, None, :], sin_RLk[:, :, None, :]
  a, b = x_RLAK[..., :half], x_RLAK[..., half:]
  turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
  return turned.astype(x_RLAK.dtype)


turn.defvjp(
  lambda x, cos, sin: (turn(x, cos, sin), (cos, sin)),
  lambda angles, given: (turn(given, angles[0], -angles[1]), None, None),
)


def fractional_positions(
  coord_RL3: Int[Array, "R L 3"],
  segment_RL: Int[Array, "R L"],
  grid_RS3: Int[Array, "R S 3"],
) -> Float[Array, "R L 3"]:
  """Middle of each token as a fraction of its segment, in (0, 1); padding gives 0."""
  grid_RL3 = take_segments(grid_RS3, segment_RL)
  fraction_RL3 = (coord_RL3 + 0.5) / jnp.maximum(grid_RL3, 1).astype(jnp.float32)
  return jnp.where((segment_RL > 0)[..., None], fraction_RL3, 0.0)


def fourier(
  values: Float[Array, "..."], size: int, max_period: float = 1e4, shift: float = 0.0
) -> Float[Array, "... size"]:
  """Cosines then sines of a value at `size / 2` frequencies from 1 down to 1 / max_period.

  Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, cosines first as in DiT.
  Args:
    values: any shape. size: even number of features.
    shift: the slowest frequency is max_period^-((n - 1) / (n - shift)), n = size / 2; the
      original DiT uses 0, diffusers' port of it 1.
  """
  half = size // 2
  exponent = jnp.arange(half, dtype=jnp.float32) / (half - shift)
  frequency = jnp.exp(-jnp.log(max_period) * exponent)
  angle = values[..., None].astype(jnp.float32) * frequency.reshape(*(1,) * values.ndim, half)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def fraction_features(
  fraction_RL3: Float[Array, "R L 3"], octaves: int
) -> Float[Array, "R L Features"]:
  """Fourier features of fractions at periods 2, 1, 1/2, ...: cosines and sines of each axis.

  Half a turn over the frame tells one border from the other; each octave doubles the detail.
  Returns: `[R, L, 3 * 2 * octaves]`.
  """
  turns_O = jnp.pi * 2.0 ** jnp.arange(octaves, dtype=jnp.float32)
  angle = fraction_RL3[..., None] * turns_O[None, None, None, :]
  features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return features.reshape(*fraction_RL3.shape[:2], -1)


def sincos_positions(coord_RL3: Int[Array, "R L 3"], width: int) -> Float[Array, "R L D"]:
  """Fixed sine-cosine embedding of (x, y) as in the DiT paper's images: time is left out.

  The first half of the width holds x, the second y; each is sines, then cosines.
  Source: MAE (He et al. 2021, arXiv 2111.06377), reused by DiT (arXiv 2212.09748).
  Raises: ValueError if the width is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {width}")
  quarter = width // 4
  frequency = 1e4 ** -(jnp.arange(quarter, dtype=jnp.float32) / quarter)
  parts = []
  for axis in (2, 1):
    angle = coord_RL3[..., axis, None].astype(jnp.float32) * frequency[None, None, :]
    parts += [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(parts, axis=-1)
