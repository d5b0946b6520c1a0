"""Isometric latents: the same pixels, and the same price for an error in every direction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae, vae_metric
from sora_jax.nn.vae import CausalVAE, VAEConfig
from sora_jax.tasks import vae as task_lib

CONFIG = VAEConfig(
  width=8, mult=(1,), res_blocks=0, latent=4, time_down=(), space_down=(), stem_patch=4,
  stem_frames=4, taps=1, shortcut=True, linear_encoder=True,
)  # fmt: skip
NETWORK = CausalVAE(CONFIG)


class Clip:
  """A clip of random pixels."""

  def __init__(self, seed):
    self.video_THWC = np.random.default_rng(seed).integers(0, 256, (5, 8, 8, 3), np.uint8)


@functools.cache
def params():
  shapes = jax.eval_shape(lambda key: vae.init(CONFIG, key), jax.random.key(0))["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  return tree.unflatten([jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32) for x in leaves])


def exact_metric(tree, latent_BthwZ):
  """The mean of J^T J over cells, from whole Jacobians."""
  decode = lambda z: NETWORK.apply(task_lib.raw(NETWORK, tree), z, method="decode")  # noqa: E731
  derivative, total = jax.jit(jax.jacobian(decode)), 0.0
  for latent in latent_BthwZ:
    jacobian = derivative(latent[None]).reshape(-1, *latent.shape)
    total += np.einsum("nthwa,nthwb->ab", jacobian, jacobian)
  return total / latent_BthwZ[..., 0].size


@functools.cache
def exported():
  source = [Clip(seed) for seed in range(16)]
  return source, task_lib.isometric(NETWORK, params(), source)


def encode(tree, source):
  video = np.stack([clip.video_THWC for clip in source]).astype(np.float32) / 127.5 - 1
  return encode_video(tree, jnp.asarray(video))


def encode_video(tree, video_BTHWC):
  return NETWORK.apply(task_lib.raw(NETWORK, tree), video_BTHWC, method="encode")[0]


def test_reconstructions_stay_as_they_were():
  source, (folded, _) = exported()
  found = []
  for tree in (params(), folded):
    latent = encode(tree, source)
    found.append(NETWORK.apply(task_lib.raw(NETWORK, tree), latent, method="decode"))
  np.testing.assert_allclose(found[1], found[0], atol=2e-4)
  assert np.abs(encode(params(), source) - encode(folded, source)).max() > 0.1


def test_errors_cost_as_many_pixels_in_every_direction_and_channels_are_uncorrelated():
  source, (folded, stats) = exported()
  latent = encode(folded, source)
  metric = exact_metric(folded, latent[:4])
  scale = np.trace(metric) / 4
  before = exact_metric(params(), encode(params(), source)[:4])
  spread = lambda m: np.abs(m / (np.trace(m) / 4) - np.eye(4)).max()  # noqa: E731
  assert spread(metric) < 0.2 < 0.4 < spread(before), (metric / scale, before)
  _, covariance = vae_metric.covariance([latent])
  np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
  assert np.diff(np.diag(covariance)).max() < 0, "channels come largest first"
  np.testing.assert_allclose(np.diag(covariance).mean(), 1, rtol=1e-3)
  np.testing.assert_array_equal(stats["std_Z"], np.ones(4))
  means = latent.mean((1, 2, 3))
  np.testing.assert_allclose(stats["level_Z"], means.std(0), rtol=1e-3)
  np.testing.assert_allclose(
    stats["spread_Z"], (latent - means[:, None, None, None]).std((0, 1, 2, 3)), rtol=1e-3
  )


def test_a_direction_that_shows_in_no_pixel_stays_finite():
  metric, covariance = np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 1.0])
  found = vae_metric.isometric_map(metric, covariance)
  np.testing.assert_allclose(np.abs(found[:2]), [[0, 1, 0], [2, 0, 0]], atol=1e-9)
  assert 0 < np.abs(found[2]).max() < 1e-2 and np.isfinite(np.linalg.inv(found)).all()
  for bad in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
    with pytest.raises(ValueError, match="not finite"):
      vae_metric.isometric_map(bad, covariance)


def test_linear_latents_of_a_mixture_are_the_mixture_of_latents():
  a, b = (encode(params(), [Clip(seed)]) for seed in (1, 2))
  videos = [Clip(seed).video_THWC.astype(np.float32) / 127.5 - 1 for seed in (1, 2)]
  mixed = encode_video(params(), jnp.asarray(0.25 * videos[0] + 0.75 * videos[1])[None])
  np.testing.assert_allclose(mixed, 0.25 * a + 0.75 * b, atol=1e-5)


def test_a_linear_encoder_sees_its_own_frames_and_one_cell_to_each_side():
  before, side = CONFIG.encoder_reach
  assert (before, side) == (0, 1) and VAEConfig().encoder_reach is None
  video = np.random.default_rng(5).uniform(-1, 1, (1, 9, 28, 12, 3)).astype("f")
  changed = video.copy()
  changed[:, 5:, :4] += 1.0  # the first row of cells, in the last latent frame
  a, b = (np.asarray(encode_video(params(), jnp.asarray(v))) for v in (video, changed))
  np.testing.assert_array_equal(a[:, :2], b[:, :2])
  np.testing.assert_array_equal(a[:, 2, 1 + side :], b[:, 2, 1 + side :])
  assert all(np.abs(a[:, 2, row] - b[:, 2, row]).max() > 0.01 for row in range(1 + side))


def test_a_linear_encoder_needs_its_linear_path():
  with pytest.raises(ValueError, match="linear_encoder needs shortcut"):
    VAEConfig(linear_encoder=True)
