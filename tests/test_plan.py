"""The planner on true configs, with the TPU compiler; none of the chips is here."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from sora_jax import sharding
from sora_jax.planning import topology
from sora_jax.tasks import planned, sampling_programs

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
  done = plan(out, f"--config=configs/dit.py:{size}", f"--topology={topology}", "--quick")
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  found = json.loads(out.read_text())
  assert KEYS <= set(found)
  assert found["fits"] and found["hbm_bytes_per_chip"] < found["hbm_limit_bytes"]
  assert abs(found["dot_flops_compiled"] / found["dot_flops_formula"] - 1) < 0.03
  assert least < found["mfu_upper_bound"] < 1
  assert f"{topology}" in done.stdout and "model-FLOP use" in done.stdout


def test_without_quick_the_size_of_the_machine_code_is_told_too(tmp_path):
  small = ["--program=vae_decode", "--size=32x32", "--frames=1"]
  told = []
  for quick in ("--quick", "--noquick"):
    out = tmp_path / f"plan{quick}.json"
    done = plan(out, "--config=configs/vae.py:smoke", "--topology=v5e:1x1", quick, *small)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    (code,) = (line for line in done.stdout.splitlines() if line.startswith("  code "))
    told.append((json.loads(out.read_text()), code))
  (quick, no_code), (whole, code) = told
  assert "not made" in no_code and "GiB" in code
  assert whole["hbm_bytes_by_kind"]["code"] > 0 and quick["hbm_bytes_by_kind"]["code"] is None
  assert whole["dot_flops_compiled"] == quick["dot_flops_compiled"]


def test_what_does_not_fit_says_so_and_what_would(tmp_path):
  out = tmp_path / "plan.json"
  done = plan(
    out,
    "--config=configs/dit.py:tiny",
    "--topology=v5e:1x1",
    "--config.data.rows=8192",
    "--config.data.streams=8192",
    "--quick",
  )
  assert done.returncode == 1
  assert "DOES NOT FIT" in done.stdout and "train.accumulate" in done.stdout
  assert json.loads(out.read_text())["fits"] is False


@pytest.mark.parametrize(
  "config, topology, flags, dots",
  [
    ("dit.py:xl", "v5e:1x1", ["--program=sample", "--size=2048x2048", "--frames=1"], 0.01),
    ("dit.py:10b", "v5p:2x2x2",
     ["--program=sample", "--mesh=tensor=8", "--size=1920x1080", "--frames=81"], 0.01),
    ("vae.py:base", "v5e:2x2",
     ["--program=vae_decode", "--mesh=context=2,tensor=2", "--size=1920x1080", "--frames=81"],
     0.03),
  ],
)  # fmt: skip
def test_large_pictures_and_videos_are_made_where_it_is_said(
  config, topology, flags, dots, tmp_path
):
  out = tmp_path / "plan.json"
  done = plan(out, f"--config=configs/{config}", f"--topology={topology}", "--quick", *flags)
  assert done.returncode == 0, done.stdout + done.stderr[-2000:]
  found = json.loads(out.read_text())
  assert found["fits"] and found["program"] == flags[0].split("=")[1]
  assert abs(found["dot_flops_compiled"] / found["dot_flops_formula"] - 1) < dots
  # no frame or row is whole on a chip of several
  axes = {axis for exchange in found["collectives"] for axis in exchange["axes"]}
  assert axes == {axis for axis, size in found["mesh"].items() if size > 1}


def test_sampling_is_planned_as_it_is_run(monkeypatch):
  """A loaded model splits rows by the "auto" method and loops over its blocks one by one, whatever
  it was trained with."""
  given = []
  monkeypatch.setattr(
    sampling_programs.build, "sketch", lambda c, *a, **k: given.append(c) or 1 / 0
  )
  config = config_of("dit:tiny", {"train.context": "ring", "model.scan_unroll": 2})
  with pytest.raises(ZeroDivisionError):
    sampling_programs.sample(
      config, sharding.make_mesh((1, 1, 1, 1), jax.devices()[:1]), (64, 64), 9
    )
  assert given[0]["train"]["context"] == "auto" and given[0]["model"]["scan_unroll"] == 1
  assert config["train"]["context"] == "ring"


def config_of(config, changes=()):
  name, size = config.split(":")
  c = importlib.import_module(f"configs.{name}").get_config(size)
  c.update_from_flattened_dict(dict(changes))
  return c.to_dict()


def run(config="dit:tiny", topology="v5e:2x2", changes=(), **given):
  return planned.run(config_of(config, changes), topology, **given)


@pytest.mark.parametrize(
  "given, message",
  [
    ({"topology": "v5p:4x4"}, "give CHIP:SHAPE"),
    ({"mesh": "rows=4"}, "'rows=4' is no AXIS=SIZE"),
    ({"mesh": "data=--2"}, "'data=--2' is no AXIS=SIZE"),
    ({"mesh": "data=2²"}, "'data=2²' is no AXIS=SIZE"),
    ({"mesh": "data=2,data=4"}, "--mesh=data=2,data=4: data is given twice"),
    ({"mesh": "data=3"}, "--mesh=data=3 on v5e:2x2: mesh .* does not fit 4 devices"),
    ({"mesh": "fsdp=8", "topology": "2*v5e:2x2"}, "--mesh=fsdp=8 on 2.v5e:2x2: .* 2 slices share"),
    ({"changes": {"train.mesh": (3, 1, 1, 1)}}, "^config.train.mesh .*--mesh.* on v5e:2x2: mesh"),
    ({"size": (96, 64)}, "--size and --frames are of what is sampled or decoded"),
    ({"frames": 0}, "--size and --frames are of what is sampled or decoded"),
    ({"mesh": "fsdp=4", "changes": {"model.width": 130, "model.heads": 1}},
     "split over the mesh axes fsdp, 4 parts"),
    ({"mesh": "context=4", "program": "sample", "changes": {"data.row_len": 258}},
     "258 along 'token'"),
    ({"mesh": "data=4", "program": "sample", "size": (0, 8)}, "17 frames of 0x8; all must be"),
    ({"program": "vae_decode", "frames": 0}, "0 frames of .*; all must be"),
    ({"mesh": "data=2,fsdp=2", "program": "vae_decode"},
     "4 parts for rows .* decoded one by one; .*--mesh=context=4"),
    ({"config": "vae:base", "mesh": "data=4", "program": "sample"},
     "only a text_to_video config has something to sample"),
  ],
)  # fmt: skip
def test_mistakes_are_named(given, message):
  with pytest.raises(ValueError, match=message):
    run(**given)


@pytest.mark.parametrize(
  "given, message",
  [
    ({"program": "sample"}, "--search is for --program=train"),
    ({"config": "vae:base"}, "--search tries rows of tokens, which config.task 'vae' has not"),
    ({"mesh": "fsdp=4"}, "chooses the mesh itself.*leave out --mesh=fsdp=4"),
    ({"cut": True}, "chooses the mesh itself.*leave out --size and --frames"),
    ({"topology": "v5e:64x64"}, "no such slice"),
    ({"changes": {"model.heads": 5}}, "heads"),
    ({"changes": {"train.mesh": (0, -1, 1, 1)}}, "^config.train.mesh .* it must be four"),
    ({"changes": {"train.mesh": (1, 1, 1, 0)}}, "it must be four sizes"),
  ],
)  # fmt: skip
def test_a_search_refuses_at_once_what_each_of_its_plans_would(given, message):
  usual = {"topology": "v5e:2x2", "program": "train", "mesh": "", "cut": False}
  given = {"config": "dit:tiny", "changes": {}} | usual | given
  config = config_of(given.pop("config"), given.pop("changes"))
  with pytest.raises(ValueError, match=message):
    planned.check_search(config, *given.values())


def test_a_search_is_told_where_it_tries():
  there = planned.check_search(config_of("dit:tiny"), "v5e:2x2", "train", "", False)
  assert len(there.devices) == 4


@pytest.mark.parametrize(
  "out, flags, message",
  [
    ("no.json", ["--size=4", "--program=sample"], "--size=4; give WIDTHxHEIGHT"),
    ("missing/no.json", [], "--out=.*missing/no.json cannot be written: No such file or directory"),
    ("missing/no.json", ["--search"], "--out=.*missing/no.json cannot be written"),
    ("", [], "--out=.* cannot be written: it is a folder; name a file"),
    ("no.json", ["--config.modle.width=8"], "flag --config=.*no 'modle'. Did you mean 'model'"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_compiled(out, flags, message, tmp_path):
  given = ["--config=configs/dit.py:tiny", "--topology=v5e:2x2", *flags]
  done = plan(tmp_path / out, *given)
  assert done.returncode == 1 and not done.stdout
  assert re.match(f"plan: {message}", done.stderr.splitlines()[-1])
  assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  with pytest.raises(RuntimeError, match=r"pip install sora_jax\[tpu\]"):
    topology.describe("v5e:2x2")
