import subprocess
import sys

import pytest

from sora_jax.train import host_memory


@pytest.mark.parametrize(
  ("asked", "device", "expected"),
  [
    ("", None, True),
    ("cpu", "nvidia0", True),
    ("cuda", None, False),
    ("", "nvidia0", False),
    ("", "vfio/0", False),
    ("", "accel1", False),
    ("", "nvidia-modeset", True),
  ],
)
def test_an_accelerator_is_seen_without_starting_jax(
  tmp_path, monkeypatch, asked, device, expected
):
  monkeypatch.setenv("JAX_PLATFORMS", asked)
  if device:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
  assert host_memory.cpu_alone(tmp_path) is expected


HEAP_SIZE = """
from sora_jax.train import host_memory
if host_memory.keep_freed_memory(3 << 30):
  heap = [line.split()[0] for line in open("/proc/self/maps") if line.endswith("[heap]\\n")]
  print(int(heap[-1].split("-")[1], 16) - int(heap[0].split("-")[0], 16))
"""


def test_an_area_above_two_gib_stays_in_the_heap():
  """Once it was trimmed away as soon as it was freed, and its mark for huge pages with it."""
  out = subprocess.run([sys.executable, "-c", HEAP_SIZE], capture_output=True, text=True)
  if not out.stdout:
    pytest.skip(f"no glibc here: {out.stderr[-200:]}")
  assert int(out.stdout) >= 3 << 30
