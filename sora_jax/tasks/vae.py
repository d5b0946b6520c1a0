"""Training of the video autoencoder: cuts of clips in, weights and latent statistics out."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.data import transforms
from sora_jax.data.video_batches import VideoConfig, scan_shapes, video_batches
from sora_jax.evaluation import metrics
from sora_jax.nn import vae as vae_lib
from sora_jax.nn import vae_losses, vae_metric
from sora_jax.nn.vae import CausalVAE
from sora_jax.tasks import inputs
from sora_jax.tasks.clips import Sources
from sora_jax.train.task import Cost, Ratio
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

CAP = 80.0
"""Most that one clip counts for in a mean of PSNR, in dB."""


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
  """Noise on latents before they are decoded, late in training: the decoder learns to forgive.

  std: in standard deviations of the latents.  start: share of training from which it is on.
  """

  std: float = 0.05
  start: float = 0.8

  def __post_init__(self):
    if self.std < 0 or not 0 <= self.start <= 1:
      raise ValueError(
        f"vae.latent_noise={self.std}, vae.noise_from={self.start}; allowed: 0 and up, [0, 1]"
      )


@dataclasses.dataclass(frozen=True, eq=False)
class VaeTask:
  """Reconstruction of cuts with the losses of `nn/vae_losses.py`; see `train.task.Task`.

  sources: clips; None = to be compiled alone.
  evaluate: clips of the validation set that are reconstructed whole, per size.
  isometric: export latents in which errors cost as many pixels in every direction, see
  `nn/vae_metric.py`.  init_from: a `vae.safetensors` whose weights start this leg, or None.
  grow: parameters that it lacks start at random instead of being an error.
  perceptual: (video, recon) in [-1, 1] -> scalar distance; needed where `losses.perceptual` is
  above 0.
  """

  network: CausalVAE
  losses: vae_losses.LossConfig
  noise: NoiseConfig
  video: VideoConfig
  sources: Sources | None
  evaluate: int = 8
  isometric: bool = False
  init_from: Path | None = None
  grow: bool = False
  perceptual: Callable | None = None
  name: str = "vae"

  def init(self, key):
    if self.init_from is None:
      return self.init_new(key)
    found, _, _ = store.load(self.init_from)
    found.pop("stats", None)  # of latents; they are measured anew
    new = lambda key: {"params": self.init_new(key)}  # noqa: E731
    if self.grow:
      found = store.filled(found, new(key))
    store.check(found, jax.eval_shape(new, key), str(self.init_from))
    return jax.tree.map(jnp.asarray, found["params"])

  def init_new(self, key):
    """Fresh parameters."""
    return nn.meta.unbox(vae_lib.init(self.network.config, key)["params"])

  def axes(self):
    return None

  def on(self, mesh):
    del mesh
    return self

  def fixed(self):
    return ()

  def batch_axes(self):
    return {"video": vae_lib.AXES}

  def loss(self, params, batch, key, progress):
    video_BTHWC = batch["video"].astype(jnp.float32) * (1 / 127.5) - 1.0
    sample_key, noise_key, level_key = jax.random.split(key, 3)
    variables = raw(self.network, params)
    mean, logvar = self.network.apply(variables, video_BTHWC, method="encode")
    latent = mean + jnp.exp(0.5 * logvar) * jax.random.normal(sample_key, mean.shape)
    level = self.noise.std * (progress >= self.noise.start) * jax.random.uniform(level_key)
    spread = jax.lax.stop_gradient(jnp.std(mean, axis=(0, 1, 2, 3), keepdims=True))
    latent += level * spread * jax.random.normal(noise_key, mean.shape)
    recon_BTHWC = self.network.apply(variables, latent, method="decode")
    frozen = jax.lax.stop_gradient(variables)
    terms = vae_losses.loss(
      video_BTHWC, recon_BTHWC, mean, logvar, self.losses,
      encode=lambda video: self.network.apply(frozen, video, method="encode")[0],
      perceptual=self.perceptual,
    )  # fmt: skip
    clips = jnp.asarray(video_BTHWC.shape[0], jnp.float32)
    total = terms.pop("loss")
    error = jnp.mean((video_BTHWC - jnp.clip(recon_BTHWC, -1, 1)) ** 2, axis=(1, 2, 3, 4)) / 4
    terms["psnr"] = jnp.mean(-10 * jnp.log10(error + 1e-10))
    return Ratio(total * clips, clips), {k: Ratio(v * clips, clips) for k, v in terms.items()}

  def batches(self):
    return iter(video_batches(self.sources.train, self.video, self._shapes))

  @functools.cached_property
  def _shapes(self):
    return scan_shapes(self.sources.train)

  def evaluators(self):
    return [Reconstruction(self.network, self.sources.validation, self.evaluate)]

  def cost(self, batch):
    B, T, H, W, _ = batch["video"].shape
    return Cost(tokens=B * T * H * W / 1000, flops=B * self._flops(T, H, W), clips=B)

  def _flops(self, T: int, H: int, W: int) -> float:
    if (T, H, W) not in self._known_flops:
      self._known_flops[T, H, W] = vae_losses.flops(self.network.config, T, H, W)
    return self._known_flops[T, H, W]

  @functools.cached_property
  def _known_flops(self):
    return {}

  def names(self, batch):
    clips = batch["clip"].tolist()
    return lambda: [self.sources.train[i].id for i in clips]

  def inputs(self) -> dict[str, str]:
    """Hashes of what is read by path, see `train.task.Task`."""
    return inputs.of_clips(self.sources.train)

  def export(self, params, folder: Path, provenance: dict) -> dict[str, float]:
    if self.isometric:
      params, stats = isometric(self.network, params, self.sources.train)
    else:
      stats = latent_stats(self.network, params, self.sources.train)
    config = {"network": folder_lib.plain(self.network.config)}
    store.save(folder / "vae.safetensors", {"params": params, "stats": stats}, config, provenance)
    return {f"vae/latent_{name}": float(np.mean(value)) for name, value in stats.items()}


def latent_stats(network: CausalVAE, params: Any, source: Any, clips: int = 512) -> dict:
  """Returns `nn.vae.latent_stats` of whole clips spread over a source."""
  parts = (v for _, v in batches_by_shape(source, spread(len(source), clips), network.config))
  return vae_lib.latent_stats(functools.partial(_encode, network, params), parts)


def isometric(network: CausalVAE, params: Any, source: Any, clips: int = 128) -> tuple[dict, dict]:
  """Parameters and statistics of the same autoencoder with isometric latents.

  One scale serves all channels: their variances are what they add to that of pixels.
  """
  key, metric_ZZ, latents = jax.random.key(0), 0.0, []
  for _, video_BTHWC in batches_by_shape(source, spread(len(source), clips), network.config):
    key, now = jax.random.split(key)
    latents.append(_encode(network, params, video_BTHWC))
    metric_ZZ += np.asarray(_metric(network, params, latents[-1], now)) * latents[-1][..., 0].size
  mean_Z, covariance_ZZ = vae_metric.covariance(latents)
  map_ZZ = vae_metric.isometric_map(metric_ZZ, covariance_ZZ)
  map_ZZ /= np.sqrt(np.trace(map_ZZ @ covariance_ZZ @ map_ZZ.T) / len(mean_Z))
  folded = vae_metric.fold(params, map_ZZ, mean_Z)
  found = latent_stats(network, folded, source)
  stats = {"mean_Z": np.zeros_like(found["mean_Z"]), "std_Z": np.ones_like(found["std_Z"])}
  return folded, stats | {n: found[n] * found["std_Z"] for n in ("level_Z", "spread_Z")}


def raw(network: CausalVAE, params: Any) -> dict:
  """Variables of a network whose latents are not normalised."""
  Z = network.config.latent
  return {"params": params, "stats": {"mean_Z": jnp.zeros(Z), "std_Z": jnp.ones(Z)}}


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
  """PSNR of held-out clips at their own size, per level of the world, and over object pixels.

  Each figure is the mean over clips, of at most `CAP` dB each. Object pixels are those in the box
  of a visible object; clips without ground truth count in "psnr" alone.
  """

  network: CausalVAE
  source: Any
  clips: int
  name: str = "vae"

  def __call__(self, params, step, folder):
    del step, folder
    found = collections.defaultdict(list)
    indices = spread(len(self.source), self.clips)
    for clips, video_BTHWC in batches_by_shape(self.source, indices, self.network.config):
      recon_BTHWC = np.asarray(_reconstruct(self.network, params, video_BTHWC))
      for clip, recon_THWC in zip(clips, recon_BTHWC):
        T, H, W = clip.pixel_shape
        recon_THWC = recon_THWC[:T, :H, :W]
        value = min(CAP, metrics.psnr(clip.video_THWC, recon_THWC))
        found["psnr"].append(value)
        if "level" in clip.truth:
          found[f"psnr_level{clip.truth['level']}"].append(value)
          mask_THW = metrics.object_mask(clip.truth)
          if mask_THW.any():
            value = metrics.psnr(clip.video_THWC, recon_THWC, mask_THW)
            found["psnr_objects"].append(min(CAP, value))
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def spread(total: int, wanted: int) -> list[int]:
  """Returns at most `wanted` indices, evenly spread over `total`."""
  return sorted({int(i) for i in np.linspace(0, total - 1, min(wanted, total))})


def batches_by_shape(source: Any, indices: list[int], config: vae_lib.VAEConfig, size: int = 8):
  """Yields (clips, uint8 [B, T, H, W, 3]) of equal shape; B is always `size`, the last repeated.

  The videos are edge-padded to what the network takes; the clips are as they were.
  """
  by_shape = collections.defaultdict(list)
  for i in indices:
    clip = source[i]
    video = transforms.pad_frames(clip.video_THWC, config.temporal)
    video = transforms.pad_size(video, config.spatial)
    by_shape[video.shape].append((clip, video))
  for _, pairs in sorted(by_shape.items()):
    for start in range(0, len(pairs), size):
      part = pairs[start : start + size]
      full = (part + [part[-1]] * size)[:size]
      yield [clip for clip, _ in part], jnp.asarray(np.stack([video for _, video in full]))


@functools.partial(jax.jit, static_argnums=0)
def _metric(network, params, latent_BthwZ, key):
  return vae_metric.pullback_metric(network, raw(network, params), latent_BthwZ, key)


@functools.partial(jax.jit, static_argnums=0)
def _encode(network, params, video_BTHWC):
  video_BTHWC = video_BTHWC.astype(jnp.float32) * (1 / 127.5) - 1.0
  return network.apply(raw(network, params), video_BTHWC, method="encode")[0]


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(network, params, video_BTHWC):
  mean = _encode(network, params, video_BTHWC)
  recon = network.apply(raw(network, params), mean, method="decode")
  return jnp.clip(jnp.round((recon + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
