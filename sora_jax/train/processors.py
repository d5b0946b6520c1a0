"""Keeps all cores busy where there are processors alone: a device of JAX for each.

XLA works through a program for one CPU device operation by operation, and many of them take one
core. Devices that share out the rows of a batch run side by side, as on a mesh of accelerators.
"""

import os
from collections.abc import Sequence

import jax

SET = "xla_force_host_platform_device_count"
"""The flag of XLA that says the same, and that is left as it is; so is JAX_NUM_CPU_DEVICES."""


def usable() -> int:
  """Cores that this process may use."""
  here = getattr(os, "sched_getaffinity", None)  # Linux alone has it
  return len(here(0)) if here else os.cpu_count() or 1


def share_out(mesh: Sequence[int], rows: int, cores: int = 0) -> int:
  """Has JAX see as many devices as the mesh asks for; call it before JAX runs anything.

  Args: mesh: sizes of (data, fsdp, context, tensor). A -1 for data or fsdp becomes as many as there
    are cores and as share the rows out evenly; elsewhere it becomes 1.  rows: of a microbatch.
    cores: 0 = those that this process may use.
  Returns: the devices; 0 if JAX has been told already, or if the mesh is none.
  """
  told = SET in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
  whole = len(mesh) == 4 and all(isinstance(size, int) for size in mesh)
  if told or not whole or list(mesh).count(-1) > 1 or rows < 1:
    return 0
  fixed = 1
  for size in mesh:
    fixed *= size if size != -1 else 1
  if fixed < 1:
    return 0
  count = fixed
  if -1 in tuple(mesh)[:2]:
    shares = -mesh[0] * mesh[1]  # of the rows, by the axis that is known
    most = (cores or usable()) // fixed
    fits = [n for n in range(1, most + 1) if rows % (n * shares) == 0]
    count = fixed * max(fits, default=1)
  jax.config.update("jax_num_cpu_devices", count)
  return count
