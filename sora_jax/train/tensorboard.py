"""TensorBoard events through clu, where TensorFlow is installed; elsewhere nothing."""

import importlib.util
from pathlib import Path


class TensorBoard:
  """Writes scalars for TensorBoard if TensorFlow can be imported, and is silent otherwise."""

  def __init__(self, folder: Path):
    self._writer = None
    if importlib.util.find_spec("tensorflow") is not None:
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
