"""The last page of a run: what it samples, how well that obeys the prompts, how training went."""

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from sora_jax.data.stats import PackStats
from sora_jax.data.world import WorldConfig, prompts
from sora_jax.data.writing import write_video
from sora_jax.evaluation import detectors, reports
from sora_jax.evaluation import metrics as merit
from sora_jax.train import metrics
from sora_jax.train.task import Task

SHOWN = 4
"""Samples of each size on the page."""
ATTRIBUTES = ("color", "shape", "direction", "single", "background", "all")
Generate = Callable[..., list[np.ndarray]]
"""`Model.generate`: lists of prompts, sizes and frames to videos, sampled packed."""


@dataclasses.dataclass(frozen=True)
class Wish:
  """One sample to be made.  truth: of a clip that would fit the prompt, or {}."""

  prompt: str
  size: tuple[int, int]
  frames: int
  fps: float
  truth: dict = dataclasses.field(default_factory=dict)

  @property
  def size_name(self) -> str:
    """WxH."""
    return f"{self.size[0]}x{self.size[1]}"


def wishes(world: WorldConfig, count: int, sizes: Sequence = (), frames: int = 0) -> list[Wish]:
  """Returns `count` prompts of the world's test split, in turn of each size, as moving clips."""
  sizes = [tuple(size) for size in sizes] or list(world.sizes)
  frames = frames or max(world.frames)
  lists = [
    prompts(dataclasses.replace(world, seed=world.seed + k), -(-count // len(sizes)), size=size,
            frames=frames, split="test")
    for k, size in enumerate(sizes)
  ]  # fmt: skip
  turns = [(size, pair) for pairs in zip(*lists) for size, pair in zip(sizes, pairs)]
  return [
    Wish(prompt, size, frames, float(truth["fps"]), truth)
    for size, (prompt, truth) in turns[:count]
  ]


def from_captions(source, count: int, multiple: int = 8) -> list[Wish]:
  """Returns wishes for what held-out clips show, at their own size and length."""
  found = []
  for i in range(min(count, len(source))):
    clip = source[i]
    text = clip.captions.get("short") or clip.captions.get("long") or ""
    width, height = (max(multiple, side // multiple * multiple) for side in clip.size)
    found.append(Wish(text, (width, height), clip.num_frames, float(clip.fps or 8.0)))
  return found


def sample(generate: Generate, asked: list[Wish], seed: int) -> list[np.ndarray]:
  """Makes every wish, packed together."""
  return generate(
    [w.prompt for w in asked],
    [w.size for w in asked],
    [w.frames for w in asked],
    [seed + i for i in range(len(asked))],
    fps=[w.fps for w in asked],
    progress=lambda line: logging.log_every_n_seconds(logging.INFO, "%s", 10, line),
  )


def scores(asked: list[Wish], videos: list[np.ndarray]) -> list[dict]:
  """Returns a line for all sizes and one for each: shares of right attributes with intervals.

  Detected on pixels alone by `evaluation/detectors.py`; intervals are Wilson's, 95 %.
  """
  groups = collections.defaultdict(list)
  for wish, video in zip(asked, videos):
    found = detectors.score(detectors.detect(video), wish.truth)
    groups["all"].append(found)
    groups[wish.size_name].append(found)
  lines = []
  for size, group in groups.items():
    line: dict = {"size": size, "prompts": len(group)}
    for name in ATTRIBUTES:
      right = sum(bool(found[name]) for found in group)
      low, high = merit.wilson(right, len(group))
      line |= {name: right / len(group), f"{name}_low": low, f"{name}_high": high}
    lines.append(line)
  return lines


def packing(task: Task, batches: int = 50) -> dict:
  """Returns fill, spread of attention cost and histogram of sizes over the stream's first rows."""
  stats, stream = PackStats(), task.batches()
  for _ in range(batches):
    stats.add(next(stream))
  return stats.to_dict()


def write(
  folder: Path, asked: list[Wish], videos: list[np.ndarray], lines: list[dict], about: dict
) -> Path:
  """Writes samples, contact sheet, curves, `index.html` and `report.json` into `folder`.

  lines: of `metrics.jsonl`.  about: figures and provenance, JSON.  Returns: the page's path.
  """
  folder.mkdir(parents=True, exist_ok=True)
  shown = _first_of_each_size(asked, SHOWN)
  labels = [f"{asked[i].prompt}\n{asked[i].size_name}, {asked[i].frames} frames" for i in shown]
  for number, i in enumerate(shown):
    still = len(videos[i]) == 1
    name = f"sample_{number:02d}_{asked[i].size_name}"
    write_video(folder / (name + (".png" if still else ".mp4")), videos[i], asked[i].fps)
  chosen = [videos[i] for i in shown]
  sheet = reports.contact_sheet(chosen, labels, folder / "contact_sheet.png", columns=2)
  curves = reports.curves(lines, folder / "curves.png")
  rates = [None if len(video) == 1 else asked[i].fps for i, video in zip(shown, chosen)]
  scored = about.get("scores", [])
  sections = [("Samples", [reports.gallery(chosen, labels, rates)])]
  if scored:
    obeyed = reports.table([_short(line) for line in scored])
    sections.append(("Do they obey the prompt?", [obeyed]))
  sections += [
    ("Training", [reports.image(curves), reports.table(_rows(about.get("figures", {})))]),
    ("Packing", [reports.table(_rows(about.get("packing", {})))]),
    ("Frames", [reports.image(sheet)]),
    ("Provenance", [reports.table(_rows(about.get("provenance", {})))]),
  ]
  return reports.html_report(folder, "Text to video: report of a run", sections, about)


def read_lines(workdir: Path) -> list[dict]:
  """Returns the run's `metrics.jsonl`."""
  return metrics.read(workdir / "metrics.jsonl")


def _first_of_each_size(asked: list[Wish], count: int) -> list[int]:
  seen: collections.Counter = collections.Counter()
  chosen = []
  for i, wish in enumerate(asked):
    seen[wish.size] += 1
    if seen[wish.size] <= count:
      chosen.append(i)
  return sorted(chosen, key=lambda i: asked[i].size)


def _short(line: dict) -> dict:
  """A score's line for people: "97.7 % (93.3-99.2)"."""
  cells = {"size": line["size"], "prompts": line["prompts"]}
  for name in ATTRIBUTES:
    low, high = 100 * line[f"{name}_low"], 100 * line[f"{name}_high"]
    cells[name] = f"{100 * line[name]:.1f} % ({low:.1f}-{high:.1f})"
  return cells


def _rows(values: dict) -> list[dict]:
  return [
    {"name": name, "value": json.dumps(value)[:300] if isinstance(value, dict | list) else value}
    for name, value in values.items()
  ]
