"""Makes shards from any folder of videos and pictures.

  python -m sora_jax.prepare --input=films --output=shards

writes `shards/clips-*.array_record`, their index, and `shards/report.json`; `docs/data.md` says how
files are found, captioned, cut and reported.
"""

import pathlib
import time

from absl import app, flags, logging

from sora_jax.data import ingest
from sora_jax.data.ingest import IngestConfig
from sora_jax.data.records import index_path, write_json

_DEFAULT = IngestConfig()
INPUT = flags.DEFINE_string(
  "input", None, "Folder of videos and pictures, searched with all in it."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the shards and report.json.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the shards that --output holds.")
SALVAGE = flags.DEFINE_bool(
  "salvage", _DEFAULT.salvage, "Keep what can be decoded of a partly damaged video."
)
SHORT_SIDE = flags.DEFINE_integer(
  "short_side", _DEFAULT.short_side, "Shrink frames to this short side, at their own aspect."
)
FPS = flags.DEFINE_float(
  "fps", _DEFAULT.fps, "Thin faster videos to this rate; 0 keeps all frames."
)
MAX_FRAMES = flags.DEFINE_integer(
  "max_frames", _DEFAULT.max_frames, "Cut longer videos into clips of this length; 0 never cuts."
)
MIN_FRAMES = flags.DEFINE_integer(
  "min_frames", _DEFAULT.min_frames, "Drop the rest of a cut video if it is shorter than this."
)
MAX_PIXELS = flags.DEFINE_integer(
  "max_pixels", _DEFAULT.max_pixels, "Reject files whose frames have more pixels than this."
)
PROCESSES = flags.DEFINE_integer("processes", _DEFAULT.processes, "Files to decode at once.")
MAX_MEMORY_GB = flags.DEFINE_float(
  "max_memory_gb", _DEFAULT.max_memory / 2**30, "Memory that decoding one file may take."
)
TIMEOUT = flags.DEFINE_float("timeout", _DEFAULT.timeout, "Seconds that one file may take.")


class Progress:
  """Logs files and megabytes per second and the time left, at most every `every` seconds."""

  def __init__(self, every: float = 5.0):
    self._start = self._last = time.monotonic()
    self._every = every

  def __call__(self, files: int, all_files: int, done: int, total: int) -> None:
    """Reports `files` of `all_files`, `done` of `total` bytes."""
    now = time.monotonic()
    if files < all_files and now - self._last < self._every:
      return
    self._last, spent = now, max(now - self._start, 1e-9)
    left = spent * (total - done) / max(done, 1)
    logging.info(
      "%d/%d files, %.1f files/s, %.1f MB/s, %.0f s left",
      files, all_files, files / spent, done / spent / 1e6, left,
    )  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit status."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  try:
    config = IngestConfig(
      short_side=SHORT_SIDE.value,
      fps=FPS.value,
      max_frames=MAX_FRAMES.value,
      min_frames=MIN_FRAMES.value,
      max_pixels=MAX_PIXELS.value,
      salvage=SALVAGE.value,
      processes=PROCESSES.value,
      max_memory=int(MAX_MEMORY_GB.value * 2**30),
      timeout=TIMEOUT.value,
    )
    folder = pathlib.Path(OUTPUT.value)
    report = ingest.ingest(
      pathlib.Path(INPUT.value), folder, config, overwrite=OVERWRITE.value, progress=Progress()
    )
    return finish(folder, report)
  except (OSError, ValueError) as error:
    logging.error("%s", error)
    return 1


def finish(folder: pathlib.Path, report: dict) -> int:
  """Writes the report and logs it; returns the exit status.

  Where nothing was kept and `folder` holds a former set, that set and its report stay, and the new
  report becomes `report.failed.json`.
  Raises: OSError if the report cannot be written.
  """
  former = not report["num_clips"] and index_path(folder).exists()
  failed = folder / "report.failed.json"
  path = failed if former else folder / "report.json"
  try:
    failed.unlink(missing_ok=True)
    write_json(path, report)
  except OSError as error:
    again = "the clips are whole; make room, and for the report run it again with --overwrite"
    raise OSError(
      f"{path} cannot be written: {error.strerror}; "
      f"{again if report['num_clips'] else 'make room, and run the same command again'}"
    ) from error
  for line in report["rejected"]:
    logging.warning("rejected %s: %s", line["file"], line["reason"])
  for line in report["warnings"]:
    logging.warning("%s", line)
  kept, rejected = len(report["kept"]), len(report["rejected"])
  if not report["num_clips"]:
    stays = f"; the former set in {folder} was left as it was" if former else ""
    logging.error("no clip is left: all %d files were rejected; see %s%s", rejected, path, stays)
    return 1
  logging.info("%d clips from %d files, %d rejected", report["num_clips"], kept, rejected)
  return 0


def run() -> None:
  """Entry point of the command line."""
  flags.mark_flags_as_required(["input", "output"])
  app.run(main)


if __name__ == "__main__":
  run()
