"""The report: prompts in turn of size, truth scored as truth, a page with everything in it."""

import json

import numpy as np
import pytest

from sora_jax.data.records import Clip
from sora_jax.data.world import World, WorldConfig
from sora_jax.tasks import report

WORLD = WorldConfig(
  sizes=((32, 32), (48, 32), (32, 48)), frames=(9,), motions=("constant",), radius=(0.18, 0.24)
)


def true_videos(asked):
  """Clips of the same worlds as the wishes, in their order."""
  videos = []
  for i, wish in enumerate(asked):
    k = WORLD.sizes.index(wish.size)
    config = WorldConfig(
      sizes=(wish.size,), frames=(9,), motions=("constant",), radius=(0.18, 0.24), seed=k,
      split="test", num_clips=99,
    )  # fmt: skip
    videos.append(World(config)[i // 3].video_THWC)
  return videos


def test_wishes_take_turns_of_size_and_share_no_prompt_list():
  asked = report.wishes(WORLD, 9)
  assert [w.size for w in asked[:4]] == [*WORLD.sizes, WORLD.sizes[0]]
  assert all(w.frames == 9 and w.prompt for w in asked)
  assert asked[0].prompt != asked[1].prompt or asked[3].prompt != asked[4].prompt
  other = report.wishes(WORLD, 2, sizes=((64, 32),), frames=17)
  assert [(w.size, w.frames) for w in other] == [((64, 32), 17)] * 2


def test_truth_scores_as_right_and_shuffled_prompts_do_not():
  asked = report.wishes(WORLD, 24)
  videos = true_videos(asked)
  lines = report.scores(asked, videos)
  assert [line["size"] for line in lines] == ["all", "32x32", "48x32", "32x48"]
  assert lines[0]["color"] >= 0.95 and lines[0]["direction"] >= 0.95
  assert lines[0]["color_low"] < lines[0]["color"] <= lines[0]["color_high"]
  wrong = report.scores(asked, videos[3:] + videos[:3])
  assert wrong[0]["all"] < 0.2


def test_page_and_json_hold_everything(tmp_path):
  asked = report.wishes(WORLD, 6)
  videos = true_videos(asked)
  lines = [{"step": i, "loss": 1.0 / (i + 1), "grad_norm": 1.0} for i in range(5)]
  about = {"figures": {"loss": 0.5}, "scores": report.scores(asked, videos)}
  page = report.write(tmp_path, asked, videos, lines, about)
  text = page.read_text()
  assert "Do they obey the prompt?" in text and asked[0].prompt in text
  assert json.loads((tmp_path / "report.json").read_text())["figures"] == {"loss": 0.5}
  assert len(list(tmp_path.glob("sample_*.mp4"))) == 6
  assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


def test_captions_of_held_out_clips_become_wishes():
  clips = [
    Clip(
      id="a", fps=12.0, captions={"long": "a dog"}, video_THWC=np.zeros((5, 20, 30, 3), np.uint8)
    ),
    Clip(id="b", captions={"short": "a cat"}, video_THWC=np.zeros((1, 16, 16, 3), np.uint8)),
  ]
  asked = report.from_captions(clips, 5)
  assert [(w.prompt, w.size, w.frames) for w in asked] == [
    ("a dog", (24, 16), 5),
    ("a cat", (16, 16), 1),
  ]


@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_wishes(count):
  assert len(report.wishes(WORLD, count)) == count
