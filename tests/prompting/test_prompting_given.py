"""What flags give: rates that must agree, names that can be written, a model's rate unread."""

import numpy as np
import pytest

from sora_jax.data.clips import Decoded
from sora_jax.prompting import given

PATHS = {"start": "a.mkv", "end": "b.mkv"}


def file(frames, fps):
  return Decoded(np.zeros((frames, 2, 2, 3), np.uint8), fps, (2, 2))


@pytest.mark.parametrize(
  "start,end,rate",
  [
    ((5, 8.0), (5, 8.0), 8.0), ((5, 24.0), (5, 23.976), 24.0), ((1, 30.0), (5, 8.0), 8.0),
    ((5, 8.0), (1, None), 8.0), ((1, 30.0), (1, None), None),
  ],
)  # fmt: skip
def test_pictures_have_no_rate_and_clips_one(start, end, rate):
  assert given.rate({"start": file(*start), "end": file(*end)}, PATHS) == rate


def test_clips_of_two_rates_are_refused():
  said = (
    "^--start=a.mkv has 8, --end=b.mkv has 24 frames per second; give clips of one rate, or --fps"
  )
  with pytest.raises(ValueError, match=said):
    given.rate({"start": file(5, 8.0), "end": file(2, 24.0)}, PATHS)


def test_a_folder_is_made_and_what_cannot_be_written_is_named(tmp_path):
  out = tmp_path / "deep" / "er" / "x.mkv"
  assert given.out_paths(str(out), 1) == [out] and not list(out.parent.iterdir())
  assert [p.name for p in given.out_paths(str(out), 2)] == ["x-0.mkv", "x-1.mkv"]
  (out.parent / "x-1.mkv").mkdir()
  with pytest.raises(ValueError, match=f"--out={out}: .*x-1.mkv is a folder; name a file"):
    given.out_paths(str(out), 2)
  for name in (f"{__file__}/x.mkv", "/proc/nowhere/x.mkv", f"/{'x' * 300}.mkv"):
    with pytest.raises(
      ValueError, match="--out=/.*: nothing can be written to /.*; name a file in"
    ):
      given.out_paths(name, 1)


@pytest.mark.parametrize(
  "out,frames,fps,message",
  [
    ("x.png", 1, 0.001, None), ("x.gif", 17, 8.0, None), ("x.gif", 17, None, None),
    ("x.mkv", 17, 0.001, None),
    ("x.png", 2, 8.0, "--out=x.png: edit makes 2 frames of what is given, and a .png holds one"),
    ("x.gif", 17, 0.02, "--fps=0.02: 17 frames last 850 s, and a .gif shows equal ones for 655 s"),
    ("x.gif", 17, 60, "x.gif: fps 60, and a .gif shows at most 50 frames per second"),
  ],
)  # fmt: skip
def test_a_name_holds_the_result_or_is_refused(out, frames, fps, message):
  if message is None:
    return given.check_out(out, "edit", frames, fps)
  with pytest.raises(ValueError, match=message):
    given.check_out(out, "edit", frames, fps)


def test_a_side_that_is_too_long_is_refused_by_name():
  given.check_out("x.mp4", "text", 17, None, [(96, 64), (16384, 16)])
  with pytest.raises(
    ValueError, match="x.mp4: 16x17000, and such a file takes at most 16384 pixels"
  ):
    given.check_out("x.mp4", "text", 17, None, [(96, 64), (16, 17000)])


def test_a_models_rate_is_known_without_its_weights():
  assert given.model_fps("tiny") == 8.0
  with pytest.raises(ValueError, match="no model 'tyni'"):
    given.model_fps("tyni")
