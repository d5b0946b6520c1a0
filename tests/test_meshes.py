"""Rows, parameters and heads on meshes of eight devices, which a process pretends to have."""

import json
import os
import pathlib
import socket
import subprocess
import sys

HERE = pathlib.Path(__file__).parent / "meshes"
ATTENTION = (
  *(f"1x1x8x1 {m}" for m in ("ring", "ulysses", "words")),
  *(f"1x1x2x4 {m}" for m in ("ring", "ulysses", "words")),
  *(f"1x2x4x1 {m}" for m in ("ring", "ulysses", "words")),
  *(f"2x1x2x2 {m}" for m in ("ring", "ulysses", "words")),
)
GRADIENTS = (
  "1x1x1x1 auto", "8x1x1x1 auto", "1x8x1x1 auto", "2x2x2x1 ring", "1x2x2x2 ulysses",
)  # fmt: skip


def run(script: str) -> dict[str, list]:
  """Runs a script with eight devices; returns the JSON lines that it prints, by name."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, HERE / script], env=os.environ | {"XLA_FLAGS": flags},
    cwd=HERE.parents[1], capture_output=True, text=True, timeout=800,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  found = {}
  for line in done.stdout.splitlines():
    if line.startswith("{"):
      value = json.loads(line)
      found.setdefault(value["name"], []).append(value)
  return found


def test_attention_on_split_rows_is_the_definition_and_the_ring_holds_no_whole_row():
  found = run("attention.py")
  # bf16: weights and products are rounded to 8 bits at different places
  bounds = {"float32": 2e-6, "bfloat16": 2e-2}
  for name in ATTENTION:
    assert {case["dtype"] for case in found[name]} == set(bounds)
    for case in found[name]:
      assert case["error"] <= bounds[case["dtype"]], case
  (whole,) = found["whole rows"]
  assert whole["ring"] == 0
  assert whole["ulysses"] > 0, "the search must find a whole row where there is one"


def test_first_loss_and_gradients_on_every_mesh_are_those_of_one_device():
  found = run("gradients.py")
  (muon,) = found.pop("muon")
  assert muon["error"] <= 1e-4, "five iterations on matrices whose products are rounded elsewhere"
  assert muon["share"] == 0.25, "of its momentum, which lies over data and fsdp"
  assert set(found) == set(GRADIENTS)
  for name, (case,) in found.items():
    assert case["error"] <= 1e-5, case
    split = name.split("x")[1] != "1" or "x2 " in name  # fsdp or tensor
    assert (case["parts"] > 0) == split, case


def test_videos_made_on_a_mesh_are_those_of_one_device():
  found = run("sampling.py")
  (case,) = found["videos"]
  assert case["error"] <= 1, case  # of 255: what is rounded up here may be rounded down there
  assert case["parts"] > 0
  (decoder,) = found["decoder"]
  split, whole = decoder["whole"]
  assert split == 0 and whole > 0, "frames are split, and the search finds them where they are not"


def test_two_processes_are_as_one_device():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
  both = [
    subprocess.Popen(
      [sys.executable, HERE / "first_step.py", address, "2", str(n)], cwd=HERE.parents[1],
      env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True,
    )
    for n in (0, 1)
  ]  # fmt: skip
  told = [process.communicate(timeout=600) for process in both]
  assert [process.returncode for process in both] == [0, 0], told[0][1][-2000:] + told[1][1][-2000:]
  (line,) = [text for text in told[0][0].splitlines() if text.startswith("{")]
  found = json.loads(line)
  assert found["error"] <= 1e-5
  assert found["share"] == [[0, 2], 4] and found["over_both"] > 0
  assert found["merged"] == {"step": 1, "streams": {"0": "state", "1": "state"}}
  assert found["every"] == [True, False]
