"""Latents in which an error of a given size costs as many pixels, whatever its direction.

The channels of a trained autoencoder differ a hundredfold in what they do to pixels. Scaled to
equal variance, those that hardly show weigh in the diffusion loss as much as those that decide
where an object is. A linear map of the latents, folded into the last layer of the encoder and the
first of the decoder, changes no reconstruction and makes the decoder's mean pullback metric,
E[J^T J] over the cells of real clips (Arvanitidis et al. 2018, arXiv 1710.11379, section 2), a
multiple of the identity; the principal axes of latents in that metric become the channels.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Float

from sora_jax.nn.vae import CausalVAE

FLOOR = 1e-6
"""Least eigenvalue of a metric, of its largest: directions that show in no pixel stay finite."""


def pullback_metric(
  network: CausalVAE,
  variables: Mapping,
  latent_BthwZ: Float[Array, "B t h w Z"],
  key: Array,
  draws: int = 4,
) -> Float[Array, "Z Z"]:
  """Mean over cells of J^T J, J being the derivative of all decoded pixels by one cell.

  Estimated without bias from products of J^T with random normal pixels (Hutchinson 1990).

  Args: variables: of raw latents, see `tasks.vae.raw`.
  """
  video, pull = jax.vjp(
    lambda latent: network.apply(variables, latent, method="decode"), latent_BthwZ
  )

  def one(key):
    (pulled,) = pull(jax.random.normal(key, video.shape))
    cells = pulled.reshape(-1, pulled.shape[-1])
    return cells.T @ cells / len(cells)

  return jax.lax.map(one, jax.random.split(key, draws)).mean(0)


def isometric_map(
  metric_ZZ: Float[np.ndarray, "Z Z"], covariance_ZZ: Float[np.ndarray, "Z Z"]
) -> Float[np.ndarray, "Z Z"]:
  """The matrix A for which A z has metric identity and uncorrelated channels, largest first.

  Raises: ValueError for a metric that is zero or not finite.
  """
  if not (np.isfinite(metric_ZZ).all() and np.trace(metric_ZZ) > 0):
    raise ValueError("the decoder answers to no latent, or with numbers that are not finite")
  values, vectors = np.linalg.eigh(np.asarray(metric_ZZ, np.float64))
  root = (vectors * np.sqrt(np.maximum(values, FLOOR * values[-1]))) @ vectors.T
  _, axes = np.linalg.eigh(root @ np.asarray(covariance_ZZ, np.float64) @ root)
  return axes[:, ::-1].T @ root


def fold(params: Mapping, map_ZZ: Float[np.ndarray, "Z Z"], mean_Z: Float[np.ndarray, "Z"]) -> dict:
  """Parameters of the same autoencoder with latents A (z - mean).

  Log variances stay as they were: they are of use to the loss alone.
  """
  encoder, decoder = dict(params["encoder"]), dict(params["decoder"])
  Z = len(map_ZZ)
  kernel, bias = (np.array(encoder["quant"][name], np.float64) for name in ("kernel", "bias"))
  kernel[..., :Z] = kernel[..., :Z] @ map_ZZ.T
  bias[:Z] = (bias[:Z] - mean_Z) @ map_ZZ.T
  encoder["quant"] = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
  kernel, bias = (np.array(decoder["quant"][name], np.float64) for name in ("kernel", "bias"))
  bias = bias + mean_Z @ kernel[0, 0, 0]
  kernel = np.linalg.solve(map_ZZ.T, kernel)
  decoder["quant"] = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
  return {**params, "encoder": encoder, "decoder": decoder}


def covariance(
  latents: list[Float[Array | np.ndarray, "..."]],
) -> tuple[Float[np.ndarray, "Z"], Float[np.ndarray, "Z Z"]]:
  """Mean and covariance of latents `[..., Z]` over all cells, in float64."""
  flat_NZ = np.concatenate([np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in latents])
  return flat_NZ.mean(0), np.cov(flat_NZ.T, bias=True)
