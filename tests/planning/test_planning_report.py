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
