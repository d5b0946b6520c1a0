"""A trace of a few training steps, for xprof or TensorBoard's profile page."""

from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

AFTER, STEPS = 10, 5
"""Steps of this start of the run before the trace, and steps in it."""
IN_FLIGHT = 2
"""Before the loop asks about a step, all but so many of the steps before it have ended."""


def tracer(folder: Path) -> Callable[[int], bool]:
  """What `loop.run` asks before every step; traces some of them, and never asks for a stop.

  The first steps, which compile and fill caches, are left out. The trace is written as the last of
  its steps has ended; a run that ends before writes none.
  """
  first = None

  def before(step: int) -> bool:
    nonlocal first
    first = step if first is None else first
    if step == first + AFTER:
      jax.profiler.start_trace(str(folder))
    elif step == first + AFTER + STEPS + IN_FLIGHT:
      jax.profiler.stop_trace()
      logging.info("trace of steps %d to %d in %s: xprof %s", step - STEPS - IN_FLIGHT,
                   step - IN_FLIGHT - 1, folder, folder)  # fmt: skip
    return False

  return before


def tell_if_missing(folder: Path) -> None:
  """Warns, at the end of a run, that it was too short for a trace."""
  if not any(folder.rglob("*.xplane.pb")):
    logging.warning(
      "no trace was written to %s: a start of a run needs %d steps for one; raise train.steps",
      folder, AFTER + STEPS + IN_FLIGHT + 1,
    )  # fmt: skip
