"""Says whether a run is healthy, beside curves of healthy runs that are shipped with its config.

  python -m sora_jax.doctor --workdir=runs/tiny

It may be asked while the run goes on. Where no reference is near the run's config, it says so and
checks what needs none; experiments/reliability/reference.py makes one. Exit status 1 if something
is wrong.
"""

import sys
from pathlib import Path

from absl import app, flags

from sora_jax.tasks import checkup

NO_REFERENCE = (
  "no reference is shipped for a config like this run's: only what needs none is checked. Make one"
  " of healthy runs with experiments/reliability/reference.py and give it as --reference=FILE"
)

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_REFERENCE = flags.DEFINE_string(
  "reference", "", "A file of configs/references, or of your own; default: the nearest config's."
)


def main(argv: list[str]) -> None:
  """Prints each check; exits with 1 if one fails."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  try:
    name, findings = checkup.run(Path(_WORKDIR.value), _REFERENCE.value)
  except (ValueError, OSError) as error:
    sys.exit(f"doctor: {error}")
  print(f"beside {name}:" if name else NO_REFERENCE)
  for one in findings:
    print(f"  {'ok ' if one.good else 'BAD'}  {one.name:<14} {one.text}")
  sick = [one.name for one in findings if not one.good]
  print("healthy" if not sick else f"not healthy: {', '.join(sick)}")
  sys.exit(1 if sick else 0)


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  app.run(main)
