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
