"""Published T5 v1.1 and UMT5 encoder weights (Hugging Face safetensors) as parameters of ours.

Theirs hold Linear weights as [out, in]; ours split heads and are [in, out]. Decoder tensors are
ignored. The embedding is stored as `shared.weight`, as `encoder.embed_tokens.weight`, or as both
(tied). Shapes are checked before a tensor is read.
"""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from sora_jax.nn.text import TextConfig

_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight")
_BIAS = "SelfAttention.relative_attention_bias.weight"


def config_from_huggingface(config: Mapping) -> TextConfig:
  """Our config from the content of a `config.json` of T5 or UMT5.

  Raises: ValueError for another model type or a feed-forward that is neither T5's nor v1.1's.
  """
  kind = config.get("model_type")
  if kind not in ("t5", "umt5"):
    raise ValueError(f"model_type {kind!r} is not supported; allowed: 't5', 'umt5'")
  activations = {"relu": "relu", "gated-gelu": "gated_gelu"}
  projection = config.get("feed_forward_proj", "relu")
  if projection not in activations:
    raise ValueError(
      f"feed_forward_proj {projection!r} is not supported; allowed: {', '.join(activations)}"
    )
  return TextConfig(
    vocab_size=config["vocab_size"],
    width=config["d_model"],
    depth=config["num_layers"],
    heads=config["num_heads"],
    head_size=config["d_kv"],
    mlp_width=config["d_ff"],
    activation=activations[projection],
    shared_bias=kind == "t5",
    buckets=config.get("relative_attention_num_buckets", 32),
    max_distance=config.get("relative_attention_max_distance", 128),
    norm_eps=config.get("layer_norm_epsilon", 1e-6),
  )


def read_config(folder: str | os.PathLike) -> TextConfig:
  """`config_from_huggingface` of a folder's `config.json`."""
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    raise FileNotFoundError(f"no config.json in {folder}; it comes with the published weights")
  return config_from_huggingface(json.loads(path.read_text()))


def params_from_huggingface(
  tensors: Mapping[str, np.ndarray], config: TextConfig, dtype: str = "float32"
) -> dict:
  """Parameters for `TextEncoder(config)`, unboxed, from a T5 or UMT5 state dict.

  Args: tensors: name to array, for example `sora_jax.weights.store.Shards(folder)`, which reads
    one tensor at a time.  dtype: of the result; published weights are often bfloat16 on disk.
  Raises: ValueError naming a tensor that is missing or has another shape than the config says.
  """
  c = config
  inner = c.heads * c.head_size

  def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
      raise ValueError(f"the checkpoint has no tensor {name!r}, expected with shape {shape}")
    got = tensors.shape(name) if hasattr(tensors, "shape") else tuple(tensors[name].shape)
    if got != shape:
      raise ValueError(
        f"tensor {name!r}: expected shape {shape}, got {got}; the checkpoint is of another size "
        f"than the config {config}. Read the config from the checkpoint's own config.json"
      )
    return np.asarray(tensors[name], dtype=dtype)

  def linear(name: str, outputs: int, inputs: int, shape: tuple[int, ...] | None = None) -> dict:
    kernel = np.ascontiguousarray(read(name + ".weight", (outputs, inputs)).T)
    return {"kernel": kernel.reshape(shape or kernel.shape)}

  embedding = next((name for name in _EMBEDDING if name in tensors), _EMBEDDING[0])
  params = {
    "embedding": read(embedding, (c.vocab_size, c.width)),
    "final_norm": {"scale": read("encoder.final_layer_norm.weight", (c.width,))},
  }
  for layer in range(c.depth):
    attention, mlp = (f"encoder.block.{layer}.layer.{i}" for i in (0, 1))
    heads = (c.width, c.heads, c.head_size)
    params[f"attention_{layer}"] = {
      "query": linear(f"{attention}.SelfAttention.q", inner, c.width, heads),
      "key": linear(f"{attention}.SelfAttention.k", inner, c.width, heads),
      "value": linear(f"{attention}.SelfAttention.v", inner, c.width, heads),
      "out": linear(f"{attention}.SelfAttention.o", c.width, inner, heads[1:] + heads[:1]),
    }
    for ours, theirs in (("attention_norm", attention), ("mlp_norm", mlp)):
      params[f"{ours}_{layer}"] = {"scale": read(f"{theirs}.layer_norm.weight", (c.width,))}
    names = {"wi": "wi"} if c.activation == "relu" else {"wi_gate": "wi_0", "wi": "wi_1"}
    params[f"mlp_{layer}"] = {
      "wo": linear(f"{mlp}.DenseReluDense.wo", c.width, c.mlp_width),
      **{
        ours: linear(f"{mlp}.DenseReluDense.{theirs}", c.mlp_width, c.width)
        for ours, theirs in names.items()
      },
    }
    if layer == 0 or not c.shared_bias:
      name = "relative_bias" if c.shared_bias else f"relative_bias_{layer}"
      params[name] = {"embedding": read(f"{attention}.{_BIAS}", (c.buckets, c.heads))}
  return params
