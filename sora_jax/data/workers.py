"""Worker processes: how a data set is handed to them, and what is said when one dies."""

from typing import Any

import grain
from absl import flags


def iterate(dataset: grain.IterDataset, workers: int, buffered: int) -> grain.DatasetIterator:
  """Iterates in this process (0), or deals the elements round robin to worker processes.

  Args: buffered: elements that each worker prepares ahead.
  """
  if workers:
    if not flags.FLAGS.is_parsed():  # grain reads its flags even outside a command line
      flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffered)
    dataset = dataset.mp_prefetch(options)
  return iter(dataset)


def advance(iterator: grain.DatasetIterator, step: int) -> Any:
  """The next element. Raises: RuntimeError that names the step if a worker process has died."""
  try:
    return next(iterator)
  except RuntimeError as error:
    if "terminated unexpectedly" not in str(error):
      raise
    raise RuntimeError(
      f"a data worker died while step {step} was prepared ({error}); it was killed or ran out of "
      "memory. Resume from the last checkpoint, with fewer workers if memory was short"
    ) from error
