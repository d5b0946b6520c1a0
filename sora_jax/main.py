"""Trains what a config describes, and reports on it; run again, it resumes.

python -m sora_jax.main --config=configs/tiny.py --workdir=runs/tiny
"""

import json
import time
from pathlib import Path

from absl import app, flags, logging

from sora_jax import model
from sora_jax.tasks import build, config_flag
from sora_jax.tasks.typed import typed, without
from sora_jax.train import (
  checkpoint,
  host_memory,
  hosts,
  loop,
  processors,
  profiler,
  provenance,
  watch,
)

HEAP = 3 << 30
"""Bytes of heap, at most, that a training step on processors should find in huge pages."""

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
_PROFILE = flags.DEFINE_bool(
  "profile", False, "Write a trace of some steps to WORKDIR/profile, for xprof."
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; TPUs need none.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "Processes of the job, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", -1, "Number of this process, from 0.")


def main(argv: list[str]) -> None:
  """Checks the flags and runs the job."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  if not flags.FLAGS["verbosity"].present:  # --verbosity=1 shows where an error came from
    logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_ours)
  try:
    if host_memory.cpu_alone():
      host_memory.keep_freed_memory(HEAP)
    hosts.connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = _CONFIG.value.to_dict()
    build.check_keys(config)
    if host_memory.cpu_alone() and not _COORDINATOR.value:
      rows = config["data"]["rows"] // max(config["train"]["accumulate"], 1)
      processors.share_out(config["train"]["mesh"], rows if config["task"] != "vae" else 1)
    hosts.quiet_others()
    run(config, Path(_WORKDIR.value), _PROFILE.value)
  except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
    logging.debug("where it happened", exc_info=True)
    watch.leave(f"main: {error}" + ("" if str(error) else type(error).__name__), error)


def run(config: dict, workdir: Path, profile: bool = False) -> dict | None:
  """Checks the config, prepares data, trains, exports averaged weights, reports.

  profile: trace a few steps, see `train.profiler`.

  Returns: figures and provenance; None if the run was stopped and can be resumed, and for all but
  the first of several processes.
  """
  build.check_keys(config)
  code = provenance.commit()
  train = typed(loop.LoopConfig, "train", without(config["train"], *build.OF_THE_TASK))
  plan = build.check(config, workdir)
  with hosts.in_turn("config and data"):
    checkpoint.keep_config(workdir, config)
    task = plan.make()
  trace = profiler.tracer(workdir / "profile") if profile else loop.never
  outcome = loop.run(task, train, plan.optimizer, workdir, trace)
  if profile:
    profiler.tell_if_missing(workdir / "profile")
  if not outcome.finished:
    return None
  story = provenance.collect(
    config, code, outcome.step, outcome.seconds, outcome.figures, plan.before
  )  # fmt: skip
  params = hosts.whole(outcome.state.ema_params)
  if not hosts.is_first():
    hosts.wait("report")
    return None
  figures = outcome.figures | task.export(params, workdir / "model", story)
  about = {"figures": figures, "provenance": story}
  if config["task"] == "text_to_video":
    about |= sample(plan, task, workdir, about)
  else:
    (workdir / "report.json").write_text(json.dumps(about, indent=2) + "\n")
  logging.info("weights in %s", workdir / "model")
  hosts.wait("report")
  return about


def sample(plan: build.Plan, task, workdir: Path, about: dict) -> dict:
  """Samples the run's own model, scores what it makes where there is a truth, writes the report.

  Returns: the figures of samples and packing.
  """
  from sora_jax.tasks import report  # its plots take a second, of every start without a report too

  e, world, start = plan.evaluation, plan.clips.world, time.perf_counter()
  asked = (
    report.wishes(world, e.prompts, e.sizes, e.frames)
    if world is not None
    else report.from_captions(task.sources.validation, e.prompts)
  )
  own = model.from_folder(workdir / "model")  # a workdir may be named like a shipped model
  videos = report.sample(own.generate, asked, e.seed)
  found = {"packing": report.packing(task), "sampler_programs": own.sampler.programs}
  if world is not None:
    found["scores"] = report.scores(asked, videos)
  found["sampling_seconds"] = time.perf_counter() - start
  page = report.write(workdir / "report", asked, videos, report.read_lines(workdir), about | found)
  logging.info("report: %s", page)
  return found


def _is_ours(record) -> bool:
  """Keeps this package's progress and everybody's warnings; the checkpoint writer talks a lot, and
  what goes wrong there ends in a line of ours."""
  told_again = record.exc_info and "orbax" in record.pathname and logging.get_verbosity() < 1
  return "sora_jax" in record.pathname or (record.levelno > 20 and not told_again)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=config_flag.parser("main"))
