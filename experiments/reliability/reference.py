"""Makes the reference of healthy runs that the doctor compares with, and plants faults for it.

  python experiments/reliability/reference.py --steps=600 --seeds=3
  python experiments/reliability/reference.py --steps=300 --plant=lr

  python experiments/reliability/reference.py --name=vae:tiny --steps=200 --of=1000

The first trains the main job's config (or that of --name) with several seeds, without a time
budget, and writes configs/references/NAME.json. The second trains it with a fault: a learning rate
ten times too high, a layer whose updates are lost, captions dealt out anew among the clips, or none
(another seed), and prints what the doctor says of it. The schedule is that of --of steps.
"""

import dataclasses
import importlib
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
from absl import app, flags, logging

from sora_jax import main
from sora_jax.evaluation import health
from sora_jax.tasks import checkup, text_to_video
from sora_jax.train import checkpoint, host_memory, metrics, processors
from sora_jax.train import optimizer as optimizer_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
EVERY = 25
LAYER = ("mlp", "up")
"""Part of the path of what "frozen" freezes, in block 2."""

_NAME = flags.DEFINE_string("name", "tiny", "A file of configs/, with a size: vae:tiny.")
_STEPS = flags.DEFINE_integer("steps", 600, "Steps after which a run is stopped.")
_OF = flags.DEFINE_integer("of", 900, "Length of the schedule: about what a run takes.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Healthy runs, 2 and up.")
_PLANT = flags.DEFINE_enum(
  "plant", None, ["lr", "frozen", "captions", "none"], "A fault to train with instead."
)
_FOLDER = flags.DEFINE_string("folder", "runs/reference", "Where the runs are.")


def config():
  """The config of --name."""
  name, _, size = _NAME.value.partition(":")
  return importlib.import_module(f"configs.{name}").get_config(*([size] if size else []))


def train(workdir: pathlib.Path, seed: int, **changes) -> None:
  """Trains the config for --steps of a schedule of --of steps; goes on with what is there."""
  c = config()
  c.train.update({"minutes": 0.0, "steps": _OF.value, "seed": seed, "log_every": 5,
                  "eval_every": 100, "save_every": 100})  # fmt: skip
  c.update_from_flattened_dict(changes)
  stop = main.loop.run

  def stopped(task, loop_config, optimizer, folder, never):
    del never
    return stop(task, loop_config, optimizer, folder, lambda step: step >= _STEPS.value)

  main.loop.run = stopped
  try:
    main.run(c.to_dict(), workdir)
  finally:
    main.loop.run = stop


def plant(fault: str) -> dict:
  """Puts a fault in; returns changes to the config."""
  if fault == "lr":
    return {"optimizer.lr": 10 * config().optimizer.lr}
  if fault == "frozen":
    make = optimizer_lib.make

    def lose(path, update):
      return update.at[2].set(0) if named(path, LAYER) else update

    def lossy(given, axes=None):
      inner = make(given, axes)

      def update(grads, state, params=None):
        updates, state = inner.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(lose, updates), state

      return inner._replace(update=update)

    optimizer_lib.make = lossy
  if fault == "captions":
    rows = text_to_video.TextToVideo._rows

    def dealt(self, source, given):
      return rows(self, Dealt(source) if source is self.sources.train else source, given)

    text_to_video.TextToVideo._rows = dealt
  return {}


class Dealt:
  """Clips with each other's captions."""

  def __init__(self, source):
    self._source = source
    self._order = np.random.default_rng(0).permutation(len(source))

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    other = self._source[int(self._order[int(i)])]
    return dataclasses.replace(self._source[int(i)], captions=other.captions)

  def __getattr__(self, name):
    return getattr(self._source, name)


def named(path: tuple, parts: tuple[str, ...]) -> bool:
  """Whether a parameter's path holds these names, one after the other."""
  keys = [str(getattr(key, "key", key)) for key in path]
  return any(tuple(keys[i : i + len(parts)]) == parts for i in range(len(keys)))


def main_(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  if _SEEDS.value < 2:
    sys.exit(
      f"reference: --seeds={_SEEDS.value}: expected 2 or more healthy runs, as one tells nothing of"
      " how far they lie apart; 3 are the default"
    )
  logging.set_verbosity(logging.INFO)
  sys.path.insert(0, str(ROOT))
  c = config()
  host_memory.keep_freed_memory(main.HEAP)
  processors.share_out(c.train.mesh, c.data.rows if c.task != "vae" else 1)
  folder = pathlib.Path(_FOLDER.value)
  data = folder / "seed0" / "data"
  if _PLANT.value:
    fault = _PLANT.value
    workdir = folder / fault
    if data.is_dir() and not workdir.is_dir():
      shutil.copytree(data, workdir / "data")
    train(workdir, 100, **plant(fault))
    name, findings = checkup.run(workdir)
    said = {one.name: [one.good, one.text] for one in findings}
    print(json.dumps({"planted": fault, "beside": name, "found": said}))
    return
  for seed in range(_SEEDS.value):
    workdir = folder / f"seed{seed}"
    if seed and not workdir.is_dir():
      shutil.copytree(data, workdir / "data")
    train(workdir, seed)
  workdirs = [folder / f"seed{seed}" for seed in range(_SEEDS.value)]
  trained = checkpoint.flatten(json.loads((workdirs[0] / "config.json").read_text()))
  runs = [metrics.read(workdir / "metrics.jsonl") for workdir in workdirs]
  made = health.make_reference(trained, runs, EVERY)
  path = checkup.REFERENCES / f"{_NAME.value.replace(':', '_')}.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(dataclasses.asdict(made)) + "\n")
  print(json.dumps({"to": str(path.relative_to(ROOT)), "runs": made.runs, "steps": made.steps[-1]}))


if __name__ == "__main__":
  app.run(main_)
