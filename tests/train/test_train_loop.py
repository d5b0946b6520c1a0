"""The loop: exact resume, refusal of what is not finite, budgets, signals, files."""

import dataclasses
import functools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import Toy

from sora_jax import sharding
from sora_jax.train import checkpoint, loop, metrics, profiler, saved
from sora_jax.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(lr=0.1, warmup_steps=2)


def config(**changes):
  return loop.LoopConfig(**({"steps": 4, "log_every": 1, "save_every": 2, "seed": 3} | changes))


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resume_is_exact_to_the_bit(tmp_path, name):
  optimizer = OptimizerConfig(name=name, lr=0.1, warmup_steps=2)
  whole = loop.run(Toy(), config(), optimizer, tmp_path / "whole")
  half = loop.run(Toy(), config(), optimizer, tmp_path / "half", lambda step: step == 2)
  assert (half.finished, half.step) == (False, 2)
  rest = loop.run(Toy(), config(), optimizer, tmp_path / "half")
  assert rest.finished and rest.step == whole.step == 4
  equal(whole.state, rest.state)
  a, b = (metrics.read(tmp_path / d / "metrics.jsonl") for d in ("whole", "half"))
  assert [x.get("loss") for x in a] == [x.get("loss") for x in b]
  assert [x["step"] for x in b] == [1, 2, 3, 4, 4]


def test_what_is_saved_is_not_touched_by_later_steps(tmp_path):
  seen = {}
  long = config(steps=60, save_every=20, keep=9)
  loop.run(Toy(), long, ADAM, tmp_path / "a", lambda step: step == 40)
  kept = checkpoint.Checkpoints(tmp_path / "a" / "checkpoints", 9)
  out = loop.run(Toy(), long, ADAM, tmp_path / "b", lambda step: step == 20)
  seen["b"] = jax.device_get(out.state)
  state, data, _ = _restore_at(kept, 20, out.state)
  equal(state, seen["b"])
  assert data == {"position": 20}


def _restore_at(kept, step, like):
  for later in [s for s in kept._manager.all_steps() if s > step]:
    kept._manager.delete(later)
  return kept.restore(like)


def newest_step(workdir):
  return max(checkpoint.saved_steps(workdir / "checkpoints"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
  loop.run(Toy(), config(), ADAM, tmp_path / "a")
  whole = loop.run(Toy(), config(steps=6), ADAM, tmp_path / "b")
  for file in (tmp_path / "a" / "checkpoints" / "4" / "state").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  again = loop.run(Toy(), config(steps=6), ADAM, tmp_path / "a")
  assert again.step == 6
  # The first four steps had another total, so only the stream and the counters must agree.
  assert int(again.state.step) == int(whole.state.step)
  lines = metrics.read(tmp_path / "a" / "metrics.jsonl")
  assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4, 5, 6]


def test_not_finite_names_step_and_clips_and_is_never_saved(tmp_path):
  with pytest.raises(loop.NotFiniteError, match=r"step 5: .*clip-500, clip-501"):
    loop.run(Toy(bad=5), config(steps=9, save_every=1, log_every=100), ADAM, tmp_path)
  assert newest_step(tmp_path) == 5
  kept = checkpoint.Checkpoints(tmp_path / "checkpoints", 2)
  good = loop.run(Toy(), config(steps=9), ADAM, tmp_path / "good", lambda step: step == 5)
  found, data, _ = kept.restore(good.state)
  assert data == {"position": 5}
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(found)))


@pytest.mark.parametrize(
  ("save_every", "told"),
  [
    (100, r"nothing is saved yet in {0}/checkpoints. Lower optimizer.lr, or .*, and run it again$"),
    (2, r"step 2 is saved in {0}/checkpoints. .*export --workdir={0}, .*train.init_from={0}$"),
  ],
)
def test_what_is_not_finite_says_what_is_there_and_what_can_be_done(tmp_path, save_every, told):
  with pytest.raises(loop.NotFiniteError) as failed:
    loop.run(Toy(bad=3), config(save_every=save_every), ADAM, tmp_path)
  assert re.search(told.format(tmp_path), str(failed.value)), failed.value


def test_a_first_config_that_failed_can_be_mended_in_place(tmp_path):
  """As a loss that is not finite asks for, when nothing is saved yet."""
  checkpoint.keep_config(tmp_path, {"optimizer": {"lr": 100.0}})
  with pytest.raises(loop.NotFiniteError):
    loop.run(Toy(bad=1), config(save_every=100), ADAM, tmp_path)
  checkpoint.keep_config(tmp_path, {"optimizer": {"lr": 0.1}})
  assert loop.run(Toy(), config(), ADAM, tmp_path).finished
  with pytest.raises(ValueError, match="optimizer.lr: 0.1 -> 0.2"):
    checkpoint.keep_config(tmp_path, {"optimizer": {"lr": 0.2}})


def test_clips_are_named_only_where_a_message_names_them(tmp_path):
  asked = []

  class Named(Toy):
    def names(self, batch):
      name = super().names(batch)
      return lambda: asked.append(batch["clip"][0]) or name()

  assert loop.run(Named(), config(), ADAM, tmp_path / "a").finished and not asked
  with pytest.raises(loop.NotFiniteError, match="clip-200"):
    loop.run(Named(bad=2), config(), ADAM, tmp_path / "b")
  assert asked == [200]


def test_a_step_that_is_left_out_names_its_clips(tmp_path, caplog):
  class Steep(Toy):
    def loss(self, params, batch, key, progress):
      ratio, more = super().loss(params, batch, key, progress)
      steep = jax.numpy.where(batch["clip"][0] == 3000, 1e6, 1.0)
      return ratio._replace(numerator=steep * ratio.numerator), more

  guarded = dataclasses.replace(ADAM, skip_spikes=20.0)
  with caplog.at_level(logging.WARNING, "absl"):
    loop.run(Steep(), config(steps=32, save_every=100), guarded, tmp_path)
  assert "step 30 left out" in caplog.text and "batch of clips clip-3000, clip-3001" in caplog.text


@dataclasses.dataclass(frozen=True)
class Reading(Toy):
  """A toy that reads what paths name."""

  weights: str | None = "1" * 64
  clips: str | None = "2" * 64

  def inputs(self):
    found = {"vae.weights": self.weights, "data.folder": self.clips}
    return {name: content for name, content in found.items() if content}


def test_a_resumed_run_notices_that_what_it_reads_is_another(tmp_path):
  loop.run(Reading(), config(), ADAM, tmp_path, lambda step: step == 2)
  told = r"{0} was trained with other .*: vae.weights 1{{12}} -> 3{{12}} .*Put back .*--workdir"
  with pytest.raises(ValueError, match=told.format(tmp_path)):
    loop.run(Reading(weights="3" * 64), config(), ADAM, tmp_path)
  with pytest.raises(ValueError, match="data.folder 222222222222 -> 444444444444"):
    loop.run(Reading(clips="4" * 64), config(), ADAM, tmp_path)
  assert loop.run(Reading(clips=None), config(), ADAM, tmp_path).finished


def test_a_run_saved_before_inputs_were_kept_resumes_and_keeps_them(tmp_path):
  loop.run(Toy(), config(), ADAM, tmp_path, lambda step: step == 2)
  assert loop.run(Reading(), config(), ADAM, tmp_path).finished
  with pytest.raises(ValueError, match="vae.weights"):
    loop.run(Reading(weights="3" * 64), config(steps=6), ADAM, tmp_path)


def test_weights_are_not_read_beside_another_autoencoder_but_beside_other_clips(tmp_path):
  out = loop.run(Reading(), config(), ADAM, tmp_path)
  where = sharding.make_mesh((-1, 1, 1, 1)), tmp_path / "checkpoints", [4]
  state, _ = saved.newest(Reading(clips="4" * 64), ADAM, *where)
  equal(state, out.state)
  with pytest.raises(ValueError, match="vae.weights 111111111111 -> 333333333333"):
    saved.newest(Reading(weights="3" * 64), ADAM, *where)


def test_sigterm_saves_and_resumes(tmp_path):
  def stop(step):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return False

  out = loop.run(Toy(), config(save_every=100, steps=20), ADAM, tmp_path, stop)
  assert not out.finished and 3 <= out.step <= 4
  assert newest_step(tmp_path) == out.step
  assert loop.run(Toy(), config(save_every=100, steps=20), ADAM, tmp_path).finished


class Clock:
  """A clock of which every reading takes 5 ms: a step reads it once, a line of the log twice."""

  def __init__(self):
    self.now = 0.0

  def perf_counter(self):
    self.now += 0.005
    return self.now


def test_time_budget_ends_the_schedule(tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "time", Clock())
  budget = config(steps=10**6, minutes=0.05, log_every=50, save_every=10**6)
  out = loop.run(Toy(), budget, ADAM, tmp_path)
  lines = [x for x in metrics.read(tmp_path / "metrics.jsonl") if "loss" in x]
  assert out.finished and abs(out.step - 600) < 60, "3 s of steps of 5 ms"
  assert lines[-1]["lr"] < 0.1 * ADAM.lr
  assert int(out.state.total_steps) == out.step


def test_a_finished_timed_run_says_how_to_train_on(tmp_path, caplog):
  budget = config(minutes=0.001, steps=10**6, save_every=10**6)
  first = loop.run(Toy(), budget, ADAM, tmp_path)
  assert "had finished" not in caplog.text
  with caplog.at_level(logging.WARNING, "absl"):
    again = loop.run(Toy(), dataclasses.replace(budget, minutes=1.0), ADAM, tmp_path)
  assert again.finished and again.step == first.step
  (line,) = (r.getMessage() for r in caplog.records if "had finished" in r.getMessage())
  assert f"after {first.step} steps" in line and f"train.init_from={tmp_path}" in line


def test_learns_logs_and_evaluates(tmp_path):
  out = loop.run(
    Toy(), config(steps=300, log_every=50, eval_every=100, save_every=1000), ADAM, tmp_path
  )
  assert out.figures["toy/distance"] < 0.2
  lines = metrics.read(tmp_path / "metrics.jsonl")
  assert [x["step"] for x in lines if "toy/distance" in x] == [100, 200, 300]
  last = [x for x in lines if "loss" in x][-1]
  for name in ("loss", "grad_norm", "lr", "sec_per_step", "tokens_per_sec", "matmul_fraction"):
    assert np.isfinite(last[name]), name
  assert last["programs"] == 1


@pytest.mark.parametrize("backend, rates", [("cpu", 2), ("gpu", 6)])
def test_the_rate_of_a_mesh_is_that_of_all_its_devices(backend, rates, monkeypatch):
  """Cores are shared by the devices of a process; accelerators have their own."""
  Device = dataclasses.make_dataclass("Device", ["process_index"], frozen=True)
  monkeypatch.setattr(metrics, "matmul_rate", lambda: 10.0)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  devices = np.array([Device(process_index=n // 3) for n in range(6)])
  assert metrics.mesh_rate(jax.sharding.Mesh(devices, ("data",))) == 10.0 * rates


def test_parameters_that_do_not_learn_are_named(tmp_path, caplog):
  class Frozen(Toy):
    def loss(self, params, batch, key, progress):
      stopped = params | {
        "layer": params["layer"] | {"bias": jax.lax.stop_gradient(params["layer"]["bias"])}
      }
      return super().loss(stopped, batch, key, progress)

  logging.getLogger("absl").propagate = True
  with caplog.at_level(logging.WARNING):
    loop.run(Frozen(), config(steps=40, log_every=10, save_every=100), ADAM, tmp_path / "a")
  assert [x["still"] for x in metrics.read(tmp_path / "a" / "metrics.jsonl") if "loss" in x] == [
    1
  ] * 4
  assert caplog.text.count("1 parameters are not learning: layer/bias") == 1
  loop.run(Toy(), config(log_every=2), ADAM, tmp_path / "b")
  meant = Frozen(unlearning=("layer",))
  loop.run(meant, config(steps=40, log_every=10, save_every=100), ADAM, tmp_path / "c")
  assert caplog.text.count("not learning") == 1
  for name in "bc":
    lines = metrics.read(tmp_path / name / "metrics.jsonl")
    assert all(x["still"] == 0 for x in lines if "loss" in x)


def test_a_step_moves_nothing_between_host_and_device_but_what_it_says(tmp_path, monkeypatch):
  """No number enters a step by the way, and none is waited for; `device_get` is explicit."""
  take_step, guarded = loop._Runner.take_step, []

  def guard(self):
    guarded.append(self.step)
    with jax.transfer_guard("disallow"):
      take_step(self)

  monkeypatch.setattr(loop._Runner, "take_step", guard)
  assert loop.run(Toy(), config(), ADAM, tmp_path).finished
  assert guarded == [0, 1, 2, 3]


TRACED = """
import pathlib, sys, toy
from absl import logging
from sora_jax.train import loop, optimizer, profiler
logging.set_verbosity(logging.INFO)
folder = pathlib.Path(sys.argv[1])
config = loop.LoopConfig(steps=20, log_every=1, save_every=100)
adam = optimizer.OptimizerConfig(lr=0.1, warmup_steps=2)
loop.run(toy.Toy(), config, adam, folder, profiler.tracer(folder / "p"))
"""


def test_a_trace_holds_the_steps_it_says(tmp_path):
  """As xprof reads it: its events name the steps and the program.

  In a process of its own: where the TPU compiler is loaded, as tests of the planner load it, JAX
  traces through it too, and a compiler without its chips brings the process down.
  """
  environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
  command = [sys.executable, "-c", TRACED, str(tmp_path)]
  done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
  assert "trace of steps 10 to 14" in done.stderr
  (path,) = (tmp_path / "p").rglob("*.xplane.pb")
  trace = jax.profiler.ProfileData.from_file(str(path))
  events = [e for plane in trace.planes for line in plane.lines for e in line.events]
  steps = {dict(e.stats).get("step_num") for e in events if e.name.startswith("train")}
  assert steps >= set(range(10, 15)) and 9 not in steps
  assert any("step" in e.name and "jit" in e.name.lower() for e in events)


def test_a_run_too_short_for_a_trace_says_so(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    profiler.tell_if_missing(tmp_path)
  assert f"no trace was written to {tmp_path}" in caplog.text and "needs 18 steps" in caplog.text
  caplog.clear()
  (tmp_path / "host.xplane.pb").touch()
  profiler.tell_if_missing(tmp_path)
  assert not caplog.text


def test_an_ended_or_failing_stream_is_reported(tmp_path):
  class Short(Toy):
    def batches(self):
      stream = super().batches()
      original = type(stream).__next__

      class Ending(type(stream)):
        def __next__(self):
          if self.position == 2:
            raise OSError("worker 1 was killed")
          return original(self)

      stream.__class__ = Ending
      return stream

  with pytest.raises(OSError, match="worker 1 was killed"):
    loop.run(Short(), config(), ADAM, tmp_path)


def started(workdir):
  """Makes a folder one of a run that has saved something."""
  (workdir / "checkpoints" / "2").mkdir(parents=True)


def test_config_of_a_work_directory_is_kept(tmp_path):
  started(tmp_path)
  first = {"model": {"width": 64}, "train": {"steps": 5, "log_every": 1}}
  checkpoint.keep_config(tmp_path, first)
  checkpoint.keep_config(tmp_path, {"model": {"width": 64}, "train": {"steps": 9, "log_every": 2}})
  with pytest.raises(ValueError, match=r"model.width: 64 -> 32"):
    checkpoint.keep_config(tmp_path, {"model": {"width": 32}, "train": {"steps": 9}})
  assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 9


def test_before_anything_is_saved_another_config_takes_the_place(tmp_path):
  path = tmp_path / "config.json"
  for text in ("", '{"model": {"wid', '{"model": {"width": 64}}'):
    path.write_text(text)
    (tmp_path / "checkpoints" / "2.unreadable").mkdir(parents=True, exist_ok=True)
    checkpoint.keep_config(tmp_path, {"model": {"width": 32}})
    assert json.loads(path.read_text()) == {"model": {"width": 32}}


def test_the_processes_that_render_clips_may_change(tmp_path):
  started(tmp_path)
  checkpoint.keep_config(tmp_path, {"data": {"processes": 2}})
  checkpoint.keep_config(tmp_path, {"data": {"processes": 8}})


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_steps_may_change_unless_tokens_are_dropped_by_them(tmp_path, share):
  started(tmp_path)
  first, second = (
    {"data": {"token_drop": {"share": share}}, "train": {"steps": steps}} for steps in (5, 9)
  )
  checkpoint.keep_config(tmp_path, first)
  if not share:
    return checkpoint.keep_config(tmp_path, second)
  with pytest.raises(ValueError, match=r"train.steps: 5 -> 9 \(.*data.token_drop.* Change these"):
    checkpoint.keep_config(tmp_path, second)


def test_a_config_cut_short_is_named_with_the_remedy(tmp_path):
  started(tmp_path)
  path = tmp_path / "config.json"
  path.write_text('{"model": {"wid')
  with pytest.raises(ValueError, match=r"config\.json is not JSON.* delete it"):
    checkpoint.keep_config(tmp_path, {"model": {"width": 64}})
  assert path.read_text() == '{"model": {"wid'


def rewrite_config(folder, changed):
  checkpoint.keep_config(folder, {"train": {"steps": 9 if changed else 5}})


def rewrite_metrics(folder, changed):
  metrics.Writer(folder / "metrics.jsonl", 1 if changed else 2).close()


@pytest.fixture(params=[("config.json", rewrite_config), ("metrics.jsonl", rewrite_metrics)])
def kept_file(request, tmp_path):
  """A file of a work directory, and what rewrites it when the run is started again."""
  name, rewrite = request.param
  checkpoint.keep_config(tmp_path, {"train": {"steps": 5}})
  writer = metrics.Writer(tmp_path / "metrics.jsonl")
  for step in (1, 2):
    writer.write(step, {"loss": 0.5})
  writer.close()
  return tmp_path / name, functools.partial(rewrite, tmp_path)


def test_a_start_killed_while_it_writes_leaves_the_old_file(kept_file, monkeypatch):
  path, rewrite = kept_file
  before, write_text = path.read_text(), Path.write_text

  def killed(self, text, *args, **kwargs):
    write_text(self, text[: len(text) // 2], *args, **kwargs)
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
      rewrite(changed=True)
  assert path.read_text() == before
  rewrite(changed=True)
  assert path.read_text() != before
  assert {p.name for p in path.parent.iterdir()} == {"config.json", "metrics.jsonl"}


def test_a_start_that_changes_nothing_writes_nothing(kept_file):
  path, rewrite = kept_file
  before = path.stat()
  rewrite(changed=False)
  after = path.stat()
  assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
  ("name", "value", "allowed"),
  [
    ("steps", 0, "from 1 to 2147483647"),
    ("steps", 2**31, "from 1 to 2147483647"),
    ("seed", 2**32, "from 0 to 4294967295"),
    ("seed", -1, "from 0 to 4294967295"),
    ("minutes", -1.0, "from 0 to 1000000000"),
    ("minutes", math.inf, "from 0 to 1000000000"),
    ("minutes", math.nan, "from 0 to 1000000000"),
    ("accumulate", 0, "at least 1"),
    ("keep", 0, "at least 1"),
    ("eval_every", -1, "at least 0"),
    ("mesh", (), r"four sizes \(data, fsdp, context, tensor\), each 1 or more"),
    ("mesh", (1, 1, 1), "four sizes"),
    ("mesh", (0, 1, 1, 1), "four sizes .* each 1 or more"),
    ("mesh", (-1, -1, 1, 1), "four sizes .* but for one that may be -1"),
  ],
)
def test_impossible_values_are_refused(name, value, allowed):
  told = rf"train.{name} is {re.escape(str(value))}; it must be {allowed}"
  with pytest.raises(ValueError, match=told):
    config(**{name: value})
