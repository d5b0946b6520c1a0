"""Test policy: on the CPU, XLA compiles fast, ranks are never promoted; one key, real media."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile many small programs and run each a few times: compiling is what takes the time.
# Emitting fusions the older way takes less than half of it.
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"
)
# What one test, worker or subprocess compiled, the others read; the first process makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sora_jax_tests_")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# What JAX keeps of a thousand programs takes a second to look through for garbage.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def key():
  return jax.random.key(0)


@pytest.fixture
def real_media() -> pathlib.Path:
  """Folder of real clips and broken files beside the project; the test is skipped without it."""
  root = pathlib.Path(__file__).parents[2] / "shared" / "data"
  if "SORA_JAX_MEDIA" in os.environ:
    root = pathlib.Path(os.environ["SORA_JAX_MEDIA"])
  if not root.is_dir():
    pytest.skip(f"no real media at {root}; set SORA_JAX_MEDIA to a folder with dev/ and bad/")
  return root
