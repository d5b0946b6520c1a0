import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from sora_jax import sharding
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops import packing

OF_ACTIVATIONS = {"row", "token", "channel"}


def names_of(module, *arguments) -> set:
  """Logical names of all parameters; every parameter must have one for each axis."""
  boxed = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
  is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
  leaves = jax.tree.leaves(boxed, is_leaf=is_box)
  assert all(is_box(leaf) and len(leaf.names) == leaf.value.ndim for leaf in leaves)
  for leaf in leaves:
    sharding.spec(*leaf.names)
  return {name for leaf in leaves for name in leaf.names}


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
  config = dict(width=16, depth=1, heads=2, in_channels=4, out_channels=4, text_width=8)
  layout = packing.layout_of(
    {**packing.place([[((1, 1, 1), 0.0)]], 2, 1), "text_segment": np.ones((1, 2), np.int32)}
  )
  inputs = jnp.zeros((1, 2, 16)), jnp.zeros((1, 1)), layout, jnp.zeros((1, 2, 8))
  found = names_of(DiT(DiTConfig(**config)), *inputs)
  found |= names_of(DiT(DiTConfig(**config, modulation="full", classes=3)), *inputs,
                    jnp.zeros((1, 1), jnp.int32))  # fmt: skip
  ids = jnp.ones((1, 2), jnp.int32)
  text = TextConfig(vocab_size=8, width=16, depth=1, heads=2, head_size=8, mlp_width=16)
  found |= names_of(TextEncoder(text), ids, ids)
  assert found == {name for name, _ in sharding.AXIS_RULES} - OF_ACTIVATIONS


def test_no_activation_or_parameter_asks_for_a_mesh_axis_twice():
  assert sharding.spec("row", "token", "channel") == PartitionSpec(
    ("data", "fsdp"), "context", None
  )
  assert sharding.spec("width", "mlp") == PartitionSpec("fsdp", "tensor")


def test_an_unknown_name_is_an_error():
  with pytest.raises(ValueError, match="'breadth'.*width"):
    sharding.spec("row", "breadth")


def test_the_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
  assert sharding.make_mesh((-1, 1, 1, 1)).shape["data"] == jax.device_count()
  with pytest.raises(ValueError, match="does not fit"):
    sharding.make_mesh((7, 3, 1, 1))
