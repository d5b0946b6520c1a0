"""Writes the averaged weights of a run as a model folder, to sample from while the run goes on.

  python -m sora_jax.export --workdir=runs/dit [--step=2000] [--out=runs/dit/model]

A run writes model/ by itself when it ends; from then on --out must name another folder. This reads
a checkpoint, by default the newest, on one device, whatever mesh the run has; the run is neither
stopped nor changed. What it writes is for `sora_jax.load`, `sora_jax.generate --model` and
`--config.train.init_from`.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from sora_jax.tasks import averages

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_integer("step", 0, "Step of the checkpoint; 0: the newest.")
_OUT = flags.DEFINE_string("out", "", "Model folder to write; default: WORKDIR/model.")


def main(argv: list[str]) -> None:
  """Prints where the weights are, and of which step."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  workdir = Path(_WORKDIR.value)
  try:
    step, out = averages.write(workdir, _STEP.value, Path(_OUT.value) if _OUT.value else None)
  except (ValueError, OSError) as error:
    logging.debug("where it happened", exc_info=True)
    sys.exit(f"export: {error}")
  print(f"weights of step {step} in {out}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  app.run(main)
