"""What storage and the system do to a run: nothing that was saved is lost, and it is said."""

import importlib.util
import logging
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_toy import Wide

from sora_jax.train import checkpoint, loop, metrics
from sora_jax.train.optimizer import OptimizerConfig

HERE = pathlib.Path(__file__).parent
ADAM = OptimizerConfig(lr=0.1, warmup_steps=2)
TOY = [sys.executable, str(HERE / "run_toy.py")]


def config(**changes):
  return loop.LoopConfig(**({"steps": 4, "log_every": 1, "save_every": 2, "seed": 3} | changes))


def harness():
  """The kill harness of experiments/reliability."""
  path = HERE.parents[1] / "experiments" / "reliability" / "kill.py"
  spec = importlib.util.spec_from_file_location("kill", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(tmp_path):
  told = harness().check([*TOY, "--steps=20"], tmp_path / "runs", rounds=3, seed=1, data=False)
  assert len(told) == 3
  for one in told:
    assert one["losses"] and one["arrays"] and one["steps"] == 20, one
  assert any(one["done"].startswith("killed") for one in told), told


@given(word=st.integers(0, 11), bit=st.integers(0, 31), dtype=st.sampled_from("fiHBe?"))
@settings(max_examples=40, deadline=None)
def test_every_changed_bit_changes_its_checksum_and_no_other(word, bit, dtype):
  array = np.arange(12).reshape(3, 4).astype(dtype)
  changed = array.copy().reshape(-1)
  if dtype == "?":
    changed[word] ^= True
  else:
    bits = changed.view(f"u{changed.itemsize}")
    bits[word] ^= bits.dtype.type(1 << bit % (8 * changed.itemsize))
  one = checkpoint.checksums({"a": jnp.asarray(array), "b": jnp.ones(2)})
  two = checkpoint.checksums({"a": jnp.asarray(changed.reshape(3, 4)), "b": jnp.ones(2)})
  assert one["['a']"] != two["['a']"] and one["['b']"] == two["['b']"]


def test_a_checkpoint_that_storage_changed_gives_way_to_the_one_before(tmp_path, caplog):
  whole = loop.run(Wide(), config(), ADAM, tmp_path)
  state = tmp_path / "checkpoints" / "4" / "state"
  data = max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 4
  data.write_bytes(bytes(content))
  with caplog.at_level(logging.WARNING, "absl"):
    again = loop.run(Wide(), config(), ADAM, tmp_path)
  assert "step 4 cannot be read" in caplog.text and "not as it was saved" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, *jax.device_get((whole.state, again.state)))


def test_a_full_disk_is_said_in_one_line_and_costs_nothing_that_was_saved(tmp_path):
  run = lambda *more: subprocess.run(  # noqa: E731
    [*TOY, f"--workdir={tmp_path / 'run'}", *more], capture_output=True, text=True
  )
  assert run("--steps=4").returncode == 0
  full = run("--steps=12", "--file_bytes=100000")
  last = full.stderr.strip().splitlines()[-1]
  assert full.returncode == 1, full.stderr[-1000:]
  assert last.startswith(f"main: a checkpoint could not be written to {tmp_path / 'run'}")
  assert "File too large; that of step 4 is whole" in last and "Make room there" in last
  assert run("--steps=12").returncode == 0
  lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
  assert [x["step"] for x in lines if "loss" in x] == list(range(1, 13))


def test_figures_that_cannot_be_written_name_their_file(tmp_path):
  writer = metrics.Writer(tmp_path / "metrics.jsonl")
  writer._file.close()
  writer._file = open("/dev/full", "w")
  with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: No space left on device"):
    writer.write(1, {"loss": 1.0})
