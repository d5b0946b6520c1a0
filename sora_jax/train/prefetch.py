"""A thread that fetches batches ahead and puts them on the device."""

import json
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from sora_jax.train.task import Batch, Batches, Cost


class Fetched(NamedTuple):
  """A batch on the device, with what the host knows about it.

  names: gives the ids of its clips.  iterator: the stream's state right after this batch, as JSON
  text: a snapshot.
  """

  batch: Batch
  names: Callable[[], list[str]]
  cost: Cost
  iterator: str


class Prefetcher:
  """Iterates over `batches` from a thread, `depth` batches ahead; errors reach the consumer."""

  def __init__(
    self,
    batches: Batches,
    put: Callable[[Batch], Batch],
    names: Callable[[Batch], Callable[[], list[str]]],
    cost: Callable[[Batch], Cost],
    depth: int = 2,
  ):
    self._batches, self._put, self._names, self._cost = batches, put, names, cost
    self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(depth, 1))
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._work, daemon=True, name="prefetch")
    self._thread.start()

  def _work(self) -> None:
    try:
      while not self._stop.is_set():
        host = next(self._batches)
        state = json.dumps(self._batches.get_state())
        self._offer(Fetched(self._put(host), self._names(host), self._cost(host), state))
    except BaseException as error:  # handed on: the consumer raises it
      self._offer(error)

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue

  def get(self) -> Fetched:
    """Returns the next batch; raises what the stream raised.

    Raises: RuntimeError if the stream ended: training streams are endless.
    """
    item = self._queue.get()
    if isinstance(item, StopIteration):
      raise RuntimeError("the data stream ended; training needs an endless one")
    if isinstance(item, BaseException):
      raise item
    return item

  def close(self) -> None:
    """Stops the thread; the stream may have advanced past what was consumed."""
    self._stop.set()
    self._thread.join(timeout=30)
