"""From a work directory to what the doctor says of it."""

import dataclasses
import json
import runpy
from collections.abc import Mapping
from pathlib import Path

from sora_jax.evaluation import health
from sora_jax.train import checkpoint, metrics

BASE = Path(__file__).parents[2] / "configs" / "base.py"
REFERENCES = BASE.parent / "references"
FAR = 10
"""Config keys in which a run may differ from the nearest reference's and still be compared."""
LOSS = {
  "text_to_video": ("vae.weights", "text.", "model.", "diffusion."),
  "vae": ("vae.size", "vae.frames", "vae.latent_noise", "vae.noise_from", "vae.loss."),
}
"""By task, beginnings of config keys of which each alone makes a loss of another kind or course:
what is predicted by which network, how errors are weighed, and the noise among them."""
SPEED = ("text.dtype", "model.dtype", "model.remat", "model.scan_unroll")
"""Those among them that leave the loss what it is, but for rounding."""


def run(workdir: Path, reference: str = "") -> tuple[str, list[health.Finding]]:
  """(name of the reference, findings).

  reference: a file; "" = the one of `configs/references` whose config is nearest. Where none is
    near, the name is "" and the findings are those that need none.
  Keys that the run's config or the reference's lacks, because it is older, count as at their
  defaults.
  Raises: ValueError for a folder that is no run's, or without figures yet.
  """
  for name in ("config.json", "metrics.jsonl"):
    if not (workdir / name).is_file():
      raise ValueError(
        f"--workdir={workdir} has no {name}: expected the work directory of a run of sora_jax.main"
      )
  config = whole(checkpoint.flatten(checkpoint.read_config(workdir / "config.json")))
  path = Path(reference) if reference else nearest(config)
  lines = metrics.read(workdir / "metrics.jsonl")
  if path is None:
    return "", health.examine_alone(lines)
  there = health.read_reference(path)
  there = dataclasses.replace(there, config=whole(there.config))
  return path.name, health.examine(config, lines, there)


def nearest(config: Mapping) -> Path | None:
  """The reference whose config differs in the fewest keys, and in none that changes the loss; None
  if none is near.  config: flattened."""
  config, apart = whole(config), {}
  for path in sorted(REFERENCES.glob("*.json")):
    names = health.differing(config, whole(health.read_reference(path).config))
    if len(names) <= FAR and not any(changes_loss(name, config["task"]) for name in names):
      apart[path] = len(names)
  return min(apart, key=apart.get, default=None)


def changes_loss(name: str, task: str) -> bool:
  """Whether runs of a task whose configs differ in this key have losses that are not comparable."""
  if name in ("task", "train.init_from"):
    return True
  return name.startswith(LOSS.get(task, ())) and name not in SPEED


def whole(config: Mapping) -> dict:
  """A flattened config with the keys that it lacks at their defaults, those of configs/base.py."""
  defaults = runpy.run_path(str(BASE))["get_config"]().to_dict() if BASE.is_file() else {}
  return checkpoint.flatten(json.loads(json.dumps(defaults))) | dict(config)
