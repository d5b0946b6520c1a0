"""A long video in the making, on disk: what is made of it, and the file that grows.

Beside `x.mp4`, while it is made, lies the folder `x.mp4.partial`:

    arguments.json     what the video is made from
    0-000012.npz       frames that window 12 of level 0 has added: `video`, uint8 [k, H, W, 3]
    growing.mp4        the video so far, until it bears the name x.mp4
    named              says that x.mp4 is this video, and not one that was there before

The growing file takes the name once it holds all that any x.mp4 held before: at the first frame if
there was none, when an interrupted one has been caught up with, and only at the end if x.mp4 was
there before the first run. Each file appears under its name whole, so a process may end anywhere.
"""

import hashlib
import itertools
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sora_jax.data.writing import GrowingWriter


class Unfinished:
  """The folder of an unfinished video; keeps finished windows (`long.Kept`).

  The folder appears with the first window that is finished.
  Args: out: the video's file.  arguments: all that its frames depend on, in values of JSON, by the
    names that an error shall give them.
  Raises: ValueError if the folder is of a video from other arguments, or of something else.
  """

  def __init__(self, out: str | os.PathLike, arguments: Mapping[str, Any]):
    self.out = pathlib.Path(out)
    self.folder = _folder(self.out)
    self._named, self._arguments = self.folder / "named", self.folder / "arguments.json"
    self.growing = self.folder / f"growing{self.out.suffix}"
    self._made_from = json.loads(json.dumps(arguments))
    if self._arguments.is_file():
      self._compare()
    elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
      raise ValueError(
        f"{self.folder} is in the way: an unfinished video is kept there, but it is none; move it "
        "away, or use another --out"
      )
    self._ours = self._named.exists() or not self.out.exists()

  def get(self, key: tuple[int, int]) -> np.ndarray | None:
    """The frames that a window added, uint8 [k, H, W, 3]; None if they are not (wholly) here."""
    try:
      with open(self._path(key), "rb") as file, np.load(file, allow_pickle=False) as found:
        return found["video"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      return None

  def __setitem__(self, key: tuple[int, int], video_THWC: np.ndarray) -> None:
    if not self._arguments.is_file():
      text = json.dumps(self._made_from, indent=1)
      self.folder.mkdir(parents=True, exist_ok=True)
      self._put(self._arguments, lambda file: file.write(text.encode()))
    self._put(self._path(key), lambda file: np.savez_compressed(file, video=video_THWC))

  @property
  def ready(self) -> int:
    """Finished windows of the video itself: those of level 0 from the first on."""
    number = 0
    while self._path((0, number)).is_file():
      number += 1
    return number

  def write(self, chunks: Iterable[np.ndarray], fps: float | int) -> None:
    """Writes the video from its windows' frames as they come, then removes the folder.

    Args: chunks: uint8 [k, H, W, 3], one for each window of level 0, kept ones included.
    """
    behind, chunks = max(1, self.ready), iter(chunks)
    first_THWC = next(chunks)  # a mistake found in making it leaves nothing behind
    with GrowingWriter(self.growing, fps) as writer:
      for number, chunk_THWC in enumerate(itertools.chain([first_THWC], chunks), 1):
        for frame_HWC in chunk_THWC:
          writer.write(frame_HWC)
        if number == behind and self._ours:
          self._put(self._named, lambda file: None)
          writer.rename(self.out)
    if writer.path != self.out:
      os.replace(self.growing, self.out)
    self.remove()

  def remove(self) -> None:
    """Removes what this class has put into the folder, and the folder if that was all."""
    for path in (*self.folder.glob("*-*.npz"), *self.folder.glob("*.tmp")):
      path.unlink()
    for path in (self.growing, self._named, self._arguments):
      path.unlink(missing_ok=True)
    if not any(self.folder.iterdir()):
      self.folder.rmdir()

  def _path(self, key: tuple[int, int]) -> pathlib.Path:
    return self.folder / f"{key[0]}-{key[1]:06d}.npz"

  def _put(self, path: pathlib.Path, write: Callable) -> None:
    """Makes a file that appears whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as file:
      write(file)
    os.replace(temporary, path)

  def _compare(self) -> None:
    """Raises a ValueError that names what differs from the arguments of the first run."""
    arguments = self._made_from
    try:
      before = json.loads(self._arguments.read_text())
    except ValueError as error:
      raise ValueError(
        f"{self._arguments} is damaged ({error}); delete {self.folder} to begin anew"
      ) from error
    names = [name for name in {**before, **arguments} if before.get(name) != arguments.get(name)]
    if names:
      said = "; ".join(_differs(name, before.get(name), arguments.get(name)) for name in names)
      raise ValueError(
        f"{self.folder} holds an unfinished video made from other arguments ({said}): give those "
        "to go on with it, delete the folder to begin anew, or use another --out"
      )


def left(out: str | os.PathLike) -> str | None:
  """What an interrupted run leaves of a video, and how to go on, in a line; None if nothing."""
  out = pathlib.Path(out)
  folder = _folder(out)
  if not (folder / "arguments.json").is_file():
    return None
  growing = [out] if (folder / "named").is_file() else list(folder.glob("growing.*"))
  plays = f"{growing[0]} can be played as far as it goes, " if growing else ""
  return f"{plays}{folder} keeps what is made; the same command goes on with it"


def fingerprint(paths: Iterable[str | os.PathLike]) -> str:
  """Tells files of weights apart: of each its name, size, and first and last MiB."""
  digest = hashlib.sha256()
  for path in sorted(map(pathlib.Path, paths)):
    size = path.stat().st_size
    digest.update(f"{path.name}\n{size}\n".encode())
    with open(path, "rb") as file:
      digest.update(file.read(1 << 20))
      file.seek(max(0, size - (1 << 20)))
      digest.update(file.read())
  return digest.hexdigest()[:16]


def _folder(out: pathlib.Path) -> pathlib.Path:
  return out.with_name(f"{out.name}.partial")


def _differs(name: str, before: Any, now: Any) -> str:
  """What an error says of an argument that has changed; a prompt that is a list was a script."""
  if name == "model":
    return "--model: other weights than the first run's"
  flags = ["script" if name == "prompt" and isinstance(v, list) else name for v in (before, now)]
  if flags == ["script", "script"]:
    parts = itertools.zip_longest(before, now)
    before, now = next(pair for pair in parts if pair[0] != pair[1])
  was, is_now = _text(before), _text(now)
  same = os.path.commonprefix([was, is_now])
  was, is_now = _brief(was, len(same)), _brief(is_now, len(same))
  return f"--{flags[0]} was {was}, {'' if flags[0] == flags[1] else f'--{flags[1]} '}is {is_now}"


def _text(value: Any) -> str:
  """A value in an error's line; None is one that was not given."""
  return "not given" if value is None else json.dumps(value, ensure_ascii=False)


def _brief(text: str, same: int) -> str:
  """At most 60 characters of a text, that at `same`, the first that differs, among them."""
  start = max(0, min(same - 20, len(text) - 57)) if len(text) > 60 else 0
  text = f"...{text[start + 3 :]}" if start else text
  return text if len(text) <= 60 else f"{text[:57]}..."
