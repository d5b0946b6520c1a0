"""The causal video autoencoder: pixels [B, T, H, W, 3] to latents [B, t, h, w, Z] and back.

Pixels are in [-1, 1]. Architecture after Wan 2.1 (arXiv 2503.20314, section 4.1): causal 3-D
residual blocks, channel norm, no norm and no attention over time. So an image is the first latent
of the video that it starts, and later frames never change earlier latents. Optionally pixels are
first cut into cells (`stem_patch`, `stem_frames`), which makes small networks several times
cheaper.

Latents leave this file normalised: (posterior mean - mean_Z) / std_Z, with per-channel statistics
in collection "stats". Only `CausalVAE`'s own methods, for training, deal in raw ones.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from sora_jax.nn.causal_conv import LOWERINGS, Mode
from sora_jax.nn.vae_blocks import ACTIVATIONS, Decoder, Encoder, from_cells, to_cells

AXES = ("row", "frame", "line", "column", "channel")
"""Logical axes of videos and latents, see `sharding.py`. Parameters are small and lie whole on
every device; given inputs that lie so, the compiler splits every layer alike."""
ATTENTIONS = ("none", "frame", "window")
LOGVAR_RANGE = (-30.0, 20.0)
LOGVAR_TOP = 4.0
"""Soft upper bound of log variances: a hard one stops gradients, none lets one bad step blow up."""


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Shape of a video autoencoder.

  Attributes:
    width: channels at the finest level.
    mult: channels of each level over `width`, fine to coarse.
    res_blocks: residual blocks per level; the decoder has one more.
    taps: frames that a residual block's convolutions see, 3 or 1. With 1 only the first and the
      last convolution and the steps in time mix frames: a third of the work.
    latent: Z, latent channels.
    time_down, space_down: whether each step between levels halves time, and space.
    stem_patch: side of the pixel cells that enter as channels: 1, 2 or 4.
    stem_frames: frames per cell, 1, 2 or 4; the first frame stands alone, repeated.
    shortcut: linear paths from cells to latents and back, beside the networks: they carry flat
      colours from the first step on, which the norms before the last convolutions would have to
      learn around. Only for networks of one level, whose cells are the latents'.
    linear_encoder: latents are the linear path alone, so that what a transformer learns of them
      is as simple as it is of pixels. Needs shortcut.
    decoder_width: `width` of the decoder; 0 = the same.
    mid_attention: at the coarsest level, over each "frame", over fixed tiles of it ("window"), or
      "none". Only the last two let tiles equal the whole.
    window: side of those tiles, in latent cells.
    activation: of the residual blocks, "silu" or "relu".
    norm_eps: added to mean squares of channels.
    wan_compat: keep Wan's blind first frame in the decoder, see `causal_conv.TimeUp`.
    conv: lowering of the 3-D convolutions, see `causal_conv.causal_conv`.
    dtype: of activations; parameters, statistics and results are float32.

  Raises: ValueError for values out of these sets, or lists of unequal length.
  """

  width: int = 16
  mult: tuple[int, ...] = (1, 2, 4)
  res_blocks: int = 1
  taps: int = 3
  latent: int = 8
  time_down: tuple[bool, ...] = (True, True)
  space_down: tuple[bool, ...] = (True, True)
  stem_patch: int = 1
  stem_frames: int = 1
  shortcut: bool = False
  linear_encoder: bool = False
  decoder_width: int = 0
  mid_attention: str = "none"
  window: int = 8
  activation: str = "silu"
  norm_eps: float = 1e-6
  wan_compat: bool = False
  conv: str = "auto"
  dtype: str = "float32"

  def __post_init__(self):
    for name in ("mult", "time_down", "space_down"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    steps = len(self.mult) - 1
    if steps < 0 or len(self.time_down) != steps or len(self.space_down) != steps:
      raise ValueError(
        f"mult={self.mult}, time_down={self.time_down}, space_down={self.space_down}: the last two "
        "need one entry for each step between levels"
      )
    for name, allowed in {
      "taps": (1, 3),
      "stem_patch": (1, 2, 4),
      "stem_frames": (1, 2, 4),
      "mid_attention": ATTENTIONS,
      "activation": tuple(ACTIVATIONS),
      "conv": LOWERINGS,
      "dtype": ("float32", "bfloat16"),
    }.items():
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(str, allowed))}")
    if min(self.width, *self.mult, self.latent, self.window) < 1 or self.res_blocks < 0:
      raise ValueError(
        f"width={self.width}, mult={self.mult}, latent={self.latent}, window={self.window}, "
        f"res_blocks={self.res_blocks}; all must be positive (res_blocks: 0 and up)"
      )
    if self.shortcut and steps:
      raise ValueError(f"shortcut needs a network of one level; mult={self.mult} has {steps + 1}")
    if self.linear_encoder and not self.shortcut:
      raise ValueError("linear_encoder needs shortcut, the linear path that it leaves")
    channels = (self.decoder_width or self.width, *(m for m in self.mult))
    if any(self.space_down) and any(channels[0] * m % 2 for m in self.mult[1:]):
      raise ValueError(f"the decoder's channels {channels[0]} x {self.mult[1:]} must be even")

  @property
  def temporal(self) -> int:
    """f_t: frames per latent after the first."""
    return self.stem_frames * 2 ** sum(self.time_down)

  @property
  def spatial(self) -> int:
    """f_s: pixels along the side of a latent cell."""
    return self.stem_patch * 2 ** sum(self.space_down)

  @property
  def encoder_reach(self) -> tuple[int, int] | None:
    """Cells around its own that a latent sees: before it in time, and to each side; None = any.

    What lies farther does not change the latent, by construction.
    """
    return (0, 1) if self.linear_encoder else None

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent grid (t, h, w) of a clip; what does not fit is padded."""
    up = lambda n, by: math.ceil(n / by)  # noqa: E731
    return 1 + up(frames - 1, self.temporal), up(height, self.spatial), up(width, self.spatial)


SIZES: dict[str, VAEConfig] = {
  "nano": VAEConfig(width=8, mult=(1, 2, 2), latent=4, time_down=(False, True)),
  "tiny": VAEConfig(
    width=96, mult=(1,), res_blocks=2, taps=1, latent=48, time_down=(), space_down=(),
    stem_patch=4, stem_frames=4, shortcut=True, linear_encoder=True,
  ),
  "base": VAEConfig(
    width=64, mult=(1, 2, 4, 4), res_blocks=2, latent=16, time_down=(False, True, True),
    space_down=(True, True, True), mid_attention="window",
  ),
  "xl": VAEConfig(
    width=96, mult=(1, 2, 4, 4), res_blocks=2, latent=16, time_down=(False, True, True),
    space_down=(True, True, True), mid_attention="window",
  ),
}  # fmt: skip
"""Named sizes: nano for tests, tiny is the shipped one, xl has Wan 2.1's shape."""


class CausalVAE(nn.Module):
  """Encoder and decoder; variables {"params", "stats": {mean_Z, std_Z}}, and "stream" in chunks.

  Sizes must fit: T = 1 + temporal * k in mode "whole", height and width multiples of `spatial`.
  """

  config: VAEConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    if self.is_initializing() or self.has_variable("stats", "mean_Z"):  # training needs none
      self.mean_Z = self.variable("stats", "mean_Z", jnp.zeros, (c.latent,))
      self.std_Z = self.variable("stats", "std_Z", jnp.ones, (c.latent,))

  def __call__(self, video_BTHWC: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Reconstructs from the posterior mean; what `init` traces."""
    return self.decode(self.encode(video_BTHWC)[0])

  def encode(
    self, video_BTHWC: Float[Array, "B T H W C"], mode: Mode = "whole"
  ) -> tuple[Float[Array, "B t h w Z"], Float[Array, "B t h w Z"]]:
    """Mean and log variance of the posterior, raw, float32.

    Raises: ValueError for sizes that do not fit.
    """
    c = self.config
    _, T, H, W, _ = video_BTHWC.shape
    odd_time = T != 1 if mode == "first" else (T - (mode == "whole")) % c.temporal
    if odd_time or H % c.spatial or W % c.spatial:
      raise ValueError(
        f"cannot encode {T} frames of {W}x{H} in mode {mode!r}: needed are 1 + {c.temporal} k "
        f"frames and sides that are multiples of {c.spatial}; sora_jax.nn.vae.encode pads any clip"
      )
    cells = to_cells(video_BTHWC, c.stem_patch, c.stem_frames, first=mode != "next")
    mean, logvar = jnp.split(self.encoder(cells, mode).astype(jnp.float32), 2, axis=-1)
    if not c.wan_compat:
      logvar = LOGVAR_TOP - jax.nn.softplus(LOGVAR_TOP - logvar)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)

  def decode(
    self, latent_BthwZ: Float[Array, "B t h w Z"], mode: Mode = "whole"
  ) -> Float[Array, "B T H W C"]:
    """Pixels of raw latents, float32, not clipped (clipping would stop gradients)."""
    c = self.config
    cells = self.decoder(latent_BthwZ, mode).astype(jnp.float32)
    return from_cells(cells, c.stem_patch, c.stem_frames, first=mode != "next")

  def normalise(self, mean_BthwZ: Float[Array, "B t h w Z"]) -> Float[Array, "B t h w Z"]:
    """Raw posterior means to latents of about unit variance."""
    mean, std = self.mean_Z.value, self.std_Z.value
    return (mean_BthwZ - mean[None, None, None, None]) / std[None, None, None, None]

  def denormalise(self, latent_BthwZ: Float[Array, "B t h w Z"]) -> Float[Array, "B t h w Z"]:
    """Inverse of `normalise`."""
    mean, std = self.mean_Z.value, self.std_Z.value
    return latent_BthwZ * std[None, None, None, None] + mean[None, None, None, None]

  def encode_latents(self, video_BTHWC, mode: Mode = "whole"):
    """`encode`'s mean, normalised."""
    return self.normalise(self.encode(video_BTHWC, mode)[0])

  def decode_latents(self, latent_BthwZ, mode: Mode = "whole"):
    """`decode` of normalised latents, clipped to [-1, 1]."""
    video_BTHWC = self.decode(self.denormalise(latent_BthwZ.astype(jnp.float32)), mode)
    return jnp.clip(video_BTHWC, -1, 1)


def init(config: VAEConfig, key: Array) -> dict:
  """Fresh variables {"params", "stats"}; a pure function of the key."""
  sides = (config.spatial,) * 2
  clip = jnp.zeros((1, 1 + config.temporal, *sides, 3))
  return jax.jit(CausalVAE(config).init)(key, clip)


def fit(
  video_BTHWC: Float[Array | np.ndarray, "B T H W C"], config: VAEConfig
) -> Float[Array, "B F G V C"]:
  """Repeats the last frame, row and column up to sizes that the network takes."""
  _, T, H, W, _ = video_BTHWC.shape
  after = [0, -(T - 1) % config.temporal, -H % config.spatial, -W % config.spatial, 0]
  if not any(after):
    return jnp.asarray(video_BTHWC)
  return jnp.pad(video_BTHWC, [(0, n) for n in after], mode="edge")


def encode(
  config: VAEConfig, variables: Mapping, video_BTHWC: Float[Array | np.ndarray, "B T H W C"]
) -> Float[Array, "B t h w Z"]:
  """Normalised posterior means of clips of any size and frame count, float32.

  Args: video_BTHWC: in [-1, 1]; edge-padded to what the network takes.
  """
  clip = fit(video_BTHWC.astype(jnp.float32), config)
  return CausalVAE(config).apply(variables, clip, method="encode_latents")


def decode(
  config: VAEConfig,
  variables: Mapping,
  latent_BthwZ: Float[Array | np.ndarray, "B t h w Z"],
  frames: int | None = None,
  size: tuple[int, int] | None = None,
) -> Float[Array, "B T H W C"]:
  """Clips of normalised latents, float32 in [-1, 1], cropped to what was asked.

  Args: frames: of the clips that were encoded; None = all.  size: their (width, height); None =
  all.  Raises: ValueError if the latents do not cover them.
  """
  video_BTHWC = CausalVAE(config).apply(
    variables, jnp.asarray(latent_BthwZ), method="decode_latents"
  )
  return crop(video_BTHWC, frames, size)


def crop(video_BTHWC: Array, frames: int | None, size: tuple[int, int] | None) -> Array:
  """The first frames, rows and columns. Raises: ValueError if there are not as many."""
  _, T, H, W, _ = video_BTHWC.shape
  frames = T if frames is None else frames
  width, height = (W, H) if size is None else size
  if not (0 < frames <= T and 0 < width <= W and 0 < height <= H):
    raise ValueError(
      f"cannot crop {frames} frames of {width}x{height} out of {T} frames of {W}x{H}; "
      "the latents were made for a smaller clip"
    )
  return video_BTHWC[:, :frames, :height, :width]


def latent_stats(
  encode_mean: Callable[[np.ndarray], Array], batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
  """Per-channel mean and deviations of raw posterior means over clips.

  Every latent cell counts once. Sums are kept in float64.

  Args: encode_mean: video in [-1, 1] -> raw means [B, ..., Z].  batches: videos [B, T, H, W, 3].
  Returns: the collection "stats": {"mean_Z", "std_Z"}, and what of normalised latents differs
    between clips and within one, {"level_Z", "spread_Z"}, deviations whose squares add up to 1.
  Raises: ValueError if there is no batch.
  """
  count, total, squares, shared = 0, 0.0, 0.0, 0.0
  for video_BTHWC in batches:
    mean_BNZ = np.asarray(encode_mean(video_BTHWC), np.float64)
    mean_BNZ = mean_BNZ.reshape(len(mean_BNZ), -1, mean_BNZ.shape[-1])
    B, N, _ = mean_BNZ.shape
    count += B * N
    total = total + mean_BNZ.sum((0, 1))
    squares = squares + np.square(mean_BNZ).sum((0, 1))
    shared = shared + N * np.square(mean_BNZ.mean(1)).sum(0)
  if not count:
    raise ValueError("no clip to measure latents on; give at least one batch")
  mean_Z = total / count
  std_Z = np.sqrt(np.maximum(squares / count - mean_Z**2, 1e-12))
  level_Z = np.sqrt(np.maximum(shared / count - mean_Z**2, 0.0)) / std_Z
  spread_Z = np.sqrt(np.maximum(squares - shared, 0.0) / count) / std_Z
  stats = {"mean_Z": mean_Z, "std_Z": std_Z, "level_Z": level_Z, "spread_Z": spread_Z}
  return {name: value.astype(np.float32) for name, value in stats.items()}


def sample_posterior(
  key: Array, mean: Float[Array, "B t h w Z"], logvar: Float[Array, "B t h w Z"]
) -> Float[Array, "B t h w Z"]:
  """mean + exp(logvar / 2) eps (Kingma and Welling 2013, arXiv 1312.6114, section 2.4)."""
  return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
