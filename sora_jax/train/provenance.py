"""How weights came to be: config, command, commit, hardware, time, figures, earlier legs."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax

import sora_jax


def collect(
  config: dict, code: str | None, steps: int, seconds: float, figures: dict, before: dict | None,
  module: str = "sora_jax.main",
) -> dict:  # fmt: skip
  """Returns the provenance of weights that a run has just made, as JSON.

  code: `commit()` when the run began: hours later the files may be others.
  before: provenance of the weights that this run started from, or None. Its legs come first in
  `legs`, so that the last file of a chain tells the whole story.
  module: that was started.
  """
  leg = {
    "config": config,
    "command": " ".join(["python", "-m", module, *sys.argv[1:]]),
    "seed": config["train"]["seed"],
    "commit": code,
    "version": sora_jax.__version__,
    "jax": jax.__version__,
    "hardware": hardware(),
    "steps": steps,
    "seconds": round(seconds, 1),
    "figures": {name: float(value) for name, value in figures.items()},
  }
  return leg | {"legs": [*(before or {}).get("legs", []), leg]}


def commit() -> str | None:
  """Returns the commit of the package's repository, with "+" if files differ; None outside one."""
  folder = Path(sora_jax.__file__).parent
  try:
    head = _git(folder, "rev-parse", "HEAD")
    return head + ("+" if _git(folder, "status", "--porcelain", "--", ".") else "")
  except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
    return None


def hardware() -> str:
  """Returns devices and processors in words."""
  devices = jax.devices()
  return f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}"


def _git(folder: Path, *words: str) -> str:
  done = subprocess.run(
    ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
  )
  return done.stdout.strip()
