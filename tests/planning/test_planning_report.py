"""What a plan says of a program that its chip's memory does not hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.ops import splash
from sora_jax.planning import report, topology
from sora_jax.tasks.programs import Load, Program

pytest.importorskip("libtpu")

CHIP = "v5e:1x1"


def attention_over(length: int, there: topology.Topology) -> tuple[Program, Mesh]:
  """Attention over one row, for the first chip of a topology."""
  mesh = Mesh(np.array(there.devices[:1]), ("data",))
  here = NamedSharding(mesh, PartitionSpec())
  x = jax.ShapeDtypeStruct((1, length, 1, 128), jnp.bfloat16, sharding=here)
  segment = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=here)
  function = jax.jit(lambda x, s: splash.forward(x, x, x, s, s)[0])
  return Program(function, (x, segment), 0, Load(length, 1.0, 1.0)), mesh


def test_a_kernel_whose_memory_is_too_small_is_told_with_it(monkeypatch):
  monkeypatch.setattr(splash, "BLOCKS", 1024)  # as if the tables of a longer row fitted too
  there = topology.describe(CHIP)
  program, mesh = attention_over(400_000, there)
  plan = report.make(program, there, mesh, "attention")
  found, said = report.figures(plan), report.text(plan)
  short = found["kernel_memory_exceeded"]
  assert short["space"] == "smem" and short["bytes"] > short["limit_bytes"] == 2**20
  assert not plan.fits and not found["fits"] and found["hbm_bytes_per_chip"] is None
  assert "a kernel's smem:" in said and "DOES NOT FIT" in said and "larger context axis" in said


def test_a_row_of_half_a_million_tokens_fits_its_kernels():
  there = topology.describe(CHIP)
  program, mesh = attention_over(500_000, there)
  plan = report.make(program, there, mesh, "attention")
  assert plan.fits and report.figures(plan)["kernel_memory_exceeded"] is None


def too_large(unit: str) -> report.Plan:
  """What the compiler says of a training step that needs more than it may use."""
  there = topology.describe(CHIP)
  load, sizes = Load(1.0, 1.0, 1.0, unit=unit), (15.9 * 2**30, 15.75 * 2**30)
  return report.Plan("train", "step", there, {"data": 1}, 7, load, "hbm", *sizes, [], 1.0)


def test_what_is_too_large_is_held_against_what_the_compiler_may_use():
  plan = too_large("real tokens")
  assert "15.90 of 15.75 GiB: DOES NOT FIT" in report.text(plan)
  assert report.figures(plan)["hbm_limit_bytes"] == 15.75 * 2**30


def test_advice_is_of_what_the_program_has():
  """An autoencoder's state lies on each chip, and it has no rows of tokens."""
  assert "larger fsdp" in report.text(too_large("real tokens"))
  said = report.text(too_large("pixels"))
  assert "vae.batch_pixels" in said and "fsdp" not in said and "row_len" not in said
