"""How a sampler of a model works by default, for `release.py` to change."""

import json

from sora_jax.prompting.sampling import Method

NAMES = ("solver", "steps", "grid", "guidance", "guidance_interval", "fps")


def changed(sampling, text):
  """The sampler's defaults, changed as the JSON `text` of --sampling says."""
  try:
    changes = dict(json.loads(text))
    if unknown := sorted(changes.keys() - set(NAMES)):
      raise ValueError(f"it names {', '.join(unknown)} and takes {', '.join(NAMES)}")
    found = {"grid": "uniform", "guidance_interval": (0.0, 1.0)} | dict(sampling) | changes
    Method(found["solver"], found["steps"], found["grid"], found["guidance_interval"])
  except (TypeError, ValueError) as error:
    raise SystemExit(f"release: --sampling={text}: {error}") from error
  return found
