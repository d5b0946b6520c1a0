"""Keeps the memory of one training step for the next.

A compiled step on CPU asks for one large scratch area and gives it back at its end. The C library
returns such areas to the kernel, which hands them out again filled with zeros, page by page: a
third of the time of a small step. Accelerators have allocators of their own and do not care.
"""

import ctypes
import os
import sys
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # glibc, malloc.h
MADV_HUGEPAGE = 14  # Linux, mman.h
HUGE_PAGE = 1 << 21
DEVICES = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd")
"""Names under /dev of accelerators that JAX runs on."""


def cpu_alone(devices: Path = Path("/dev")) -> bool:
  """Whether JAX will run on processors alone, found out without starting it."""
  asked = os.environ.get("JAX_PLATFORMS", "")
  return asked == "cpu" or not (asked or any(any(devices.glob(name)) for name in DEVICES))


def keep_freed_memory(expected_bytes: int = 1 << 30) -> bool:
  """Tells the C library to keep what is freed, in one heap of huge pages.

  Call it before JAX runs anything: threads that have an allocation area of their own keep it. The
  process then stays as large as it ever was.

  Args:
    expected_bytes: how much of the heap to mark for huge pages; nothing is touched by that.
  Returns: whether it took effect; False where the C library is not glibc.
  """
  if not sys.platform.startswith("linux"):
    return False
  libc = ctypes.CDLL(None, use_errno=True)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (ARENA_MAX, 1))
  took = all([libc.mallopt(name, value) for name, value in settings])
  libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  libc.free.argtypes = [ctypes.c_void_p]
  libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  area = libc.malloc(expected_bytes)
  if area:
    first = -(-area // HUGE_PAGE) * HUGE_PAGE
    length = (area + expected_bytes - first) // HUGE_PAGE * HUGE_PAGE
    libc.madvise(first, length, MADV_HUGEPAGE)
    libc.free(area)
  return bool(took)
