"""The sampling command line, on a small random model: files, packing, drafts, messages."""

import importlib.util
import pathlib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from sora_jax import generate
from sora_jax.data import clips, writing
from sora_jax.weights import folder

spec = importlib.util.spec_from_file_location(
  "small_model", pathlib.Path(__file__).with_name("test_model.py")
)
small_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small_model)
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "model"
  folder.write(path, small_model.networks(), None, {"command": "none: random weights"})
  return str(path)


@pytest.fixture
def run(model_folder):
  def call(**values):
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(["test"])
    saved = flagsaver.save_flag_values()
    try:
      for name, value in {"model": model_folder, **values}.items():
        flags.FLAGS[name].value = value
      return generate.run([])
    finally:
      flagsaver.restore_flag_values(saved)

  return call


def test_one_video_is_written_with_size_frames_and_rate(run, tmp_path):
  out = tmp_path / "deep" / "red.mkv"
  assert run(prompt=[PROMPT], size=["8x6"], frames=[3], fps=12.0, out=str(out)) == [out]
  decoded = clips.decode(out)
  assert decoded.video_THWC.shape == (3, 6, 8, 3) and decoded.fps == pytest.approx(12.0)
  again = run(prompt=[PROMPT], size=["8x6"], frames=[3], fps=12.0, out=str(tmp_path / "b.mkv"))
  np.testing.assert_array_equal(clips.decode(again[0]).video_THWC, decoded.video_THWC)


def test_png_is_one_frame_without_being_asked(run, tmp_path):
  (path,) = run(prompt=[PROMPT], size=["9x7"], out=str(tmp_path / "a.png"))
  assert Image.open(path).size == (9, 7)


def test_pairs_are_sampled_together_and_numbered(run, tmp_path):
  paths = run(prompt=[PROMPT, "b"], size=["8x6", "6x8"], frames=[1], out=str(tmp_path / "x.gif"))
  assert [p.name for p in paths] == ["x-0.gif", "x-1.gif"]
  assert [Image.open(p).size for p in paths] == [(8, 6), (6, 8)]


def test_a_draft_is_small_and_is_made_again_at_full_size(run, tmp_path):
  draft = tmp_path / "draft.mkv"
  run(prompt=[PROMPT], size=["16x8"], frames=[3], draft=True, out=str(draft))
  assert clips.decode(draft).video_THWC.shape == (3, 4, 8, 3)
  (full,) = run(**{"from": str(draft)}, out=str(tmp_path / "full.mkv"))
  assert clips.decode(full).video_THWC.shape == (3, 8, 16, 3)
  bare = tmp_path / "bare.mkv"
  writing.write_video(bare, clips.decode(draft).video_THWC, 8.0)
  with pytest.raises(ValueError, match="--prompt is missing"):
    run(**{"from": str(bare)}, out=str(tmp_path / "full.mkv"))


@pytest.mark.parametrize(
  "values,message",
  [
    ({"out": None}, "--out is missing"),
    ({"out": "a.avi"}, r"\.avi"),
    ({"prompt": None}, "--prompt is missing"),
    ({"size": ["96by64"]}, "--size=96by64; write WIDTHxHEIGHT"),
    ({"size": ["0x64"]}, "--size=0x64"),
    ({"frames": [0]}, "--frames=0; it must be at least 1"),
    ({"seed": [-1]}, "--seed=-1"),
    ({"fps": 0.0}, "--fps=0.0; it must be above 0"),
    ({"frames": [5], "out": "a.png"}, "--frames=5 with --out=a.png"),
    ({"prompt": ["a", "b"], "size": ["8x8"] * 3}, "--prompt is given 2 times, another flag 3"),
    ({"draft": True, "from": "a.mp4"}, "--draft and --from"),
    ({"model": "tyni"}, "no model 'tyni'"),
    ({"solver": "rk4"}, "solver='rk4'; allowed"),
  ],
)
def test_mistakes_are_named(run, tmp_path, values, message):
  good = {"prompt": [PROMPT], "size": ["8x6"], "frames": [1], "out": str(tmp_path / "a.mkv")}
  with pytest.raises(ValueError, match=message):
    run(**{**good, **values})
  assert not list(tmp_path.iterdir())


def test_errors_leave_the_command_in_one_line(monkeypatch):
  def fail(_):
    raise FileNotFoundError("no weights file x")

  monkeypatch.setattr(generate, "run", fail)
  with pytest.raises(SystemExit, match="^generate: no weights file x$"):
    generate.main(["generate"])
  monkeypatch.undo()
  with pytest.raises(ValueError, match="unknown words 'fly'"):
    generate.run(["fly"])
