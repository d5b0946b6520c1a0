"""From a work directory to what the doctor says of it."""

from pathlib import Path

from sora_jax.evaluation import health
from sora_jax.train import checkpoint, metrics

REFERENCES = Path(__file__).parents[2] / "configs" / "references"
FAR = 10
"""Config keys in which a run may differ from the nearest reference's and still be compared."""


def run(workdir: Path, reference: str = "") -> tuple[str, list[health.Finding]]:
  """(name of the reference, findings).

  reference: a file; "" = the one of `configs/references` whose config is nearest. Where none is
    near, the name is "" and the findings are those that need none.
  Raises: ValueError for a folder that is no run's, or without figures yet.
  """
  for name in ("config.json", "metrics.jsonl"):
    if not (workdir / name).is_file():
      raise ValueError(
        f"--workdir={workdir} has no {name}: expected the work directory of a run of sora_jax.main"
      )
  config = checkpoint.flatten(checkpoint.read_config(workdir / "config.json"))
  path = Path(reference) if reference else nearest(config)
  lines = metrics.read(workdir / "metrics.jsonl")
  if path is None:
    return "", health.examine_alone(lines)
  return path.name, health.examine(config, lines, health.read_reference(path))


def nearest(config: dict) -> Path | None:
  """The reference whose config differs in the fewest keys; None if none is near."""
  apart = {
    path: len(health.differing(config, health.read_reference(path).config))
    for path in sorted(REFERENCES.glob("*.json"))
  }
  if not apart or min(apart.values()) > FAR:
    return None
  return min(apart, key=apart.get)
