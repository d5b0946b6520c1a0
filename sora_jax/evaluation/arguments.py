"""What scripts that measure share: one clear line for arguments that cannot be used."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def refusing() -> Iterator[None]:
  """Around what reads arguments: what they name wrongly (an OSError or a ValueError) ends the
  script with one line, its name first."""
  try:
    yield
  except (OSError, ValueError) as error:
    raise SystemExit(f"{pathlib.Path(sys.argv[0]).stem}: {error}") from error


def folder(name: str) -> pathlib.Path:
  """The folder --out of what is written; made if it is not there.

  Raises: ValueError if nothing can be written there; ask before the work begins.
  """
  path = pathlib.Path(name)
  try:
    path.mkdir(parents=True, exist_ok=True)
    wrong = None if os.access(path, os.W_OK) else "it is not writable"
  except OSError as error:
    wrong = error.strerror
  if wrong:
    raise ValueError(f"--out={path}: {wrong}; give a folder that can be written")
  return path
