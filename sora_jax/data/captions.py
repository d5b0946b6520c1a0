"""Captions of filmed clips: from side-car files, or from a `clips.jsonl` that lists a folder."""

import json
import os
import pathlib
import re
from collections.abc import Mapping

LIST_NAME = "clips.jsonl"
"""A list of clips: one JSON object a line, with `file` relative to the list's folder."""
_KEYS = {"short": ("caption_short", "short"), "long": ("caption", "caption_long", "long", "text")}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Captions:
  """Captions for the files of a folder. What cannot be read goes to `warnings`, one line each.

  Next to `a/b.mp4`, in this order: `a/b.json` or `a/b.mp4.json`, `a/b.txt` or `a/b.mp4.txt`, then
  a line of the nearest `clips.jsonl` at or above the file. A `.txt` is one caption, or a short one
  on the first line and a long one below. Where one kind is missing, the other stands for it.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.warnings: list[str] = []
    self._lists: dict[pathlib.Path, dict[str, dict[str, str]]] = {}

  def of(self, path: pathlib.Path) -> dict[str, str]:
    """{"short": ..., "long": ...}; both empty where nothing is written about the file."""
    for suffix, read in ((".json", self._read_json), (".txt", self._read_text)):
      for sidecar in (path.with_suffix(suffix), path.with_name(path.name + suffix)):
        if sidecar.is_file() and (found := read(sidecar)):
          return found
    folder = path.parent
    while True:
      found = self._list(folder).get(path.relative_to(folder).as_posix())
      if found:
        return found
      if folder == self.root or folder == folder.parent:
        return both({})
      folder = folder.parent

  def _list(self, folder: pathlib.Path) -> dict[str, dict[str, str]]:
    if folder not in self._lists:
      self._lists[folder] = {}
      path = folder / LIST_NAME
      lines = self._text(path).splitlines() if path.is_file() else []
      for number, line in enumerate(lines, 1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
          self._lists[folder][pathlib.PurePosixPath(row["file"]).as_posix()] = of_row(row)
        except (ValueError, KeyError, TypeError) as error:
          self.warnings.append(
            f"{shown_name(path, self.root)}, line {number}: not a clip ({error!r})"
          )
    return self._lists[folder]

  def _read_json(self, path: pathlib.Path) -> dict[str, str] | None:
    try:
      return of_row(json.loads(self._text(path)))
    except (ValueError, TypeError) as error:
      self.warnings.append(f"{shown_name(path, self.root)}: no captions ({error!r})")
      return None

  def _read_text(self, path: pathlib.Path) -> dict[str, str] | None:
    first, _, rest = self._text(path).strip().partition("\n")
    return both({"short": first, "long": rest}) if first else None

  def _text(self, path: pathlib.Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="replace")


def shown_name(path: pathlib.Path, root: pathlib.Path) -> str:
  """A file's name under `root` for people; bytes that are not UTF-8 become U+FFFD."""
  return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", errors="replace")


def of_row(row: Mapping) -> dict[str, str]:
  """Captions in a JSON object: `caption_short` and `caption`, or a `captions` object.

  Raises: TypeError if it is no object; ValueError if it holds no caption.
  """
  if not isinstance(row, Mapping):
    raise TypeError(f"expected an object, got {type(row).__name__}")
  inner = row.get("captions")
  row = {**row, **inner} if isinstance(inner, Mapping) else row
  found = {}
  for kind, keys in _KEYS.items():
    texts = [row[key] for key in keys if isinstance(row.get(key), str)]
    found[kind] = texts[0] if texts else ""
  if not any(found.values()):
    raise ValueError("none of caption_short, caption, captions")
  return both(found)


def both(found: Mapping[str, str]) -> dict[str, str]:
  """Single-spaced texts under both kinds, each standing for the other where that is missing.

  Lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD.
  """
  texts = (_SURROGATE.sub("\ufffd", found.get(kind, "")) for kind in ("short", "long"))
  short, long = (" ".join(text.split()) for text in texts)
  return {"short": short or long, "long": long or short}
