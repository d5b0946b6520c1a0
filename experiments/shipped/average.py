"""Averages the weights of models that training has led from one to the next.

  python experiments/shipped/average.py --models=runs/sp2,runs/sp3 --to=runs/averaged
    [--shares=0.5,0.5]

Legs that go on from each other end near enough that a point between their weights does the work of
both: what one leg has learnt and the next lost again is still there. Writes a model folder with
the text encoder and transformers so made; all else is the last model's, and so is the story of
their legs, the last of which tells of the averaging. What is the same in all models stays so, story
and all. Prints one JSON object as its last line. Source: Wortsman et al. 2022 (model soups, arXiv
2203.05482).
"""

import json
import math
import pathlib
import shlex
import sys

import numpy as np
from absl import app, flags

from sora_jax.evaluation import arguments
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

MODELS = flags.DEFINE_list("models", None, "Model folders or work directories, comma-separated.")
SHARES = flags.DEFINE_list("shares", None, "Of each model; they add up to 1. Equal by default.")
TO = flags.DEFINE_string("to", None, "Model folder to write.")


def read_shares():
  """Share of each model."""
  count = len(MODELS.value)
  try:
    shares = [1 / count] * count if SHARES.value is None else [float(word) for word in SHARES.value]
  except ValueError:
    shares = []
  if len(shares) != count or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
    given = ",".join(SHARES.value)
    raise SystemExit(f"average: --shares={given}; give {count} numbers that add up to 1")
  return shares


def averaged(networks, shares, name):
  """The network `name` of all models, as one."""
  if missing := [folder for folder, each in zip(MODELS.value, networks) if name not in each]:
    raise SystemExit(f"average: {missing[0]} has no {name}, which another model has")
  trees, last = [store.flatten(each[name].tree) for each in networks], networks[-1][name]
  shapes = [{key: np.shape(leaf) for key, leaf in tree.items()} for tree in trees]
  for folder, found in zip(MODELS.value, shapes):
    if found != shapes[-1]:
      raise SystemExit(
        f"average: the {name} of {folder} has other parameters than the last model's"
      )
  if all(np.array_equal(tree[key], leaf) for tree in trees for key, leaf in trees[-1].items()):
    return last
  tree = {
    key: sum(s * np.asarray(tree[key], np.float64) for s, tree in zip(shares, trees)).astype("f")
    for key in trees[-1]
  }
  return folder_lib.Network(store.unflatten(tree), last.config, noted(last.story))


def noted(story):
  """The story of a network whose last leg tells of the averaging."""
  *legs, last = story.get("legs") or [story]
  command = f"python experiments/shipped/average.py {shlex.join(sys.argv[1:])}"
  last = last | {"note": f"its weights averaged with those of other legs: {command}"}
  return story | {"legs": [*legs, last]}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  shares = read_shares()
  with arguments.refusing():
    folders = [folder_lib.find(name) for name in MODELS.value]
    networks = [folder_lib.read(folder) for folder in folders]
  names = {name for each in networks for name in each} - {"vae"}
  made = {name: averaged(networks, shares, name) for name in sorted(names, reverse=True)}
  tokenizer = folders[-1] / folder_lib.TOKENIZER_NAME
  folder_lib.write(
    TO.value, networks[-1] | made, tokenizer.read_bytes() if tokenizer.is_file() else None,
    made[max(names & set(folder_lib.DENOISERS))].story,
  )  # fmt: skip
  print(json.dumps({"to": str(pathlib.Path(TO.value)), "models": MODELS.value, "shares": shares}))


if __name__ == "__main__":
  flags.mark_flags_as_required(["models", "to"])
  app.run(main)
