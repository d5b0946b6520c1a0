"""Finding media through links, frame rates, and what the report says of limits."""

import fractions

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data import clips, ingest, records
from sora_jax.data.ingest import IngestConfig, find_media


def picture(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
  return path


def names(root, skip=None):
  media, others = find_media(root, skip)
  return [[path.relative_to(root).as_posix() for path in paths] for paths in (media, others)]


def test_links_to_folders_are_followed(tmp_path):
  root = tmp_path / "in"
  picture(root / "a.png")
  picture(tmp_path / "elsewhere" / "deep" / "b.png")
  (tmp_path / "elsewhere" / "notes.md").write_text("no media")
  (root / "link").symlink_to(tmp_path / "elsewhere")
  (root / ".hidden").symlink_to(tmp_path / "elsewhere")
  assert names(root) == [["a.png", "link/deep/b.png"], ["link/notes.md"]]
  report = ingest.ingest(root, tmp_path / "out", IngestConfig())
  assert [line["file"] for line in report["kept"]] == ["a.png", "link/deep/b.png"]
  assert report["ignored"] == ["link/notes.md"]


def test_links_that_lead_back_end(tmp_path):
  root = tmp_path / "in"
  picture(root / "a.png")
  picture(tmp_path / "elsewhere" / "b.png")
  (root / "link").symlink_to(tmp_path / "elsewhere")
  (root / "self").symlink_to(root)
  (tmp_path / "elsewhere" / "back").symlink_to(root)
  (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
  assert names(root) == [["a.png", "link/b.png"], []]


def test_a_folder_of_several_names_is_searched_under_its_own(tmp_path):
  root, out = tmp_path / "in", tmp_path / "in" / "out"
  picture(root / "z" / "deep" / "a.png")
  picture(out / "b.png")
  (root / "a").symlink_to(root / "z" / "deep")
  (root / "b").symlink_to(out)
  assert names(root, out.resolve()) == [["z/deep/a.png"], []]
  assert names(out, out.resolve()) == [["b.png"], []]  # input and output may be one folder


def test_a_lack_of_memory_names_the_flag(tmp_path, monkeypatch):
  def lack(*_, **__):
    raise MemoryError

  monkeypatch.setattr(clips, "Reader", lack)
  config = IngestConfig(max_memory=int(0.001 * 2**30))
  reason = ingest.decode_file("a.mp4", "a.mp4", {}, str(tmp_path), config)["reason"]
  assert reason.startswith("needs more than max_memory=1073741 bytes, --max_memory_gb=0.001 (")


def test_thinning_shows_the_frame_on_screen():
  def shown(times, rate, fps):
    return [frame for _, frame in ingest.thin(zip(times, range(len(times))), rate, fps)]

  even = [k / 30 for k in range(9)]
  assert shown(even, 30.0, 15.0) == [0, 2, 4, 6, 8]
  assert shown([round(t, 2) for t in even], 30.0, 15.0) == [0, 2, 4, 6, 8]
  assert shown(even, 30.0, 0.0) == shown(even, 30.0, 30.0) == list(range(9))
  assert shown([0.0], None, 12.0) == [0]
  assert shown([0.0, 0.1, 0.5, 0.6], 20.0, 10.0) == [0, 1, 1, 1, 1, 2, 3]  # a gap holds its frame


def test_thinning_goes_by_time_stamps_where_the_declared_rate_is_slow():
  def kept(times, fps, rate=None):
    return [time for time, _ in ingest.thin(zip(times, times), rate or fps, fps)]

  slow, fast = [k / 4 for k in range(8)], [2 + k / 24 for k in range(48)]
  assert kept(slow + fast, 12.0, 9.7) == slow + fast[::2]
  assert kept(fast + [4 + t for t in slow], 12.0, 9.7) == fast[::2] + [4 + t for t in slow]
  for rate in (8.0, 12.0, 12.1, 59.94, 60.0):  # of one rate, by clocks of any coarseness
    for digits in (15, 3, 2) if rate < 20 else (15, 3):
      times = [round(k / rate, digits) for k in range(2000)]
      assert kept(times, min(rate, 12.0) if rate < 20 else 60.0, rate) == times
  jitter = [k / 12 + 0.1 * (-1) ** k / 12 for k in range(200)]
  assert kept(jitter, 12.0) == jitter
  assert kept([0.0] * 5, 12.0) == [0.0] * 5  # broken time stamps
  assert kept([5.0, 5.1, 0.0, 0.1], 12.0) == [5.0, 5.1, 0.0, 0.1]


def film(path, times_ms):
  """A film with a frame at each time, of a clock of milliseconds."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=1000, width=16, height=16, pix_fmt="yuv420p")
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for k, time_ms in enumerate(times_ms):
      frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 3 * k % 256, np.uint8))
      frame.pts, frame.time_base = time_ms, fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def gif(path, durations_ms):
  images = [Image.fromarray(np.full((8, 8, 3), 5 * k, np.uint8)) for k in range(len(durations_ms))]
  images[0].save(path, save_all=True, append_images=images[1:], duration=durations_ms)


def rates(path, **changes):
  """(frames, rate) of each clip that a file becomes."""
  out = str(path.with_suffix(".out"))
  line = ingest.decode_file(str(path), path.name, {}, out, IngestConfig(**changes))
  assert "reason" not in line, line
  return [(clip.num_frames, clip.fps) for clip in records.ShardSource(out)]


@pytest.mark.parametrize(
  ("fps", "want"), [(12.0, [(16, 4.0), (16, 12.0)]), (0.0, [(16, 4.0), (16, 24.0), (16, 24.0)])]
)
def test_clips_of_a_film_of_variable_rate_have_their_own_rates(tmp_path, fps, want):
  slow, fast = [250 * k for k in range(16)], [4000 + round(1000 * k / 24) for k in range(32)]
  film(tmp_path / "a.mp4", slow + fast)
  found = rates(tmp_path / "a.mp4", fps=fps, max_frames=16)
  assert [count for count, _ in found] == [count for count, _ in want]
  # time stamps are rounded to milliseconds
  np.testing.assert_allclose([r for _, r in found], [r for _, r in want], rtol=2e-3)


def test_animations_are_thinned_and_have_their_own_rates(tmp_path):
  gif(tmp_path / "even.gif", [40] * 50)
  found = rates(tmp_path / "even.gif", fps=12.5, max_frames=0)
  assert found == [(25, 12.5)]
  gif(tmp_path / "held.gif", [1000] + [40] * 32)
  first, second = rates(tmp_path / "held.gif", fps=12.5, max_frames=9)
  np.testing.assert_allclose([first, second], [(9, 8 / (1 + 7 * 0.08)), (8, 12.5)], rtol=1e-3)
  gif(tmp_path / "slow.gif", [40] + [1000] * 5)
  (clip,) = rates(tmp_path / "slow.gif", fps=0.0)
  np.testing.assert_allclose(clip, (6, 5 / 4.04))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
@pytest.mark.parametrize("rate", [8.0, 12.0, 24.0, 30.0])
def test_clips_of_a_film_of_one_rate_have_just_that(tmp_path, suffix, rate):
  video_THWC = np.repeat(np.arange(0, 240, 6, np.uint8), 16 * 16 * 3).reshape(40, 16, 16, 3)
  clips.write_video(tmp_path / f"a{suffix}", video_THWC, rate)
  found = rates(tmp_path / f"a{suffix}", fps=12.0, max_frames=5)
  assert {fps for _, fps in found} == {min(rate, 12.0)}
  assert sum(count for count, _ in found) == 40 if rate <= 12 else 10 < len(found) * 5 <= 20
