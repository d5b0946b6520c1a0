"""Writing media: what a kind of file cannot hold is refused by name, a .gif keeps its frames."""

import numpy as np
import pytest
from PIL import Image

from sora_jax.data import clips, writing
from sora_jax.data.clips import decode, write_video


def noise(T=3, H=10, W=14):
  return np.random.default_rng(1).integers(0, 256, (T, H, W, 3), dtype=np.uint8)


def stripes(T, moves=None, H=20, W=24):
  """Grey with a white column that steps right; after `moves` frames it stands still."""
  video = np.full((T, H, W, 3), 90, np.uint8)
  for k in range(T):
    video[k, :, k if moves is None else min(k, moves)] = 255
  return video


def durations(path):
  """Of the stored pictures, in milliseconds."""
  with Image.open(path) as image:
    found = []
    for k in range(image.n_frames):
      image.seek(k)
      found.append(image.info["duration"])
    return found


def test_pictures_are_written(tmp_path):
  write_video(tmp_path / "a.png", noise(T=1), None)
  got = decode(tmp_path / "a.png")
  np.testing.assert_array_equal(got.video_THWC, noise(T=1))
  assert got.fps is None
  write_video(tmp_path / "a.gif", stripes(T=1), 24)
  got = decode(tmp_path / "a.gif")
  np.testing.assert_array_equal(got.video_THWC, stripes(T=1))
  assert got.fps is None


@pytest.mark.parametrize("fps", [8, 12, 24, 50, 30000 / 1001, 7.5])
@pytest.mark.parametrize("moves", [None, 6, 0])
@pytest.mark.parametrize("frames", [2, 17])
def test_a_gif_keeps_its_frames_and_its_rate(tmp_path, fps, moves, frames):
  video = stripes(frames, moves)
  write_video(tmp_path / "a.gif", video, fps)
  got = decode(tmp_path / "a.gif")
  np.testing.assert_array_equal(got.video_THWC, video)
  assert got.fps == pytest.approx(fps, rel=1e-6)
  assert sum(durations(tmp_path / "a.gif")) == pytest.approx(1000 * frames / fps, abs=5)
  first = decode(tmp_path / "a.gif", max_frames=2)
  assert len(first.video_THWC) == 2 and first.fps == pytest.approx(fps, rel=1e-6)


def test_a_gif_is_played_by_its_durations_where_its_comment_is_of_no_use(tmp_path):
  images = [Image.fromarray(frame_HWC) for frame_HWC in stripes(4)]
  for comment in ("made by hand", "50 fps by hand", "0 fps", "1000 fps", "8 fps"):
    images[0].save(
      tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50, comment=comment
    )
    got = decode(tmp_path / "a.gif")
    assert (len(got.video_THWC), got.fps) == (4, pytest.approx(20)), comment


def test_a_damaged_gif_counts_the_frames_shown(tmp_path):
  video = noise(T=3)[[0, 0, 0, 1, 2]]
  write_video(tmp_path / "a.gif", video, 12)
  data = (tmp_path / "a.gif").read_bytes()
  (tmp_path / "a.gif").write_bytes(data[:-99])
  got = decode(tmp_path / "a.gif", salvage=True)
  assert got.damage.startswith("4 frames decode, then: image file is truncated")
  assert len(got.video_THWC) == 4


def test_a_gif_of_pictures_that_stand_too_long_is_refused(tmp_path):
  write_video(tmp_path / "a.gif", noise(T=2), 1 / 650)
  assert len(decode(tmp_path / "a.gif").video_THWC) == 2
  for video, fps in ((noise(T=2), 0.001), (stripes(T=2, moves=0), 1 / 650)):  # equal: merged
    with pytest.raises(
      ValueError, match=r"b.gif: at fps .* the 655 s of a .gif; give a higher rate"
    ):
      write_video(tmp_path / "b.gif", video, fps)
  assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize("fps", [50.5, 60, 100])
def test_a_gif_of_a_rate_that_players_do_not_show_is_refused(tmp_path, fps):
  with pytest.raises(ValueError, match=rf"a.gif: fps {fps}, and a .gif shows at most 50 frames"):
    write_video(tmp_path / "new" / "a.gif", noise(), fps)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("name", "size", "longest"),
  [("a.mp4", (2, 16385), 16384), ("a.mp4", (16386, 2), 16384), ("a.gif", (65536, 1), 65535)],
)
def test_a_side_that_is_too_long_is_refused_before_anything_is_written(
  tmp_path, name, size, longest
):
  video = np.zeros((1, size[1], size[0], 3), np.uint8)
  message = f"{name}: {size[0]}x{size[1]}, and such a file takes at most {longest} pixels a side"
  with pytest.raises(ValueError, match=message):
    write_video(tmp_path / "new" / name, video)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [clips.VideoWriter, writing.GrowingWriter])
def test_a_writer_refuses_the_first_frame_whose_side_is_too_long(tmp_path, kind):
  with pytest.raises(ValueError, match="a.mp4: 2x16386, and such a file"):
    with kind(tmp_path / "a.mp4", 24) as writer:
      writer.write(np.zeros((16386, 2, 3), np.uint8))
  assert not list(tmp_path.iterdir())


def test_the_longest_sides_are_written(tmp_path):
  write_video(tmp_path / "a.mp4", np.zeros((1, 2, 16384, 3), np.uint8))
  assert decode(tmp_path / "a.mp4").size == (16384, 2)
  write_video(tmp_path / "a.mkv", np.zeros((1, 2, 16386, 3), np.uint8))
  assert decode(tmp_path / "a.mkv").size == (16386, 2)


def test_a_cut_gif_is_refused_in_words(tmp_path):
  """Wherever it is cut: Pillow raises errors of several kinds."""
  write_video(tmp_path / "whole.gif", noise(), 8)
  whole, refused = (tmp_path / "whole.gif").read_bytes(), 0
  for end in range(20, len(whole), 41):
    (tmp_path / "cut.gif").write_bytes(whole[:end])
    try:
      decode(tmp_path / "cut.gif")
    except clips.MediaError:
      refused += 1
  assert refused > 0.9 * (len(whole) - 20) / 41
