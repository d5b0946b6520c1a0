"""What the scripts of this folder share: one clear line for arguments that cannot be used."""

import contextlib
import pathlib
import sys


def script() -> str:
  """Its name, at the head of a line that says what is wrong."""
  return pathlib.Path(sys.argv[0]).stem


@contextlib.contextmanager
def refusing():
  """Around what reads arguments: what they name wrongly ends the script with one line."""
  try:
    yield
  except (OSError, ValueError) as error:
    raise SystemExit(f"{script()}: {error}") from error


def size(word: str, flag: str) -> tuple[int, int]:
  """(width, height) of "96x64".  Raises: ValueError that names the flag."""
  sides = word.split("x")
  if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
    raise ValueError(f"--{flag}: {word!r} is no size; give WIDTHxHEIGHT in pixels, like 48x48")
  return int(sides[0]), int(sides[1])


def folder(name: str) -> pathlib.Path:
  """The folder --out of what is written; made if it is not there.  Raises: ValueError."""
  path = pathlib.Path(name)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"--out={name}: {error.strerror}; give a folder to write to") from error
  return path
