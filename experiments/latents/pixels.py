"""Writes an autoencoder whose latents are the pixels themselves, 4x4x4 cells as 192 channels.

  python experiments/latents/pixels.py --out=runs/pixels.safetensors

A transformer trained on it shows what a learned autoencoder's latents cost, see README.md.
"""

import argparse
import dataclasses

import jax
import numpy as np

from sora_jax.data.world import World, WorldConfig
from sora_jax.nn import vae
from sora_jax.weights import folder, store

CHANNELS = 192


def identity(config: vae.VAEConfig) -> dict:
  """Parameters that are zero but for the linear paths, which copy."""
  shapes = jax.eval_shape(lambda key: vae.init(config, key), jax.random.key(0))["params"]
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  copy, (encoder, decoder) = np.eye(CHANNELS), (params["encoder"], params["decoder"])
  encoder["shortcut"]["kernel"][0, 1, 1, :, :CHANNELS] = copy
  encoder["quant"]["kernel"][0, 0, 0] = np.eye(2 * CHANNELS)
  decoder["quant"]["kernel"][0, 0, 0] = decoder["shortcut"]["kernel"][0, 1, 1] = copy
  return params


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", required=True)
  flags = parser.parse_args()
  config = dataclasses.replace(vae.SIZES["tiny"], width=32, res_blocks=0, latent=CHANNELS)
  world = World(
    WorldConfig(sizes=((32, 32),), num_clips=64, backgrounds=("black",), radius=(0.18, 0.24))
  )
  clips = [world[i].video_THWC / 127.5 - 1 for i in range(64)]
  pixels = np.concatenate([clip.ravel() for clip in clips])
  level = np.std([clip.mean() for clip in clips]) / pixels.std()
  stats = {
    "mean_Z": pixels.mean(), "std_Z": pixels.std(),
    "level_Z": level, "spread_Z": np.sqrt(1 - level**2),
  }  # fmt: skip
  stats = {name: np.full(CHANNELS, value, np.float32) for name, value in stats.items()}
  tree = {"params": identity(config), "stats": stats}
  size = store.save(flags.out, tree, {"network": folder.plain(config)}, {"about": "pixels"})
  print(f"{flags.out}: {size} bytes")


if __name__ == "__main__":
  main()
