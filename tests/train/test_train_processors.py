"""How many devices JAX is to see on processors."""

import os
import subprocess
import sys

import pytest

from sora_jax.train import processors


@pytest.fixture
def told(monkeypatch):
  """What JAX was told."""
  found = {}
  monkeypatch.setattr(processors.jax.config, "update", found.__setitem__)
  monkeypatch.setenv("XLA_FLAGS", "--xla_something=1")
  return found


@pytest.mark.parametrize(
  ("mesh", "rows", "cores", "devices"),
  [
    ((-1, 1, 1, 1), 14, 2, 2), ((-1, 1, 1, 1), 14, 16, 14), ((-1, 1, 1, 1), 14, 4, 2),
    ((-1, 1, 1, 1), 7, 2, 1), ((1, -1, 1, 1), 8, 4, 4), ((2, -1, 1, 1), 8, 8, 8),
    ((2, -1, 1, 1), 4, 8, 4), ((1, 1, 1, 1), 14, 2, 1), ((2, 2, 2, 1), 3, 2, 8),
    ((1, 1, -1, 1), 14, 2, 1), ((-1, 1, 2, 1), 14, 2, 2),
  ],
)  # fmt: skip
def test_rows_are_shared_out_evenly(told, mesh, rows, cores, devices):
  assert processors.share_out(mesh, rows, cores) == devices
  assert told == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize("mesh", [(-1, -1, 1, 1), (0, 1, 1, 1), (-2, 1, 1, 1), (-1, 1), ()])
def test_what_is_no_mesh_is_left_to_be_refused(told, mesh):
  assert processors.share_out(mesh, 14, 2) == 0 and not told


def test_sizes_that_are_no_whole_numbers_are_refused_too():
  """In a process without the tests' checks of types, as a command line is."""
  code = (
    "from sora_jax.train import loop, processors\n"
    "for mesh in (('1', 1, 1, 1), (0.5, 2, 1, 1)):\n"
    "  assert processors.share_out(mesh, 14, 2) == 0\n"
    "  try:\n"
    "    loop.LoopConfig(4, mesh=mesh)\n"
    "  except ValueError as error:\n"
    "    assert str(error).startswith(f'train.mesh is {mesh}; it must be four sizes'), error\n"
    "  else:\n"
    "    raise AssertionError(mesh)\n"
  )
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
  ("name", "value"), [("XLA_FLAGS", f"--{processors.SET}=8"), ("JAX_NUM_CPU_DEVICES", "8")]
)
def test_what_was_said_before_stays_in_force(told, monkeypatch, name, value):
  monkeypatch.setenv(name, value)
  assert processors.share_out((-1, 1, 1, 1), 14, 2) == 0 and not told


def test_jax_sees_them():
  code = (
    "import jax; from sora_jax.train import processors; processors.share_out((-1, 1, 1, 1), 6, 3);"
    "assert len(jax.devices()) == 3, jax.devices()"
  )
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  subprocess.run([sys.executable, "-c", code], check=True, env=environment)
