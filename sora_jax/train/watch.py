"""When one process of a job is lost, the others end and say so, to be started again together.

Left to themselves they wait for it, some for minutes, some for ever, or end with pages of the
runtime's own; and one that fails waits at its end for the others, who wait for it in a step.
"""

import atexit
import ctypes
import logging as std_logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import logging
from jax._src import distributed  # its client has no public name

HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as dead and the others end."""
WORD_SECONDS = 10
"""How long a process that JAX aborts waits for word of another; a busy machine took more than 1."""
RUNTIME = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
"""How errors begin that another process may have caused."""


class Watch:
  """From now on this process ends, and says why, when another one of the job is lost.

  A thread waits at a barrier that nobody passes; it fails when a process is not heard from. JAX
  then aborts this process, and at once where process 0 is lost, so the signal is caught as well.
  """

  def __init__(self):
    self._client, self._parted = distributed.global_state.client, False
    self._thread = threading.Thread(target=self._wait, daemon=True, name="watch")
    self._thread.start()
    self._caught = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # Python's come too late
    ctypes.CDLL(None).signal(signal.SIGABRT, self._caught)
    atexit.register(self._part)

  def _wait(self) -> None:
    try:
      self._client.wait_at_barrier(f"lost to {jax.process_index()}", 10**12)
    except jax.errors.JaxRuntimeError as error:
      if not self._parted:
        named = re.search(r"[Tt]ask:? (\d+)", str(error))
        _end(int(named[1]) if named else 0)

  def _aborted(self, signum: int) -> None:
    """Leaves the thread the time to say which process; it may not come to it where it is process 0.
    Where that one can be reached, the fault is this process's own."""
    host, port = distributed.global_state.coordinator_address.rsplit(":", 1)
    for _ in range(WORD_SECONDS):
      time.sleep(1)
      try:
        socket.create_connection((host, int(port)), 1).close()
      except OSError:
        _end(0)
    ctypes.CDLL(None).signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()

  def _part(self) -> None:
    """At the end of the program, which the others reach too unless it failed."""
    if hasattr(sys, "last_value"):
      _exit("")
    self._parted = True
    jax.distributed.shutdown()
    self._thread.join(10)


_saved: Callable[[], str] = lambda: "nothing is saved yet"  # noqa: E731
_ending = threading.Lock()


def last_words(saved: Callable[[], str]) -> None:
  """What says, from now on, when this process ends because another is lost, what is saved where."""
  global _saved
  _saved = saved


def _end(lost: int) -> NoReturn:
  """The last words of a process that cannot go on without another."""
  _ending.acquire()  # for good: one thread speaks
  std_logging.disable()
  text = (
    f"process {jax.process_index()} ends: process {lost} of {jax.process_count()} died or was not"
    f" heard from for {HEARTBEAT_SECONDS} s, its own log may say why; {_saved()}. Start the same"
    " command again on all machines, and it goes on from there\n"
  )
  _exit(text)


def leave(message: str, error: BaseException) -> NoReturn:
  """Ends a program that failed, with a line and status 1, and waits for nothing.

  One of several processes would wait for the others, who wait for it, and the threads that write a
  checkpoint for a folder that cannot be made. Where it is JAX that failed in one of several,
  another may be the reason, which JAX knows later: that is said then.
  """
  if jax.distributed.is_initialized() and jax.process_count() > 1 and _of_runtime(error):
    logging.warning("%s: waiting %d s for word of the others", message, HEARTBEAT_SECONDS + 5)
    time.sleep(HEARTBEAT_SECONDS + 5)
  sys.stdout.flush()
  _exit(f"{message}\n")


def _exit(text: str) -> NoReturn:
  """Says it and is gone, with the workers that would outlive it."""
  for child in multiprocessing.active_children():
    child.kill()
  os.write(2, text.encode())
  os._exit(1)


def _of_runtime(error: BaseException | None) -> bool:
  """Whether an error, or one that led to it, is JAX's runtime's; some of those are ValueErrors."""
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError) or RUNTIME.match(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False
