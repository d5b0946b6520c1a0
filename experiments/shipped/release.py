"""Turns what training runs have left into a shipped model.

  python experiments/shipped/release.py --vae=runs/vae_tiny [--dit=runs/dit_tiny] \
    --figures=runs/shipped --to=sora_jax/weights/tiny

Writes vae.safetensors, text.safetensors, dit.safetensors, dit_high.safetensors if there is a second
transformer, for high noise, the tokenizer, and provenance.json: all legs of training, the figures
of the evaluate_*.py scripts, and those that `evaluation/release.py` finds on the files as written,
for a test to reproduce. Without --dit, the VAE alone. A transformer of another VAE's latents is
refused. --sampling='{"grid": "quadratic"}' changes how a sampler of the model works by default,
with the weights as they are. Files above 12 MB, and all if they have more than 24 MB, are stored as
float16. Prints one JSON object as its last line.
"""

import json
import pathlib
import shutil

import defaults
import harness
import legs
import numpy as np
from absl import app, flags

from sora_jax import model as model_lib
from sora_jax.evaluation import arguments, release
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

VAE = flags.DEFINE_string("vae", None, "Work directory, folder or file of the VAE.")
DIT = flags.DEFINE_string("dit", None, "Work directory or folder of text encoder and transformer.")
SAMPLING = flags.DEFINE_string("sampling", None, "JSON: the sampler's defaults to change.")
TO = flags.DEFINE_string("to", "sora_jax/weights/tiny", "Folder to write.")
FIGURES = flags.DEFINE_multi_string("figures", [], "Folders with what evaluate_*.py wrote.")
DTYPE = flags.DEFINE_enum("store_dtype", "auto", ["auto", "float32", "float16"], "Of the files.")
MAX_BYTES = 24 * 1024 * 1024
"""Limit on the sum of files."""


def read_vae(name):
  """(network, provenance) of a VAE."""
  path = pathlib.Path(name)
  for place in (path, path / "vae.safetensors", path / "model" / "vae.safetensors"):
    if place.is_file():
      tree, config, metadata = store.load(place)
      return folder_lib.Network(tree, config), metadata["provenance"]
  raise SystemExit(f"release: {name} holds no vae.safetensors; train a VAE first")


def same_latents(given, trained_with):
  """Whether two VAEs agree, up to storage as float16."""
  a, b = (store.flatten(network.tree) for network in (given, trained_with))
  return a.keys() == b.keys() and all(
    a[name].shape == b[name].shape and np.allclose(a[name], b[name], rtol=2e-3, atol=1e-6)
    for name in a
  )


def gather():
  """(networks, stories by network, tokenizer's file or None)."""
  vae, vae_story = read_vae(VAE.value)
  if (vae_story or {}).get("config", {}).get("task") != "vae":
    raise SystemExit(f"release: {VAE.value} tells no training of a VAE; give the run that made it")
  if not DIT.value:
    return {"vae": vae}, {"vae": vae_story}, None
  with arguments.refusing():
    source = folder_lib.find(DIT.value)
    networks = folder_lib.read(source)
  if not same_latents(vae, networks["vae"]):
    raise SystemExit(f"release: {DIT.value} was trained on latents of another VAE than {VAE.value}")
  if SAMPLING.value:
    networks["dit"].config["sampling"] = defaults.changed(
      networks["dit"].config["sampling"], SAMPLING.value
    )
  stories = {"vae": vae_story, "text and dit": networks["dit"].story}
  if store.HIGH in networks:
    stories["high-noise dit"] = legs.since(networks[store.HIGH].story, networks["dit"].story)
  tokenizer = source / folder_lib.TOKENIZER_NAME
  return networks | {"vae": vae}, stories, tokenizer if tokenizer.is_file() else None


def write(to, networks, stories):
  """Writes the weights; each file tells how it alone was made."""
  sizes = {
    name: sum(leaf.nbytes for leaf in store.flatten(network.tree).values())
    for name, network in networks.items()
  }
  stored = {}
  for name, network in networks.items():
    large = sizes[name] > 0.99 * store.MAX_SHIPPED_BYTES or sum(sizes.values()) > 0.98 * MAX_BYTES
    half = DTYPE.value == "float16" or (DTYPE.value == "auto" and large)
    path = to / f"{name}.safetensors"
    story = stories["vae"] if name == "vae" else network.story
    size = store.save(
      path, network.tree, folder_lib.plain(network.config), story,
      store_dtype="float16" if half else None,
    )  # fmt: skip
    if size > store.MAX_SHIPPED_BYTES:
      raise SystemExit(f"release: {path} has {size} bytes, allowed are {store.MAX_SHIPPED_BYTES}")
    stored[path.name] = {"bytes": size, "hash": store.hash_of(path)}
    stored[path.name]["dtype"] = "float16" if half else "float32"
  return stored


def validation():
  """What the evaluate_*.py scripts have written."""
  found = {}
  for folder in FIGURES.value:
    for name in ("vae", "detector", "dit", "dit_large", "draft", "prompting"):
      path = pathlib.Path(folder) / f"{name}.json"
      if path.is_file():
        found[name] = json.loads(path.read_text())
  return found


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  networks, stories, tokenizer = gather()
  story, figures, to = legs.merged(stories), validation(), pathlib.Path(TO.value)
  to.mkdir(parents=True, exist_ok=True)
  files = write(to, networks, stories)
  if tokenizer and tokenizer.resolve() != (to / tokenizer.name).resolve():
    shutil.copyfile(tokenizer, to / tokenizer.name)
  harness.say("measuring the files as written")
  if "dit" in networks:
    checked = release.check(model_lib.from_folder(to))
  else:
    checked = {"vae": release.vae_check(harness.Autoencoder(str(to)))}
  story |= {"files": files, "validation": figures, "check": checked}
  (to / folder_lib.PROVENANCE_NAME).write_text(json.dumps(story, indent=2) + "\n")
  total = sum(path.stat().st_size for path in to.iterdir())
  if total > MAX_BYTES:
    raise SystemExit(f"release: {to} has {total} bytes, allowed are {MAX_BYTES}; store as float16")
  print(json.dumps({"to": str(to), "bytes": total, "files": files, "check": checked}))


if __name__ == "__main__":
  flags.mark_flag_as_required("vae")
  app.run(main)
