"""Says before launch what a config needs on a TPU slice, by compiling its true program for it.

  python -m sora_jax.plan --config=configs/dit.py:3b --topology=v5p:4x4x8
  python -m sora_jax.plan --config=configs/dit.py:10b --topology=v5p:4x4x4 --program=sample \
    --size=1920x1080 --frames=81 --mesh=context=8,tensor=8

train is a step of training; sample, all steps of one call of the sampler (a video longer than
--frames is made in windows of that many); vae_decode, a latent frame of each clip made to pixels.
--search tries meshes, what is recomputed and longer rows for a training step, and ranks them.
Exit status 1 if it does not fit. It runs on any Linux machine: pip install sora_jax[tpu].
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sora_jax import sharding
from sora_jax.planning import report, search, topology
from sora_jax.tasks import planned
from sora_jax.train import metrics

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "CHIP:SHAPE in chips, like v5p:4x4x8.")
_MESH = flags.DEFINE_string(
  "mesh",
  "",
  "Axes as name=size, like data=2,fsdp=64; default: the config's train.mesh; data for the others.",
)
_PROGRAM = flags.DEFINE_enum("program", "train", planned.PROGRAMS, "What is compiled.")
_SIZE = flags.DEFINE_string(
  "size", None, "sample, vae_decode: WIDTHxHEIGHT in pixels; default: the config's largest."
)
_FRAMES = flags.DEFINE_integer(
  "frames", None, "sample, vae_decode: frames of a call; 1 = a picture; default: the config's most."
)
_QUICK = flags.DEFINE_bool(
  "quick", False, "Stop when memory is assigned: the same figures but for the code's size."
)
_SEARCH = flags.DEFINE_bool(
  "search", False, "train: try meshes, model.remat and data.row_len; minutes."
)
_OUT = flags.DEFINE_string("out", "", "A JSON file for the figures.")


def main(argv: list[str]) -> None:
  """Checks the flags, compiles, reports."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler alone is needed, no chip
  if _SEARCH.value and _PROGRAM.value != "train":
    sys.exit(f"plan: --search is for --program=train, not {_PROGRAM.value}; try --mesh by hand")
  if _SEARCH.value:
    find(_CONFIG.value.to_dict(), _TOPOLOGY.value, argv_of_flags())
  try:
    plan = planned.run(
      _CONFIG.value.to_dict(), _TOPOLOGY.value, _MESH.value, _PROGRAM.value, _QUICK.value,
      None if _SIZE.value is None else planned.size_of(_SIZE.value), _FRAMES.value,
    )  # fmt: skip
  except (ValueError, RuntimeError) as error:
    sys.exit(f"plan: {error}")
  print(report.text(plan), flush=True)
  if _OUT.value:
    metrics.write_whole(Path(_OUT.value), json.dumps(report.figures(plan), indent=2) + "\n")
  sys.stderr.flush()
  os._exit(0 if plan.fits else 1)  # without waiting for a compiler that is still at work


def find(config: dict, name: str, given: list[str]) -> None:
  """Searches, prints each choice as it is tried and then all in order, and exits.

  given: flags of the command line that every plan shares.
  """
  model, data = config["model"], config["data"]
  shape = search.Shape(model["width"], model["heads"], config["train"]["accumulate"])
  row = (data[name] for name in ("rows", "row_len", "max_segments", "text_row_len"))
  try:
    chips = len(topology.describe(name).devices)
    found = search.search(
      search.Choice((chips, 1, 1, 1), model["remat"], *row), shape, chips,
      lambda choice: compile_apart(given, choice),
      lambda one: print(f"tried {one.choice}: {search.why(one, one)}", flush=True),
    )  # fmt: skip
  except (ValueError, RuntimeError) as error:
    sys.exit(f"plan: {error}")
  print(f"\nbest first, on {name}:")
  for one in found:
    print(f"  {one.choice}: {search.why(one, found[0])}")
  if _OUT.value:
    told = [{"choice": str(one.choice), "error": one.error} | (one.figures or {}) for one in found]
    metrics.write_whole(Path(_OUT.value), json.dumps(told, indent=2) + "\n")
  sys.exit(0 if found and found[0].fits else 1)


def argv_of_flags() -> list[str]:
  """This command's flags but for those that `find` sets itself."""
  words = iter(sys.argv[1:])
  kept = []
  for word in words:
    name = word.lstrip("-").split("=")[0]
    if name in ("out", "mesh", "program") and "=" not in word:
      next(words, None)  # its value is the next word
    if name not in ("search", "out", "mesh", "quick", "noquick", "program"):
      kept.append(word)
  return kept


def compile_apart(given: list[str], choice: search.Choice) -> search.Tried:
  """Plans a choice in a process of its own, which takes what its compiler holds with it."""
  mesh = ",".join(f"{name}={size}" for name, size in zip(sharding.MESH_AXES, choice.mesh))
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "plan.json"
    settings = [f"--config.{name}={value}" for name, value in choice.settings.items()]
    command = [sys.executable, "-m", "sora_jax.plan", *given, *settings]
    done = subprocess.run(
      [*command, f"--mesh={mesh}", f"--out={out}", "--quick"], capture_output=True, text=True
    )
    if out.exists():
      return search.Tried(choice, json.loads(out.read_text()))
  lines = done.stderr.strip().splitlines() or ["the compiler ended without a word"]
  return search.Tried(choice, None, lines[-1].removeprefix("plan: "))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main)
