"""What a command line is given: clips and pictures, sizes, times; and the files it is to write.

Values of flags come in, each error is a ValueError that names the flag, its value and what would
do. Nothing here needs a model, so all of it is told before one is loaded.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from jaxtyping import UInt8
from numpy import ndarray

from sora_jax.data import clips, writing
from sora_jax.data.clips import Decoded
from sora_jax.data.transforms import Size
from sora_jax.prompting import long
from sora_jax.prompting.long import Script

SAME_RATE = 1.01
"""Frame rates whose ratio is at most this are one."""
_T = TypeVar("_T")


def opened(name: str, path: str, read: Callable[[str], _T]) -> _T:
  """What `read` makes of a flag's file.  Raises: ValueError naming the flag, file and remedy."""
  try:
    return read(path)
  except OSError as error:
    why = error.strerror or error
    raise ValueError(f"--{name}={path}: {why}; name a file that can be read") from error
  except ValueError as error:
    raise ValueError(f"--{name}={path}: {error}") from error


def clip(
  path: str | os.PathLike, most: int | None = None, size: Size | None = None, *,
  takes: bool = True, sized: bool = False,
) -> Decoded:  # fmt: skip
  """A decoded file, or its first frames.

  Args: most: frames to decode; None = all.  size: larger frames are scaled to cover it as they
    come, so that no more is held.  takes: whether --frames says how many to take of it.  sized:
    whether --size says how large to hold them.
  Raises: OSError; ValueError for what cannot be decoded, or be held.
  """
  try:
    return clips.decode(path, cover=size, max_frames=most)
  except clips.TooLargeError as error:
    ways = ["take fewer with --frames=N"] if takes else []
    ways += ["name a smaller --size=WIDTHxHEIGHT, at which they are held"] if sized else []
    ways += ["give a smaller file" if takes else "give a smaller or shorter file"]
    raise ValueError(
      f"its first {error.frames} frames fill {clips.MAX_BYTES >> 30} GiB, more are not held at "
      f"once; {', or '.join(ways)}"
    ) from error


def first(
  video_THWC: UInt8[ndarray, "T H W 3"], frames: int, verb: str, path: str
) -> UInt8[ndarray, "t H W 3"]:
  """The first frames of a clip, for a verb of which --frames says so.

  Raises: ValueError if it is shorter.
  """
  if len(video_THWC) < frames:
    raise ValueError(
      f"--frames={frames}; of {verb} it says how many to take of the clip, and {path} has "
      f"{len(video_THWC)}"
    )
  return video_THWC[:frames]


def rate(files: Mapping[str, Decoded], paths: Mapping[str, str]) -> float | None:
  """The frame rate of clips by flag; None if all are pictures, which have none.

  Raises: ValueError if they differ.
  """
  rates = {name: f.fps for name, f in files.items() if f.fps and len(f.video_THWC) > 1}
  if rates and max(rates.values()) > SAME_RATE * min(rates.values()):
    said = ", ".join(f"--{name}={paths[name]} has {fps:.5g}" for name, fps in rates.items())
    raise ValueError(
      f"{said} frames per second; give clips of one rate, or --fps, at which all of them are played"
    )
  return next(iter(rates.values()), None)


def script(path: str, fps: float | int, frames: int) -> Script:
  """A script for a video.  Raises: ValueError, also for a prompt beyond the video's end."""
  found = opened("script", path, long.read_script)
  opened("script", path, lambda _: found.frames(fps, frames))
  return found


def model_fps(name: str) -> float | int:
  """Frames per second of a model by name or folder, whose weights are not read.  Raises: ValueError
  or FileNotFoundError if there is none."""
  from sora_jax.weights import folder, store  # they take a second to import

  config, _ = store.read_config(folder.find(name) / "dit.safetensors")
  return config["sampling"]["fps"]


def out_paths(out: str, number: int) -> list[pathlib.Path]:
  """`red.mp4`, or `red-0.mp4`, `red-1.mp4`, ... for several, in a folder that is made if missing.

  Raises: ValueError if they cannot be written.
  """
  path = pathlib.Path(out)
  several = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(number)]
  paths = several if number > 1 else [path]
  try:
    for path in paths:
      if path.is_dir():
        raise ValueError(f"--out={out}: {path} is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
      pass
  except OSError as error:
    why = error.strerror or error
    raise ValueError(
      f"--out={out}: nothing can be written to {path.parent} ({why}); name a file in another folder"
    ) from error
  return paths


def check_out(
  out: str, verb: str, frames: int, fps: float | int | None, sizes: Sequence[Size] = ()
) -> None:
  """Raises a ValueError if a file of this name cannot hold a result.

  Args: fps: None = the model's.  sizes: of the results, where they are known.
  """
  extension = writing.check_extension(out)
  for width, height in sizes:
    writing.check_size(out, width, height)
  if extension == ".png" and frames > 1:
    raise ValueError(
      f"--out={out}: {verb} makes {frames} frames of what is given, and a .png holds one; ask for "
      "--frames=1 where that will do, or write .mp4, .mkv or .gif"
    )
  if extension == ".gif" and fps and frames / fps > writing.GIF_SECONDS:
    raise ValueError(
      f"--fps={fps:g}: {frames} frames last {frames / fps:.0f} s, and a .gif shows equal ones for "
      f"{writing.GIF_SECONDS} s at most; give a higher --fps, or write .mp4 or .mkv"
    )
  if extension == ".gif" and fps:
    writing.check_rate(out, fps)


def spread(given: dict[str, list]) -> dict[str, list]:
  """Repeats single values to the length of the longest.  Raises: ValueError if counts differ."""
  number = max(len(values) for values in given.values())
  for name, values in given.items():
    if len(values) not in (1, number):
      raise ValueError(
        f"--{name} is given {len(values)} times, another flag {number} times; give each once, or "
        "once per video"
      )
  return {name: values * (number // len(values)) for name, values in given.items()}


def parse_interval(texts: Sequence[str] | None) -> tuple[float, float] | None:
  """--guidance_interval as numbers, None if it is not given.  Raises: ValueError."""
  if texts is None:
    return None
  try:
    low, high = (float(text) for text in texts)
    if not 0 <= low <= high <= 1:
      raise ValueError
  except ValueError:
    raise ValueError(
      f"--guidance_interval={','.join(texts)}; write two times LOW,HIGH within 0 and 1,"
      " for example --guidance_interval=0.3,1"
    ) from None
  return low, high
