"""From a ConfigDict to frozen dataclasses: the last place where a config is a tree of names."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def typed(cls: type[Config], section: str, tree: Mapping, **derived: Any) -> Config:
  """Builds `cls` from a section of the config and from values that follow from elsewhere.

  Lists become tuples.  Raises: ValueError for a key that the section does not have (with the
  nearest right name), for one that is missing, and whatever `cls` finds impossible, with the
  section's name before it.
  """
  fields = {field.name for field in dataclasses.fields(cls)} - derived.keys()
  check_names(section, tree, fields)
  values = {name: _frozen(value) for name, value in tree.items()}
  try:
    return cls(**values, **derived)
  except (TypeError, ValueError) as error:
    raise ValueError(f"config.{section}: {error}") from error


def check_names(section: str, tree: Mapping, names) -> None:
  """Raises a ValueError unless the section has exactly these names."""
  where = f"config.{section}." if section else "config."
  for name in tree:
    if name not in names:
      raise ValueError(f"{where}{name} is unknown.{nearest(name, names)}")
  missing = [name for name in names if name not in tree]
  if missing:
    raise ValueError(f"{where}{missing[0]} is missing; configs start from configs/base.py")


def nearest(name: str, names) -> str:
  """Returns " Did you mean 'x'?" with the nearest of `names`, or a list of them."""
  found = difflib.get_close_matches(name, [str(n) for n in names], n=1, cutoff=0.5)
  if found:
    return f" Did you mean {found[0]!r}?"
  return f" Known: {', '.join(sorted(str(n) for n in names))}."


def part(tree: Mapping, *names: str) -> dict:
  """Returns some keys of a section."""
  return {name: tree[name] for name in names}


def without(tree: Mapping, *names: str) -> dict:
  """Returns a section without some of its keys."""
  return {name: value for name, value in tree.items() if name not in names}


def _frozen(value: Any) -> Any:
  return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
