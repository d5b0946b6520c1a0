"""Reconstruction losses: zero at home, right in closed form, finite gradients, one convention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae, vae_losses
from sora_jax.nn.vae_losses import LossConfig


def pair(shape=(2, 5, 16, 24, 3), noise=0.1):
  a, b = jax.random.split(jax.random.key(0))
  video = jax.random.uniform(a, shape, minval=-1)
  return video, video + noise * jax.random.normal(b, shape)


def posterior(B=2):
  mean = jax.random.normal(jax.random.key(1), (B, 2, 4, 6, 4))
  return mean, 0.3 * mean - 1.0


@pytest.mark.parametrize("frames", [1, 5])
def test_a_perfect_reconstruction_costs_its_kl_alone(frames):
  video, recon = pair((2, frames, 16, 24, 3))
  mean, logvar = posterior()
  config = LossConfig(l2=1.0)
  loss = jax.jit(lambda x, y: vae_losses.loss(x, y, mean, logvar, config))
  perfect = loss(video, video)
  np.testing.assert_allclose(perfect["loss"], 1e-6 * perfect["kl"], atol=1e-6)
  worse = loss(video, recon)
  for name in ("l1", "l2", "wavelet", "ssim", "gradient"):
    assert abs(perfect[name]) < 1e-5 < worse[name], name
  slope = jax.jit(jax.grad(lambda y: loss(video, y)["loss"]))
  assert jnp.isfinite(slope(video)).all() and jnp.abs(slope(recon)).max() > 0


def test_every_term_is_a_sum_over_a_clip_per_pixel_value():
  video, recon = pair()
  mean, logvar = posterior()
  config = LossConfig(l1=1.0, l2=0.0, wavelet=0.0, ssim=0.0, gradient=0.0, kl=3.0)
  got = vae_losses.loss(video, recon, mean, logvar, config)["loss"]
  values = video[0].size
  per_clip = jnp.abs(recon - video).sum(axis=(1, 2, 3, 4))
  kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(axis=(1, 2, 3, 4))
  np.testing.assert_allclose(got, jnp.mean(per_clip + 3.0 * kl) / values, rtol=1e-5)
  twice = vae_losses.loss(*(jnp.concatenate([x, x]) for x in (video, recon, mean, logvar)), config)[
    "loss"
  ]
  np.testing.assert_allclose(got, twice, rtol=1e-5)


def test_kl_is_zero_at_the_prior_and_right_elsewhere():
  zeros = jnp.zeros((3, 1, 2, 2, 4))
  assert vae_losses.kl(zeros, zeros) == 0
  # KL(N(1, e^2) || N(0, 1)) = (1 + e^2 - 1 - 2) / 2 per latent, 16 of them
  got = vae_losses.kl(zeros + 1, zeros + 2)
  np.testing.assert_allclose(got, 16 * (np.exp(2) - 2) / 2, rtol=1e-6)


def test_haar_keeps_energy_and_a_constant_lives_in_the_low_band():
  x = jax.random.normal(jax.random.key(0), (2, 4, 8, 6, 3))
  low, high = vae_losses.haar(x, 2)
  np.testing.assert_allclose((low**2).sum() + (high**2).sum(), (x**2).sum(), rtol=1e-5)
  low, high = vae_losses.haar(jnp.ones((1, 3, 2, 2, 1)), 1)
  assert low.shape == (1, 2, 2, 2, 1) and jnp.abs(high).max() == 0
  np.testing.assert_allclose(low, 2**0.5, rtol=1e-6)


def test_wavelet_bands_have_their_weights():
  """Patterns of one band: per level, coefficients are sqrt(8) times larger and 8 times fewer."""
  wavelet = jax.jit(vae_losses.wavelet)
  constant = jnp.full((1, 8, 16, 16, 1), 0.5)
  coarsest = 0.5 * 8**1.5 / 8**3
  np.testing.assert_allclose(wavelet(constant), coarsest, rtol=1e-2)
  checker = jnp.asarray(np.indices((8, 16, 16)).sum(0) % 2 * 2.0 - 1.0, jnp.float32)
  finest = 8**0.5 / 8
  checker = checker[None, ..., None]
  np.testing.assert_allclose(wavelet(checker), 2 * finest, rtol=1e-2)
  middle = jnp.repeat(jnp.repeat(jnp.repeat(checker, 2, 1), 2, 2), 2, 3)
  np.testing.assert_allclose(wavelet(middle), 1 * 8 / 64, rtol=1e-2)


def test_flicker_costs_only_in_time():
  still = jnp.ones((1, 4, 4, 4, 3)) * 0.1
  flicker = still * jnp.array([1.0, -1.0, 1.0, -1.0])[None, :, None, None, None]
  assert vae_losses.gradient(still) == 0
  np.testing.assert_allclose(vae_losses.gradient(flicker), 0.2, rtol=1e-5)
  assert vae_losses.gradient(flicker[:, :1]) == 0


@pytest.mark.parametrize("size", [(32, 32), (9, 40), (5, 6)])
def test_ssim_of_a_scaled_clip_follows_its_formula(size):
  """Of y = a x with mean 0 everywhere, contrast is (2 a + c) / (1 + a^2 + c), c = c2 / var."""
  video = jax.random.normal(jax.random.key(0), (1, 1, *size, 1)) * 0.3
  assert abs(vae_losses.ms_ssim(video, video) - 1) < 1e-5
  _, contrast = vae_losses.ssim_maps(video, 0.5 * video)
  variance = vae_losses.blur(video**2) - vae_losses.blur(video) ** 2
  c = 0.06**2 / variance
  np.testing.assert_allclose(contrast, (2 * 0.5 + c) / (1 + 0.25 + c), rtol=2e-3)


def written_out_ms_ssim(video, recon):
  """Wang et al. 2003, Eq. 7, one window at a time, of three scales; float64."""
  taps = np.exp(-0.5 * (np.arange(-3, 4) / 1.5) ** 2)
  window = np.outer(taps, taps) / taps.sum() ** 2
  exponents = np.array([0.0448, 0.2856, 0.3001]) / (0.0448 + 0.2856 + 0.3001)

  def factors(x, y):
    """Means over all windows of luminance times contrast, and of contrast."""
    x, y = (np.lib.stride_tricks.sliding_window_view(p, (7, 7)) for p in (x, y))
    mean_x, mean_y = (x * window).sum((2, 3)), (y * window).sum((2, 3))
    off_x, off_y = x - mean_x[..., None, None], y - mean_y[..., None, None]
    var = ((off_x**2 + off_y**2) * window).sum((2, 3))
    contrast = (2 * (off_x * off_y * window).sum((2, 3)) + 0.06**2) / (var + 0.06**2)
    luminance = (2 * mean_x * mean_y + 0.02**2) / (mean_x**2 + mean_y**2 + 0.02**2)
    return (luminance * contrast).mean(), contrast.mean()

  def of_picture(x, y):
    value = 1.0
    for scale in range(3):
      value *= factors(x, y)[0 if scale == 2 else 1] ** exponents[scale]
      x, y = (p.reshape(len(p) // 2, 2, -1, 2).mean((1, 3)) for p in (x, y))
    return value

  pictures = (np.moveaxis(np.float64(p), -1, 2).reshape(-1, *p.shape[2:4]) for p in (video, recon))
  return np.mean([of_picture(x, y) for x, y in zip(*pictures)])


def test_multi_scale_ssim_is_that_of_its_formula():
  video = jax.random.uniform(jax.random.key(0), (2, 2, 32, 40, 2), minval=-1)
  coarse = jnp.repeat(jnp.repeat(video[:, :, :8, :10], 4, axis=2), 4, axis=3)
  video = 0.3 + 0.5 * coarse + 0.2 * video  # something to see at every scale, and a brightness
  noise = jax.random.normal(jax.random.key(1), video.shape)
  recon = 0.5 * video + 0.25 * noise
  want = written_out_ms_ssim(np.asarray(video), np.asarray(recon))
  assert 0.3 < want < 0.9
  np.testing.assert_allclose(vae_losses.ms_ssim(video, recon), want, rtol=1e-4)
  fine = vae_losses.ms_ssim(video, recon, scales=1)
  assert abs(fine - want) > 0.02, "one scale is not all"


def test_means_of_ssim_are_full_float32_on_accelerators():
  """Variances are differences of them: with bfloat16 products contrasts reach -5889."""
  text = jax.jit(vae_losses.ms_ssim).lower(*pair((1, 1, 32, 32, 1))).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.oracle
def test_one_scale_of_ssim_is_skimages(monkeypatch):
  metrics = pytest.importorskip("skimage.metrics")
  monkeypatch.setattr(vae_losses, "WINDOW", 11)  # theirs is not free
  clips = pair((1, 1, 40, 48, 1))
  similarity, _ = vae_losses.ssim_maps(*clips)
  _, theirs = metrics.structural_similarity(
    *(np.asarray(x[0, 0, :, :, 0]) for x in clips), data_range=2.0, gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, full=True,
  )  # fmt: skip
  np.testing.assert_allclose(similarity[0, 0, :, :, 0], theirs[5:-5, 5:-5], atol=1e-5)


def test_hooks_are_asked_for_and_used():
  video, recon = pair()
  mean, logvar = posterior()
  for name, word in (("consistency", "encode"), ("perceptual", "perceptual")):
    with pytest.raises(ValueError, match=word):
      vae_losses.loss(video, recon, mean, logvar, LossConfig(**{name: 0.1}))
  config = LossConfig(l1=0, wavelet=0, ssim=0, gradient=0, kl=0, consistency=2.0, perceptual=3.0)
  found = vae_losses.loss(
    video, recon, mean, logvar, config,
    encode=lambda x: mean + 0.5, perceptual=lambda x, y: jnp.asarray(0.25),
  )  # fmt: skip
  np.testing.assert_allclose(found["loss"], 2 * 0.5 + 3 * 0.25, rtol=1e-6)
  with pytest.raises(ValueError, match="0 and up"):
    LossConfig(l1=-1.0)


def test_flops_are_those_of_the_convolutions():
  config = vae.VAEConfig(
    width=8, mult=(1,), res_blocks=0, latent=4, time_down=(), space_down=(), stem_patch=4, taps=1
  )
  ends = 48 * 8 * 27 + 8 * 8 * 27 + 4 * 8 * 27 + 8 * 48 * 27  # conv_in and conv_out of both
  blocks = 2 * (2 * 2 + 1) * 8 * 8 * 9  # two convolutions in 2 + 2 blocks between and 1 more
  quant = 8 * 8 + 4 * 4
  cells = (16 // 4) * (8 // 4)
  one_frame = 2.0 * cells * (ends / 3 + blocks + quant)
  assert vae_losses.flops(config, 1, 16, 8) == 3 * one_frame
  native = dataclasses.replace(config, conv="native")
  assert vae_losses.flops(native, 1, 16, 8) == 3 * one_frame, "zeros before a picture are no work"
