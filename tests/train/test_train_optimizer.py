"""Every optimizer, schedule and clip against one table of properties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.planning import hlo, walk
from sora_jax.train import optimizer as lib
from sora_jax.train.optimizer import OptimizerConfig


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_reaches_the_optimum_without_recompiling(name, adaptive):
  config = OptimizerConfig(name=name, lr=0.05, matrix_lr_ratio=1.0, adaptive_clip=adaptive)
  transform = lib.make(config)
  truth = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])}
  params = jax.tree.map(jnp.zeros_like, truth)

  @jax.jit
  def step(params, state, lr):
    grads = jax.tree.map(lambda p, t: p - t, params, truth)
    updates, state = transform.update(grads, state, params)
    return jax.tree.map(lambda p, u: p + lr * u, params, updates), state

  state = transform.init(params)
  for i in range(400):
    params, state = step(params, state, 0.05 * (1 - i / 400))
  jax.tree.map(lambda p, t: np.testing.assert_allclose(p, t, atol=0.05), params, truth)
  assert step._cache_size() == 1


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_learning_rate_has_the_right_ends(decay):
  config = OptimizerConfig(lr=2.0, warmup_steps=10, decay=decay, final_lr=0.1)

  def rate(step):
    return float(lib.learning_rate(config, jnp.asarray(step), jnp.asarray(100)))

  assert rate(0) == pytest.approx(0.2)
  assert rate(10) == pytest.approx(2.0)
  assert rate(100) == pytest.approx(2.0 if decay == "constant" else 0.2)
  assert rate(1000) == rate(100)
  middle = {"constant": 2.0, "cosine": 1.1, "linear": 1.1}[decay]
  assert rate(55) == pytest.approx(middle)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_eps_reaches_adam(name):
  params, grads = {"bias": jnp.zeros(2)}, {"bias": jnp.ones(2)}
  steps = []
  for eps in (1e-8, 1.0):  # a gradient of one is divided by 1 + eps
    transform = lib.make(OptimizerConfig(name=name, eps=eps, clip_norm=0.0))
    updates, _ = transform.update(grads, transform.init(params), params)
    steps.append(updates["bias"])
  np.testing.assert_allclose(steps[1], steps[0] / 2, rtol=1e-4)


def test_muon_takes_matrices_and_leaves_tables_to_adam():
  params = {
    "blocks": {
      "qkv": {"kernel": np.zeros((6, 8, 3, 2, 4)), "bias": np.zeros((6, 3, 2, 4))},
      "out": {"kernel": np.zeros((6, 2, 4, 8))},
      "mlp": {"kernel": np.zeros((6, 8, 32))},
      "modulation": np.zeros((6, 6, 8)),
    },
    "text": {"embedding": np.zeros((50, 8))},
  }
  names = {
    "blocks": {
      "qkv": {
        "kernel": ("layers", "width", "qkv", "heads", "head_size"),
        "bias": ("layers", "qkv", "heads", "head_size"),
      },
      "out": {"kernel": ("layers", "heads", "head_size", "width")},
      "mlp": {"kernel": ("layers", "width", "mlp")},
      "modulation": ("layers", "modulation", "width"),
    },
    "text": {"embedding": ("vocab", "width")},
  }
  found = jax.tree_util.tree_map_with_path(
    lib.matrix_axes, params, names, is_leaf=lambda x: isinstance(x, tuple)
  )
  blocks = found["blocks"]
  assert blocks["qkv"]["kernel"] == ((1,), (3, 4))
  assert blocks["out"]["kernel"] == ((1, 2), (3,))
  assert blocks["mlp"]["kernel"] == ((1,), (2,))
  assert blocks["qkv"]["bias"] is None and blocks["modulation"] is None
  assert found["text"]["embedding"] is None


def test_muon_takes_convolutions_without_names():
  found = jax.tree_util.tree_map_with_path(
    lib.matrix_axes, {"conv": {"kernel": np.zeros((3, 3, 4, 8)), "bias": np.zeros(8)}}
  )
  assert found["conv"]["kernel"] == ((0, 1, 2), (3,))
  assert found["conv"]["bias"] is None


def test_muon_on_stacked_layers_equals_muon_on_each():
  layers = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
  config = OptimizerConfig(name="muon", clip_norm=0.0)
  stacked = lib.make(config, {"kernel": ("layers", "width", "mlp")})
  single = lib.make(config, {"kernel": ("width", "mlp")})
  params = {"kernel": jnp.asarray(layers)}
  together, _ = stacked.update(params, stacked.init(params), params)
  for i in range(2):
    one = {"kernel": jnp.asarray(layers[i])}
    alone, _ = single.update(one, single.init(one), one)
    np.testing.assert_allclose(together["kernel"][i], alone["kernel"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, axes", [("muon", True), ("muon", False), ("adamw", True)])
def test_products_of_a_step_are_counted(name, axes):
  params = {
    "mlp": {"kernel": jnp.zeros((3, 4, 6)), "bias": jnp.zeros((3, 6))},
    "out": {"kernel": jnp.zeros((5, 2, 8))},
  }
  names = {
    "mlp": {"kernel": ("layers", "width", "mlp"), "bias": ("layers", "mlp")},
    "out": {"kernel": ("heads", "head_size", "width")},
  }
  config, names = OptimizerConfig(name=name), names if axes else None
  transform = lib.make(config, names)
  compiled = jax.jit(transform.update).lower(params, transform.init(params), params).compile()
  costs, _ = walk.walk(hlo.parse(compiled.as_text()))
  assert costs.dot_flops == lib.product_flops(config, params, names)
  assert (costs.dot_flops > 0) == (name == "muon")


def test_adaptive_clip_stops_a_spike_and_does_not_learn_from_it():
  clip = lib.adaptive_clip(warmup=5)
  grads = {"a": jnp.ones(4)}
  state = clip.init(grads)
  for i in range(50):
    scaled, state = clip.update({"a": (1 + 0.01 * (-1) ** i) * jnp.ones(4)}, state)
  assert float(optax.tree.norm(scaled)) == pytest.approx(2.0, rel=0.02)
  spike, after = clip.update({"a": 100 * jnp.ones(4)}, state)
  assert float(optax.tree.norm(spike)) < 2.2
  assert float(after.mean) == float(state.mean)


def test_a_spike_is_left_out_and_norms_that_stay_large_are_let_through():
  guard = lib.skip_spikes(optax.adam(1.0), factor=5.0, warmup=4)
  params = {"w": jnp.ones(3)}
  state = guard.init(params)
  for _ in range(6):
    updates, state = guard.update({"w": jnp.full(3, 0.1)}, state, params)
  assert jnp.abs(updates["w"]).min() > 0 and int(lib.skipped(state)) == 0
  updates, after = guard.update({"w": jnp.full(3, 10.0)}, state, params)
  assert jnp.abs(updates["w"]).max() == 0 and int(lib.skipped(after)) == 1
  jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)
  updates, calm = guard.update({"w": jnp.full(3, 0.1)}, after, params)
  assert jnp.abs(updates["w"]).min() > 0 and int(lib.skipped(calm)) == 1
  steps = 0
  while jnp.abs(updates["w"]).max() == 0 or steps == 0:
    updates, after = guard.update({"w": jnp.full(3, 10.0)}, after, params)
    steps += 1
  assert 40 < steps < 80  # 100 times the mean: ln(100 / 5) / ln(1.05) = 61 skips


@pytest.mark.parametrize(
  "change",
  [
    {"name": "adam"},
    {"decay": "step"},
    {"lr": 0.0},
    {"b1": 1.0},
    {"final_lr": 2.0},
    {"skip_spikes": 1.0},
  ],
)
def test_impossible_values_are_refused(change):
  with pytest.raises(ValueError, match=f"optimizer.{next(iter(change))}"):
    OptimizerConfig(**change)


def test_what_does_not_learn_is_named():
  grads = {"frozen": jnp.zeros((2, 3)), "layers": jnp.ones((3, 2)), "lost": jnp.ones(2)}
  updates = {
    "frozen": jnp.ones((2, 3)),
    "layers": jnp.ones((3, 2)).at[1].set(0.0),
    "lost": jnp.zeros(2),
  }
  axes = {"frozen": ("in", "out"), "layers": ("layers", "in"), "lost": ("out",)}
  names = lib.unit_names(updates, axes)
  moved = lib.moved(grads, updates, axes)
  assert names == ["frozen", "layers[0]", "layers[1]", "layers[2]", "lost"]
  assert moved.tolist() == [False, True, False, True, False]
