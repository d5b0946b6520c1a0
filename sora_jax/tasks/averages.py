"""From a run's checkpoint to a model folder, while the run goes on."""

from pathlib import Path

from sora_jax import sharding
from sora_jax.tasks import build
from sora_jax.train import checkpoint, provenance, saved


def write(workdir: Path, step: int = 0, out: Path | None = None) -> tuple[int, Path]:
  """Writes a model folder (or, of an autoencoder's run, its file) from a checkpoint.

  Of the work directory nothing changes but `out`, if its data are there; else they are made again.

  Args: step: 0 = of the newest checkpoint that can be read.  out: the folder; None = model/ of the
    run.

  Returns: the step and the folder.  Raises: ValueError if there is no run, no such checkpoint, or
    the run has ended and its own folder holds what it made; OSError if the folder cannot be
    written.
  """
  path = workdir / "config.json"
  if not path.is_file():
    raise ValueError(f"{workdir} holds no run: it has no config.json")
  config = checkpoint.read_config(path)
  train = config["train"]
  alone = (1, 1, 1, 1)  # whatever mesh the run has: a checkpoint fits any
  plan = build.check(config | {"train": train | {"mesh": alone}}, workdir)
  steps = checkpoint.saved_steps(workdir / "checkpoints")
  if not steps or (step and step not in steps):
    there = f"there are those of steps {', '.join(map(str, steps))}" if steps else "nothing is yet"
    asked = f"no checkpoint of step {step} is saved" if step else "no checkpoint is saved"
    raise ValueError(f"{asked} in {workdir / 'checkpoints'}: {there}")
  task, mesh = plan.make(), sharding.make_mesh(alone)
  target = workdir / "model" if out is None else out

  def newest(wanted):
    return saved.newest(task, plan.optimizer, mesh, workdir / "checkpoints", wanted)

  taken = out is None and target.is_dir()
  state, notes = newest(steps if taken or not step else [step])
  ended = int(state.step) >= (int(state.total_steps) if train["minutes"] else train["steps"])
  if taken and ended:
    raise ValueError(
      f"the run in {workdir} has ended, and {target} holds its weights; name another folder with"
      " --out"
    )
  if step and int(state.step) != step:
    state, notes = newest([step])
  found = int(state.step)
  story = provenance.collect(  # the commit that the run began with is not known here
    config, None, found, notes["elapsed_sec"], {},
    plan.before, "sora_jax.export",
  )  # fmt: skip
  task.export(state.ema_params, target, story)
  return found, target
