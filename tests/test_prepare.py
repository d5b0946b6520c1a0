"""`python -m sora_jax.prepare`: every file accounted for, nothing crashes or outgrows limits."""

import fractions
import json
import os
import re
import resource
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data import ingest, shard_writer
from sora_jax.data.captions import Captions
from sora_jax.data.clips import MediaError, decode, write_video
from sora_jax.data.ingest import IngestConfig
from sora_jax.data.records import ShardSource


def film(path, T=10, W=40, H=30, fps=10):
  path.parent.mkdir(parents=True, exist_ok=True)
  video = np.random.default_rng(0).integers(0, 256, (T, H, W, 3), dtype=np.uint8)
  video[:, :, :, 0] = (np.arange(T) * (255 // T))[:, None, None]
  write_video(path, video, fps)
  return video


def command(*arguments, file_bytes=None):
  """Runs the command; `file_bytes`: what the disk takes of a file."""
  former = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes or former[0], former[1]))
  try:
    return subprocess.run(
      [sys.executable, "-m", "sora_jax.prepare", *map(str, arguments)],
      capture_output=True,
      text=True,
      timeout=300,
    )
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def report_of(folder):
  return json.loads((folder / "report.json").read_text())


def run_ingest(root, out, **options):
  return ingest.ingest(root, out, IngestConfig(**options))


def test_the_command_accounts_for_every_file(tmp_path):
  root, out = tmp_path / "in", tmp_path / "out"
  video = film(root / "a.mkv")
  film(root / "deep" / "b.mp4", T=1)
  Image.fromarray(video[0]).save(root / "c.png")
  Image.fromarray(video[0]).save(root / "no_suffix", format="PNG")
  (root / "bad.mp4").write_text("no video")
  (root / "notes.md").write_text("ignored")
  (root / ".hidden.mp4").write_text("passed over")
  (root / "clips.jsonl").write_text(json.dumps({"file": "a.mkv", "caption_short": "a film"}))
  result = command("--input", root, "--output", out)
  assert result.returncode == 0, result.stderr
  report = report_of(out)
  kept = {line.pop("file"): line for line in report["kept"]}
  assert sorted(kept) == ["a.mkv", "c.png", "deep/b.mp4", "no_suffix"]
  assert kept["a.mkv"] | {"width": 40, "height": 30, "num_frames": 10, "fps": 10.0} == kept["a.mkv"]
  assert kept["c.png"]["num_frames"] == 1 and kept["c.png"]["fps"] is None
  assert [line["file"] for line in report["rejected"]] == ["bad.mp4"]
  assert report["ignored"] == ["clips.jsonl", "notes.md"]
  source = ShardSource(out)
  assert len(source) == report["num_clips"] == 4
  np.testing.assert_array_equal(source[0].video_THWC, video)
  assert (source[0].id, source[0].fps) == ("a.mkv", 10.0)
  assert source[0].captions == {"short": "a film", "long": "a film"}
  assert source[1].fps is None
  assert "5/5 files" in result.stderr and "s left" in result.stderr
  assert sorted(p.name for p in out.iterdir()) == [
    source.index["shards"][0]["file"],
    "clips.index.json",
    "report.json",
  ]


def test_the_command_says_what_went_wrong(tmp_path):
  root, out = tmp_path / "in", tmp_path / "out"
  root.mkdir()
  result = command("--input", root, "--output", out)
  assert result.returncode == 1 and "holds no video or picture" in result.stderr
  (root / "bad.mp4").write_text("no video")
  result = command("--input", root, "--output", out)
  assert result.returncode == 1 and "no clip is left: all 1 files" in result.stderr
  assert report_of(out)["rejected"][0]["file"] == "bad.mp4"
  assert not list(out.glob("clips*"))


def test_what_cannot_start_is_refused(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  with pytest.raises(FileNotFoundError, match="no folder"):
    run_ingest(tmp_path / "none", tmp_path / "out")
  run_ingest(tmp_path / "in", tmp_path / "out")
  with pytest.raises(FileExistsError, match="overwrite"):
    run_ingest(tmp_path / "in", tmp_path / "out")
  ingest.ingest(tmp_path / "in", tmp_path / "out", IngestConfig(), overwrite=True)
  for options in ({"short_side": 0}, {"fps": -1.0}, {"max_frames": 4, "min_frames": 5}):
    with pytest.raises(ValueError, match=next(iter(options)).replace("max_frames", "min_frames")):
      IngestConfig(**options)


def test_long_films_are_cut_and_thinned(tmp_path):
  video = film(tmp_path / "in" / "a.mkv", T=50, fps=24)
  options = {"fps": 12.0, "max_frames": 8, "min_frames": 2, "short_side": 30}
  report = run_ingest(tmp_path / "in", tmp_path / "out", **options)
  (line,) = report["kept"]
  assert (line["num_frames"], line["fps"]) == (50, 24.0)
  assert (line["clips"], line["stored_frames"]) == (3, 24)  # the rest of 1 frame is dropped
  source = ShardSource(tmp_path / "out")
  assert [clip.id for clip in source] == ["a.mkv", "a.mkv#1", "a.mkv#2"]
  assert all(clip.fps == 12.0 for clip in source)
  joined = np.concatenate([clip.video_THWC for clip in source])
  np.testing.assert_array_equal(joined, video[0:48:2])


def test_frames_are_shrunk_but_never_enlarged(tmp_path):
  film(tmp_path / "in" / "large.mkv", W=90, H=60)
  film(tmp_path / "in" / "small.mkv", W=10, H=8)
  run_ingest(tmp_path / "in", tmp_path / "out", short_side=20)
  assert [clip.size for clip in ShardSource(tmp_path / "out")] == [(30, 20), (10, 8)]


def test_damaged_films_are_rejected_or_salvaged(tmp_path):
  film(tmp_path / "in" / "a.mp4", T=60)
  film(tmp_path / "in" / "b.mkv", T=3)
  path = tmp_path / "in" / "a.mp4"
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  report = run_ingest(tmp_path / "in", tmp_path / "out")
  (line,) = report["rejected"]
  assert " of 60 frames decode" in line["reason"] and "\n" not in line["reason"]
  assert [clip.id for clip in ShardSource(tmp_path / "out")] == ["b.mkv"]
  report = run_ingest(tmp_path / "in", tmp_path / "salvaged", salvage=True)
  line = report["kept"][0]
  assert line["damage"].startswith(f"{line['num_frames']} of 60 frames")
  assert not report["rejected"]


def with_sound(path, seconds, pts, codec="ffv1"):
  """A film with frames at `pts` (thousandths of a second) and `seconds` of silence."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    sound = container.add_stream("libopus", rate=48000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000 * seconds), np.float32), "fltp", "mono")
    silence.sample_rate, silence.pts = 48000, 0
    packets = [p for f in (silence, None) for p in sound.encode(f)] if seconds else []
    noise = np.random.default_rng(1).integers(0, 256, (len(pts), 48, 64, 3), dtype=np.uint8)
    for frame_HWC, time in zip(noise, pts):
      frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24").reformat(format="yuv420p")
      frame.pts, frame.time_base = time, fractions.Fraction(1, 1000)
      packets += stream.encode(frame)
    packets += stream.encode()
    container.mux(packets)
  return path


@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
@pytest.mark.parametrize("tag", [True, False])
def test_a_cut_matroska_file_is_refused_or_salvaged(tmp_path, name, tag):
  codec = "libvpx-vp9" if name == "a.webm" else "ffv1"
  path = with_sound(tmp_path / name, 1, range(0, 2400, 40), codec)
  data = path.read_bytes()
  data = data if tag else data.replace(b"DURATION", b"DURATIOX")
  for end in (len(data), data.rindex(b"\x1c\x53\xbb\x6b")):  # whole, and without the cues
    path.write_bytes(data[:end])
    assert len(decode(path).video_THWC) == 60
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(MediaError, match=r"^\d+ frames decode, then: the data ends at .* of 2\.4"):
    decode(path)
  got = decode(path, salvage=True)
  assert got.damage.startswith(f"{len(got.video_THWC)} frames decode")
  assert 0 < len(got.video_THWC) < 60


@pytest.mark.parametrize("seconds", [0, 5])
@pytest.mark.parametrize("pts", [range(0, 400, 40), [0, 40, 80, 1000, 1040, 3000], [0, 2000]])
def test_whole_matroska_files_stay_whole(tmp_path, seconds, pts):
  path = with_sound(tmp_path / "a.mkv", seconds, pts)
  assert len(decode(path).video_THWC) == len(pts)
  path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
  assert len(decode(path).video_THWC) == len(pts)


@pytest.mark.parametrize(
  ("options", "reason"),
  [({"timeout": 1e-3}, "longer than timeout"), ({"max_memory": 1 << 20}, "max_memory|died")],
)
def test_limits_cost_one_line_each(tmp_path, options, reason):
  for name in ("a.mp4", "b.mp4", "c.mp4"):
    film(tmp_path / "in" / name, T=3, W=640, H=480)
  report = run_ingest(tmp_path / "in", tmp_path / "out", **options)
  assert len(report["rejected"]) == 3
  for line in report["rejected"]:
    assert re.search(reason, line["reason"]), line
  assert report["num_clips"] == 0


def test_files_that_cannot_be_read(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  (tmp_path / "in" / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
  report = run_ingest(tmp_path / "in", tmp_path / "out")
  (line,) = report["rejected"]
  assert line["file"] == "gone.mp4" and "No such file" in line["reason"]


def test_names_that_are_not_utf8(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  os.rename(tmp_path / "in" / "a.mkv", os.fsencode(tmp_path / "in") + b"/\xff.mkv")
  report = run_ingest(tmp_path / "in", tmp_path / "out")
  assert report["kept"][0]["file"] == "\ufffd.mkv"


def test_warnings_about_names_that_are_not_utf8(tmp_path):
  root = os.fsencode(tmp_path / "in")
  film(tmp_path / "in" / "a.mkv")
  os.rename(root + b"/a.mkv", root + b"/\xff.mkv")
  with open(root + b"/\xff.json", "w") as file:
    file.write("{")
  result = command("--input", tmp_path / "in", "--output", tmp_path / "out")
  assert result.returncode == 0, result.stderr
  assert report_of(tmp_path / "out")["warnings"][0].startswith("\ufffd.json: no captions")


def test_half_a_surrogate_pair_costs_no_film(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  (tmp_path / "in" / "a.json").write_text('{"caption": "a \\ud83d film \\ud83d\\ude00"}')
  report = run_ingest(tmp_path / "in", tmp_path / "out")
  assert not report["rejected"]
  assert ShardSource(tmp_path / "out")[0].captions["long"] == "a \ufffd film \U0001f600"


def test_overwriting_with_nothing_keeps_the_former_set(tmp_path):
  root, out = tmp_path / "in", tmp_path / "out"
  film(root / "a.mkv")
  assert command("--input", root, "--output", out).returncode == 0
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  (root / "a.mkv").write_text("no video")
  result = command("--input", root, "--output", out, "--overwrite")
  assert result.returncode == 1
  assert "no clip is left" in result.stderr and "was left as it was" in result.stderr
  failed = out / "report.failed.json"
  assert json.loads(failed.read_text())["rejected"][0]["file"] == "a.mkv"
  assert {path.name: path.read_bytes() for path in out.iterdir() if path != failed} == before
  film(root / "a.mkv", T=3)
  assert command("--input", root, "--output", out, "--overwrite").returncode == 0
  assert not failed.exists() and report_of(out)["kept"][0]["num_frames"] == 3


@pytest.mark.parametrize("file_bytes", [300_000, 1_000_000])  # of one file's spool, of the shard
def test_a_full_disk_ends_the_job_and_leaves_the_former_set(tmp_path, file_bytes):
  root, out = tmp_path / "in", tmp_path / "out"
  film(root / "f0.mkv", T=2)
  assert command("--input", root, "--output", out).returncode == 0
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  for name in ("f1.mkv", "f2.mkv"):
    film(root / name, W=160, H=160)
  arguments = "--input", root, "--output", out, "--overwrite", "--short_side=160"
  result = command(*arguments, file_bytes=file_bytes)
  assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
  error = result.stderr.splitlines()[-1]
  assert f" {out}" in error and "cannot be written: File too large. Make room" in error
  assert "rejected" not in result.stderr
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  assert command(*arguments).returncode == 0 and len(ShardSource(out)) == 3


def test_memory_that_writing_lacks_is_the_fault_of_the_file(tmp_path, monkeypatch):
  film(tmp_path / "in" / "a.mkv")

  def write(writer, clip):
    raise shard_writer.WriteError(reason)

  monkeypatch.setattr(shard_writer.ShardWriter, "write", write)
  arguments = str(tmp_path / "in" / "a.mkv"), "a.mkv", {}, str(tmp_path / "out"), IngestConfig()
  reason = "out cannot be written: Resource temporarily unavailable"
  assert "needs more than max_memory" in ingest.decode_file(*arguments)["reason"]
  reason = "out cannot be written: No space left on device"
  with pytest.raises(shard_writer.WriteError, match="No space"):
    ingest.decode_file(*arguments)


def test_a_report_that_cannot_be_written_is_said_in_one_line(tmp_path):
  root, out = tmp_path / "in", tmp_path / "out"
  film(root / "a.mkv")
  (out / "report.json").mkdir(parents=True)
  result = command("--input", root, "--output", out)
  assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
  assert "report.json cannot be written: Is a directory; the clips are whole" in result.stderr
  assert len(ShardSource(out)) == 1 and not list(out.glob(".*"))
  (out / "report.json").rmdir()
  assert command("--input", root, "--output", out, "--overwrite").returncode == 0


def test_what_a_killed_job_left_goes_with_the_next(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  child = subprocess.Popen(["true"])
  child.wait()
  place = shard_writer.owner().rpartition(".")[0]
  gone, runs = (tmp_path / "out" / f".spool.{place}.{n}" for n in (child.pid, os.getppid()))
  for spool in (gone, runs):
    (spool / "0").mkdir(parents=True)
  run_ingest(tmp_path / "in", tmp_path / "out")
  assert not gone.exists() and runs.exists()


def test_pipes_are_not_opened(tmp_path):
  film(tmp_path / "in" / "a.mkv")
  for name in ("pipe", "pipe.mp4"):
    os.mkfifo(tmp_path / "in" / name)
  result = command("--input", tmp_path / "in", "--output", tmp_path / "out", "--timeout=60")
  assert result.returncode == 0, result.stderr
  report = report_of(tmp_path / "out")
  assert report["ignored"] == ["pipe", "pipe.mp4"] and not report["rejected"]


def test_shards_inside_the_input_are_not_input(tmp_path):
  film(tmp_path / "a.mkv")
  film(tmp_path / "out" / "b.mkv")
  report = run_ingest(tmp_path, tmp_path / "out")
  assert [line["file"] for line in report["kept"]] == ["a.mkv"]


def test_captions_come_from_the_nearest_source(tmp_path):
  folder = tmp_path / "deep"
  folder.mkdir()
  rows = [
    '{"file": "deep/a.mp4", "caption_short": "root", "caption": "the root\'s list"}',
    "not json",
    '{"caption": "no file"}',
    '{"file": "deep/f.mp4", "captions": {"short": "six", "long": "number six"}}',
  ]
  (tmp_path / "clips.jsonl").write_text("\n".join(rows))
  (folder / "clips.jsonl").write_text('{"file": "b.mp4", "caption": "near"}\n')
  (folder / "c.txt").write_text("a short one\n\nand a\nlong one\n")
  (folder / "d.mp4.txt").write_bytes(b"caf\xe9")
  (folder / "e.json").write_text('{"caption": "from json"}')
  (folder / "e.txt").write_text("from text")
  (folder / "g.json").write_text("{")
  captions = Captions(tmp_path)
  of = {name: captions.of(folder / f"{name}.mp4") for name in "abcdefgh"}
  assert of["a"] == {"short": "root", "long": "the root's list"}
  assert of["b"] == {"short": "near", "long": "near"}
  assert of["c"] == {"short": "a short one", "long": "and a long one"}
  assert of["d"]["short"] == "caf\ufffd"
  assert of["e"]["short"] == "from json"
  assert of["f"] == {"short": "six", "long": "number six"}
  assert of["g"] == of["h"] == {"short": "", "long": ""}
  assert [line.split(":")[0] for line in captions.warnings] == [
    "clips.jsonl, line 2",
    "clips.jsonl, line 3",
    "deep/g.json",
  ]


BAD_KEPT = {
  "huge_dims_container_header.mp4": (960, 540, 150),
  "jpeg_named.mp4": (512, 848, 1),
  "one_frame.mp4": (960, 540, 1),
  "tiny_16x16.mp4": (16, 16, 15),
}
BAD_REJECTED = {
  "audio_only.mp4": "no video stream",
  "bomb_8192x8192.mp4": "8192x8192 is more than max_pixels",
  "corrupt_middle.mp4": "54 of 150 frames",
  "huge_dims_100000x100000.png": "max_pixels",
  "text_file.mp4": "not a readable video",
  "truncated_faststart.mp4": "46 of 150 frames",
  "truncated_no_moov.mp4": "not a readable video",
  "truncated_photo.jpg": "truncated",
  "zero_bytes.mp4": "empty",
  "zero_frames.mp4": "no frames",
}


def test_real_media_through_the_command(real_media, tmp_path):
  result = command("--input", real_media, "--output", tmp_path)
  assert result.returncode == 0, result.stderr
  report = report_of(tmp_path)
  kept = {line["file"]: line for line in report["kept"]}
  rows = [json.loads(line) for line in (real_media / "dev" / "clips.jsonl").open()]
  expected = {
    "dev/" + row["file"]: (row["width"], row["height"], row["num_frames"]) for row in rows
  }
  expected |= {"bad/" + name: size for name, size in BAD_KEPT.items()}
  got = {name: (x["width"], x["height"], x["num_frames"]) for name, x in kept.items()}
  assert got == expected
  assert kept["bad/jpeg_named.mp4"]["fps"] is None
  reasons = {line["file"].removeprefix("bad/"): line["reason"] for line in report["rejected"]}
  assert sorted(reasons) == sorted(BAD_REJECTED)
  for name, reason in BAD_REJECTED.items():
    assert reason in reasons[name] and "\n" not in reasons[name]
  first = {row["file"]: row for row in rows}
  clip = next(c for c in ShardSource(tmp_path) if c.id == "dev/cherries.mp4")
  assert clip.captions["short"] == first["cherries.mp4"]["caption_short"]


PEAK_CODE = """
import resource, sys
from sora_jax.data import ingest
def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
config = ingest.IngestConfig()
line = ingest.decode_file(sys.argv[1], "a", {}, sys.argv[2], config)
print(peak() - before, line)
"""


@pytest.mark.parametrize("name", ["bomb_8192x8192.mp4", "huge_dims_100000x100000.png"])
@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss counts bytes there")
def test_bombs_are_refused_before_a_frame_is_allocated(real_media, tmp_path, name):
  arguments = [sys.executable, "-c", PEAK_CODE, real_media / "bad" / name, tmp_path / "spool"]
  result = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=100)
  assert "max_pixels" in result.stdout, result.stderr
  kilobytes = int(result.stdout.split(" ", 1)[0])
  assert kilobytes < 60_000, "one 8192x8192 frame is 100 MB in 4:2:0"
