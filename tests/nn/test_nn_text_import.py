"""Published T5 and UMT5 weights: parity with transformers, sharded files, wrong shapes."""

import functools
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from sora_jax.nn import text, text_import
from sora_jax.weights import store

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
spec = importlib.util.spec_from_file_location("make_t5", GOLDEN / "make_t5.py")
make_t5 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_t5)
TOLERANCE = 1e-4


@functools.cache
def golden():
  with np.load(GOLDEN / "t5.npz") as file:
    return dict(file)


def state_dict(kind):
  """Names and shapes as transformers has them, weights by `fill`."""
  state = {}
  for line in golden()[f"{kind}/names"]:
    name, shape = line.split("|")
    source = "shared.weight" if name.endswith("embed_tokens.weight") else name
    state[name] = make_t5.fill(source, tuple(map(int, shape.split("x"))))
  return state


def hf_config(kind):
  return {**make_t5.SMALL, **make_t5.KINDS[kind]}


def write_sharded(folder, state, shards=3):
  """A folder as `save_pretrained` makes it: config, index, shards."""
  names = sorted(state)
  files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
  weight_map = {name: files[i % shards] for i, name in enumerate(names)}
  for file in files:
    part = {name: state[name] for name in names if weight_map[name] == file}
    safetensors.numpy.save_file(part, folder / file, metadata={"format": "pt"})
  size = sum(value.nbytes for value in state.values())
  index = {"metadata": {"total_size": size}, "weight_map": weight_map}
  (folder / store.INDEX_NAME).write_text(json.dumps(index))


def encode_packed(config, params):
  """All golden texts in one row, {length: embeddings}."""
  row_len = sum(make_t5.LENGTHS) + 3
  ids_M, segment_M, start, spans = np.zeros(row_len, "i4"), np.zeros(row_len, "i4"), 0, {}
  for place, length in enumerate(make_t5.LENGTHS):
    spans[length] = slice(start, start + length)
    ids_M[spans[length]], segment_M[spans[length]] = make_t5.ids(length), place + 1
    start += length
  module = text.TextEncoder(config)
  out = jax.jit(module.apply)({"params": params}, ids_M[None], segment_M[None])
  return {length: np.asarray(out)[0, span] for length, span in spans.items()}


@pytest.mark.parametrize("kind", make_t5.KINDS)
def test_parity_with_golden_outputs_of_transformers_from_sharded_files(kind, tmp_path):
  state = state_dict(kind)
  state["decoder.final_layer_norm.weight"] = np.ones(24, "f")
  state["lm_head.weight"] = np.ones((67, 24), "f")
  write_sharded(tmp_path, state)
  (tmp_path / "config.json").write_text(json.dumps(hf_config(kind)))
  config = text_import.read_config(tmp_path)
  params = text_import.params_from_huggingface(store.Shards(tmp_path), config)
  store.check(params, fresh_params(config))
  for length, ours in encode_packed(config, params).items():
    np.testing.assert_allclose(ours, golden()[f"{kind}/{length}"], atol=TOLERANCE, rtol=0)


def fresh_params(config):
  module = text.TextEncoder(config)
  ids_RM = jax.ShapeDtypeStruct((1, 4), np.int32)
  return jax.eval_shape(module.init, jax.random.key(0), ids_RM, ids_RM)["params"]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", make_t5.KINDS)
def test_parity_with_transformers_live(kind, tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  state, outputs = make_t5.reference(kind)
  write_sharded(tmp_path, state)
  config = text_import.config_from_huggingface(hf_config(kind))
  params = text_import.params_from_huggingface(store.Shards(tmp_path), config)
  for length, ours in encode_packed(config, params).items():
    np.testing.assert_allclose(ours, outputs[length], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(golden()[f"{kind}/{length}"], outputs[length], atol=1e-5, rtol=0)


@pytest.mark.oracle
def test_buckets_are_those_of_transformers_at_every_distance():
  torch = pytest.importorskip("torch")
  t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
  offsets = np.arange(-600, 601)
  for buckets, distance in ((32, 128), (16, 40), (64, 256)):
    theirs = t5.T5Attention._relative_position_bucket(
      torch.from_numpy(offsets), True, buckets, distance
    )
    ours = text.relative_buckets(offsets, buckets, distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("drop", ["shared.weight", "encoder.embed_tokens.weight"])
def test_either_name_of_the_tied_embedding_will_do(drop):
  state = state_dict("t5")
  kept = {name: value for name, value in state.items() if name != drop}
  config = text_import.config_from_huggingface(hf_config("t5"))
  params = text_import.params_from_huggingface(kept, config)
  np.testing.assert_array_equal(params["embedding"], state["shared.weight"])


def test_wrong_shape_is_refused_by_name_with_both_shapes(tmp_path):
  state = state_dict("t5_v1_1")
  name = "encoder.block.1.layer.0.SelfAttention.q.weight"
  state[name] = np.ones((30, 20), "f")
  write_sharded(tmp_path, state)
  config = text_import.config_from_huggingface(hf_config("t5_v1_1"))
  with pytest.raises(ValueError) as error:
    text_import.params_from_huggingface(store.Shards(tmp_path), config)
  for part in (name, "(30, 24)", "(30, 20)", "config.json"):
    assert part in str(error.value)


@pytest.mark.parametrize("name", ["shared.weight", "encoder.final_layer_norm.weight"])
def test_missing_tensor_is_named(name):
  state = state_dict("umt5")
  state.pop("encoder.embed_tokens.weight")
  state.pop(name)
  config = text_import.config_from_huggingface(hf_config("umt5"))
  with pytest.raises(ValueError, match=f"no tensor '{name}'"):
    text_import.params_from_huggingface(state, config)


def test_foreign_configs_are_refused(tmp_path):
  with pytest.raises(ValueError, match="model_type 'bert'"):
    text_import.config_from_huggingface({"model_type": "bert"})
  config = {**hf_config("t5"), "feed_forward_proj": "gated-silu"}
  with pytest.raises(ValueError, match="gated-silu.*allowed: relu, gated-gelu"):
    text_import.config_from_huggingface(config)
  with pytest.raises(FileNotFoundError, match="no config.json"):
    text_import.read_config(tmp_path)
