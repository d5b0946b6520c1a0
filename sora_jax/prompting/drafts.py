"""What is noted beside a draft, so that the same content can be made at full size."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from sora_jax.data import clips


def notes_path(path: pathlib.Path) -> pathlib.Path:
  """Where a draft's prompt and full size are kept."""
  return path.with_name(path.name + ".draft.json")  # X.mp4.json may be somebody's captions


def read(name: str) -> tuple[UInt8[ndarray, "T H W 3"], dict[str, Any]]:
  """The pixels of a draft, and what was noted beside it when it was made.

  Returns: uint8 [T, H, W, 3]; `prompt`, `size` and `seed`, lists of one, and `fps`; of another file
  its `fps` alone, None where it tells none.  Raises: ValueError for a file that cannot be read.
  """
  decoded = clips.decode(name)
  path = notes_path(pathlib.Path(name))
  try:
    notes = json.loads(path.read_text()) if path.is_file() else {}
  except ValueError as error:
    raise ValueError(f"{path} is damaged ({error}); delete it and give --prompt") from error
  return decoded.video_THWC, {"fps": decoded.fps or None, **notes}


def remember(paths: Sequence[pathlib.Path], arguments: Mapping[str, Any], fps: float) -> None:
  """Notes beside each draft what it is a draft of.

  Args: arguments: `prompt`, `size` and `seed` as lists, one for each path.
  """
  for i, path in enumerate(paths):
    width, height = arguments["size"][i]
    notes = {
      "prompt": [arguments["prompt"][i]], "size": [f"{width}x{height}"],
      "seed": [arguments["seed"][i]], "fps": fps,
    }  # fmt: skip
    notes_path(path).write_text(json.dumps(notes) + "\n")
