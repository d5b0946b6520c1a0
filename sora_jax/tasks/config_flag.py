"""The flag --config: a file of configs/, and its keys; what cannot be read is told in one line."""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from sora_jax.tasks.typed import nearest

flags.disclaim_key_flags()  # --help lists the flag with those of the program


def define() -> flags.FlagHolder:
  """Defines --config=FILE[:ARGUMENT], behind which any key can be set: --config.train.steps=100."""
  holder = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/.", flags.FLAGS, lock_config=True
  )
  flags.FLAGS["config"].parser = _Parser("config", lock_config=True)
  return holder


def parser(program: str) -> Callable[[Sequence[str]], list[str]]:
  """A `flags_parser` of `app.run` for a program with `define`'s flag.

  Flags that cannot be read end the program with status 1 and one line, which names the flag, and
  the nearest right one if it is unknown.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      sys.exit(f"{program}: {_line(error)}")
    except (LookupError, AttributeError, TypeError, ValueError) as error:  # of ml_collections
      sys.exit(f"{program}: a flag --config.KEY=VALUE cannot be read: {_line(error)}")

  return parse


class _Parser(config_flags.config_flags.ConfigFileFlagParser):
  """Loads a config; whatever goes wrong is a ValueError, which the flag's name is put before."""

  def parse(self, path: str) -> ConfigDict:
    file = Path(path.split(":", 1)[0])
    if not file.is_file():
      raise ValueError("there is no such file; name one of configs/, like configs/tiny.py")
    try:
      config = super().parse(path)
    except Exception as error:  # a config is code, and may raise anything
      of_theirs = isinstance(error, TypeError | ValueError) and error.__context__ is not None
      cause = error.__context__ if of_theirs else error  # they put a traceback into the message
      raise ValueError(_place(cause, file) + _line(cause) + _root(cause, file)) from error
    if not isinstance(config, ConfigDict):
      raise ValueError(
        "it cannot be read, or reads what cannot be, or its get_config() returns no ConfigDict"
      )
    for word in flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False):
      if found := re.match(r"--?(?:no)?config\.([\w.]+)(?:=|$)", word):
        _check_key(config, found[1])
    return config


def _check_key(config: ConfigDict, key: str) -> None:
  """Raises a ValueError, with the nearest right name, if the config lacks a key like a.b.c."""
  node, at = config, "config"
  for name in key.split("."):
    if not isinstance(node, ConfigDict):
      raise ValueError(f"--config.{key}: {at} is {node!r}, which has no keys")
    if name not in node:
      raise ValueError(f"--config.{key}: {at} has no {name!r}.{nearest(name, node)}")
    node, at = node[name], f"{at}.{name}"


def _place(error: BaseException, file: Path) -> str:
  """The kind of an error and the line of a file that led to it; nothing for a ValueError, which a
  config raises to be read."""
  if type(error) is ValueError:
    return ""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
  return type(error).__name__ + (f" in line {lines[-1]}: " if lines else ": ")


def _root(error: BaseException, file: Path) -> str:
  """The remedy if a config imports what lies in a folder above it, which Python has not looked in
  because the program was started elsewhere; otherwise nothing."""
  if not isinstance(error, ImportError) or not error.name:
    return ""
  name = error.name.split(".")[0]
  for folder in file.resolve().parents:
    if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
      return "" if folder == Path.cwd() else f"; run the command from {folder}, where {name} is"
  return ""


def _line(error: BaseException) -> str:
  """What an error says, in one line."""
  while error.args and isinstance(error.args[0], BaseException):  # ConfigDict's hold one another
    error = error.args[0]
  said = error.args[0] if isinstance(error, KeyError) and error.args else error
  return " ".join(str(said).split())
