"""TensorBoard events through clu, where TensorFlow and TensorBoard are installed, or nothing.

TensorFlow 2.21 no longer brings TensorBoard with it, and clu's writer imports both.
"""

import importlib.util
from pathlib import Path

NEEDS = ("tensorflow", "tensorboard")


class TensorBoard:
  """Writes scalars for TensorBoard if all it NEEDS is installed, and is silent otherwise."""

  def __init__(self, folder: Path):
    self._writer = None
    if all(importlib.util.find_spec(name) is not None for name in NEEDS):
      from clu import metric_writers

      self._writer = metric_writers.SummaryWriter(str(folder))

  def write(self, step: int, values: dict) -> None:
    """Writes the values that are numbers."""
    if self._writer is not None:
      numbers = {k: v for k, v in values.items() if isinstance(v, float | int)}
      self._writer.write_scalars(step, numbers)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
