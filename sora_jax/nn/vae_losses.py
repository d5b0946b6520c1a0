"""What the video autoencoder is trained on, without any downloaded network, and what a clip costs.

One convention for all terms: a sum over a clip, divided by its number of pixel values 3 T H W, then
a mean over clips. So the KL term is sum(KL) / (3 T H W), and its weight means the same as in code
that sums both reconstruction and KL (1e-6 there is 1e-6 here).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sora_jax.nn import vae

BAND_WEIGHTS = (1.0, 1.0, 2.0)
"""Of the wavelet bands, coarse to fine."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's scales, fine to coarse (Wang et al. 2003, section 3.2)."""
WINDOW, SIGMA = 7, 1.5


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms; a term of weight 0 is not computed.

  l1, l2: of pixels.  wavelet: of 3-D Haar bands.  ssim: of 1 - MS-SSIM.  gradient: of differences
  in x, y and time (flicker).  kl: see the module.  consistency: of latents of the reconstruction
  against those of the clip.  perceptual: of the function that `loss` is handed.
  """

  l1: float | int = 1.0
  l2: float | int = 0.0
  wavelet: float | int = 0.5
  ssim: float | int = 0.2
  gradient: float | int = 0.1
  kl: float | int = 1e-6
  consistency: float | int = 0.0
  perceptual: float | int = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if not getattr(self, field.name) >= 0:
        raise ValueError(f"{field.name}={getattr(self, field.name)}; weights are 0 and up")


def loss(
  video: Float[Array, "B T H W C"],
  recon: Float[Array, "B T H W C"],
  mean: Float[Array, "B t h w Z"],
  logvar: Float[Array, "B t h w Z"],
  config: LossConfig,
  encode: Callable[[Array], Array] | None = None,
  perceptual: Callable[[Array, Array], Array] | None = None,
) -> dict[str, Array]:
  """Weighted sum under "loss", and each term unweighted under its own name, as scalars.

  Args:
    video, recon: in [-1, 1]; recon not clipped.
    encode: for `consistency`: video -> raw posterior mean, with parameters under stop_gradient.
    perceptual: for `perceptual`: (video, recon) -> scalar distance.

  Raises: ValueError if a term has a weight but not its function.
  """
  for name, given in (("consistency", encode), ("perceptual", perceptual)):
    if getattr(config, name) and given is None:
      needs = "encode" if name == "consistency" else "perceptual"
      raise ValueError(f"{name}={getattr(config, name)} needs the function `{needs}`; got None")
  error = recon - video
  terms = {
    "l1": lambda: jnp.abs(error).mean(),
    "l2": lambda: jnp.square(error).mean(),
    "wavelet": lambda: wavelet(error),
    "ssim": lambda: 1.0 - ms_ssim(video, recon),
    "gradient": lambda: gradient(error),
    "kl": lambda: kl(mean, logvar) / video[0].size,
    "consistency": lambda: jnp.abs(encode(recon) - jax.lax.stop_gradient(mean)).mean(),
    "perceptual": lambda: perceptual(video, recon),
  }
  found = {name: term() for name, term in terms.items() if getattr(config, name)}
  total = sum((getattr(config, name) * value for name, value in found.items()), jnp.zeros(()))
  return {"loss": total, **found}


def kl(mean: Float[Array, "B t h w Z"], logvar: Float[Array, "B t h w Z"]) -> Float[Array, ""]:
  """KL(N(mean, exp(logvar)) || N(0, 1)), summed over a clip's latents, mean over clips.

  Source: Kingma and Welling 2013 (arXiv 1312.6114), appendix B.
  """
  return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).sum() / mean.shape[0]


def gradient(error: Float[Array, "B T H W C"]) -> Float[Array, ""]:
  """Sum over x, y and time of the mean absolute difference between neighbours of the error.

  Differences are linear, so this compares the gradients of both clips. A still has no time part.
  """
  total = jnp.zeros(())
  for axis in (1, 2, 3):
    if error.shape[axis] > 1:
      total = total + jnp.abs(jnp.diff(error, axis=axis)).mean()
  return total


def haar(x: Array, axis: int) -> tuple[Array, Array]:
  """Orthonormal Haar halves (low, high) along an axis; an odd length repeats its first entry."""
  if x.shape[axis] % 2:
    x = jnp.concatenate([jax.lax.slice_in_dim(x, 0, 1, axis=axis), x], axis=axis)
  pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
  even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
  return (even + odd) * 0.5**0.5, (even - odd) * 0.5**0.5


def wavelet(error: Float[Array, "B T H W C"], levels: int = 3, eps: float = 1e-3) -> Array:
  """Charbonnier distance sqrt(e^2 + eps^2) - eps of 3-D Haar bands, `BAND_WEIGHTS` by level.

  The transform is linear, so the error's bands are the bands' errors. Axes of length 1 are left
  alone. Each level's bands are averaged per pixel value, like every term here; the last low band
  counts with the coarsest level.
  """

  def charbonnier(band):
    return (jnp.sqrt(jnp.square(band) + eps * eps) - eps).sum() / error.size

  total, low = jnp.zeros(()), error
  for level in range(levels):
    bands = [low]
    for axis in (1, 2, 3):
      if low.shape[axis] > 1:
        bands = [half for band in bands for half in haar(band, axis)]
    weight = BAND_WEIGHTS[len(BAND_WEIGHTS) - 1 - level]
    low, details = bands[0], bands[1:]
    total = total + weight * sum((charbonnier(band) for band in details), jnp.zeros(()))
  return total + BAND_WEIGHTS[0] * charbonnier(low)


def ms_ssim(
  video: Float[Array, "B T H W C"], recon: Float[Array, "B T H W C"], scales: int = 3
) -> Float[Array, ""]:
  """Mean over frames and channels of multi-scale structural similarity, range [-1, 1].

  Source: Wang et al. 2003, Eq. 7, with a Gaussian window of 7 and sigma 1.5 inside the frame, and
  as many of the scales (2x2 means between) as leave a window on the short side; their weights
  are scaled to sum to one. Contrast terms are cut at 1e-4, where powers have no gradient.
  """
  sides = min(video.shape[2:4])
  count = max(1, min(scales, int(np.log2(max(1, sides / WINDOW))) + 1))
  weights = np.array(SCALE_WEIGHTS[:count]) / sum(SCALE_WEIGHTS[:count])
  product = 1.0
  for scale in range(count):
    similarity, contrast = ssim_maps(video, recon)
    value = similarity if scale == count - 1 else contrast
    value_BTC = jnp.maximum(value.mean(axis=(2, 3)), 1e-4)
    product = product * value_BTC ** weights[scale]
    video, recon = halve(video), halve(recon)
  return jnp.mean(product)


def ssim_maps(video: Float[Array, "B T H W C"], recon: Float[Array, "B T H W C"]):
  """SSIM and its contrast-structure factor at every window (Wang et al. 2004, Eq. 13), peak 2."""
  c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
  mean_x, mean_y = blur(video), blur(recon)
  var_x = blur(video * video) - mean_x**2
  var_y = blur(recon * recon) - mean_y**2
  cov = blur(video * recon) - mean_x * mean_y
  contrast = (2 * cov + c2) / (var_x + var_y + c2)
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  return luminance * contrast, contrast


def blur(x: Float[Array, "B T H W C"]) -> Float[Array, "B T G V C"]:
  """Gaussian means over all windows inside the frame; as two matrix products, fast anywhere.

  In full float32 on accelerators, too: variances are small differences of such means.
  """
  rows, columns = (jnp.asarray(_bands(n)) for n in x.shape[2:4])
  full = jax.lax.Precision.HIGHEST
  x = jnp.einsum("gh,bthwc->btgwc", rows, x, precision=full)
  return jnp.einsum("vw,btgwc->btgvc", columns, x, precision=full)


def _bands(size: int) -> np.ndarray:
  """[size - window + 1, size] matrix of shifted Gaussian windows."""
  window = min(WINDOW, size)
  taps = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / SIGMA) ** 2)
  matrix = np.zeros((size - window + 1, size), np.float32)
  for i in range(len(matrix)):
    matrix[i, i : i + window] = taps / taps.sum()
  return matrix


def halve(x: Float[Array, "B T H W C"]) -> Float[Array, "B T h w C"]:
  """Means of 2x2 pixels; an odd last row or column is dropped."""
  B, T, H, W, C = x.shape
  x = x[:, :, : H // 2 * 2, : W // 2 * 2]
  return x.reshape(B, T, H // 2, 2, W // 2, 2, C).mean(axis=(3, 5))


def flops(config: vae.VAEConfig, frames: int, height: int, width: int) -> float:
  """Floating point operations of the matrix products of one clip's training step.

  Counted in the traced forward pass; forward and backward are three times it.
  """
  config = counted(config)
  variables = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))
  clip = jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.float32)
  traced = jax.make_jaxpr(vae.CausalVAE(config).apply)(variables, clip)
  return 3.0 * product_flops(traced.jaxpr)


def counted(config: vae.VAEConfig) -> vae.VAEConfig:
  """The same network, lowered so that no product with the zeros before a clip is formed: of a
  picture, two of three frames that a convolution sees are such zeros."""
  return dataclasses.replace(config, dtype="float32", conv="taps")


def product_flops(jaxpr) -> float:
  """Floating point operations of the products and convolutions of a traced program, loops once."""
  total = 0.0
  for eqn in jaxpr.eqns:
    out = eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      depth = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
      total += 2.0 * out.size * depth
    elif eqn.primitive.name == "conv_general_dilated":
      kernel = eqn.invars[1].aval
      features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
      total += 2.0 * out.size * kernel.size / features
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        total += product_flops(inner)
  return total
