"""Makes golden/wan_vae.npz: a random tiny diffusers AutoencoderKLWan and what it gives.

Run: python tests/golden/make_wan_vae.py  (needs torch and diffusers, the `oracle` extra)
"""

import json
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parent / "wan_vae.npz"


def make(seed=0, base_dim=4, mult=(1, 1, 1, 1), frames=9, side=16):
  """Weights, config, a clip, and the posterior and the frames of that clip, as flat arrays."""
  import torch
  from diffusers import AutoencoderKLWan

  model = AutoencoderKLWan(
    base_dim=base_dim, z_dim=4, dim_mult=list(mult), num_res_blocks=1,
    temperal_downsample=[False, True, True],
    latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
  )  # fmt: skip
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn(weight.shape, generator=generator)
      if name.endswith("gamma"):
        weight.copy_(1.0 + 0.2 * noise)
      else:
        fan_in = weight[0].numel() if weight.ndim > 1 else 25
        weight.copy_(noise * fan_in**-0.5)
  model = model.eval()
  rng = np.random.default_rng(seed)
  video = rng.uniform(-1, 1, size=(1, 3, frames, side, side)).astype(np.float32)
  with torch.no_grad():
    posterior = model.encode(torch.from_numpy(video)).latent_dist
    decoded = model.decode(posterior.mean * 0.3).sample
  config = {k: v for k, v in model.config.items() if not k.startswith("_")}
  return {
    **{f"weights/{name}": value.numpy() for name, value in model.state_dict().items()},
    "config": np.array(json.dumps(config)),
    "video": video,
    "mean": posterior.mean.numpy(),
    "logvar": posterior.logvar.numpy(),
    "decoded": decoded.numpy(),
  }


if __name__ == "__main__":
  np.savez_compressed(PATH, **make())
  print(PATH, PATH.stat().st_size)
