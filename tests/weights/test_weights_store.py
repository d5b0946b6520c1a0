"""Weights files: round trips, damage, templates, hashes, sharded checkpoints."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from sora_jax.weights import store


def make_tree(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "params": {
      "dense": {"kernel": rng.standard_normal((4, 6)).astype(np.float32), "bias": np.zeros(6, "f")},
      "steps": np.asarray(7, np.int32),
    },
    "stats": {"mean_Z": np.arange(3, dtype=np.float64)},
  }


def leaves_equal(a, b):
  flat_a, flat_b = store.flatten(a), store.flatten(b)
  assert list(flat_a) == list(flat_b)
  for name in flat_a:
    np.testing.assert_array_equal(flat_a[name], flat_b[name])
    assert flat_a[name].dtype == flat_b[name].dtype, name


def test_the_same_weights_are_the_same_bytes(tmp_path):
  paths = [tmp_path / f"{i}.safetensors" for i in range(8)]
  for path in paths:
    store.save(path, make_tree(), {"width": 4}, {"seed": 3}, store_dtype="float16")
  assert len({path.read_bytes() for path in paths}) == 1


def test_round_trip_keeps_names_values_dtypes_and_config(tmp_path):
  tree, config = make_tree(), {"width": 4, "patch": [1, 2, 2]}
  size = store.save(tmp_path / "a.safetensors", tree, config, {"seed": 3})
  assert size == (tmp_path / "a.safetensors").stat().st_size
  back, back_config, metadata = store.load(tmp_path / "a.safetensors", like=tree)
  leaves_equal(tree, back)
  assert back_config == config and metadata["provenance"] == {"seed": 3}
  assert os.listdir(tmp_path) == ["a.safetensors"]


def test_views_and_jax_arrays_and_axis_boxes_are_saved_right(tmp_path):
  base = np.arange(12, dtype=np.float32).reshape(3, 4)
  boxed = nn.LogicallyPartitioned(jnp.ones((2, 3)), names=("width", "mlp"))
  store.save(tmp_path / "a", {"view": base.T[::2], "box": {"kernel": boxed}}, {})
  back = store.load(tmp_path / "a")[0]
  np.testing.assert_array_equal(back["view"], base.T[::2])
  np.testing.assert_array_equal(back["box"]["kernel"], np.ones((2, 3)))


@pytest.mark.parametrize("dtype,tolerance", [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_narrow_storage_halves_the_file_and_loads_as_float32(tmp_path, dtype, tolerance):
  value = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
  wide = store.save(tmp_path / "wide", {"x": value}, {})
  narrow = store.save(tmp_path / "narrow", {"x": value, "n": np.int32([5])}, {}, store_dtype=dtype)
  back = store.load(tmp_path / "narrow")[0]
  assert narrow < 0.6 * wide
  assert back["x"].dtype == np.float32 and back["n"].dtype == np.int32
  assert np.abs(back["x"] - value).max() <= tolerance * np.abs(value).max()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a"
  store.save(path, {"x": np.ones(3)}, {})

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="disk full"):
    store.save(path, {"x": np.zeros(3)}, {})
  np.testing.assert_array_equal(store.load(path)[0]["x"], np.ones(3))
  assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
  "tree,config,options,message",
  [
    ({}, {}, {}, "no array"),
    ({"a/b": np.ones(2)}, {}, {}, "without a slash"),
    ({"a": 3}, {}, {}, "a is a int"),
    ({"a": {"b": np.array([1.0, np.nan])}}, {}, {}, "a/b is not finite"),
    ({"a": np.array([1e6], np.float32)}, {}, {"store_dtype": "float16"}, "not finite as float16"),
    ({"a": np.ones(2)}, {"f": object()}, {}, "must be JSON"),
    ({"a": np.ones(2)}, {}, {"store_dtype": "int8"}, "allowed: None, float32, float16, bfloat16"),
  ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, tree, config, options, message):
  with pytest.raises(ValueError, match=message):
    store.save(tmp_path / "a", tree, config, **options)
  assert not os.listdir(tmp_path)


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
  path = tmp_path / "a.safetensors"
  with pytest.raises(FileNotFoundError, match="no weights file .*a.safetensors"):
    store.load(path)
  store.save(path, make_tree(), {})
  data = path.read_bytes()
  for size in (0, 5, 20, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:size])
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged .*\({size} bytes"):
      store.load(path)
  safetensors.numpy.save_file({"x": np.ones(2)}, path)
  with pytest.raises(ValueError, match="without a config"):
    store.load(path)


def test_template_mismatch_names_tensor_expected_and_got(tmp_path):
  path = tmp_path / "a"
  store.save(path, make_tree(), {})
  like = jax.eval_shape(lambda: {"params": {"dense": {"kernel": jnp.zeros((4, 8))}}})
  with pytest.raises(ValueError) as error:
    store.load(path, like=like)
  message = str(error.value)
  assert "params/dense/kernel: expected (4, 8), got (4, 6)" in message
  assert "params/dense/bias: not expected" in message and str(path) in message
  with pytest.raises(ValueError, match="params/other: missing"):
    store.check({"params": {}}, {"params": {"other": np.ones(2)}})


def test_hash_follows_content_alone(tmp_path):
  tree = make_tree()
  name = store.hash_of(tree)
  assert len(name) == 64 and name == store.hash_of(jax.tree.map(np.copy, tree))
  assert name == store.hash_of(dict(reversed(tree.items())))
  store.save(tmp_path / "a", tree, {"any": 1}, {"hours": 2})
  assert store.hash_of(tmp_path / "a") == name
  tree["params"]["dense"]["bias"][2] = 1e-6
  assert store.hash_of(tree) != name
  assert store.hash_of({"a": np.ones(6)}) != store.hash_of({"a": np.ones((2, 3))})


def test_narrow_file_hashes_as_what_it_loads(tmp_path):
  store.save(tmp_path / "a", make_tree(), {}, store_dtype="bfloat16")
  assert store.hash_of(tmp_path / "a") == store.hash_of(store.load(tmp_path / "a")[0])


def test_sharded_checkpoint_is_read_lazily(tmp_path):
  one = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
  two = {"b.weight": np.ones((3,), ml_dtypes.bfloat16)}
  safetensors.numpy.save_file(one, tmp_path / "model-00001-of-00002.safetensors")
  safetensors.numpy.save_file(two, tmp_path / "model-00002-of-00002.safetensors")
  index = {
    "metadata": {"total_size": 30},
    "weight_map": {
      "a.weight": "model-00001-of-00002.safetensors",
      "b.weight": "model-00002-of-00002.safetensors",
    },
  }
  (tmp_path / store.INDEX_NAME).write_text(json.dumps(index))
  shards = store.Shards(tmp_path)
  assert set(shards) == {"a.weight", "b.weight"} and len(shards) == 2
  assert shards.shape("a.weight") == (2, 3)
  np.testing.assert_array_equal(shards["a.weight"], one["a.weight"])
  assert shards["b.weight"].dtype == ml_dtypes.bfloat16
  assert len(store.Shards(tmp_path / "model-00001-of-00002.safetensors")) == 1

  (tmp_path / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
    store.Shards(tmp_path)
  (tmp_path / store.INDEX_NAME).write_text("{}")
  with pytest.raises(ValueError, match="not an index"):
    store.Shards(tmp_path)
  with pytest.raises(FileNotFoundError, match="holds none of"):
    store.Shards(tmp_path / "..")


def test_shipped_folders_are_complete_and_small_enough():
  for name, folder in store.shipped().items():
    for network in store.NETWORKS:
      path = folder / f"{network}.safetensors"
      assert path.stat().st_size <= store.MAX_SHIPPED_BYTES, path
      _, config, metadata = store.load(path)
      assert config and metadata["provenance"], f"{name}/{network} has no provenance"
