"""Sampling and decoding with eight devices, against one: a model folder with random weights.

One JSON line each: videos made on a mesh that splits rows, tokens, heads and parameters, lines and
columns, with the largest difference; and how many whole frames of features the split decoder's
program holds.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile

import jax
import numpy as np
from gradients import noisy, task

from sora_jax import model, sharding
from sora_jax.nn import vae, vae_streaming
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store
from sora_jax.weights.folder import Network

VAE = vae.VAEConfig(width=8, mult=(1, 2, 2), latent=4, time_down=(False, True))
MESH = (1, 2, 2, 2)
fresh = jax.jit(functools.partial(vae.init, VAE))
"""Variables of the autoencoder, of a key."""


def write(path: pathlib.Path) -> None:
  """A model folder: the networks of `gradients.task`, and a small autoencoder."""
  job = task()
  job = dataclasses.replace(
    job, dit=job.dit.clone(config=dataclasses.replace(job.dit.config, in_channels=10))
  )
  params = noisy(job)
  variables = jax.device_get(fresh(jax.random.key(1)))
  noise = np.random.default_rng(0)
  variables["params"] = jax.tree.map(
    lambda x: x + 0.1 * noise.standard_normal(x.shape).astype("f"), variables["params"]
  )
  dit = {
    "network": job.dit.config, "diffusion": {"prediction": "x", "shift_reference": 8.0},
    "rows": {"row_len": 64, "max_segments": 4, "text_row_len": 64},
    "sampling": {"solver": "euler", "steps": 2, "guidance": 2.0, "fps": 8.0}, "prompts": False,
  }  # fmt: skip
  networks = {
    "vae": Network(variables, {"network": folder_lib.plain(VAE)}),
    "text": Network(params["text"], {"network": job.text.config, "tokenizer": "bytes"}),
    "dit": Network(params["dit"], dit),
    store.HIGH: Network(jax.tree.map(lambda x: 1.1 * x, params["dit"]), dit | {"above": 0.5}),
  }
  folder_lib.write(path, networks, None, {})


def main():
  with tempfile.TemporaryDirectory() as folder:
    write(pathlib.Path(folder) / "model")
    alone = model.load(folder)
    asked = dict(prompt=["a", "bc"], size=[(32, 16), (16, 32)], frames=[3, 1], seed=[0, 1])
    want = alone.generate(**asked)
    split = model.load(folder, MESH)
    got = split.generate(**asked)
    error = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(got, want))
    parts = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(split._params))
    print(json.dumps({"name": "videos", "error": error, "parts": parts}))
  print(json.dumps({"name": "decoder", "whole": whole_frames()}))


def whole_frames() -> list[int]:
  """Arrays of the decoder's program as wide and high as whole features: split, and not."""
  found = []
  for shape in (MESH, (8, 1, 1, 1)):
    mesh = sharding.make_mesh(shape)
    put = lambda x: jax.device_put(x, sharding.fitting(mesh, vae.AXES, x.shape))  # noqa: E731, B023
    variables = jax.device_put(fresh(jax.random.key(0)), sharding.replicated(mesh))
    run, latent = vae_streaming.programs(VAE), put(np.zeros((1, 1, 8, 8, 4), np.float32))
    _, state = run["decode_first"](variables, latent)
    text = run["decode_next"].lower(variables, state, latent).compile().as_text()
    found.append(
      sum(text.count(f"f32[{n},32,32,8]") for n in (1, 2)) + text.count("f32[1,2,32,32,8]")
    )
  return found


if __name__ == "__main__":
  main()
