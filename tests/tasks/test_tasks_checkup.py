"""From work directories to findings: which reference is taken, what is said when none can be."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import pytest

from configs import tiny, vae
from sora_jax.evaluation import health
from sora_jax.tasks import checkup
from sora_jax.train import checkpoint

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


def test_without_a_reference_the_run_is_looked_at_alone(run):
  config = json.loads((run / "config.json").read_text())
  config["model"] = {name: "other" for name in config["model"]}
  (run / "config.json").write_text(json.dumps(config))
  done = doctor(run)
  assert done.returncode == 0 and "no reference is shipped" in done.stdout, done.stderr
  (run / "metrics.jsonl").write_text("")
  done = doctor(run)
  assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("has logged no loss yet")


@pytest.mark.parametrize(
  "losses, gain, still, sick, apart",
  [
    ([3, 2, 1, 1.1], 0.1, 0, [], 100), ([3], None, 0, [], 100),
    ([3, 1, 2, 4], 0.1, 0, ["loss"], 100), ([3, 2], -0.01, 0, ["captions"], 100),
    ([3, 2, 1], 0.1, 2, ["parameters"], 100), ([3, 1, 2, 4], -0.01, 0, [], 1),
  ],
)  # fmt: skip
def test_what_a_run_alone_tells(losses, gain, still, sick, apart):
  """A run of a few steps tells nothing by its loss: each is of another batch. Four lines of the log
  tell of each loss."""
  lines = [
    {"step": apart * i + j * apart // 4, "loss": x, "still": still, "skipped": 0}
    for i, x in enumerate(losses)
    for j in range(4)
  ]
  lines += [] if gain is None else [{"step": apart * len(losses), "heldout/caption_gain": gain}]
  assert [one.name for one in health.examine_alone(lines) if not one.good] == sick


@pytest.mark.parametrize(
  "task, changes, taken",
  [
    ("text_to_video", {"optimizer.lr": 0.03, "vae.loss.l2": 4.0, "model.remat": "block"}, True),
    ("text_to_video", {"model.depth": 12}, False),
    ("text_to_video", {"diffusion.prediction": "v"}, False),
    ("text_to_video", {"vae.weights": "runs/vae"}, False),
    ("text_to_video", {"train.init_from": "runs/tiny"}, False),
    ("text_to_video", {"task": "vae"}, False),
    ("vae", {"model.depth": 12, "diffusion.prediction": "v", "vae.isometric": False}, True),
    ("vae", {"vae.size": "nano"}, False),
    ("vae", {"vae.loss.l1": 0.5, "vae.loss.l2": 8.0}, False),
  ],
)  # fmt: skip
def test_no_reference_of_another_loss_is_taken(task, changes, taken):
  path = checkup.REFERENCES / {"text_to_video": "tiny.json", "vae": "vae_tiny.json"}[task]
  config = dict(health.read_reference(path).config)
  assert checkup.nearest(config | changes) == (path if taken else None)


def test_configs_with_references_find_them():
  for config, name in ((tiny.get_config(), "tiny"), (vae.get_config("tiny"), "vae_tiny")):
    path = checkup.nearest(checkpoint.flatten(json.loads(json.dumps(config.to_dict()))))
    assert path is not None and path.stem == name
  second = vae.get_config("tiny_second").to_dict()
  assert checkup.nearest(checkpoint.flatten(json.loads(json.dumps(second)))) is None


def test_a_key_that_a_config_lacks_counts_at_its_default(run, tmp_path, monkeypatch):
  """Configs of before a key came stay near: a run's without it, and a reference's."""
  there = health.read_reference(checkup.REFERENCES / "tiny.json")
  monkeypatch.setattr(checkup, "REFERENCES", tmp_path)
  new = {"diffusion.time_low": 0.0, "data.world.slowest": 1.0}
  old = {name: value for name, value in there.config.items() if name not in new}
  (tmp_path / "old.json").write_text(json.dumps(dataclasses.asdict(there) | {"config": old}))
  assert checkup.nearest(old | new).name == "old.json"
  assert checkup.nearest(old | {"diffusion.time_low": 0.2}) is None
  (tmp_path / "old.json").write_text(
    json.dumps(dataclasses.asdict(there) | {"config": old | {"data.world.slowest": 0.5}})
  )
  assert checkup.run(run)[1][0].text == "data.world.slowest is 1.0, there 0.5"


def test_the_nearest_reference_is_taken(run, tmp_path, monkeypatch):
  there = health.read_reference(checkup.REFERENCES / "tiny.json")
  monkeypatch.setattr(checkup, "REFERENCES", tmp_path)
  assert checkup.run(run)[0] == ""
  far = dataclasses.replace(there, config={name: "other" for name in there.config})
  (tmp_path / "far.json").write_text(json.dumps(dataclasses.asdict(far)))
  assert checkup.run(run)[0] == ""
  near = dataclasses.replace(there, config=there.config | {"data.rows": 3, "train.seed": 9})
  (tmp_path / "near.json").write_text(json.dumps(dataclasses.asdict(near)))
  name, found = checkup.run(run)
  assert name == "near.json" and all(one.good for one in found)
  assert found[0].text == f"data.rows is {there.config['data.rows']}, there 3"
  (tmp_path / "near.json").write_text("{}")
  with pytest.raises(ValueError, match="near.json is no reference of healthy runs"):
    checkup.run(run, str(tmp_path / "near.json"))
