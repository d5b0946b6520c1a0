"""Layers: values against their formulas, shapes of starts, types, names of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.nn import layers
from sora_jax.planning import hlo, walk


def made(module, x):
  boxed = jax.jit(module.init)(jax.random.key(0), x)
  return nn.meta.unbox(boxed)["params"], boxed["params"]


def test_linear_contracts_and_splits_axes(key):
  x = jax.random.normal(key, (2, 3, 4))
  module = layers.Linear((3, 5), ("width", "qkv", "head_size"), start=nn.initializers.normal())
  params, boxed = made(module, x)
  assert boxed["kernel"].names == ("width", "qkv", "head_size")
  assert boxed["bias"].names == ("qkv", "head_size")
  params = {"kernel": params["kernel"], "bias": params["bias"] + 1.0}
  want = jnp.einsum("blw,wqk->blqk", x, params["kernel"]) + 1
  np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


def test_linear_computes_in_its_type_and_keeps_float32_parameters(key):
  x = jax.random.normal(key, (2, 3, 4))
  module = layers.Linear((5,), ("width", "mlp"), dtype=jnp.bfloat16)
  params, _ = made(module, x)
  assert params["kernel"].dtype == jnp.float32
  assert module.apply({"params": params}, x).dtype == jnp.bfloat16


def test_stacked_kernels_start_as_separate_matrices(key):
  """Xavier's limit is that of one [64, 32] matrix, and the three are not alike."""
  kernel = layers.stacked(layers.xavier(), 1)(key, (64, 3, 2, 16))
  limit = (6 / (64 + 32)) ** 0.5
  assert 0.95 * limit < jnp.abs(kernel).max() <= limit
  assert not np.allclose(kernel[:, 0], kernel[:, 1])


def test_layer_norm_centres_and_scales(key):
  x = 3 + 2 * jax.random.normal(key, (4, 64))
  y = layers.layer_norm(x)
  np.testing.assert_allclose(y.mean(-1), np.zeros(4), atol=1e-5)
  np.testing.assert_allclose(y.std(-1), np.ones(4), atol=1e-4)


@pytest.mark.parametrize("names", [("head_size",), ("heads", "head_size")])
def test_rms_norm_over_one_head_or_all(names, key):
  x = 5 * jax.random.normal(key, (2, 3, 4, 8))
  module = layers.RMSNorm(names)
  params, _ = made(module, x)
  assert params["scale"].shape == x.shape[-len(names) :]
  y = module.apply({"params": params}, x)
  over = tuple(range(4 - len(names), 4))
  np.testing.assert_allclose(jnp.square(y).mean(over), 1.0, atol=1e-4)


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_keep_their_type_and_vanish_far_below(name):
  x = jnp.array([-30.0, 0.0, 2.0], jnp.bfloat16)
  y = layers.ACTIVATIONS[name](x)
  assert y.dtype == x.dtype
  np.testing.assert_allclose(np.asarray(y, np.float32)[:2], 0, atol=1e-6)


def test_relu_squared():
  np.testing.assert_allclose(layers.relu_squared(jnp.array([-1.0, 0.5, 3.0])), [0, 0.25, 9])


def test_mlp_is_two_linear_layers(key):
  x = jax.random.normal(key, (2, 3, 4))
  module = layers.MLP(8, "relu")
  p, _ = made(module, x)
  want = jax.nn.relu(x @ p["up"]["kernel"]) @ p["down"]["kernel"]
  np.testing.assert_allclose(module.apply({"params": p}, x), want, atol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_a_policy_can_keep_products(kept):
  x, module = jnp.ones((2, 3, 4)), layers.Linear((5,), ("width", "mlp"))
  params = module.init(jax.random.key(0), x)
  policy = jax.checkpoint_policies.save_only_these_names(*((layers.PRODUCT,) if kept else ()))
  layer = jax.checkpoint(lambda p, x: jnp.sin(module.apply(p, x)).sum(), policy=policy)
  step = jax.jit(jax.grad(layer, argnums=(0, 1)))
  costs, _ = walk.walk(hlo.parse(step.lower(params, x).compile().as_text()))
  assert (costs.recomputed_flops == 0) == kept
