"""Lowerings of the causal convolution are one function, with one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn.causal_conv import LOWERINGS, causal_conv


def by_definition(x, kernel, past):
  """y[j] = sum_i kernel[i] * x[j - (t - 1) + i], in loops over taps."""
  t, height, width, _, _ = kernel.shape
  before = np.zeros((x.shape[0], t - 1, *x.shape[2:]), x.dtype) if past is None else past
  x_all = np.concatenate([before, x], axis=1)
  y_pad, x_pad = height // 2, width // 2
  x_all = np.pad(x_all, ((0, 0), (0, 0), (y_pad, y_pad), (x_pad, x_pad), (0, 0)))
  H, W = x.shape[2:4]
  out = 0.0
  for i, y, z in np.ndindex(t, height, width):
    part = x_all[:, i : i + x.shape[1], y : y + H, z : z + W]
    out = out + part @ kernel[i, y, z]
  return out


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_lowering_is_the_definition(frames, kernel_size, streamed):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, frames, 4, 5, 3)).astype(np.float32)
  kernel = rng.normal(size=(*kernel_size, 3, 2)).astype(np.float32)
  past = rng.normal(size=(2, kernel_size[0] - 1, 4, 5, 3)).astype(np.float32) if streamed else None
  if past is not None and not past.shape[1]:
    past = None
  want = by_definition(x, kernel, past)
  gradients = []
  for lowering in LOWERINGS:
    arrays = [jnp.asarray(a) for a in ((x, kernel) if past is None else (x, kernel, past))]

    @jax.jit
    def run(*arrays, lowering=lowering):
      return causal_conv(*arrays, lowering=lowering)

    np.testing.assert_allclose(run(*arrays), want, atol=2e-5)
    loss = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(run(*a))), tuple(range(len(arrays)))))
    gradients.append(loss(*arrays))
  for other in gradients[1:]:
    for a, b in zip(gradients[0], other):
      np.testing.assert_allclose(a, b, atol=5e-5)


def test_an_unknown_lowering_is_refused():
  with pytest.raises(ValueError, match="im2col.*taps"):
    causal_conv(jnp.zeros((1, 1, 4, 4, 3)), jnp.zeros((3, 3, 3, 3, 2)), lowering="im2col")
