"""Conditions: what the network is told, and that it can tell it apart."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.nn import conditioning
from sora_jax.ops import packing


def outputs(module, *args):
  return jax.jit(module.init_with_output)(jax.random.key(0), *args)[0]


def test_times_are_told_apart_and_nearby_times_are_near():
  time = jnp.array([[0.0, 0.001, 0.5, 1.0]])
  module = conditioning.TimeEmbedding(16)
  out = np.asarray(outputs(module, time))[0]
  gap = np.linalg.norm(out[:, None] - out[None], axis=-1)
  assert out.shape == (4, 16)
  assert 0 < gap[0, 1] < gap[0, 2] and gap[2, 3] > gap[0, 1]


def test_sizes_and_rates_are_told_apart():
  grid = jnp.array([[[3, 6, 6], [1, 6, 6], [3, 4, 9], [3, 6, 6]]])
  fps = jnp.array([[8.0, 0.0, 8.0, 24.0]])
  out = np.asarray(outputs(conditioning.SizeEmbedding(16), grid, fps))[0]
  gap = np.linalg.norm(out[:, None] - out[None], axis=-1) + np.eye(4)
  assert gap.min() > 1e-5 and np.isfinite(out).all()


def test_unused_segments_are_harmless():
  out = outputs(
    conditioning.SizeEmbedding(16), jnp.zeros((1, 2, 3), jnp.int32), jnp.zeros((1, 2))
  )  # fmt: skip
  assert np.isfinite(out).all()


def test_modulation_starts_at_zero_and_names_its_axes():
  condition = jnp.ones((1, 2, 8))
  boxed = jax.jit(conditioning.Modulation(6, 8).init)(jax.random.key(0), condition)
  kernel = boxed["params"]["linear"]["kernel"]
  assert kernel.names == ("condition", "modulation", "width")
  assert not np.asarray(conditioning.Modulation(6, 8).apply(nn.meta.unbox(boxed), condition)).any()


def test_slots_get_their_segments_entry():
  tables = packing.place([[((1, 1, 1), 0.0), ((2, 1, 1), 8.0)]], 4, 3)
  tables["slots"] = np.array([[1, 2, 0]])
  layout = packing.layout_of({**tables, "text_segment": np.zeros((1, 1), np.int32)}, 4)
  table = jnp.arange(1.0, 4.0).reshape(1, 3, 1)
  assert conditioning.per_slot(table, layout).ravel().tolist() == [1, 2, 2, 0]


def test_text_is_projected_to_the_width():
  assert outputs(conditioning.TextProjection(16), jnp.ones((1, 3, 5))).shape == (1, 3, 16)


def test_the_null_condition_is_the_empty_prompt():
  assert conditioning.NULL_PROMPT == ""
