"""From work directories to findings: which reference is taken, what is said when none can be."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import pytest

from sora_jax.evaluation import health
from sora_jax.tasks import checkup

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
  """A work directory like one of the shipped reference's healthy runs."""
  reference = health.read_reference(checkup.REFERENCES / "tiny.json")
  config: dict = {}
  for name, value in reference.config.items():
    inner = config
    *folders, last = name.split(".")
    for folder in folders:
      inner = inner.setdefault(folder, {})
    inner[last] = value
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  write(folder, reference)
  return folder


def write(folder, reference, **times):
  """Figures of a run: the reference's means, times what is given by name."""
  lines = []
  gains = dict(reference.gains)
  for j, step in enumerate(reference.steps):
    line = {"step": step, "lr": reference.lr[j] * times.get("lr", 1), "still": 0, "skipped": 0}
    for name, (mean, _) in reference.curves.items():
      line[name] = math.exp(mean[j]) * times.get(name, 1)
    lines.append(line)
    if step in gains:
      lines.append({"step": step, "heldout/caption_gain": gains[step] * times.get("gain", 1)})
  (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def doctor(folder):
  return subprocess.run(
    [sys.executable, "-m", "sora_jax.doctor", f"--workdir={folder}"], cwd=ROOT,
    capture_output=True, text=True,
  )  # fmt: skip


def test_the_command_tells_healthy_from_sick(run):
  done = doctor(run)
  assert done.returncode == 0 and "healthy" in done.stdout, done.stdout + done.stderr
  write(run, health.read_reference(checkup.REFERENCES / "tiny.json"), lr=10, gain=0.1)
  done = doctor(run)
  assert done.returncode == 1 and "not healthy: learning rate, captions" in done.stdout
  done = doctor(run / "no")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "run/no has no config.json" in done.stderr
  (run / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is not JSON"):
    checkup.run(run)


def test_the_nearest_reference_is_taken(run, tmp_path, monkeypatch):
  there = health.read_reference(checkup.REFERENCES / "tiny.json")
  monkeypatch.setattr(checkup, "REFERENCES", tmp_path)
  with pytest.raises(ValueError, match="no reference is shipped for a config like"):
    checkup.run(run)
  far = dataclasses.replace(there, config={name: "other" for name in there.config})
  (tmp_path / "far.json").write_text(json.dumps(dataclasses.asdict(far)))
  with pytest.raises(ValueError, match="no reference is shipped for a config like"):
    checkup.run(run)
  near = dataclasses.replace(there, config=there.config | {"data.rows": 3, "train.seed": 9})
  (tmp_path / "near.json").write_text(json.dumps(dataclasses.asdict(near)))
  name, found = checkup.run(run)
  assert name == "near.json" and all(one.good for one in found)
  assert found[0].text == f"data.rows is {there.config['data.rows']}, there 3"
  (tmp_path / "near.json").write_text("{}")
  with pytest.raises(ValueError, match="near.json is no reference of healthy runs"):
    checkup.run(run, str(tmp_path / "near.json"))
