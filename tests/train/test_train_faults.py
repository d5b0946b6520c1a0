"""What storage and the system do to a run: nothing that was saved is lost, and it is said."""

import errno
import importlib.util
import logging
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_toy import Wide
from toy import Stream, Toy

from sora_jax.data.records import Clip, ShardSource
from sora_jax.data.shard_writer import ShardWriter
from sora_jax.train import checkpoint, loop, metrics
from sora_jax.train.optimizer import OptimizerConfig

HERE = pathlib.Path(__file__).parent
ADAM = OptimizerConfig(lr=0.1, warmup_steps=2)
TOY = [sys.executable, str(HERE / "run_toy.py")]


def config(**changes):
  return loop.LoopConfig(**({"steps": 4, "log_every": 1, "save_every": 2, "seed": 3} | changes))


def harness(name="kill"):
  """A harness of experiments/reliability."""
  path = HERE.parents[1] / "experiments" / "reliability" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(tmp_path):
  told = harness().check([*TOY, "--steps=20"], tmp_path / "runs", rounds=3, seed=1, data=False)
  assert len(told) == 3
  for one in told:
    assert one["losses"] and one["arrays"] and one["steps"] == 20, one
  assert any(one["done"].startswith("killed") for one in told), told


def test_a_run_that_lacks_steps_is_told_from_one_that_has_them(monkeypatch):
  kill = harness()
  monkeypatch.setitem(sys.modules, "kill", kill)
  compare = harness("elastic").compare
  want = {1: (2.0, 0.9), 2: (1.0, 0.8), 3: (0.5, 0.9)}
  assert compare(want, want) == (0.0, True)
  assert compare({1: (2.0, 0.9), 3: (0.55, 0.9)}, want) == (pytest.approx(0.1), False)
  assert compare(want | {2: (1.0, 0.7)}, want) == (0.0, False)
  assert compare({}, want) == (math.inf, False)


def on_devices(workdir, mesh, *flags):
  """Starts the toy on as many devices as its mesh needs, which its process pretends to have."""
  count = f"--xla_force_host_platform_device_count={math.prod(map(int, mesh.split(',')))}"
  return subprocess.Popen(
    [*TOY, "--steps=20", f"--workdir={workdir}", f"--mesh={mesh}", *flags],
    env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}"},
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def ended_well(processes):
  said = [process.communicate()[1] for process in processes]
  assert [process.returncode for process in processes] == [0] * len(processes), said


def test_a_run_moves_to_other_devices_and_meshes(tmp_path):
  """From eight devices to others: losses differ by what rounding becomes in 20 steps."""
  first = [on_devices(tmp_path / "whole", "1,1,1,1"),
           on_devices(tmp_path / "moved", "2,2,2,1", "--stop=7")]  # fmt: skip
  ended_well(first)
  meshes = ("8,1,1,1", "1,2,1,2", "1,1,2,1", "1,1,1,1")
  for mesh in meshes:
    shutil.copytree(tmp_path / "moved", tmp_path / mesh)
  ended_well([on_devices(tmp_path / mesh, mesh) for mesh in meshes])

  def losses(folder):
    lines = metrics.read(tmp_path / folder / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}

  whole, began = losses("whole"), losses("moved")
  assert sorted(whole) == list(range(1, 21)) and sorted(began) == list(range(1, 8))
  for mesh in meshes:
    assert losses(mesh) == pytest.approx(whole, rel=1e-3)
    assert {step: losses(mesh)[step] for step in began} == began


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


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_lost(tmp_path, caplog, monkeypatch):
  """Twice the newest one, whole as it is, cannot be read; then the run is taken up once more."""
  whole = loop.run(Toy(), config(), ADAM, tmp_path / "run")
  folder, read = tmp_path / "run" / "checkpoints", checkpoint._read
  before = contents(folder / "4")
  failing = []
  monkeypatch.setattr(checkpoint, "_read", lambda *a: _raise(failing) if failing else read(*a))
  for name in ("4.unreadable", "4.unreadable.2"):
    failing.append(OSError(errno.EMFILE, "Too many open files"))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "absl"):
      again = loop.run(Toy(), config(), ADAM, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((whole.state, again.state)))
    assert "step 4 cannot be read, trying an older one: [Errno 24] Too many" in caplog.text
    assert f"is kept as {folder / name}: give it its name back if" in caplog.text
    assert checkpoint.saved_steps(folder) == [2, 4]
  assert contents(folder / "4.unreadable") == before
  shutil.rmtree(folder / "4")
  (folder / "4.unreadable").rename(folder / "4")
  assert loop.run(Toy(), config(), ADAM, tmp_path / "run").step == 4


def _raise(errors):
  raise errors.pop()


def test_whatever_a_checkpoint_lacks_what_comes_back_was_saved(tmp_path, caplog):
  """Of files all, or half; of folders all that is in them, and of the step's own all but its name.
  What orbax has no need of may be gone."""
  out = loop.run(Toy(), config(), ADAM, tmp_path / "run")
  folder, kept = tmp_path / "run" / "checkpoints", tmp_path / "kept"
  shutil.copytree(folder, kept)
  (arrays,) = (path.name for path in (kept / "4" / "state" / "d").iterdir())
  needed = ("data/metadata", "notes/metadata", "state/_METADATA", "state/manifest.ocdbt")
  needed = [f"4/{name}" for name in (*needed, f"state/d/{arrays}")]
  cases = [(name, cut) for name in needed for cut in (False, True)]
  cases += [("4/state", False), ("4/data", False), ("4", False)]
  spare = [("4/_CHECKPOINT_METADATA", False), ("4/state/_sharding", True)]
  for name, cut in cases + spare:
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    lack(folder / name, cut)
    caplog.clear()
    saved = checkpoint.Checkpoints(folder, 2)
    state, data, _ = saved.restore(out.state)
    saved.close()
    if (name, cut) in spare:
      assert data == {"position": 4}
      jax.tree.map(np.testing.assert_array_equal, *jax.device_get((state, out.state)))
    else:
      assert data == {"position": 2}, (name, cut)
      assert [int(state.step)] == checkpoint.saved_steps(folder) == [2], (name, cut)
      assert "checkpoint of step 4 cannot be read, trying an older one" in caplog.text


def lack(path: pathlib.Path, cut: bool) -> None:
  """Takes a file or folder away, or half of a file; of the step's own folder the name stays."""
  if cut:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  elif path.is_file():
    path.unlink()
  else:
    shutil.rmtree(path)
    if path.name.isdecimal():
      path.mkdir()


def toy(folder, *more):
  """The toy in a process of its own; what it said last of all, and its exit status."""
  done = subprocess.run([*TOY, f"--workdir={folder}", *more], capture_output=True, text=True)
  return (done.stderr.strip().splitlines() or [""])[-1], done.returncode


@pytest.mark.parametrize(
  ("fault", "reason"),
  [("--file_bytes=100000", "File too large"), ("--read_only=5", "Read-only file system")],
)
def test_what_cannot_be_written_is_said_in_one_line_and_costs_nothing_that_was_saved(
  tmp_path, fault, reason
):
  run = tmp_path / "run"
  assert toy(run, "--steps=4")[1] == 0
  last, status = toy(run, "--steps=12", fault)
  assert status == 1 and last.startswith(f"main: a checkpoint could not be written to {run}"), last
  assert f"{reason}; that of step 4 is whole. Make room there, or make it writable" in last
  assert toy(run, "--steps=12")[1] == 0
  lines = metrics.read(run / "metrics.jsonl")
  assert [x["step"] for x in lines if "loss" in x] == list(range(1, 13))


def test_a_work_directory_that_cannot_be_written_is_named_before_anything_is_done(tmp_path):
  (tmp_path / "file").write_text("")
  run = tmp_path / "file" / "run"
  last, status = toy(run)
  assert status == 1
  assert last.startswith(f"main: {run / 'checkpoints'} cannot be written: Not a directory; a run")
  assert last.endswith("Make it writable, or choose another --workdir")
  with pytest.raises(
    checkpoint.CheckpointError, match=f"^{run} cannot be written: Not a directory"
  ):
    checkpoint.keep_config(run, {})


@pytest.mark.skipif(not os.geteuid(), reason="root writes everywhere")
def test_a_work_directory_without_permission_is_named(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(checkpoint.CheckpointError, match="cannot be written: Permission denied"):
    checkpoint.keep_config(tmp_path, {})


def goes(path, source):
  path.unlink()
  source._readers.clear()  # who has it open reads on; a worker that starts, or a network, does not


def rots(path, source):
  content = bytearray(path.read_bytes())
  for at in range(100, len(content), 100):
    content[at] ^= 4
  with path.open("r+b") as file:
    file.write(content)


@pytest.mark.parametrize(
  ("happens", "what"), [(goes, "is missing"), (rots, r"is damaged \(clip 5: .* hash mismatch\)")]
)
def test_a_shard_that_goes_or_rots_on_the_way_is_named_and_the_run_goes_on_once_it_is_back(
  tmp_path, happens, what
):
  with ShardWriter(tmp_path / "clips", shard_size=4) as writer:
    for i in range(8):
      latent = np.random.default_rng(i).standard_normal((2, 8, 8, 4)).astype(np.float32)
      writer.write(Clip(id=f"{i}", latent_thwZ=latent, pixel_shape=(5, 64, 64)))
  source = ShardSource(tmp_path / "clips")
  path = tmp_path / "clips" / source.index["shards"][1]["file"]
  whole = path.read_bytes()

  class Filmed(Stream):
    def __next__(self):
      if self.position == 5 and path.exists() and path.read_bytes() == whole:
        happens(path, source)
      source[self.position % 8]
      return super().__next__()

  class Films(Toy):
    def batches(self):
      return Filmed(self.rows)

  with pytest.raises(ValueError, match=f"^shard {path} {what}; expected the 4 clips and .* again$"):
    loop.run(Films(), config(steps=8), ADAM, tmp_path / "run")
  assert checkpoint.saved_steps(tmp_path / "run" / "checkpoints")[-1] == 4
  path.write_bytes(whole)
  happens = lambda *_: None  # noqa: E731
  assert loop.run(Films(), config(steps=8), ADAM, tmp_path / "run").finished
  found, want = (
    [x["loss"] for x in metrics.read(folder / "metrics.jsonl") if "loss" in x]
    for folder in (tmp_path / "run", tmp_path / "left_alone")
    if folder.exists() or loop.run(Toy(), config(steps=8), ADAM, folder).finished
  )
  assert found == want


def test_figures_that_cannot_be_written_name_their_file(tmp_path):
  writer = metrics.Writer(tmp_path / "metrics.jsonl")
  writer._file.close()
  writer._file = open("/dev/full", "w")
  with pytest.raises(OSError, match=r"metrics.jsonl cannot be written: No space left on device"):
    writer.write(1, {"loss": 1.0})


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_that_cannot_be_rewritten_is_named_and_stays(tmp_path, monkeypatch, old):
  path = tmp_path / "config.json"
  if old:
    path.write_text(old)
  write_text = pathlib.Path.write_text

  def full(self, text, *args, **kwargs):
    write_text(self, text[: len(text) // 2], *args, **kwargs)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(pathlib.Path, "write_text", full)
  told = f"^{path} cannot be written: No space left on device. Make room there, .* again$"
  with pytest.raises(OSError, match=told):
    metrics.write_whole(path, "something new")
  assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])
