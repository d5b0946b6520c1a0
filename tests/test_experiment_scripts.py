"""The scripts in experiments/shipped and experiments/benchmarks: what they refuse, what they count.

They define flags of the same names, so each group runs in a process of its own.
"""

import json
import pathlib
import subprocess
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"

REFUSED = """
import contextlib, io, json, pathlib, runpy, sys
from absl import app, flags

app.define_help_flags()
own = set(flags.FLAGS)
for script, *arguments in json.loads(sys.argv[1]):
  for name in set(flags.FLAGS) - own:
    delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()
  folder, said = str(pathlib.Path(script).parent), io.StringIO()
  for name, module in list(sys.modules.items()):
    if str(getattr(module, "__file__", None)).startswith(folder):
      del sys.modules[name]
  sys.path[0], sys.argv = folder, [script, *arguments]
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
      runpy.run_path(script, run_name="__main__")
    code = "it went through"
  except SystemExit as end:
    code = end.code
  except Exception as error:
    code = f"a traceback: {error!r}"
  print(json.dumps(code if isinstance(code, str) else said.getvalue()))
"""
"""Runs scripts one after the other; prints the line with which each ends."""


def run(code, *arguments, folder="shipped"):
  """The lines that Python code prints, which may import the scripts of a folder."""
  code = f"import sys; sys.path.insert(0, {str(EXPERIMENTS / folder)!r})\n{code}"
  done = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)],
    capture_output=True, text=True, timeout=300,  # what is not refused would sample for hours
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_arguments_that_cannot_be_used_end_scripts_with_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  out, missing = f"--out={tmp_path / 'out'}", tmp_path / "nowhere"
  blocked = f"--out={tmp_path / 'file' / 'out'}"
  tiny = EXPERIMENTS.parent / "sora_jax" / "weights" / "tiny"
  no_model = f"no model {str(missing)!r}: "
  vae, nowhere = f"--model={missing}", f"--media={missing}"
  cases = [
    # first: it sets up the devices
    ("benchmarks/train_step.py", ("--sizes=big",), "train_step: --sizes=big; allowed, "),
    ("shipped/evaluate_dit.py", (out, f"--model={missing}"), f"evaluate_dit: {no_model}"),
    ("shipped/evaluate_dit.py", (blocked,), f"evaluate_dit: {blocked}: Not a directory; give "),
    ("shipped/evaluate_dit.py", (out, "--prompts=0"), "--prompts=0: "),
    ("shipped/evaluate_dit.py", (out, "--sizes=48"), "evaluate_dit: --sizes=48; give WIDTHxHEIGHT"),
    ("shipped/evaluate_dit.py", (out, "--frames="), "evaluate_dit: --frames=; give whole numbers"),
    ("shipped/evaluate_draft.py", (out, f"--model={missing}"), f"evaluate_draft: {no_model}"),
    ("shipped/evaluate_draft.py", (out, "--full_sizes=4"), "evaluate_draft: --full_sizes=4; give "),
    ("shipped/evaluate_draft.py", (out, "--heldout=1"), "Unknown command line flag 'heldout'"),
    ("shipped/evaluate_draft.py", (out, "--chunk=1"), "Unknown command line flag 'chunk'"),
    ("shipped/evaluate_vae.py", (out, vae), f"evaluate_vae: no VAE {str(missing)!r}: "),
    ("shipped/evaluate_vae.py", (out, nowhere), f"evaluate_vae: {nowhere} is no folder; give "),
    ("shipped/evaluate_detector.py", (out, vae), "evaluate_detector: no VAE "),
    ("shipped/evaluate_detector.py", (out, "--sizes=48"), "evaluate_detector: --sizes=48; give "),
    (
      "shipped/release.py",
      (f"--vae={tiny}", f"--dit={missing}", f"--to={tmp_path / 'to'}"),
      f"release: {no_model}",
    ),
    ("benchmarks/prompting.py", (out, f"--model={missing}"), f"prompting: {no_model}"),
    ("benchmarks/prompting.py", (out, "--sizes=48"), "prompting: --sizes=48; give WIDTHxHEIGHT"),
    ("benchmarks/prompting.py", (blocked,), f"prompting: {blocked}: Not a directory; give "),
    ("benchmarks/long.py", (out, f"--model={missing}"), f"long: {no_model}"),
    ("benchmarks/long.py", (out, "--size=48"), "long: --size=48; give WIDTHxHEIGHT"),
    ("benchmarks/sampler.py", (f"--model={missing}",), f"sampler: {no_model}"),
    (
      "benchmarks/checkpoints.py", (f"--workdir={missing}",),
      f"checkpoints: --workdir={missing} has no config.json; give ",
    ),
  ]  # fmt: skip
  commands = [[str(EXPERIMENTS / script), *arguments] for script, arguments, _ in cases]
  said = [json.loads(line) for line in run(REFUSED, json.dumps(commands))]
  assert len(said) == len(cases)
  for (script, arguments, what), text in zip(cases, said):
    assert what in text and "Traceback" not in text, (script, arguments, text)
    assert what.startswith("-") or "Unknown" in what or text.startswith(what) and "\n" not in text
  assert not (tmp_path / "to").exists()
  assert not [path for path in (tmp_path / "out").glob("*")]


SHIPPED = """
import dataclasses, json, pathlib, sys, types
from absl import flags
import numpy as np
import evaluate_draft, harness, nearest
from sora_jax.data.world import WorldConfig
from sora_jax.weights import folder, store

to = pathlib.Path(sys.argv.pop())
flags.FLAGS(["x", "--prompts=2", "--steps=6", "--guidance=2.5", "--strengths=0.2", f"--out={to}"])
FIRST = WorldConfig(sizes=((16, 16),), frames=(5,), num_clips=20, seed=1)
worlds = [dataclasses.replace(FIRST, seed=seed) for seed in range(4)]
large = dataclasses.replace(FIRST, seed=9, sizes=((24, 16),))
leg = lambda world: {"config": {"data": {"source": "world", "world": folder.plain(world)}}}
other = {"config": {"data": {"source": "folder"}}}
for name, legs in (
  ("dit", [worlds[0], worlds[1], worlds[1]]),
  (store.HIGH, [worlds[0], worlds[2], worlds[1], large]),
):
  story = {"legs": [leg(world) for world in legs[:1]] + [other] + [leg(w) for w in legs[1:]]}
  store.save(to / f"{name}.safetensors", {"a": np.zeros(1, "f")}, {}, story)
told = {
  "few": [w.seed for w in harness.trained_worlds(to, 2)],
  "all": [w.seed for w in harness.trained_worlds(to, 9)],
}
shares = [k for k, _ in nearest.training_clips(worlds[:3] + [large], (16, 16), 5, 11)]
told["shares"] = [shares.count(k) for k in range(4)]
told["elsewhere"] = len(list(nearest.training_clips(worlds, (32, 32), 5, 8)))
narrow = dataclasses.replace(FIRST, motions=("constant",))
asked = harness.wishes(narrow, 9, "test", [(16, 16)], [5], 0)
clips = [nearest.unseen(worlds[0], wish) for wish in asked]
told["unseen"] = [[c.captions["short"], wish.prompt] for c, wish in zip(clips, asked)]
told["rows"] = nearest.show(
  [(wish, c.video_THWC) for c, wish in zip(clips, asked)][:2], worlds[:3], 7, to / "n.png"
)
calls = []

class Model:
  defaults = {"guidance": 3.0, "steps": 20}

  def generate(self, prompt, size, frames, **how):
    calls.append({name: how[name] for name in ("steps", "guidance")})
    return [np.zeros((n, h, w, 3), np.uint8) for (w, h), n in zip(size, frames)]

evaluate_draft.folder_lib.find = lambda name: to
evaluate_draft.model_lib = types.SimpleNamespace(from_folder=lambda path: Model())
evaluate_draft.main(["x"])
told["calls"] = calls
told["draft"] = json.loads((to / "draft.json").read_text(), parse_constant=lambda word: 1 / 0)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
  return json.loads(run(SHIPPED, tmp_path_factory.mktemp("shipped"))[-1])


def test_copies_are_looked_for_in_the_newest_worlds_of_both_networks(shipped):
  assert shipped["few"] == [1, 9] and shipped["all"] == [1, 0, 9, 2]
  assert shipped["shares"] == [4, 4, 3, 0], "of the worlds with clips of the size"
  assert shipped["elsewhere"] == 8, "no world has the size: all of them at it"
  assert [(row["worlds"], row["clips"]) for row in shipped["rows"]] == [(3, 7)] * 2


def test_what_a_sample_is_held_against_is_an_unseen_clip_of_its_prompt(shipped):
  assert len(shipped["unseen"]) == 9
  assert all(caption == prompt for caption, prompt in shipped["unseen"])


def test_drafts_are_made_as_the_flags_say_and_lost_ones_leave_valid_json(shipped):
  assert shipped["calls"] == [{"steps": 6, "guidance": 2.5}] * 2
  assert shipped["draft"]["steps"] == 6 and shipped["draft"]["guidance"] == 2.5
  assert shipped["draft"]["0.2"]["moved"] is None and shipped["draft"]["0.2"]["lost"] == 4


STOPPED = """
import json, pathlib, sys, types
from absl import flags
import numpy as np
import evaluate_dit, harness
from sora_jax.data.world import WorldConfig

to = pathlib.Path(sys.argv.pop())
flags.FLAGS(["x", "--prompts=1", "--heldout=1", "--sizes=16x16", "--frames=5", f"--out={to}"])

class Model:
  defaults = {"guidance": 3.0, "steps": 20, "solver": "euler"}
  autoencoder = types.SimpleNamespace(temporal=4)
  calls = 0

  def generate(self, prompt, size, frames, *more, **how):
    self.calls += 1
    if self.calls == 2:
      sys.exit("stopped")
    return [np.zeros((n, h, w, 3), np.uint8) for (w, h), n in zip(size, frames)]

evaluate_dit.folder_lib.find = lambda name: to
evaluate_dit.model_lib = types.SimpleNamespace(from_folder=lambda path: Model())
harness.trained_world = lambda path: WorldConfig(sizes=((16, 16),), frames=(5,))
try:
  evaluate_dit.main(["x"])
except SystemExit:
  print((to / "dit.json").read_text().replace("\\n", " "))
"""


def test_an_evaluation_that_is_stopped_leaves_the_splits_that_were_done(tmp_path):
  found = json.loads(run(STOPPED, tmp_path)[-1])
  assert found["test"]["all"]["samples"] == 1 and "heldout" not in found


GROUND = """
import json, types
from absl import flags
import numpy as np
import ground, prompting

flags.FLAGS(["x", "--sizes=16x16", "--clips=3", "--steps=6", "--guidance=2.5"])
clips = ground.clips(("constant",), 3)
gray = [np.full_like(clip.video_THWC, 30) for clip in clips]
told, lost = {}, ground.summary([{"place": 1.0}] * 3)
ground.note(lost, "speed_read", *ground.speed_read(clips, gray, 8, 16))
ground.note(lost, "evenness", *ground.evenness(gray, np.s_[8:], 4))
true = [clip.video_THWC for clip in clips]
told["lost"], told["found"] = lost, ground.speed_read(clips, true, 8, 16)
rows = [{"exact": 1.0, "turns": float(k > 0), "jump_0.5_to_1.5": 0.5} for k in range(64)]
rows[3]["closing"], rows[4]["closing"] = 2.0, np.nan
told["summary"] = ground.summary(rows)
told["nothing"] = ground.summary([{"turns": np.nan}])
told["steady"] = [ground.steady(video) for video in (true[0], gray[0])]
gray[0][5] += 30
told["steady"].append(ground.steady(gray[0]))
calls = []

def generate(prompt, size, frames, **how):
  calls.append({name: how[name] for name in ("steps", "guidance")})
  return [np.zeros((frames, h, w, 3), np.uint8) for w, h in size]

ground.sheet = lambda *what: None
prompting.draft(types.SimpleNamespace(model=types.SimpleNamespace(generate=generate)))
told["calls"] = calls
print(json.dumps(told, allow_nan=False))
"""


@pytest.fixture(scope="module")
def ground():
  return json.loads(run(GROUND, folder="benchmarks")[-1])


def test_objects_that_are_not_found_are_counted_and_stop_nothing(ground):
  nothing = [None] * 3
  assert ground["lost"]["speed_read"] == nothing == ground["lost"]["evenness"]
  assert ground["lost"]["of"] == {"speed_read": 0, "evenness": 0}
  slope, count = ground["found"][0][0], ground["found"][1]
  assert count == 3 and abs(slope - 1) < 0.5


def test_a_background_that_changes_for_a_frame_is_seen(ground):
  assert ground["steady"] == [1.0, 1.0, 0.0]


def test_shares_have_wilsons_intervals_and_figures_tell_of_how_many_clips_they_are(ground):
  found = ground["summary"]
  assert found["exact"] == [1.0, 0.9434, 1.0], "64 of 64"
  assert found["jump_0.5_to_1.5"][0] == 0.5
  assert found["turns"] == [1.0, 1.0, 1.0], "a median, of whatever values"
  assert found["closing"] == [2.0] * 3 and found["clips"] == 64
  assert found["of"] == {"closing": 1} and ground["nothing"] == {"clips": 1, "of": {"turns": 0}}


def test_a_draft_is_made_as_the_flags_of_prompting_say(ground):
  assert ground["calls"] == [{"steps": 6, "guidance": 2.5}] * 2


WORK = """
import json
import train_step
from sora_jax.nn.dit_config import DiTConfig

params = {
  "blocks": {"qkv": {"kernel": train_step.np.zeros((3, 2)), "bias": train_step.np.zeros(99)}},
  "cross": {"kv": {"kernel": train_step.np.zeros(5)}},
  "modulation": {"linear": {"kernel": train_step.np.zeros(7000)}},
}
config = DiTConfig(width=16, depth=2, heads=1, in_channels=1, out_channels=1, text_width=8)
print(json.dumps([train_step.work(config, params, [4, 9]), train_step.TEXT_TOKENS]))
"""


def test_the_work_of_a_step_is_what_the_trainer_counts():
  work, words = json.loads(run(WORK, folder="benchmarks")[-1])
  pairs = 4 * 4 + 9 * 9 + (4 + 9) * words
  assert work == 6 * (6 * 13 + 5 * 2 * words) + 12 * 16 * 2 * pairs
