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
from scipy.interpolate import PchipInterpolator

FAR = 6.0
"""Deviations of healthy runs from each other beyond which a curve is not theirs."""
LEAST = {"loss": 0.03, "grad_norm": 0.25}
"""The least that a deviation of log values counts for: three runs may agree by chance."""
GAIN = 0.4
"""Share of the reference's gain from captions below which they are not being read."""
PARTS, LINES, EARLY = 8, 4, 100
"""Parts of a run whose losses are compared without a reference, at most; lines of the log in each,
at least; and the step before which neither they nor captions tell anything."""
RISE, SURE = 1.2, 3.0
"""How far the median loss of a run's last part may lie above that of its best: by this factor, and
by so many standard errors of a part on top, as far as the log's lines scatter. It lay lower after
each of the 1,402 lines of nine healthy runs that can be judged; with ten times the rate 5 to 38
times above the best."""
WILDEST = 0.3
"""The most that lines count as scattering, as a deviation of logarithms: 0.04 to 0.14 in healthy
runs, 0.9 in one that has diverged, which must not be excused by it."""
OF_THE_STEP = ("grad_norm", "lr")
"""What a line of the log tells of its own step; its loss is the mean since the line before."""
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

  def __post_init__(self):
    if self.runs < 2 or not all(np.isfinite(part).all() for part in self.curves.values()):
      raise ValueError(
        f"made of {self.runs}, its curves have points without a mean or a deviation; expected two"
        " runs or more, with a line of the log between any two points"
      )


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
  the points of its curves; each is the mean over as many steps.
  Raises: ValueError if there are fewer than two runs: one tells nothing of how far they lie apart.
  """
  if len(runs) < 2:
    raise ValueError(f"a reference of {len(runs)} runs: expected two or more, of different seeds")
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
  """Compares a run's figures with a reference's; what lies past its end, with the run's own.

  Args: config: the run's, flattened.  lines: of its `metrics.jsonl`.
  Raises: ValueError if the run has not reached the reference's first point.
  """
  done = max((line["step"] for line in lines), default=0)
  if done < reference.steps[0]:
    raise ValueError(
      f"the run has not reached step {reference.steps[0]}, the first that there is a reference for"
    )
  findings = [same_config(config, reference), learning_rate(lines, reference)]
  findings += [near(name, lines, reference) for name in LEAST]
  findings += [reads_captions(lines, reference)] if reference.gains else []
  if done > reference.steps[-1]:
    good, text = holds(lines)
    text = f"{text}; the comparison with the reference ends at step {reference.steps[-1]} of {done}"
    findings.append(Finding("later loss", good, text))
  return [*findings, learns(lines), skips(lines)]


def examine_alone(lines: Sequence[Mapping]) -> list[Finding]:
  """What a run's own figures say where there is no reference for it.

  Raises: ValueError if there are none yet.
  """
  if not any("loss" in line for line in lines):
    raise ValueError("the run has logged no loss yet")
  findings = [Finding("loss", *holds(lines))]
  if gains(lines):
    at, gain = gains(lines)[-1]
    early = max(line["step"] for line in lines) < EARLY
    said = f"; before step {EARLY} that says little" if early else ""
    text = f"the captions of other clips raise the loss by {gain:.4f} at step {at}{said}"
    findings.append(Finding("captions", early or gain > 0, text))
  return [*findings, learns(lines), skips(lines)]


def holds(lines: Sequence[Mapping]) -> tuple[bool, str]:
  """(whether the loss at the end is still near its best, the figures).

  It is judged by medians, which no single line decides, and by how much one line differs from the
  next: batches of few clips scatter.
  """
  told = [line for line in lines if line.get("loss")]
  logs = np.log([line["loss"] for line in told])
  count = min(PARTS, len(logs) // LINES)
  if count < 2 or told[-1]["step"] < EARLY:
    last = f"{told[-1]['loss']:.4g} in the last of {len(told)} lines of the log; " if told else ""
    return True, f"{last}judged from step {EARLY} and {2 * LINES} lines on"
  parts = [float(np.median(part)) for part in np.array_split(logs, count)]
  scatter = float(np.median(np.abs(np.diff(logs)))) / (0.6745 * math.sqrt(2))  # as a deviation
  limit = math.log(RISE) + SURE * min(scatter, WILDEST) / math.sqrt(len(logs) // count)
  last, best = parts[-1], min(parts)
  text = (
    f"{math.exp(last):.4g} at the end, {math.exp(best):.4g} at its best:"
    f" {math.exp(last - best):.2f} times, of at most {math.exp(limit):.2f}"
  )
  return last - best < limit, text


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


class Beside(NamedTuple):
  """A figure over stretches of a run, each at least as long as between two points of a reference.

  Attributes: first, last: step of each.  own, there: means of the run and of the reference.
  """

  first_J: np.ndarray
  last_J: np.ndarray
  own_J: np.ndarray
  there_J: np.ndarray


def beside(name: str, lines: Sequence[Mapping], reference: Reference) -> Beside:
  """Means of a figure over the same steps, however often the run logs.

  Between a reference's points its sum over the steps so far is interpolated, which keeps its means.
  """
  knots = [0, *reference.steps]
  means = reference.lr if name == "lr" else np.exp(reference.curves[name][0])
  total = PchipInterpolator(knots, np.cumsum([0, *(np.asarray(means) * np.diff(knots))]))
  spacing = reference.config.get("train.log_every", 1)  # steps that one of its lines stands for
  found, sums, start, before = [], np.zeros(3), 0, 0
  for line in lines:
    step = line["step"]
    if not line.get(name) or step > knots[-1] or step <= before:
      continue
    since = max(0, step - spacing) if name in OF_THE_STEP else before
    steps = step - since
    sums += steps, steps * line[name], total(step) - total(since)
    before = step
    if step - start >= knots[1]:
      found.append((start + 1, step, *(sums[1:] / sums[0])))
      sums, start = np.zeros(3), step
  return Beside(*np.array(found).reshape(-1, 4).T)


def learning_rate(lines: Sequence[Mapping], reference: Reference) -> Finding:
  """A rate more than twice or less than half the reference's, over most of its stretches."""
  found = beside("lr", lines, reference)
  if not len(found.own_J):
    return Finding("learning rate", True, unsaid(lines, reference))
  ratio = float(np.median(found.own_J / found.there_J))
  return Finding("learning rate", 0.5 < ratio < 2, f"{ratio:.2f} times the reference's")


def near(name: str, lines: Sequence[Mapping], reference: Reference) -> Finding:
  """A curve above all healthy ones over the last third of the stretches that the run tells of."""
  found, label = beside(name, lines, reference), name.replace("_", " ")
  if not len(found.own_J):
    return Finding(label, True, unsaid(lines, reference))
  last = slice(-max(1, len(found.own_J) // 3), None)
  apart = float(np.mean(np.log(found.own_J / found.there_J)[last]))
  std_J = np.interp(found.last_J, reference.steps, reference.curves[name][1])
  scale = max(float(np.mean(std_J[last])), LEAST[name])
  text = (
    f"{math.exp(apart):.2f} times the reference's over steps {found.first_J[last][0]:.0f} to"
    f" {found.last_J[-1]:.0f} ({apart / scale:+.1f} deviations)"
  )
  return Finding(label, apart < FAR * scale, text)


def unsaid(lines: Sequence[Mapping], reference: Reference) -> str:
  """Why a figure is not compared."""
  if lines[-1]["step"] <= reference.steps[-1]:
    return "not logged yet"
  return f"no line of the log up to step {reference.steps[-1]}, where the reference ends"


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
