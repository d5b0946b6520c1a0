import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from sora_jax import sharding
from sora_jax.nn import layers, vae
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops import packing
from sora_jax.planning import topology
from sora_jax.shapes import Share


@pytest.fixture
def constrained(monkeypatch) -> set:
  """Names of axes that activations are said to have, while a test runs."""
  found = set()

  def record(x, names, **options):
    assert len(names) == x.ndim, f"{names} for an array of shape {x.shape}"
    sharding.spec(*names)
    found.update(names)
    return x

  monkeypatch.setattr(nn, "with_logical_constraint", record)
  return found


def names_of(module, *arguments) -> set:
  """Logical names of all parameters; every parameter must have one for each axis."""
  boxed = jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]
  is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
  leaves = jax.tree.leaves(boxed, is_leaf=is_box)
  assert all(is_box(leaf) and len(leaf.names) == leaf.value.ndim for leaf in leaves)
  for leaf in leaves:
    sharding.spec(*leaf.names)
  return {name for leaf in leaves for name in leaf.names}


def test_every_axis_has_a_rule_and_every_rule_an_axis(constrained):
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
  known = found | constrained | set(vae.AXES)
  assert known == {name for name, _ in sharding.AXIS_RULES}
  assert constrained - found == {"row", "token", "word", "slot", "channel"}


def test_no_activation_or_parameter_asks_for_a_mesh_axis_twice():
  assert sharding.spec("row", "token", "channel") == PartitionSpec(
    ("data", "fsdp"), "context", None
  )
  assert sharding.spec("width", "mlp") == PartitionSpec("fsdp", "tensor")


def test_a_parameter_is_gathered_in_the_type_it_is_used_in_and_its_gradient_put_back(constrained):
  kernel, x = jnp.ones((4, 6)), jnp.ones((2, 3, 4))
  layer = layers.Linear((6,), ("width", "mlp"), bias=False, dtype=jnp.bfloat16)
  gradient = jax.grad(lambda k: layer.apply({"params": {"kernel": k}}, x).sum().astype(float))
  assert gradient(kernel).dtype == jnp.float32
  assert constrained == {"channel", "mlp", "width", "row", "token"}


def test_a_mesh_that_cannot_split_evenly_is_named():
  mesh = jax.sharding.AbstractMesh((1, 4, 1, 3), sharding.MESH_AXES)
  good = {"layer": {"kernel": np.zeros((8, 6))}}
  names = {"layer": {"kernel": ("width", "mlp")}}
  sharding.check_sizes(mesh, good, names)
  bad = {"layer": {"kernel": np.zeros((8, 7))}}
  with pytest.raises(ValueError, match="layer.kernel has 7 along 'mlp'.*tensor, 3 parts"):
    sharding.check_sizes(mesh, bad, names)


def test_the_state_lies_as_its_parameters_do():
  mesh = sharding.make_mesh((1, 1, 1, 1), jax.devices()[:1])
  axes = {"dit": {"up": ("width", "mlp"), "gain": ("width",)}}
  leaf = {"dit": {"up": np.zeros((4, 8)), "gain": np.zeros(4)}}
  state = {"params": leaf, "opt": ({"mu": leaf}, {"count": np.zeros(())}), "up": np.zeros(3)}
  placed = jax.tree.map(lambda x: x.spec, sharding.of_state(mesh, state, axes))
  assert placed["params"]["dit"] == {"up": PartitionSpec("fsdp", "tensor"),
                                     "gain": PartitionSpec("fsdp")}  # fmt: skip
  assert placed["opt"][0]["mu"] == placed["params"]
  assert placed["opt"][1]["count"] == placed["up"] == PartitionSpec()


@pytest.mark.parametrize(
  "names, shape, lies",
  [
    (("layers", "width", "mlp"), (6, 8, 8), (("data",), "fsdp", "tensor")),
    (("layers", "width", "mlp"), (5, 8, 8), (None, "fsdp", "tensor")),  # too small to be split
    (("layers", "width", "mlp"), (5, 256, 64), (None, "fsdp", ("tensor", "data"))),
    (("patch", "width"), (256, 256), (("data",), "fsdp")),
    (("patch", "width"), (257, 256), (None, ("fsdp", "data"))),
    (("patch", "width"), (257, 258), (None, "fsdp")),
  ],
)
def test_momentum_that_is_made_orthogonal_is_shared_out_over_the_data_axis_too(names, shape, lies):
  mesh = jax.sharding.AbstractMesh((2, 2, 1, 1), sharding.MESH_AXES)
  axes, leaf = {"w": names}, {"w": np.zeros(shape)}
  state = {"opt": {"muon": {"mu": leaf}, "adam": {"mu": leaf}}, "params": leaf}
  made = jax.tree.map(lambda x: x.spec, sharding.of_state(mesh, state, axes))
  assert made["opt"]["muon"]["mu"]["w"] == PartitionSpec(*lies)
  assert made["opt"]["adam"] == {"mu": made["params"]}
  assert made["params"]["w"] == sharding.spec(*names)


@pytest.mark.parametrize(
  "shape, method, message",
  [
    ((1, 1, 2, 1), "rings", "'rings'; allowed: auto, ring, ulysses"),
    ((1, 1, 1, 3), "auto", "4 heads cannot be split over a tensor axis of 3"),
    ((1, 1, 3, 2), "ulysses", "2 heads a device.*context axis of 3; use method 'ring'"),
  ],
)
def test_attention_says_what_a_mesh_cannot_do(shape, method, message):
  mesh = jax.sharding.AbstractMesh(shape, sharding.MESH_AXES)
  with pytest.raises(ValueError, match=message):
    sharding.attentions(mesh, 4, method)


def test_an_unknown_name_is_an_error():
  with pytest.raises(ValueError, match="'breadth'.*width"):
    sharding.spec("row", "breadth")


def test_the_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
  assert sharding.make_mesh((-1, 1, 1, 1)).shape["data"] == jax.device_count()
  with pytest.raises(ValueError, match="does not fit"):
    sharding.make_mesh((7, 3, 1, 1))
  for wrong in ((2, 2), (0, -1, 1, 1), (-1, -1, 1, 1)):
    with pytest.raises(ValueError, match="it must be four sizes"):
      sharding.check_shape(wrong)


@pytest.mark.parametrize("platform, refused", [("tpu", True), ("gpu", False)])
def test_slices_are_of_tpus_alone(platform, refused):
  """GPUs carry the number of their host in the same place."""
  Device = dataclasses.make_dataclass("Device", ["platform", "slice_index", "id"], frozen=True)
  devices = [Device(platform, i // 2, i) for i in range(4)]
  if refused:
    with pytest.raises(ValueError, match="2 slices share the data axis"):
      sharding.make_mesh((1, 4, 1, 1), devices)
  else:
    assert list(sharding.make_mesh((1, 4, 1, 1), devices).devices.flat) == devices


@pytest.mark.parametrize(
  "name, shape, scattered", [("v5p:2x4x4", (1, 32, 1, 1), True), ("v6e:4x4", (2, 2, 4, 1), False)]
)
def test_every_host_of_a_slice_loads_the_rows_of_its_own_chips(name, shape, scattered):
  """A host's chips are a tile of the torus: its rows are its own, though not neighbours."""
  mesh = sharding.make_mesh(shape, topology.describe(name).devices)
  total = 2 * sharding.parts(mesh, "row")
  lies = jax.sharding.NamedSharding(mesh, sharding.spec("row"))
  held = {}
  for device, (rows,) in lies.devices_indices_map((total,)).items():
    held.setdefault(device.process_index, set()).update(range(*rows.indices(total)))
  shares = sharding.host_shares(mesh)
  assert {host: set(share.rows(total)) for host, share in shares.items()} == held
  apart = [np.diff(share.rows(total)).max() > 1 for share in shares.values()]
  assert any(apart) == scattered


def test_a_share_of_rows_that_are_no_equal_blocks_is_refused():
  assert Share((0, 2), 4).rows(8) == [0, 1, 4, 5] and Share().rows(3) == [0, 1, 2]
  with pytest.raises(ValueError, match="10 rows cannot be 4 equal blocks; take a multiple of 4"):
    Share((0, 2), 4).rows(10)
