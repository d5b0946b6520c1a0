"""Says before launch what a config needs on a TPU slice, by compiling its true program for it.

  python -m sora_jax.plan --config=configs/dit.py:3b --topology=v5p:4x4x8
  python -m sora_jax.plan --config=configs/dit.py:10b --topology=v5p:4x4x4 --program=sample \
    --size=1920x1080 --frames=81 --mesh=context=8,tensor=8

train is a step of training; sample, all steps of one call of the sampler (a video longer than
--frames is made in windows of that many); vae_decode, a latent frame of each clip made to pixels.
--search tries meshes, the config's own among them, what is recomputed and longer rows for a step of
text_to_video training, and ranks them.
Exit status 1 if it does not fit. It runs on any Linux machine: pip install sora_jax[tpu].
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags, logging

from sora_jax import sharding
from sora_jax.data import transforms
from sora_jax.planning import report, search
from sora_jax.tasks import config_flag, planned
from sora_jax.train import metrics

_CONFIG = config_flag.define()
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
  "search", False, "train, text_to_video: try meshes, model.remat and data.row_len; minutes."
)
_OUT = flags.DEFINE_string("out", "", "A JSON file for the figures.")


def main(argv: list[str]) -> None:
  """Checks the flags, compiles, reports."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compiler alone is needed, no chip
  config = _CONFIG.value.to_dict()
  try:
    if _OUT.value:
      planned.check_out(_OUT.value)
    if _SEARCH.value:
      fits = find(config, argv_of_flags())
    else:
      plan = planned.run(
        config, _TOPOLOGY.value, _MESH.value, _PROGRAM.value, _QUICK.value,
        None if _SIZE.value is None else transforms.parse_size(_SIZE.value), _FRAMES.value,
      )  # fmt: skip
      print(report.text(plan), flush=True)
      fits = plan.fits
      write(report.figures(plan))
  except (ValueError, RuntimeError, OSError) as error:
    sys.exit(f"plan: {error}")
  sys.stderr.flush()
  os._exit(0 if fits else 1)  # without waiting for a compiler that is still at work


def write(told: dict | list) -> None:
  """Writes the figures to --out, if it is given.  Raises: OSError if they cannot be written."""
  if _OUT.value:
    metrics.write_whole(Path(_OUT.value), json.dumps(told, indent=2) + "\n")


def find(config: dict, given: list[str]) -> bool:
  """Searches, prints each choice as it is tried and then all in order; whether one fits.

  given: flags of the command line that every plan shares.
  """
  cut = _SIZE.value is not None or _FRAMES.value is not None
  there = planned.check_search(config, _TOPOLOGY.value, _PROGRAM.value, _MESH.value, cut)
  model, data, train = config["model"], config["data"], config["train"]
  shape = search.Shape(model["width"], model["heads"], train["accumulate"])
  row = (data[name] for name in ("rows", "row_len", "max_segments", "text_row_len"))
  found = search.search(
    search.Choice(tuple(train["mesh"]), model["remat"], *row), shape, len(there.devices),
    lambda choice: compile_apart(given, choice),
    lambda one: print(f"tried {one.choice}: {search.why(one, one)}", flush=True),
  )  # fmt: skip
  print(f"\nbest first, on {there.name}:")
  for one in found:
    print(f"  {one.choice}: {search.why(one, found[0])}", flush=True)
  write([{"choice": str(one.choice), "error": one.error} | (one.figures or {}) for one in found])
  return found[0].fits


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
  app.run(main, flags_parser=config_flag.parser("plan"))
