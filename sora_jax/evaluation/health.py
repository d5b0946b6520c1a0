"""Is a run healthy? Its curves beside those of runs that were, and what they say when it is not.

A reference is made of several healthy runs of one config (`experiments/reliability/reference.py`):
their figures at the same steps, the mean of each and how far the runs lie apart.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FAR = 6.0
"""Deviations of healthy runs from each other beyond which a curve is not theirs."""
LEAST = {"loss": 0.03, "grad_norm": 0.25}
"""The least that a deviation of log values counts for: three runs may agree by chance."""
GAIN = 0.4
"""Share of the reference's gain from captions below which they are not being read."""
PARTS, RISE, EARLY = 8, 1.2, 100
"""Parts of a run whose mean losses are compared without a reference; how far the last may lie above
the best (of twelve healthy runs at most 6 %, of one with ten times the rate 26 times); and the step
before which neither they nor captions tell anything."""
FREE = ("train.log_every", "train.eval_every", "train.save_every", "train.keep", "train.steps",
        "train.minutes", "train.prefetch", "train.seed", "train.mesh", "train.context",
        "data.workers", "data.processes", "data.folder", "evaluation.")  # fmt: skip
"""Config keys that may differ from a reference's without being listed."""


class Finding(NamedTuple):
  """One check: what it looked at, whether that is as it should be, and the figures."""

  name: str
  good: bool
  text: str


@dataclasses.dataclass(frozen=True)
class Reference:
  """Figures of healthy runs.

  Attributes: config: flattened.  steps: at which curves are given.  curves: by name ("loss",
    "grad_norm"), (mean, deviation) of the logarithm over runs at each of `steps`.  lr: at each.
    gains: (step, mean gain from captions) of each evaluation; none where there are no captions.
    runs: how many.
  """

  config: Mapping[str, object]
  steps: Sequence[int]
  curves: Mapping[str, Sequence[Sequence[float | int]]]
  lr: Sequence[float | int]
  gains: Sequence[Sequence[float | int]]
  runs: int


def read_reference(path: Path) -> Reference:
  """Raises: ValueError if the file is none."""
  try:
    return Reference(**json.loads(Path(path).read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{path} is no reference of healthy runs ({error}); make one with"
      " experiments/reliability/reference.py"
    ) from error


def make_reference(config: Mapping, runs: Sequence[Sequence[Mapping]], every: int) -> Reference:
  """A reference of runs' figures.  Args: runs: lines of each `metrics.jsonl`.  every: steps between
  the points of its curves; each is the mean over as many steps."""
  last = min(max(line["step"] for line in lines if "loss" in line) for lines in runs)
  steps = list(range(every, last + 1, every))
  curves = {}
  for name in LEAST:
    values_NJ = np.array([curve(lines, name, steps, every) for lines in runs])
    curves[name] = np.stack([values_NJ.mean(0), values_NJ.std(0, ddof=1)]).round(5).tolist()
  lr = np.exp(np.mean([curve(lines, "lr", steps, every) for lines in runs], 0))
  points = [dict(gains(lines)) for lines in runs]
  mean = [[at, float(np.mean([p[at] for p in points]))] for at in points[0]]
  return Reference(config, steps, curves, lr.round(8).tolist(), mean, len(runs))


def curve(lines: Sequence[Mapping], name: str, steps: Sequence[int], every: int) -> np.ndarray:
  """Logarithm of a figure's mean over the steps (s - every, s] of each s; nan if there is none."""
  at = np.array([line["step"] for line in lines if line.get(name)])
  values = np.array([line[name] for line in lines if line.get(name)])
  found = [values[(at > s - every) & (at <= s)] for s in steps]
  return np.array([math.log(v.mean()) if len(v) else math.nan for v in found])


def gains(lines: Sequence[Mapping]) -> list[tuple[int, float]]:
  """(step, gain from captions) of each evaluation."""
  name = "heldout/caption_gain"
  return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def examine(config: Mapping, lines: Sequence[Mapping], reference: Reference) -> list[Finding]:
  """Compares a run's figures with a reference's.

  Args: config: the run's, flattened.  lines: of its `metrics.jsonl`.
  Raises: ValueError if the run has not reached the reference's first point.
  """
  steps = [s for s in reference.steps if s <= max((x["step"] for x in lines), default=0)]
  if not steps:
    raise ValueError(
      f"the run has not reached step {reference.steps[0]}, the first that there is a reference for"
    )
  every = reference.steps[0]
  findings = [same_config(config, reference), learning_rate(lines, reference, steps, every)]
  findings += [near(name, lines, reference, steps, every) for name in LEAST]
  findings += [reads_captions(lines, reference)] if reference.gains else []
  return [*findings, learns(lines), skips(lines)]


def examine_alone(lines: Sequence[Mapping]) -> list[Finding]:
  """What a run's own figures say where there is no reference for it.

  Raises: ValueError if there are none yet.
  """
  losses = [line["loss"] for line in lines if "loss" in line]
  if not losses:
    raise ValueError("the run has logged no loss yet")
  early = max(line["step"] for line in lines) < EARLY
  said = f"; before step {EARLY} that says little" if early else ""
  parts = [float(np.mean(part)) for part in np.array_split(losses, PARTS) if len(part)]
  text = f"{parts[-1]:.4g} at the end, {min(parts):.4g} at its best{said}"
  findings = [Finding("loss", early or parts[-1] < RISE * min(parts), text)]
  if gains(lines):
    at, gain = gains(lines)[-1]
    text = f"the captions of other clips raise the loss by {gain:.4f} at step {at}{said}"
    findings.append(Finding("captions", early or gain > 0, text))
  return [*findings, learns(lines), skips(lines)]


def same_config(config: Mapping, reference: Reference) -> Finding:
  """Lists what differs; it is for the reader to judge, and counts as good."""
  names = differing(config, reference.config)
  other = [f"{name} is {config.get(name)}, there {reference.config.get(name)}" for name in names]
  return Finding("config", True, "; ".join(other) or "as the reference's")


def differing(config: Mapping, other: Mapping) -> list[str]:
  """Keys of two flattened configs whose values differ, but for those that may."""
  names = sorted(config.keys() | other.keys())
  return [
    name for name in names if config.get(name) != other.get(name) and not name.startswith(FREE)
  ]


def learning_rate(
  lines: Sequence[Mapping], reference: Reference, steps: Sequence[int], every: int
) -> Finding:
  """A rate more than twice or less than half the reference's, at most of its points."""
  own_J = np.exp(curve(lines, "lr", steps, every))
  told_J = np.isfinite(own_J)
  if not told_J.any():
    return Finding("learning rate", True, "not logged yet")
  ratio = float(np.median((own_J / np.asarray(reference.lr[: len(steps)]))[told_J]))
  return Finding("learning rate", 0.5 < ratio < 2, f"{ratio:.2f} times the reference's")


def near(
  name: str, lines: Sequence[Mapping], reference: Reference, steps: Sequence[int], every: int
) -> Finding:
  """A curve above all healthy ones over the last third of the points at which the run tells it."""
  mean_J, std_J = (np.asarray(part)[: len(steps)] for part in reference.curves[name])
  own_J, label = curve(lines, name, steps, every), name.replace("_", " ")
  told = np.flatnonzero(np.isfinite(own_J))
  if not len(told):
    return Finding(label, True, "not logged yet")
  last = told[-max(1, len(told) // 3) :]
  apart = float(np.mean((own_J - mean_J)[last]))
  scale = max(float(np.mean(std_J[last])), LEAST[name])
  text = (
    f"{math.exp(apart):.2f} times the reference's over steps {steps[last[0]]} to {steps[last[-1]]}"
    f" ({apart / scale:+.1f} deviations)"
  )
  return Finding(label, apart < FAR * scale, text)


def learns(lines: Sequence[Mapping]) -> Finding:
  """Parameters that no step between two lines of the log has changed."""
  counts = [line["still"] for line in lines if "still" in line]
  still = int(counts[-1]) if counts else 0
  text = "all parameters are changing" if counts else "this run does not tell whether they change"
  if still:
    text = f"{still} parameters (or layers of them) do not change; the log names them"
  return Finding("parameters", not still, text)


def reads_captions(lines: Sequence[Mapping], reference: Reference) -> Finding:
  """What captions are worth at the last evaluation, beside the reference at that step."""
  own = gains(lines)
  if not own or own[-1][0] < reference.gains[0][0]:
    return Finding("captions", True, "not evaluated yet")
  at, gain = own[-1]
  there = float(np.interp(at, *zip(*reference.gains)))
  share = gain / max(there, 1e-9)
  text = (
    f"the captions of other clips raise the loss by {gain:.4f} at step {at},"
    f" {100 * share:.0f} % of the reference's"
  )
  return Finding("captions", share > GAIN, text)


def skips(lines: Sequence[Mapping]) -> Finding:
  """Steps that were left out for their gradients."""
  count = max((int(line.get("skipped", 0)) for line in lines), default=0)
  steps = max(line["step"] for line in lines)
  return Finding("spikes", count <= max(2, 0.01 * steps), f"{count} of {steps} steps left out")
