"""The planner on true configs, with the TPU compiler; none of the chips is here."""

import json
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

ROOT = pathlib.Path(__file__).parents[1]
KEYS = {
  "fits", "hbm_bytes_per_chip", "hbm_limit_bytes", "flops_per_step_compiled",
  "flops_per_step_formula", "collectives", "step_seconds_lower_bound", "mfu_upper_bound",
  "compile_seconds",
}  # fmt: skip


def plan(out, *flags) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "sora_jax.plan", f"--out={out}", *flags], cwd=ROOT,
    capture_output=True, text=True, timeout=800,
  )  # fmt: skip


@pytest.mark.parametrize(
  "size, topology, least",
  [("tiny", "v5e:2x4", 0.0), ("b", "v6e:2x4", 0.0), ("3b", "v5p:4x4x8", 0.55)],
)
def test_shipped_configs_fit_where_they_say_they_do(size, topology, least, tmp_path):
  out = tmp_path / "plan.json"
  quick = "--noquick" if size == "tiny" else "--quick"  # machine code takes minutes and is not read
  done = plan(out, f"--config=configs/dit.py:{size}", f"--topology={topology}", quick)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  found = json.loads(out.read_text())
  assert KEYS <= set(found)
  assert found["fits"] and found["hbm_bytes_per_chip"] < found["hbm_limit_bytes"]
  assert abs(found["dot_flops_compiled"] / found["dot_flops_formula"] - 1) < 0.03
  assert least < found["mfu_upper_bound"] < 1
  assert f"{topology}" in done.stdout and "model-FLOP use" in done.stdout


def test_what_does_not_fit_says_so_and_what_would(tmp_path):
  out = tmp_path / "plan.json"
  done = plan(
    out,
    "--config=configs/dit.py:b",
    "--topology=v5e:2x2",
    "--config.train.accumulate=1",
    "--quick",
  )
  assert done.returncode == 1
  assert "DOES NOT FIT" in done.stdout and "train.accumulate" in done.stdout
  assert json.loads(out.read_text())["fits"] is False


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--topology=v5p:4x4"], "give CHIP:SHAPE"),
    (["--topology=v5e:2x2", "--mesh=rows=4"], "'rows=4' is no AXIS=SIZE"),
    (["--topology=v5e:2x2", "--mesh=data=3"], "does not fit 4 devices"),
    (["--topology=v5e:2x2", "--mesh=fsdp=4", "--config.model.width=130",
      "--config.model.heads=1"], "split over the mesh axes fsdp, 4 parts"),
  ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(flags, message, tmp_path):
  done = plan(tmp_path / "no.json", "--config=configs/dit.py:tiny", *flags)
  assert done.returncode == 1 and message in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "no.json").exists()


def test_another_task_is_not_taken_for_text_to_video(tmp_path):
  done = plan(tmp_path / "no.json", "--config=configs/vae.py:tiny", "--topology=v5e:2x2")
  assert done.returncode == 1 and "only 'text_to_video' can be planned" in done.stderr


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
  from sora_jax.planning import topology

  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(RuntimeError, match=r"pip install sora_jax\[tpu\]"):
    topology.describe("v5e:2x2")
