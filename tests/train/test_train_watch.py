"""Two processes of one job: one is told to stop, killed or fails; what was saved goes on."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sora_jax.train import metrics, watch

TOY = [sys.executable, str(pathlib.Path(__file__).parent / "run_toy.py"), "--steps=32"]


class Pair:
  """Two processes that train the toy together; what they say goes to files."""

  def __init__(self, workdir: pathlib.Path, *more: str, second: tuple[str, ...] = ()):
    address = free_address()
    self.workdir, self.said = workdir, [workdir.parent / f"said{n}" for n in (0, 1)]
    command = [*TOY, f"--workdir={workdir}", f"--coordinator={address}", "--processes=2", *more]
    self.processes = []
    for n in (0, 1):
      with open(self.said[n], "w") as said:
        own = [f"--process={n}", *(second if n else ())]
        self.processes.append(subprocess.Popen([*command, *own], stdout=said, stderr=said))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    for process in self.processes:
      process.kill()
      process.wait()

  def until_saved(self, step: int) -> None:
    """Waits for a finished checkpoint of this step or a later one."""
    while max(steps(self.workdir), default=0) < step:
      assert self.processes[0].poll() is None, self.texts()
      time.sleep(0.02)

  def ended(self) -> list[int]:
    """Exit statuses, within the minute that the other one may take."""
    return [process.wait(timeout=60) for process in self.processes]

  def texts(self) -> list[str]:
    return [path.read_text() for path in self.said]

  def line(self, n: int, start: str) -> str:
    """The one line of a process that begins like this, in the midst of what libraries say."""
    lines = [line for line in self.texts()[n].splitlines() if line.startswith(start)]
    assert len(lines) == 1, self.texts()[n]
    return lines[0]


def free_address() -> str:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def steps(workdir: pathlib.Path) -> list[int]:
  """Of finished checkpoints."""
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal())


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
  lines = metrics.read(workdir / "metrics.jsonl")
  return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def damage(checkpoint: pathlib.Path) -> None:
  """Cuts what the second process wrote."""
  for file in (checkpoint / "state" / "ocdbt.process_1" / "d").iterdir():
    file.write_bytes(b"")


ALONE = """
import sys, time
from sora_jax.train import hosts, watch
watch.Watch._wait = lambda self: None
hosts.connect(sys.argv[1], 2, int(sys.argv[2]))
print("here", flush=True)
if sys.stdin.readline():
  raise KeyError("a bug")
time.sleep(60)
"""
"""A process whose thread hears nothing, as happens where process 0 is lost."""


@pytest.fixture
def both():
  """Two such processes that have found each other."""
  address, pipes = free_address(), dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
  both = [
    subprocess.Popen([sys.executable, "-c", ALONE, address, str(n)], text=True, **pipes)
    for n in (0, 1)
  ]
  for process in both:
    while "here" not in (line := process.stdout.readline()):
      assert line, process.stderr.read()
  yield both
  for process in both:
    process.kill()
    process.communicate()


def test_the_abort_of_a_process_is_explained_where_process_0_is_lost(both):
  both[0].kill()
  lines = both[1].stderr.read().splitlines()
  assert both[1].wait(30) == 1 and lines[-1].startswith(
    "process 1 ends: process 0 of 2 died or was"
  )
  assert "; nothing is saved yet. Start the same command again on all machines" in lines[-1]


def test_a_process_that_aborts_by_itself_accuses_nobody(both):
  both[1].send_signal(signal.SIGABRT)
  assert both[1].wait(30) == -signal.SIGABRT and "ends:" not in both[1].stderr.read()


def test_a_process_that_fails_does_not_wait_for_the_others(both):
  both[1].stdin.write("now\n")
  both[1].stdin.flush()
  assert both[1].wait(30) == 1 and "KeyError: 'a bug'" in both[1].stderr.read()


def test_no_worker_outlives_a_program_that_fails():
  """The pipes that a worker shares stay open as long as it lives."""
  code = (
    "import multiprocessing, time; from sora_jax.train import watch\n"
    "multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)).start()\n"
    "watch.leave('main: a fault', ValueError())\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
  assert done.returncode == 1 and done.stderr.endswith("main: a fault\n")


def test_what_another_process_may_have_caused_is_told_from_what_it_has_not():
  try:
    try:
      raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    except ValueError as error:
      raise OSError("a checkpoint could not be written") from error
  except OSError as error:
    assert watch._of_runtime(error)
  assert watch._of_runtime(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"))
  assert not watch._of_runtime(OSError("OUT_OF_RANGE: Error writing"))


def test_two_processes_disturbed_in_many_ways_end_as_if_they_had_not_been(tmp_path):
  workdir = tmp_path / "run"
  with Pair(tmp_path / "whole") as pair:
    assert pair.ended() == [0, 0], pair.texts()
  read = [line for line in metrics.read(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
  timed = [line for line in read if line["sec_per_step"]]
  tokens = [line["tokens_per_sec"] * line["sec_per_step"] for line in timed]
  assert len(timed) > 20
  np.testing.assert_allclose(tokens, 16, rtol=1e-5)  # of a step: 8 from each process

  with Pair(workdir, "--milliseconds=100") as pair:  # told to stop
    pair.until_saved(4)
    pair.processes[1].send_signal(signal.SIGTERM)
    assert pair.ended() == [0, 0], pair.texts()
    stopped = steps(workdir)[-1]
    assert 4 < stopped < 32
    for text in pair.texts():
      assert f"stopped at step {stopped}; run the same command to resume" in text

  for lost in (1, 0):  # killed
    before = steps(workdir)[-1]
    with Pair(workdir, "--milliseconds=100") as pair:
      pair.until_saved(before + 1)
      pair.processes[lost].kill()
      statuses = pair.ended()
      assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1, pair.texts()
      line = pair.line(1 - lost, f"process {1 - lost} ends: process {lost} of 2 died or was not")
    assert f"; step {steps(workdir)[-1]} is saved in {workdir / 'checkpoints'}. Start the" in line

  with Pair(workdir, second=("--file_bytes=50000",)) as pair:  # one cannot write its part
    before = steps(workdir)[-1]
    assert pair.ended() == [1, 1], pair.texts()
    line = pair.line(1, "main: a checkpoint could not be written")
    assert f"File too large; that of step {before} is whole. Make room" in line
    pair.line(0, "process 0 ends: process 1 of 2 died or was not heard")

  damage(workdir / "checkpoints" / str(before))
  with Pair(workdir) as pair:
    assert pair.ended() == [0, 0], pair.texts()
    assert all(f"checkpoint of step {before} cannot be read" in text for text in pair.texts())
    assert (workdir / "checkpoints" / f"{before}.unreadable").is_dir()
  assert losses(workdir) == losses(tmp_path / "whole")
