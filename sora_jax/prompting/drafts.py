"""What is noted beside a draft, so that the same content can be made at full size."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from sora_jax.data.transforms import Size
from sora_jax.prompting import given
from sora_jax.prompting.orders import DRAFT_SCALE

SAME_SHAPE = 1.05
"""Aspect ratios whose ratio is at most this are one: a draft's sides are whole tokens."""


def notes_path(path: pathlib.Path) -> pathlib.Path:
  """Where a draft's prompt and full size are kept."""
  return path.with_name(path.name + ".draft.json")  # X.mp4.json may be somebody's captions


def read(name: str, frames: int | None = None) -> tuple[UInt8[ndarray, "T H W 3"], dict[str, Any]]:
  """The pixels of a draft, and what was noted beside it when it was made.

  Args: frames: that are made of it; None = as many as it has.
  Returns: uint8 [T, H, W, 3]; `prompt`, `size` and `seed`, lists of one, and `fps`; of another file
  `size`, DRAFT_SCALE times its own, and its `fps`, None of a picture.
  Raises: ValueError for a file that cannot be read.
  """
  decoded = given.clip(name, frames and max(2, frames))
  path = notes_path(pathlib.Path(name))
  try:
    notes = json.loads(path.read_text()) if path.is_file() else {}
  except ValueError as error:
    raise ValueError(f"{path} is damaged ({error}); delete it and give --prompt") from error
  T, H, W, _ = decoded.video_THWC.shape
  size, fps = f"{DRAFT_SCALE * W}x{DRAFT_SCALE * H}", decoded.fps if T > 1 else None
  return decoded.video_THWC, {"size": [size], "fps": fps, **notes}


def check_sizes(video_THWC: UInt8[ndarray, "T H W 3"], sizes: Sequence[Size], noted: Size) -> None:
  """Raises a ValueError for a size at which a draft would be squeezed.

  Args: noted: the size that it is a draft of, whose shape is allowed like the draft's own.
  """
  H, W = video_THWC.shape[1:3]
  for width, height in sizes:
    shapes = [width * h / (height * w) for w, h in ((W, H), noted)]
    if min(max(shape, 1 / shape) for shape in shapes) > SAME_SHAPE:
      raise ValueError(
        f"--size={width}x{height} is another shape than that of the draft, {W}x{H}, which would be "
        f"squeezed; give a size like {noted[0]}x{noted[1]}, or leave --size out"
      )


def check_frames(video_THWC: UInt8[ndarray, "T H W 3"], frames: Sequence[int], name: str) -> None:
  """Raises a ValueError for more frames than a draft, the file `name`, has."""
  if max(frames) > len(video_THWC):
    raise ValueError(
      f"--frames={max(frames)}; of --from it says how many to make of the draft, and {name} has "
      f"{len(video_THWC)}"
    )


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
