"""The training loop: one fixed order, never waiting for the device.

Every turn of the loop is
  1. evaluate   the state of the steps before,
  2. save       it, with the iterator as it stood after the last batch it has seen,
  3. fetch      the next batch, which a thread has made ready,
  4. step       dispatched, not awaited,
  5. log        the step before, whose figures are there by now.
Saving comes before fetching so that state and iterator always match; resume is exact to the bit.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from sora_jax import sharding
from sora_jax.train import checkpoint, hosts, metrics, prefetch, saved, watch
from sora_jax.train import optimizer as optimizer_lib
from sora_jax.train import state as state_lib
from sora_jax.train import step as step_lib
from sora_jax.train import task as task_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.state import TrainState
from sora_jax.train.task import Task
from sora_jax.train.tensorboard import TensorBoard

WAKING = 20
"""Steps after which every parameter should have begun to learn."""
RANGES = {
  "steps": (1, 2**31 - 1), "seed": (0, 2**32 - 1), "minutes": (0, 10**9),
  "eval_every": (0, math.inf),
  **dict.fromkeys(("accumulate", "log_every", "save_every", "keep", "prefetch"), (1, math.inf)),
}  # fmt: skip
"""(least, most) of a `LoopConfig`'s numbers; the state holds steps as int32, seeds as uint32."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Names as in `configs/base.py`.

  steps: length of the run.  minutes: if above 0, the run measures its speed and ends, schedule
  included, after this much time, in at most `steps` steps.
  """

  steps: int
  seed: int = 0
  minutes: float = 0.0
  accumulate: int = 1
  log_every: int = 20
  eval_every: int = 0
  save_every: int = 500
  keep: int = 2
  prefetch: int = 2
  mesh: tuple[int, ...] = (-1, 1, 1, 1)

  def __post_init__(self):
    for name, (least, most) in RANGES.items():
      if not least <= (value := getattr(self, name)) <= most:
        allowed = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"train.{name} is {value}; it must be {allowed}")
    try:
      sharding.check_shape(self.mesh)
    except ValueError as error:
      raise ValueError(f"train.{error}") from error


class NotFiniteError(FloatingPointError):
  """A loss or a gradient was not finite; the message names the step, the batch, what is saved."""


class Outcome(NamedTuple):
  """How a run ended.

  finished: false if it was told to stop, and can be resumed.  seconds: of training, all legs of
  the work directory together.
  """

  state: TrainState
  step: int
  finished: bool
  seconds: float
  figures: dict[str, float]


def never(step: int) -> bool:
  """Stops at no step."""
  del step
  return False


def run(
  task: Task,
  config: LoopConfig,
  optimizer: OptimizerConfig,
  workdir: Path,
  should_stop: Callable[[int], bool] = never,
) -> Outcome:
  """Trains `task` in `workdir`, from its newest checkpoint if it has one.

  should_stop: asked before every step; true saves and returns, as SIGTERM does.

  Returns: the last state, and the figures of the last evaluation if the run finished. The caller
  exports the averaged weights.  Raises: NotFiniteError at the log after the step that failed.
  """
  with contextlib.ExitStack() as stack:
    runner = _Runner(task, config, optimizer, Path(workdir), stack)
    stopped = stack.enter_context(_on_sigterm())
    while runner.step < runner.total:
      stop = hosts.agree_to_stop(runner.step, stopped.is_set()) or should_stop(runner.step)
      runner.evaluate_if_due()
      runner.save_if_due(now=stop)
      if stop:
        logging.warning("stopped at step %d; run the same command to resume", runner.step)
        return Outcome(runner.state, runner.step, False, runner.elapsed(), {})
      runner.take_step()
    runner.flush()
    runner.save()
    seconds = runner.elapsed()
    return Outcome(runner.state, runner.step, True, seconds, runner.evaluate())


class _Pending(NamedTuple):
  """A step that was dispatched and not yet read."""

  step: int
  metrics: step_lib.StepMetrics
  fetched: prefetch.Fetched


class _Runner:
  """The loop's variables; each method is one of the five parts of a turn."""

  def __init__(self, task, config, optimizer, workdir, stack):
    self.mesh = sharding.make_mesh(config.mesh)
    self.task, self.config, self.workdir = task.on(self.mesh), config, workdir
    self._checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.keep)
    stack.callback(self._checkpoints.close)
    watch.last_words(self._checkpoints.saved)
    task, axes = self.task, self.task.axes()
    batches = task.batches()
    self._optimizer = optimizer_lib.make(optimizer, axes)
    self._inputs = task_lib.inputs(task)
    like = saved.like(self._create, self.mesh, axes)
    self._placed = jax.tree.map(lambda x: x.sharding, like)
    self.state, notes = self._start(batches, like)
    self.step = self._first = int(self.state.step)
    self.total = config.steps if not config.minutes else int(self.state.total_steps)
    self._elapsed, self._since = notes["elapsed_sec"], time.perf_counter()
    self._step_fn = step_lib.make_step(
      task.loss, optimizer, config.accumulate, axes, self.mesh, self._placed
    )
    # Before the batches' thread starts: beside it the rate came out at half its value.
    self._rate, self._meter = metrics.mesh_rate(self.mesh), metrics.Meter()
    logging.info("matmul rate of the mesh: %.0f GFLOP/s", self._rate / 1e9)
    share = sharding.host_share(self.mesh)
    self._prefetcher = prefetch.Prefetcher(
      batches,
      lambda b: sharding.put_batch(self.mesh, b, task.batch_axes()),
      task.names,
      lambda b: task.cost(b).times(share.of / len(share.blocks)),  # the batch of all hosts
      config.prefetch,
    )
    stack.callback(self._prefetcher.close)
    self._writer = self._board = None
    if hosts.is_first():
      self._writer = metrics.Writer(workdir / "metrics.jsonl", self.step)
      stack.callback(self._writer.close)
      self._board = TensorBoard(workdir / "tensorboard")
      stack.callback(self._board.close)
    self._pending: _Pending | None = None
    self._pace: float | None = None  # smoothed seconds per step, for the plan alone
    self._read_at, self._untimed = time.perf_counter(), True
    self._saved = self.step if self.step else -1
    self._skipped = int(optimizer_lib.skipped(self.state.opt_state))
    self._units = optimizer_lib.unit_names(self.state.params, axes)
    fixed = tuple(f"{name}/" for name in self.task.fixed())
    self._fixed = np.array([unit.startswith(fixed) for unit in self._units], bool)
    self._moved, self._named = self._fixed.copy(), []

  def _create(self) -> TrainState:
    """The state before the first step; traceable."""
    return state_lib.create(self.task.init, self._optimizer, self.config.seed, self.config.steps)

  def _start(self, batches, like: TrainState) -> tuple[TrainState, dict]:
    """Returns the newest saved state, or a fresh one; sets the stream to match."""
    found = self._checkpoints.restore(like)
    if found is None:
      self._iterator = json.dumps(batches.get_state())
      return jax.jit(self._create, out_shardings=self._placed)(), {"elapsed_sec": 0.0}
    state, iterator, notes = found
    checkpoint.same_inputs(self.workdir, notes.get(checkpoint.INPUTS, {}), self._inputs)
    self._iterator = json.dumps(iterator)
    batches.set_state(iterator)
    if not self.config.minutes:
      state = self._with_total(state, self.config.steps)
    logging.info("resumed from step %d", int(state.step))
    if self.config.minutes and state.step == state.total_steps:
      logging.warning(
        "the run in %s had finished after %d steps, and its schedule with it: there is nothing to"
        " train, whatever train.minutes is. To train on, start another leg: another --workdir with"
        " --config.train.init_from=%s",
        self.workdir, int(state.step), self.workdir,
      )  # fmt: skip
    return state, notes

  def _with_total(self, state: TrainState, total: int) -> TrainState:
    """Replaces the planned length, placed as the step's own output is: no second program."""
    value = jax.device_put(jnp.asarray(total, jnp.int32), sharding.replicated(self.mesh))
    return state.replace(total_steps=value)

  def elapsed(self) -> float:
    """Seconds of training so far, all legs together."""
    return self._elapsed + time.perf_counter() - self._since

  def evaluate_if_due(self) -> None:
    every = self.config.eval_every
    if every and self.step % every == 0 and self.step > self._first:
      self.flush()
      self.evaluate()

  def evaluate(self) -> dict[str, float]:
    """Runs every evaluator on the averaged weights and writes its figures."""
    self._untimed = True
    figures = {}
    for evaluator in self.task.evaluators():
      folder = self.workdir / "evaluation" / evaluator.name
      folder.mkdir(parents=True, exist_ok=True)
      found = evaluator(self.state.ema_params, self.step, folder)
      figures |= {f"{evaluator.name}/{name}": value for name, value in found.items()}
    if figures and self._writer is not None:
      self._writer.write(self.step, figures)
      self._board.write(self.step, figures)
      short = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
      logging.info("evaluation at step %d: %s", self.step, short)
    return figures

  def save_if_due(self, now: bool) -> None:
    if now or (self.step % self.config.save_every == 0 and self.step > self._first):
      self.flush()
      self.save()

  def save(self) -> None:
    """Saves the state, whose last step has been read and found finite."""
    if self.step == self._saved:
      return
    self._untimed = True
    notes = {"elapsed_sec": self.elapsed(), checkpoint.INPUTS: self._inputs}
    iterator = hosts.merged(json.loads(self._iterator))
    self._checkpoints.save(self.step, self.state, iterator, notes)
    self._saved = self.step

  def take_step(self) -> None:
    """Fetches, dispatches, then reads the step before."""
    fetched = self._prefetcher.get()
    programs = self.programs()
    with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
      self.state, out = self._step_fn(self.state, fetched.batch)
    self._untimed |= self.programs() != programs
    before, self._pending = self._pending, _Pending(self.step, out, fetched)
    self._iterator = fetched.iterator
    self.step += 1
    if before is not None:
      self._read(before)

  def programs(self) -> int:
    """Number of programs compiled for the step: one per shape of batch."""
    return self._step_fn._cache_size()

  def flush(self) -> None:
    """Waits for the last step and reads it."""
    if self._pending is not None:
      self._read(self._pending)
      self._pending = None

  def _read(self, pending: _Pending) -> None:
    """Reads a step's figures; raises if it was not finite; logs when due."""
    out = jax.device_get(pending.metrics)
    now = time.perf_counter()
    seconds, self._read_at = now - self._read_at, now
    if not out.finite:
      raise self._not_finite(pending, out)
    if int(out.skipped) > self._skipped:
      self._skipped = int(out.skipped)
      logging.warning(
        "step %d left out: its gradient's norm, %.3g, is above optimizer.skip_spikes times the"
        " recent mean; %d so far; batch of clips %s",
        pending.step, float(out.grad_norm), self._skipped, ", ".join(pending.fetched.names()),
      )  # fmt: skip
    self._moved |= out.moved
    last = {"grad_norm": float(out.grad_norm), "lr": float(out.lr), "skipped": self._skipped}
    untimed, self._untimed = self._untimed, False
    self._meter.add(out.ratios, last, pending.fetched.cost, None if untimed else seconds)
    done = pending.step + 1
    if done % self.config.log_every == 0 or done == self.total:
      self._log(done)

  def _not_finite(self, pending: _Pending, out: step_lib.StepMetrics) -> NotFiniteError:
    """Tells of a step, what is saved, and how to train on from there."""
    with contextlib.suppress(checkpoint.CheckpointError):  # closing raises it
      self._checkpoints.wait()
    cure = "Lower optimizer.lr, or look at these clips, and run it again"
    if checkpoint.saved_steps(self.workdir / "checkpoints"):
      cure = (
        "Run again, it comes here again. To train on with a lower optimizer.lr, or other clips,"
        f" start another leg: python -m sora_jax.export --workdir={self.workdir}, then another"
        f" --workdir with --config.train.init_from={self.workdir}"
      )
    loss = out.ratios["loss"]
    return NotFiniteError(
      f"step {pending.step}: loss {loss.numerator / loss.denominator}, gradient norm"
      f" {out.grad_norm}; batch of clips {', '.join(pending.fetched.names())};"
      f" {self._checkpoints.saved()}. {cure}"
    )

  def _still(self, done: int) -> int:
    """Number of parameters (or layers of them) that no step since the last line has changed; says
    which, unless training has just begun: what follows a gate that starts at zero waits for it."""
    names = [name for name, moved in zip(self._units, self._moved) if not moved]
    self._moved[:] = self._fixed
    if names and names != self._named and done > WAKING:
      logging.warning(
        "step %d: %d parameters are not learning: %s", done, len(names), ", ".join(names[:8])
      )
      self._named = names
    return len(names)

  def _log(self, done: int) -> None:
    """Writes a line of figures and, under a time budget, plans the rest of the run."""
    values = self._meter.summary(self._rate)
    per_step = self._meter.sec_per_step
    if self.config.minutes and self.step < self.total and math.isfinite(per_step):
      self._pace = per_step if self._pace is None else 0.7 * self._pace + 0.3 * per_step
      left = max(self.config.minutes * 60 - self.elapsed(), 0.0)
      planned = hosts.of_first(done + int(left / self._pace))
      self.total = min(self.config.steps, max(self.step, planned))
      self.state = self._with_total(self.state, self.total)
    values["still"] = self._still(done)
    values |= {
      "eta_sec": (self.total - done) * per_step,
      "elapsed_sec": self.elapsed(),
      "total_steps": self.total,
      "programs": self.programs(),
    }
    self._meter.clear()
    if self._writer is not None:
      self._writer.write(done, values)
      self._board.write(done, values)
      logging.info("%s", metrics.progress_line(done, self.total, values))


@contextlib.contextmanager
def _on_sigterm() -> Iterator[threading.Event]:
  """Turns SIGTERM into an event while the loop runs; only the main thread can listen.

  Where several processes run, JAX listens, so that they can agree: see `hosts.agree_to_stop`.
  """
  event = threading.Event()
  several = jax.process_count() > 1
  if several or threading.current_thread() is not threading.main_thread():
    yield event
    return
  old = signal.signal(signal.SIGTERM, lambda *_: event.set())
  try:
    yield event
  finally:
    signal.signal(signal.SIGTERM, old)
