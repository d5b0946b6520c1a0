"""The trained video autoencoder that a config names, or the shape of one that is yet to be."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from sora_jax.nn import vae as vae_lib
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store
from sora_jax.weights.folder import Network


class Autoencoder(NamedTuple):
  """A trained VAE: the network, its variables with latent statistics, and their hash."""

  network: vae_lib.CausalVAE
  variables: dict
  weights: Network
  hash: str


def load_autoencoder(name: str) -> Autoencoder:
  """Reads a VAE by the name of a shipped model, a file, a model folder or a work directory.

  Raises: ValueError that says what was looked for.
  """
  shipped = store.shipped("vae.safetensors")
  places = [Path(name), Path(name) / "vae.safetensors", Path(name) / "model" / "vae.safetensors"]
  if name in shipped:
    places = [shipped[name] / "vae.safetensors"]
  path = next((place for place in places if place.is_file()), None)
  if path is None:
    size = name if name in vae_lib.SIZES else "SIZE"
    raise ValueError(
      f"config.vae.weights is {name!r}: neither a shipped model"
      f" ({', '.join(shipped) or 'none is shipped'}), nor a safetensors file, nor a folder with"
      f" one; train configs/vae.py:{size} first, then give its work directory as"
      " --config.vae.weights"
    )
  tree, config, told = store.load(path)
  network = vae_lib.CausalVAE(vae_lib.VAEConfig(**folder_lib.frozen(config["network"])))
  logging.info("video autoencoder: %s", path)
  return Autoencoder(network, tree, Network(tree, config, told["provenance"]), store.hash_of(tree))


def factors(config) -> tuple[int, int, int]:
  """(f_t, f_s, Z) of a VAE's config."""
  return config.temporal, config.spatial, config.latent


def untrained(size: str) -> Autoencoder:
  """An autoencoder of a size of `nn.vae.SIZES` without weights, to plan with: statistics alone."""
  network = vae_lib.CausalVAE(vae_lib.SIZES[size])
  one_Z = np.ones(network.config.latent, np.float32)
  stats = {name: one_Z for name in ("mean_Z", "std_Z", "spread_Z", "level_Z")}
  config = {"network": folder_lib.plain(network.config)}
  return Autoencoder(network, {"stats": stats}, Network({}, config), "")
