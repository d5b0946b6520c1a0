"""The sampling command line, on a small random model: files, packing, drafts, messages."""

import functools
import importlib.util
import pathlib
import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import sora_jax
from sora_jax import generate
from sora_jax import model as model_lib
from sora_jax.data import clips, writing
from sora_jax.data.world.grammar import parse
from sora_jax.prompting import drafts, timeline, unfinished
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
  def call(*verbs, **values):
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(["test"])
    saved = flagsaver.save_flag_values()
    try:
      for name, value in {"model": model_folder, **values}.items():
        flags.FLAGS[name].value = value
        flags.FLAGS[name].present = 1
      return generate.run(list(verbs))
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


def test_grid_and_interval_change_what_is_made(run, tmp_path):
  made = [
    clips.decode(
      run(prompt=[PROMPT], size=["8x6"], frames=[3], out=str(tmp_path / "a.mkv"), **how)[0]
    )
    for how in ({}, {"grid": "quadratic"}, {"guidance_interval": ["0.5", "1"]})
  ]
  for other in made[1:]:
    assert (other.video_THWC != made[0].video_THWC).any()


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


def test_a_draft_without_notes_is_made_at_twice_its_own_size(run, tmp_path):
  draft, out = tmp_path / "draft.mkv", tmp_path / "full.mkv"
  writing.write_video(draft, np.zeros((2, 8, 4, 3), np.uint8), 8.0)
  run(**{"from": str(draft)}, prompt=[PROMPT], steps=1, out=str(out))
  assert clips.decode(out).video_THWC.shape == (2, 16, 8, 3)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  """Files to prompt with: a clip, others of its rate and of twice that, a picture, a mask, a script
  of 20 seconds."""
  folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
  for name, frames, fps in (
    ("a", 5, 12.0),
    ("b", 3, 12.0),
    ("fast", 3, 24.0),
    ("picture", 1, 30.0),
  ):
    video = rng.integers(1, 256, (frames, 8, 12, 3), dtype=np.uint8)
    writing.write_video(folder / f"{name}.mkv", video, fps)
  mask = np.zeros((1, 8, 12, 3), np.uint8)
  mask[:, :4] = 255
  writing.write_video(folder / "mask.png", mask)
  (folder / "late").write_text("0: a red circle\n20: a blue square\n")
  return {path.stem: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
  "verb,values,frames,known",
  [
    ("animate", {"image": "picture", "frames": [4], "at": 2}, 4, {2: ("picture", 0)}),
    ("extend", {"video": "a", "forward": 2, "backward": 1}, 8, {1: ("a", 0), 5: ("a", 4)}),
    ("loop", {"video": "a", "frames": [8]}, 8, {0: ("a", 0), 4: ("a", 4)}),
    ("connect", {"start": "a", "end": "b", "frames": [11]}, 11, {4: ("a", 4), 8: ("b", 0)}),
    ("connect", {"start": "a", "end": "b", "frames": [9], "strength": 0.5}, 9, {6: ("b", 0)}),
    ("interpolate", {"video": "b", "factor": 3}, 7, {0: ("b", 0), 3: ("b", 1), 6: ("b", 2)}),
    ("edit", {"video": "a", "strength": 0.5}, 5, {}),
    ("edit", {"video": "a", "frames": [3]}, 3, {}),
    ("edit", {"video": "a", "frames": [1]}, 1, {}),
    ("connect", {"start": "a", "end": "fast", "frames": [9], "fps": 12.0}, 9, {8: ("fast", 2)}),
    ("connect", {"start": "picture", "end": "b", "frames": [6]}, 6, {0: ("picture", 0)}),
    ("extend", {"video": "a", "forward": 2, "frames": [3]}, 5, {0: ("a", 0), 2: ("a", 2)}),
    ("inpaint", {"video": "a", "mask": "mask"}, 5, {}),
    ("inpaint", {"video": "a", "mask": "mask", "frames": [4]}, 4, {}),
    ("outpaint", {"video": "a", "size": ["20x8"], "image_guidance": 2.0}, 5, {}),
  ],
)
def test_verbs_write_what_was_given_bit_by_bit(run, media, tmp_path, verb, values, frames, known):
  files = {name: media.get(value, value) if isinstance(value, str) else value
           for name, value in values.items()}  # fmt: skip
  out = tmp_path / "out.mkv"
  assert run(verb, **files, steps=1, prompt=[PROMPT], out=str(out)) == [out]
  decoded = clips.decode(out)
  assert len(decoded.video_THWC) == frames
  rate = {"animate": 8.0, "interpolate": 36.0}.get(verb, 12.0)  # a picture's 30.0 says nothing
  assert decoded.fps == pytest.approx(rate)
  for at, (name, frame) in known.items():
    given = clips.decode(media[name]).video_THWC[frame]
    np.testing.assert_array_equal(decoded.video_THWC[at], given)
  a = clips.decode(media["a"]).video_THWC
  if verb == "inpaint":
    np.testing.assert_array_equal(decoded.video_THWC[:, 4:], a[:frames, 4:])
  if verb == "outpaint":
    np.testing.assert_array_equal(decoded.video_THWC[:, :, 4:16], a)


def test_a_picture_is_made_from_a_picture(run, media, tmp_path):
  how = {"prompt": [PROMPT], "steps": 1, "out": str(tmp_path / "x.png")}
  for values in ({"video": media["picture"]}, {"video": media["a"], "frames": [1]}):
    (path,) = run("edit", **values, **how)
    assert clips.decode(path).size == (12, 8)


def test_no_more_is_decoded_than_is_taken(run, media, tmp_path, monkeypatch):
  how = {"prompt": [PROMPT], "steps": 1, "out": str(tmp_path / "x.mkv")}
  decode = functools.partial(clips.decode, max_bytes=4 * 8 * 12 * 3)
  monkeypatch.setattr(clips, "decode", decode)
  (path,) = run("edit", video=media["a"], frames=[3], **how)
  assert clips.decode(path).video_THWC.shape[0] == 3
  remedy = (
    "--video=.*a.mkv: its first 4 frames fill .*; take fewer with --frames=N, or name a "
    "smaller --size=WIDTHxHEIGHT, at which they are held, or give a smaller file$"
  )
  with pytest.raises(ValueError, match=remedy):
    run("edit", video=media["a"], **how)
  with pytest.raises(
    ValueError, match="--start=.*; name a smaller --size=.*, or give a smaller or shorter"
  ):
    run("connect", start=media["a"], end=media["b"], **how)
  with pytest.raises(ValueError, match="--video=.*; take fewer with --frames=N, or give a smaller"):
    run("outpaint", video=media["a"], size=["24x8"], **how)


def test_frames_are_held_at_the_size_to_be_made(run, media, tmp_path, monkeypatch):
  how = {"prompt": [PROMPT], "steps": 1, "size": ["8x8"], "forward": 2}
  out = {name: str(tmp_path / f"{name}.mkv") for name in "ab"}
  (whole,) = run("extend", video=media["a"], out=out["a"], **how)
  number = len(clips.decode(media["a"]).video_THWC)
  with monkeypatch.context() as patch:
    decode = functools.partial(clips.decode, max_bytes=number * 8 * 8 * 3)
    patch.setattr(clips, "decode", decode)
    (held,) = run("extend", video=media["a"], out=out["b"], **how)
  np.testing.assert_array_equal(clips.decode(held).video_THWC, clips.decode(whole).video_THWC)


def test_a_loop_is_made_from_text_alone(run, tmp_path):
  out = str(tmp_path / "x.mkv")
  paths = run("loop", prompt=[PROMPT], size=["12x8"], frames=[11], seed=[0, 1], steps=1, out=out)
  first, second = (clips.decode(path).video_THWC for path in paths)
  assert first.shape == second.shape == (11, 8, 12, 3) and (first != second).any()


def test_a_script_changes_the_prompt_along_the_way(run, small, media, tmp_path, monkeypatch):
  seen = []
  make = type(small).make
  monkeypatch.setattr(
    type(small), "make", lambda self, line, **how: seen.append(line) or make(self, line, **how)
  )
  script = tmp_path / "script.txt"
  script.write_text("0: a red circle\n0.5: a blue square\n")
  out = str(tmp_path / "x.mkv")
  run("extend", video=media["a"], forward=4, script=str(script), steps=1, out=out)
  assert (seen[0].prompt, seen[0].later) == ("a red circle", ((6, "a blue square"),))
  with pytest.raises(ValueError, match="--prompt and --script are both given"):
    run("extend", video=media["a"], forward=4, script=str(script), prompt=["p"], out=out)
  with pytest.raises(ValueError, match="--video is missing; loop needs a file there, or --prompt"):
    run("loop", frames=[8], out=out)


def test_an_image_is_one_frame_and_several_seeds_make_several_videos(run, media, tmp_path):
  (path,) = run("image", prompt=[PROMPT], size=["8x6"], steps=1, out=str(tmp_path / "a.mkv"))
  assert clips.decode(path).video_THWC.shape == (1, 6, 8, 3)
  out = str(tmp_path / "x.mkv")
  paths = run("extend", video=media["b"], backward=2, seed=[0, 1], steps=1, out=out)
  assert [p.name for p in paths] == ["x-0.mkv", "x-1.mkv"]


LONG = {"prompt": [PROMPT], "size": ["8x6"], "frames": [30], "fps": 24.0, "steps": 1, "window": 9}


@pytest.fixture(scope="module")
def small(model_folder):
  return sora_jax.load(model_folder)


def test_a_long_video_is_compiled_once_and_told_in_windows(model_folder):
  model, lines, kept = sora_jax.load(model_folder), [], {}  # of its own: others compile more
  how = {"size": (4, 4), "fps": 24.0, "window": 9, "steps": 1, "least_fps": 0.0, "seed": 7}
  chunks = list(model.long(PROMPT, 60, **how, kept=kept, progress=lines.append))
  video = np.concatenate(chunks)
  assert video.shape == (60, 4, 4, 3) and video.dtype == np.uint8
  assert model.sampler.programs == 1
  assert {level for level, _ in kept} == {0, 1, 2} and lines[-1].startswith(f"window {len(kept)} ")
  assert model._row_holds((4, 4), 9) == 4 and model._row_holds((32, 32), 9) == 1
  np.testing.assert_array_equal(np.concatenate([kept[0, i] for i in range(len(chunks))]), video)
  for i in (3, 20):
    kept.pop((0, i), None)
  kept.pop((1, 0))
  again = model.long([(0, PROMPT)], 60, **how, kept=kept)
  np.testing.assert_array_equal(np.concatenate(list(again)), video)
  other = np.concatenate(list(model.long(PROMPT, 60, **{**how, "seed": 8})))
  assert (other != video).any((1, 2, 3)).mean() > 0.9
  few = np.concatenate(list(model.long(PROMPT, 4, **how)))
  line = timeline.blank(PROMPT, 9, (4, 4), 24.0)
  np.testing.assert_array_equal(few, model.make(line, seed=7, steps=1)[:4])


def test_a_model_without_prompts_makes_one_window_and_no_more(small, monkeypatch):
  model = small
  monkeypatch.setattr(model, "prompted", False)
  with pytest.raises(ValueError, match="has not seen image or video prompts.*at most 9 frames"):
    model.long(PROMPT, 10, (8, 6), window=9)
  assert np.concatenate(list(model.long(PROMPT, 9, (8, 6), window=9, steps=1))).shape[0] == 9
  with pytest.raises(ValueError, match="0x6"):
    model.long(PROMPT, 10, (0, 6))


def test_an_interrupted_long_video_goes_on_by_the_same_command(run, small, tmp_path, monkeypatch):
  monkeypatch.setattr(model_lib, "load", lambda name: small)
  (whole,) = run("long", **LONG, out=str(tmp_path / "whole.mkv"))
  want = clips.decode(whole)
  assert want.video_THWC.shape == (30, 6, 8, 3) and want.fps == pytest.approx(24.0)
  out, make, calls = tmp_path / "deep" / "x.mkv", model_lib.Model.make, []

  def cut(*args, **how):
    calls.append(1)
    if len(calls) == 5:
      raise KeyboardInterrupt
    return make(*args, **how)

  monkeypatch.setattr(model_lib.Model, "make", cut)
  with pytest.raises(KeyboardInterrupt):
    run("long", **LONG, out=str(out))
  plays = f"{out} can be played as far as it goes, {out}.partial keeps what is made; the same"
  assert unfinished.left(out).startswith(plays)
  before = clips.decode(out).video_THWC
  np.testing.assert_array_equal(before, want.video_THWC[: len(before)])
  with pytest.raises(ValueError, match="--seed was 0, is 1.*delete the folder"):
    run("long", **{**LONG, "seed": [1]}, out=str(out))
  run("long", **LONG, out=str(out))
  np.testing.assert_array_equal(clips.decode(out).video_THWC, want.video_THWC)
  assert [path.name for path in out.parent.iterdir()] == ["x.mkv"] and not unfinished.left(out)


def test_a_script_is_filmed_into_an_mp4(run, small, tmp_path, monkeypatch):
  monkeypatch.setattr(model_lib, "load", lambda name: small)
  script = tmp_path / "script.txt"
  script.write_text("0 a\n0.5 b\n")
  values = {name: value for name, value in LONG.items() if name != "prompt"}
  (path,) = run("long", **values, script=str(script), out=str(tmp_path / "x.mp4"))
  assert clips.decode(path).video_THWC.shape == (30, 6, 8, 3)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["script.txt", "x.mp4"]


@pytest.mark.parametrize(
  "values,message",
  [
    ({"frames": None}, "--frames is missing"),
    ({"frames": [0]}, "--frames=0"),
    ({"prompt": None}, "--prompt and --script are missing"),
    ({"script": "x.txt"}, "--prompt and --script are both given"),
    ({"prompt": None, "script": "nowhere.txt"}, "nowhere.txt"),
    ({"prompt": ["a", "b"]}, "--prompt is given 2 times; long makes one"),
    ({"seed": [0, 1]}, "--seed is given 2 times"),
    ({"out": "x.gif"}, "--out=x.gif; long writes as it makes: write .mp4 or .mkv"),
    ({"out": "x.png"}, "--out=x.png; long"),
    ({"window": 5}, "--window=5; it must be above 5"),
    ({"least_fps": -1.0}, "--least_fps=-1.0; it must be a rate"),
    ({"draft": True}, "--draft=True is not for long"),
    ({"solver": "rk4"}, "solver='rk4'; allowed"),
    ({"grid": "even"}, "grid='even'; allowed"),
    ({"guidance_interval": ["0.5"]}, "--guidance_interval=0.5; write two times LOW,HIGH"),
    ({"guidance_interval": ["0.5", "2"]}, "--guidance_interval=0.5,2; write two"),
    ({"out": None}, "--out is missing"),
    ({"out": "/proc/nowhere/x.mkv"}, "--out=/proc/nowhere/x.mkv: nothing can be written to /proc"),
  ],
)
def test_mistakes_with_long_are_named_and_leave_nothing(run, tmp_path, values, message):
  with pytest.raises((ValueError, OSError), match=message):
    run("long", **{**LONG, "out": str(tmp_path / "a.mkv"), **values})
  with pytest.raises(ValueError, match="--script=x.txt is not for text; it belongs to animate"):
    run(script="x.txt", prompt=[PROMPT], out=str(tmp_path / "a.mkv"))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "verb,values,message",
  [
    ("extend", {}, "--video is missing; extend needs a file"),
    ("extend", {"video": "a", "mask": "mask"}, "--mask=.* is not for extend; it belongs to"),
    ("extend", {"video": "a"}, "forward is 0, backward 0"),
    ("extend", {"video": "nowhere.mp4", "forward": 1}, "--video=nowhere.mp4: No such file .*name"),
    ("extend", {"video": __file__, "forward": 1}, "--video=.*py: "),
    ("inpaint", {"video": "a", "mask": "gone.png"}, "--mask=gone.png: No such file .*; name"),
    ("text", {"from": "gone.mp4"}, "--from=gone.mp4: No such file .*; name"),
    ("edit", {"video": "a", "prompt": None, "script": "gone.txt"}, "--script=gone.txt: No such"),
    ("edit", {"video": "a", "strength": 2.0}, "--strength=2.0; it must lie between 0 and 1"),
    ("outpaint", {"video": "a"}, "--size is missing"),
    ("animate", {"image": "picture", "frames": [0]}, "--frames=0"),
    ("animate", {"image": "a"}, "--image=.*a.mkv has several frames; animate takes one picture"),
    ("connect", {"start": "a", "end": "b", "frames": [8]}, "frames is 8, but the clips have 5"),
    ("inpaint", {"video": "b", "mask": "a"}, "mask has 5 frames"),
    ("loop", {"video": "a", "size": ["8x8", "9x9"]}, "--size is given 2 times"),
    ("extend", {"video": "a", "forward": 1, "fps": 0.0}, "--fps=0.0; it must be at least 0.001"),
    ("extend", {"video": "a", "forward": 1, "frames": [33]}, "--frames=33; .*a.mkv has 5"),
    ("edit", {"video": "a", "draft": True}, "--draft=True is not for edit; it belongs to text"),
    ("edit", {"video": "a", "guidance": float("nan")}, "--guidance=nan; it must be a number"),
    ("animate", {"image": "a", "context_noise": 1.0}, "--context_noise=1.0; it must lie in"),
    ("extend", {"video": "a", "forward": 1, "grid": "even"}, "grid='even'; allowed: uniform"),
    ("image", {"frames": [5]}, "--frames=5 is not for image"),
    ("text", {"draft": True, "steps": -3}, "--steps=-3; a sample needs"),
    ("text", {"from": "a", "strength": 0.0}, "--strength=0.0; .*above 0"),
  ],
)  # fmt: skip
def test_mistakes_with_files_are_named(run, media, tmp_path, verb, values, message):
  files = {name: media.get(value, value) if isinstance(value, str) else value
           for name, value in values.items()}  # fmt: skip
  with pytest.raises((ValueError, OSError), match=message):
    run(verb, **{"out": str(tmp_path / "a.mkv"), "prompt": [PROMPT], **files})
  assert not list(tmp_path.iterdir())


NOWHERE = "/proc/nowhere/x.mkv"


@pytest.mark.parametrize(
  "verb,values,message",
  [
    ("edit", {"video": "picture", "frames": [17]}, "--frames=17; of edit .*picture.mkv has 1"),
    ("edit", {"video": "a", "out": "x.png"}, "--out=x.png: edit makes 5 frames .*a .png holds one"),
    ("extend", {"video": "picture", "forward": 2, "out": "x.png"}, "extend makes 3 frames"),
    ("interpolate", {"video": "b", "factor": 3, "out": "x.png"}, "interpolate makes 7 frames"),
    ("outpaint", {"video": "a", "size": ["17000x32"], "out": "x.mp4"}, "17000x32, and such a file"),
    ("animate", {"image": "picture", "out": "x.png"}, "animate makes 17 frames"),
    ("connect", {"start": "a", "end": "fast"}, "--start=.*a.mkv has 12, --end=.*fast.mkv has 24 fra"
     "mes per second; .*--fps"),
    ("edit", {"video": "a", "out": NOWHERE}, f"--out={NOWHERE}: nothing can be written to /proc"),
    ("text", {"out": NOWHERE}, f"--out={NOWHERE}: nothing can be written to /proc/nowhere"),
    ("text", {"out": f"{__file__}/x.mkv"}, "--out=.*: nothing can .* to .*test_generate.py"),
    ("edit", {"video": "a", "out": "x.gif", "fps": 0.001}, "--fps=0.001: 5 frames last 5000 s"),
    ("text", {"out": "x.gif", "fps": 0.02}, "--fps=0.02: 17 frames last 850 s, and a .gif"),
    ("loop", {"frames": [5]}, "--frames=5; a loop made from text has at least 6"),
    ("text", {"from": "a", "size": ["16x24"]}, "--size=16x24 is another .* 12x8, .* 24x16"),
    ("text", {"from": "a", "frames": [5, 6]}, "--frames=6; of --from it says .*a.mkv has 5"),
    ("text", {"strength": 0.5}, "--strength=0.5 does nothing without --from"),
    ("text", {"image_guidance": 2.0}, "--image_guidance=2.0 is not for text; .* to animate, ex"),
    ("edit", {"video": "a", "image_guidance": 2.0}, "--image_guidance=2.0 is not for edit"),
    ("animate", {"image": "picture", "script": "late"}, "--script=.*late: a prompt at 20 s, but the"
     " video ends at 2.125 s; ask for more than 160 frames, or leave"),
    ("interpolate", {"video": "b", "script": "late"}, "the video ends at 0.208"),
    ("long", {"frames": [30], "script": "late"}, "the video ends at 3.75 s"),
  ],
)  # fmt: skip
def test_mistakes_are_named_before_the_model_is_loaded(
  run, media, tmp_path, monkeypatch, verb, values, message
):
  monkeypatch.setattr(model_lib, "load", None)
  files = {name: media.get(value, value) if isinstance(value, str) else value
           for name, value in values.items()}  # fmt: skip
  prompt = None if "script" in values else [PROMPT]
  with pytest.raises(ValueError, match=message):
    run(verb, **{"out": str(tmp_path / "a.mkv"), "prompt": prompt, **files})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "values,message",
  [
    ({"out": None}, "--out is missing"),
    ({"out": "a.avi"}, r"\.avi"),
    ({"prompt": None}, "--prompt is missing"),
    ({"size": ["96by64"]}, "--size=96by64; give WIDTHxHEIGHT"),
    ({"size": ["0x64"]}, "--size=0x64"),
    (
      {"size": ["32x17000"], "out": "a.mp4"},
      "32x17000, and such a file takes at most 16384 pixels a side",
    ),
    ({"frames": [0]}, "--frames=0; it must be at least 1"),
    ({"seed": [-1]}, "--seed=-1"),
    ({"fps": 0.0}, "--fps=0.0; it must be at least 0.001"),
    ({"frames": [5], "out": "a.png"}, "--out=a.png: text makes 5 frames .*, and a .png holds one"),
    ({"prompt": ["a", "b"], "size": ["8x8"] * 3}, "--prompt is given 2 times, another flag 3"),
    ({"draft": True, "from": "a.mp4"}, "--draft and --from"),
    ({"model": "tyni"}, "no model 'tyni'"),
    ({"solver": "rk4"}, "solver='rk4'; allowed"),
    ({"grid": "even"}, "grid='even'; allowed"),
    ({"guidance_interval": ["0.5"]}, "--guidance_interval=0.5; write two times LOW,HIGH"),
    ({"guidance_interval": ["0.5", "2"]}, "--guidance_interval=0.5,2; write two"),
  ],
)
def test_mistakes_are_named(run, tmp_path, values, message):
  good = {"prompt": [PROMPT], "size": ["8x6"], "frames": [1], "out": str(tmp_path / "a.mkv")}
  with pytest.raises(ValueError, match=message):
    run(**{**good, **values})
  assert not list(tmp_path.iterdir())


def test_notes_of_drafts_are_named_when_damaged_and_go_with_their_draft(run, tmp_path):
  draft = tmp_path / "draft.mkv"
  run(prompt=[PROMPT], size=["16x8"], frames=[1], draft=True, out=str(draft))
  notes = drafts.notes_path(draft)
  notes.write_text("{")
  with pytest.raises(ValueError, match=f"{notes.name} is damaged .*give --prompt"):
    run(**{"from": str(draft)}, out=str(tmp_path / "full.mkv"))
  captions = tmp_path / "draft.mkv.json"
  captions.write_text("{}")
  run(prompt=[PROMPT], size=["8x8"], frames=[1], out=str(draft))
  assert not notes.exists() and captions.exists()


@pytest.mark.parametrize(
  "error,line",
  [
    (FileNotFoundError("no weights file x"), "^generate: no weights file x$"),
    (MemoryError("Unable to allocate 9 TiB"), r"^generate: --size=8x6 --frames=99999 takes more "
     r"memory than there is \(Unable to allocate 9 TiB\); ask for a smaller --size or fewer --fra"),
    (MemoryError(), "--frames=99999 takes more memory than there is; ask for"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\ntrace"), r"is \(RESOURCE.* of memory\); ask"),
  ],
)  # fmt: skip
def test_errors_leave_the_command_in_one_line(monkeypatch, error, line):
  def fail(_):
    raise error

  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["test"])
  monkeypatch.setattr(generate, "run", fail)
  with flagsaver.flagsaver(size=["8x6"], frames=[99999]), pytest.raises(SystemExit, match=line):
    generate.main(["generate"])


@pytest.mark.parametrize("words", [[], ["long"]])
def test_an_interruption_is_one_line_that_tells_what_is_there(monkeypatch, capsys, tmp_path, words):
  def fail(_):
    raise KeyboardInterrupt

  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["test"])
  monkeypatch.setattr(generate, "run", fail)
  out = tmp_path / "x.mp4"
  for name in (None, str(out)):
    with flagsaver.flagsaver(out=name), pytest.raises(SystemExit) as ended:
      generate.main(["generate", *words])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "generate: interrupted; run again, it begins anew\n"
  folder = unfinished.Unfinished(out, {})
  folder[1, 0] = np.zeros((1, 2, 2, 3), np.uint8)  # key frames alone: nothing can be played yet
  with flagsaver.flagsaver(out=str(out)), pytest.raises(SystemExit):
    generate.main(["generate", *words])
  said = f"{folder.folder} keeps what is made; the same command goes on with it"
  end = said if words else "run again, it begins anew"
  assert capsys.readouterr().err == f"generate: interrupted; {end}\n"


def test_prompts_that_are_shown_are_ones_that_the_shipped_model_reads(run, tmp_path):
  script = tmp_path / "script"
  script.write_text("nothing\n")
  shown = [generate.__doc__]
  for verb, values in (("text", {}), ("long", {"frames": [30], "script": str(script)})):
    with pytest.raises(ValueError) as error:
      run(verb, **values, fps=8.0, out=str(tmp_path / "x.mp4"))
    shown.append(str(error.value))
  for text in shown:
    (prompt,) = re.findall(r'"(?:4.5: )?(a [^"]*)"', text)
    assert parse(prompt)["background"] == "black"


def test_other_faults_and_unknown_verbs(monkeypatch):
  with pytest.raises(ValueError, match="unknown words 'fly'; one verb of text, image, animate"):
    generate.run(["fly"])

  def fail(_):
    raise RuntimeError("a fault of ours")

  monkeypatch.setattr(generate, "run", fail)
  with pytest.raises(RuntimeError, match="a fault of ours"):
    generate.main(["generate"])
