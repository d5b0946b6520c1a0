"""Makes golden/dit.npz and golden/wan.npz: random tiny diffusers transformers and what they give.

Run: python tests/golden/make_dit.py  (needs torch and diffusers, the `oracle` extra)
"""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent


def randomised(model, seed):
  """A fresh model is partly zero, which would hide mistakes: every weight becomes random."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      near = 1.0 if "norm_" in name or name.endswith("norm2.weight") else 0.0
      noise = torch.randn(weight.shape, generator=generator)
      weight.copy_(near + noise * (0.3 if weight.ndim < 2 else weight.shape[-1] ** -0.5))
  return model.eval()


def case(model, **inputs):
  """Weights, config, inputs and output of a model as flat arrays."""
  import torch

  with torch.no_grad():
    out = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).sample
  weights = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
  arrays = {f"inputs/{key}": value for key, value in inputs.items()}
  config = np.array(json.dumps({k: v for k, v in model.config.items() if not k.startswith("_")}))
  return {**weights, **arrays, "output": out.numpy(), "config": config}


def make_dit(seed=0):
  """adaLN-zero with class labels; one embedder copied to all blocks, as published weights have."""
  from diffusers import DiTTransformer2DModel

  model = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
    sample_size=8, patch_size=2, num_embeds_ada_norm=8, norm_eps=1e-6,
  )  # fmt: skip
  randomised(model, seed)
  first = model.transformer_blocks[0].norm1.emb.state_dict()
  model.transformer_blocks[1].norm1.emb.load_state_dict(first)
  rng = np.random.default_rng(seed)
  return case(
    model,
    hidden_states=rng.normal(size=(3, 4, 8, 8)).astype(np.float32),
    timestep=np.array([0, 371, 999]),
    class_labels=np.array([2, 7, 8]),
  )


def make_wan(seed=0):
  """Shared modulation, norm across heads, rotary positions, text."""
  from diffusers import WanTransformer3DModel

  model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
    out_channels=4, text_dim=16, freq_dim=64, ffn_dim=32, num_layers=2, cross_attn_norm=True,
  )  # fmt: skip
  randomised(model, seed)
  rng = np.random.default_rng(seed)
  return case(
    model,
    hidden_states=rng.normal(size=(2, 4, 3, 6, 8)).astype(np.float32),
    timestep=np.array([13.0, 800.0], np.float32),
    encoder_hidden_states=rng.normal(size=(2, 9, 16)).astype(np.float32),
  )


if __name__ == "__main__":
  for name, make in (("dit", make_dit), ("wan", make_wan)):
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **make())
    print(path, path.stat().st_size)
