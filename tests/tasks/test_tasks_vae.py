"""The autoencoder's task: terms of the loss that come from outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.video_batches import VideoConfig
from sora_jax.nn import vae as vae_lib
from sora_jax.nn.vae_losses import LossConfig
from sora_jax.tasks.clips import Sources
from sora_jax.tasks.vae import NoiseConfig, VaeTask


def task_of(**changes):
  network = vae_lib.VAEConfig(
    width=8, mult=(1,), res_blocks=0, latent=4, time_down=(), space_down=(), stem_patch=4,
    stem_frames=4,
  )  # fmt: skip
  losses = LossConfig(wavelet=0.0, ssim=0.0, gradient=0.0, kl=0.0, perceptual=2.0)
  return VaeTask(
    vae_lib.CausalVAE(network), losses, NoiseConfig(), VideoConfig(), Sources([], []), **changes
  )


def test_a_perceptual_function_enters_the_loss():
  task = task_of(perceptual=lambda video, recon: jnp.square(video.mean() - recon.mean()) + 3.0)
  params = jax.jit(task.init)(jax.random.key(0))
  batch = {"video": np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)}
  total, terms = jax.jit(task.loss)(params, batch, jax.random.key(1), 0.0)
  mean = {name: ratio.numerator / ratio.denominator for name, ratio in terms.items()}
  assert mean["perceptual"] >= 3.0
  np.testing.assert_allclose(
    total.numerator / total.denominator, mean["l1"] + 2 * mean["perceptual"], rtol=1e-5
  )


def test_a_perceptual_weight_without_a_function_is_refused():
  task = task_of()
  params = jax.eval_shape(task.init, jax.random.key(0))
  batch = {"video": jnp.zeros((1, 5, 8, 8, 3), jnp.uint8)}
  with pytest.raises(ValueError, match="perceptual=2.0 needs the function"):
    jax.eval_shape(task.loss, params, batch, jax.random.key(1), 0.0)
  other = dataclasses.replace(task, losses=LossConfig())
  _, terms = jax.eval_shape(other.loss, params, batch, jax.random.key(1), 0.0)
  assert "perceptual" not in terms
