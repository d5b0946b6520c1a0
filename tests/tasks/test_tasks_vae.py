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
from sora_jax.weights import store


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


def test_clips_of_a_batch_are_read_for_their_names_only_when_asked():
  task = task_of()  # without clips: whoever reads one fails
  names = task.names({"clip": np.arange(2), "video": np.zeros((2, 5, 8, 8, 3), np.uint8)})
  with pytest.raises(IndexError):
    names()


def test_a_leg_can_start_from_weights_that_lack_a_part(tmp_path):
  params = jax.device_get(jax.jit(task_of().init)(jax.random.key(0)))
  rest = {name: part for name, part in params.items() if name != "decoder"}
  path = tmp_path / "vae.safetensors"
  store.save(path, {"params": rest, "stats": {"mean_Z": np.zeros(4, "f")}}, {}, {})
  with pytest.raises(ValueError, match=f"^{path} does not fit .*params/decoder.*: missing"):
    task_of(init_from=path).init(jax.random.key(0))
  grown = task_of(init_from=path, grow=True)
  got = jax.device_get(jax.jit(grown.init)(jax.random.key(1)))  # as the loop starts a run
  assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, params)
  jax.tree.map(np.testing.assert_array_equal, rest, {name: got[name] for name in rest})
  store.save(path, {"dit": {"kernel": np.zeros((2, 3), "f")}}, {}, {})
  for start in (grown, task_of(init_from=path)):  # weights of something else
    with pytest.raises(ValueError, match=f"^{path} does not fit the network"):
      jax.eval_shape(start.init, jax.random.key(0))
