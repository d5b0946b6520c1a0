"""Makes t5.npz: outputs of transformers' T5 and UMT5 encoders with small random weights.

Run from the repository's root where the `oracle` extra is installed: python tests/golden/make_t5.py
The weights are not stored: they come from numpy's PCG64 by tensor name (see `fill`).
"""

import pathlib
import zlib

import numpy as np

SMALL = {
  "vocab_size": 67,
  "d_model": 24,
  "d_kv": 6,
  "d_ff": 40,
  "num_layers": 3,
  "num_heads": 5,
  "relative_attention_num_buckets": 16,
  "relative_attention_max_distance": 40,
}
KINDS = {
  "t5": {"model_type": "t5", "feed_forward_proj": "relu"},
  "t5_v1_1": {"model_type": "t5", "feed_forward_proj": "gated-gelu"},
  "umt5": {"model_type": "umt5", "feed_forward_proj": "gated-gelu"},
}
LENGTHS = (57, 9, 1)


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Reproducible random weights of a tensor: the scale that keeps activations near one."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  value = rng.standard_normal(shape).astype(np.float32)
  if len(shape) == 1:
    return 1 + 0.1 * value
  if "relative_attention_bias" in name:
    return value
  return (
    value if "shared" in name or "embed_tokens" in name else value / np.float32(shape[1] ** 0.5)
  )


def ids(length: int) -> np.ndarray:
  """Token ids of a text of the given length."""
  return np.random.default_rng(length).integers(0, SMALL["vocab_size"], length)


def reference(kind: str):
  """(state dict as numpy, {length: embeddings}) from transformers."""
  import torch
  import transformers

  config = {**SMALL, **KINDS[kind]}
  family = "UMT5" if config.pop("model_type") == "umt5" else "T5"
  model_class = getattr(transformers, f"{family}EncoderModel")
  model = model_class(getattr(transformers, f"{family}Config")(**config, dropout_rate=0.0)).eval()
  state = {}
  for name, value in model.state_dict().items():
    source = "shared.weight" if name.endswith("embed_tokens.weight") else name
    state[name] = fill(source, tuple(value.shape))
  model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
  with torch.no_grad():
    outputs = {n: model(torch.from_numpy(ids(n))[None])[0][0].numpy() for n in LENGTHS}
  return state, outputs


def main() -> None:
  arrays = {}
  for kind in KINDS:
    state, outputs = reference(kind)
    names = sorted(state)
    arrays[f"{kind}/names"] = np.array([f"{n}|{'x'.join(map(str, state[n].shape))}" for n in names])
    for length, output in outputs.items():
      arrays[f"{kind}/{length}"] = output
  np.savez_compressed(pathlib.Path(__file__).with_name("t5.npz"), **arrays)


if __name__ == "__main__":
  main()
