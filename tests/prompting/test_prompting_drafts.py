"""Drafts: what is read of one with notes and without, and the sizes at which it is made again."""

import numpy as np
import pytest

from sora_jax.data import writing
from sora_jax.prompting import drafts


@pytest.fixture
def draft(tmp_path):
  path = tmp_path / "draft.mkv"
  writing.write_video(path, np.zeros((3, 32, 24, 3), np.uint8), 12.0)
  return path


def test_without_notes_the_size_is_twice_the_drafts_own(draft):
  video, notes = drafts.read(str(draft))
  assert video.shape == (3, 32, 24, 3) and notes == {"size": ["48x64"], "fps": 12.0}
  drafts.remember([draft], {"prompt": ["p"], "size": [(50, 70)], "seed": [7]}, 8.0)
  noted = {"prompt": ["p"], "size": ["50x70"], "seed": [7], "fps": 8.0}
  assert drafts.read(str(draft))[1] == noted


def test_no_more_is_read_than_is_made_and_one_frame_tells_no_rate(draft):
  video, notes = drafts.read(str(draft), 1)
  assert len(video) == 2 and notes["fps"] == pytest.approx(12.0)  # two, to tell it from a picture
  writing.write_video(draft, video[:1], 30.0)
  assert drafts.read(str(draft), 1)[1]["fps"] is None


@pytest.mark.parametrize("size", [(48, 64), (49, 64), (240, 320), (50, 70), (100, 140)])
def test_sizes_of_the_drafts_shape_or_of_the_one_it_is_of_are_taken(size):
  drafts.check_sizes(np.zeros((1, 32, 24, 3), np.uint8), [size], (50, 70))


@pytest.mark.parametrize("size", [(64, 48), (64, 64), (96, 64), (48, 60)])
def test_a_draft_is_not_squeezed(size):
  with pytest.raises(
    ValueError, match=r"--size=\d+x\d+ is another shape .* 24x32,.* like 48x64, or"
  ):
    drafts.check_sizes(np.zeros((1, 32, 24, 3), np.uint8), [(48, 64), size], (48, 64))
