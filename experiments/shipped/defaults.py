"""How a sampler of a model works by default, for `release.py` to change."""

import json
import math

from sora_jax.prompting.sampling import Method

METHOD = {
  "solver": "solver", "steps": "steps", "grid": "grid", "extend_grid": "grid",
  "extend_stages": "stages", "guidance_interval": "interval",
}  # fmt: skip
"""Defaults that are a `Method`'s, and what it calls them."""
NAMES = (*METHOD, "guidance", "fps")


def changed(sampling, text):
  """The sampler's defaults, changed as the JSON `text` of --sampling says."""
  try:
    changes = dict(json.loads(text))
    if unknown := sorted(changes.keys() - set(NAMES)):
      raise ValueError(f"it names {', '.join(unknown)} and takes {', '.join(NAMES)}")
    found = dict(sampling) | changes
    for name in METHOD.keys() & found.keys():
      Method(**{METHOD[name]: found[name]})
    if not (math.isfinite(found["guidance"]) and 0 < found["fps"] < math.inf):
      raise ValueError("guidance must be a number, and fps one above 0")
  except (TypeError, ValueError) as error:
    raise SystemExit(f"release: --sampling={text}: {error}") from error
  return found
