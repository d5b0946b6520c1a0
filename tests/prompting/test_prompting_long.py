"""Long videos: what a plan promises; frames against the truth; a run that is cut and goes on."""

import collections
import gc
import math
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import clips
from sora_jax.prompting import long, unfinished

W, CONTEXT = 17, 5
SIZE = (6, 4)


def truth(frame, size=SIZE):
  """A frame that spells its number: a smooth motion that numbers can continue."""
  digits = [frame % 256, frame // 256 % 256, frame // 65536]
  return np.broadcast_to(np.array(digits, np.uint8), (size[1], size[0], 3))


def number(frame_HWC):
  return int(frame_HWC[0, 0] @ [1, 256, 65536])


Told = collections.namedtuple("Told", "prompt later fps shape")


class Oracle:
  """Continues and fills what it is shown evenly; from nothing it begins at frame 0."""

  def __init__(self, fps):
    self.fps, self.calls, self.lines, self.seeds = fps, [], [], []

  def __call__(self, lines, seeds):
    self.calls.append(len(lines))
    self.lines += [Told(x.prompt, x.later, x.fps, x.known_THW.shape) for x in lines]
    self.seeds += seeds
    return [self.fill(line) for line in lines]

  def fill(self, line):
    stride = round(self.fps / line.fps)
    known_T = line.known_THW.all((1, 2))
    at = np.flatnonzero(known_T)
    start, pace = 0, stride
    if len(at):
      shown = [number(line.pixels_THWC[i]) for i in at]
      pace = stride if len(at) == 1 else (shown[-1] - shown[0]) // (at[-1] - at[0])
      start = shown[0] - at[0] * pace
    frames = [truth(max(0, start + i * pace), line.size) for i in range(line.frames)]
    return line.finish(np.stack(frames))


def film(frames, fps=24.0, make=None, batch=4, size=SIZE, kept=None, report=None, **how):
  plan = long.plan(frames, fps, **how)
  script = long.script_of("p")
  return long.Film(plan, script, size, 3, make or Oracle(fps), batch, kept, report)


plans = st.tuples(
  st.integers(1, 6000), st.sampled_from([8.0, 12.0, 24.0, 30.0]), st.integers(1, 12),
  st.sampled_from([0.0, 0.1, 1.0, 8.0]), st.integers(9, 33), st.integers(1, 8),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(plans)
def test_every_frame_is_made_once_and_known_only_after_it_was_made(case):
  frames, fps, ratio, least_fps, window, context = case
  plan = long.plan(frames, fps, window=window, context=context, ratio=ratio, least_fps=least_fps)
  made = set()
  for level in reversed(plan.levels):
    end = -1
    for w in level.windows:
      mine = [frame * level.stride for frame in w.made]
      assert mine and not made & set(mine)
      assert {frame * level.stride for frame in w.known} <= made
      assert w.start >= 0 and set(w.known) | set(w.made) <= set(range(w.start, w.start + window))
      assert w.first == end + 1 and w.stop <= w.start + window
      if level.free:
        assert all(frame % level.step == 0 for frame in w.known)
      elif w.index:
        assert set(range(w.first - context, w.first)) <= set(w.known)
      if level.step:
        assert w.stop == level.count or (w.stop - 1) in w.known, "both ends are known"
        assert max(w.known) >= max(w.made)
      made |= set(mine)
      end = w.stop - 1
    assert end == level.count - 1
    assert level is plan.levels[-1] or fps / (level.stride * level.step) >= least_fps * 0.999
  assert set(range(frames)) <= made
  names = [w.noise for level in plan.levels for w in level.windows]
  assert len(set(names)) == len(names) == plan.windows


def test_levels_grow_with_the_logarithm_and_end_at_the_least_rate():
  depth = [len(long.plan((W - 1) * 4**k + 1, 24.0, least_fps=0).levels) for k in range(5)]
  assert depth == [1, 2, 3, 4, 5]
  assert [len(long.plan(1440, fps).levels) for fps in (8.0, 16.0, 24.0)] == [1, 2, 2]
  assert [level.stride for level in long.plan(1440, 24.0).levels] == [1, 3]
  short = [long.plan(n, 8.0).levels[0].windows for n in (200, 2000)]
  assert short[0][:-1] == short[1][: len(short[0]) - 1]  # a longer video begins alike


@pytest.mark.parametrize("frames", [1, 17, 18, 300])
@pytest.mark.parametrize("fps,least_fps", [(8.0, 8.0), (24.0, 8.0), (24.0, 0.0)])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_whole_equals_the_truth(frames, fps, least_fps, batch):
  oracle = Oracle(fps)
  chunks = list(film(frames, fps, oracle, batch, least_fps=least_fps).chunks())
  video = np.concatenate(chunks)
  assert video.dtype == np.uint8 and video.shape == (frames, SIZE[1], SIZE[0], 3)
  assert [number(frame) for frame in video] == list(range(frames))
  assert max(oracle.calls) <= batch and all(0 < len(chunk) <= W for chunk in chunks)
  assert {line.shape for line in oracle.lines} == {(W, SIZE[1], SIZE[0])}
  assert len(set(oracle.seeds)) == len(oracle.seeds) and oracle.seeds[0] % 2**64 == 3


def test_windows_of_key_frames_are_made_together_and_those_of_the_video_alone():
  oracle = Oracle(24.0)
  made = film(1440, 24.0, oracle, 4, least_fps=0.0)
  chunks = made.chunks()
  next(chunks)
  assert len(oracle.lines) < 20  # the first frames are out before most key frames are made
  list(chunks)
  levels = made.plan.levels
  calls = sum(-(-len(v.windows) // 4) if v.free else len(v.windows) for v in levels)
  assert len(oracle.calls) == calls and max(oracle.calls) == 4
  assert [round(24 / line.fps) for line in oracle.lines].count(1) == len(levels[0].windows)


def test_what_is_held_does_not_grow_with_the_video():
  size, peaks = (64, 64), []
  for frames in (1000, 2000):
    gc.collect()
    made = film(frames, 24.0, size=size, least_fps=1.0)
    assert len(made.plan.levels) == 3
    made.make.lines = made.make.seeds = type("Nothing", (list,), {"__iadd__": lambda s, o: s})()
    tracemalloc.start()
    count = sum(len(chunk) for chunk in made.chunks())
    peaks.append(tracemalloc.get_traced_memory()[1] / (64 * 64 * 3))
    tracemalloc.stop()
    assert count == frames
  assert peaks[1] < 1.1 * peaks[0] < 3 * 2 * 4 * W, peaks  # frames; 3 levels, 4 windows together


def test_each_frame_of_a_window_has_the_prompt_in_force(tmp_path):
  path = tmp_path / "script.txt"
  path.write_text("# what happens\n0 : a\n\n  2:\tb c  \n4 d\n")
  script = long.read_script(path)
  assert script.parts == ((0.0, "a"), (2.0, "b c"), (4.0, "d"))
  assert [script.at(s) for s in (0, 1.9, 2, 3.9, 4, 99)] == ["a", "a", "b c", "b c", "d", "d"]
  oracle = Oracle(8.0)
  made = long.Film(long.plan(60, 8.0), script, SIZE, 0, oracle)
  list(made.chunks())
  starts = [w.made[0] / 8 for w in made.plan.levels[0].windows]
  assert starts == [0.0, 2.125, 3.625, 5.125, 6.625]
  assert [(line.prompt, line.later) for line in oracle.lines] == [
    ("a", ((16, "b c"),)), ("a", ((4, "b c"),)), ("b c", ((8, "d"),)), ("d", ()), ("d", ()),
  ]  # fmt: skip
  assert script.between(0, 17, 0.25) == [(0, "a"), (1, "d")]  # "b c" and "d" begin in one frame
  assert script.frames(0.25) == script.frames(0.25, 2) == [(0, "a"), (1, "d")]
  assert script.frames(0.24, 1) == [(0, "a")]  # "d" begins behind the last frame, not the end
  with pytest.raises(ValueError, match="a prompt at 4 s, but the video ends at 4 s; .* than 32"):
    long.Film(long.plan(32, 8.0), script, SIZE, 0, oracle)


@pytest.mark.parametrize(
  "line,part",
  [
    ("0 : a red circle", "a red circle"), ("0:a red circle", "a red circle"), ("0 a: b", "a: b"),
    ("0.0:\t2 red circles", "2 red circles"), ("0  :a", "a"), ("0:a:b", "a:b"),
  ],
)  # fmt: skip
def test_a_script_is_read_however_its_colons_stand(tmp_path, line, part):
  path = tmp_path / "script.txt"
  path.write_text(f"{line}\n")
  assert long.read_script(path).parts == ((0.0, part),)


@pytest.mark.parametrize(
  "text,message",
  [
    ("", "script.txt: no prompt; expected lines of SECONDS:"),
    ("0 a\nred circle\n", "script.txt:2: 'red circle'; expected SECONDS: and a prompt"),
    ("0 a\n2\n", "script.txt:2: '2'; expected SECONDS: and a prompt"),
    ("0 a\nnan b\n", "script.txt:2: 'nan b'; expected SECONDS:"),
    ("0 a\n1:30 b\n", "script.txt:2: '1:30 b'; expected SECONDS:"),
    ("0 a\n2  :\n", "script.txt:2: '2  :'; expected SECONDS:"),
    ("1 a\n", "script.txt:1: begins at 1 s; the first prompt must be at 0"),
    ("0: a\n3: b\n3: c\n", "script.txt:3: 3 s is not after 3 s; put the lines in order"),
    (b"0 \xff\n", "script.txt: not UTF-8 text"),
  ],
)
def test_lines_of_a_script_that_say_nothing_are_named(tmp_path, text, message):
  path = tmp_path / "script.txt"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=message):
    long.read_script(path)


@pytest.mark.parametrize(
  "values,message",
  [
    ({"frames": 0}, "frames is 0"),
    ({"fps": 0.0}, "fps is 0"),
    ({"context": 17}, "context is 17; it must be at least 1 and below window, 17"),
    ({"ratio": 0}, "ratio is 0; it must be at least 1"),
    ({"least_fps": math.nan}, "least_fps is nan"),
  ],
)
def test_impossible_plans_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    long.plan(**{"frames": 9, "fps": 8.0, **values})
  with pytest.raises(ValueError, match="batch is 0"):
    film(9, batch=0)
  with pytest.raises(ValueError, match="times are .1.0.; expected 0"):
    long.script_of([(1, "a")])


def test_progress_counts_windows_and_frames():
  lines, kept = [], {}
  list(film(40, 8.0, kept=kept, report=lines.append).chunks())
  assert lines[0].startswith("window 1 of 3, 17 of 40 frames, ")
  assert lines[-1].startswith("window 3 of 3, 40 of 40 frames, ") and "0:00 left" in lines[-1]
  oracle = Oracle(8.0)
  again = []
  list(film(40, 8.0, oracle, kept=kept, report=again.append).chunks())
  assert not oracle.calls and again[-1] == "window 3 of 3, 40 of 40 frames"


class Chance(Oracle):
  """Noise that depends on all it is told, and on what is made beside it; perhaps interrupted."""

  def __init__(self, fps, calls=None):
    super().__init__(fps)
    self.left = calls

  def __call__(self, lines, seeds):
    if self.left == 0:
      raise KeyboardInterrupt
    self.left = None if self.left is None else self.left - 1
    self.calls.append(len(lines))
    told = [seeds, len(lines), *(int(line.pixels_THWC.sum()) for line in lines)]
    rng = np.random.default_rng(np.frombuffer(repr(told).encode(), np.uint8))
    return [
      line.finish(rng.integers(0, 256, line.pixels_THWC.shape, dtype=np.uint8)) for line in lines
    ]


def test_what_was_made_together_is_made_again_together():
  kept, again = {}, Chance(24.0)
  want = np.concatenate(list(film(200, 24.0, Chance(24.0), kept=kept, least_fps=0.0).chunks()))
  assert kept.pop((1, 1)) is not None
  got = np.concatenate(list(film(200, 24.0, again, kept=kept, least_fps=0.0).chunks()))
  np.testing.assert_array_equal(got, want)
  assert again.calls == [4]


def produce(out, make, frames=150, seed=0):
  store = unfinished.Unfinished(out, {"frames": frames, "seed": seed, "prompt": [[0.0, "a"]]})
  store.write(film(frames, 24.0, make, kept=store, least_fps=0.0).chunks(), 24.0)


@pytest.mark.parametrize("calls", [0, 1, 3, 5, 9, 12])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path, calls):
  whole, out = tmp_path / "whole.mkv", tmp_path / "x.mkv"
  produce(whole, Chance(24.0))
  assert [path.name for path in tmp_path.iterdir()] == ["whole.mkv"]
  with pytest.raises(KeyboardInterrupt):
    produce(out, Chance(24.0, calls))
  want = clips.decode(whole).video_THWC
  assert len(want) == 150
  before = clips.decode(out).video_THWC if out.exists() else want[:0]
  assert (len(before) > 0) == (calls > 2)
  np.testing.assert_array_equal(before, want[: len(before)])
  rest = Chance(24.0)
  produce(out, rest)
  np.testing.assert_array_equal(clips.decode(out).video_THWC, want)
  everything = Chance(24.0)
  list(film(150, 24.0, everything, least_fps=0.0).chunks())
  assert len(rest.calls) == len(everything.calls) - calls
  assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.mkv", "x.mkv"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_a_killed_run_leaves_can_be_played_and_is_taken_up(tmp_path, suffix):
  out, killed = tmp_path / f"x.{suffix}", tmp_path / f"killed.{suffix}"
  store = unfinished.Unfinished(out, {"seed": 0})
  made = film(150, 24.0, Chance(24.0), kept=store, least_fps=0.0).chunks()

  def watched():
    for i, chunk in enumerate(made):
      if i == 8:  # a process killed here leaves these bytes
        shutil.copy(out, killed)
        shutil.copytree(store.folder, tmp_path / f"killed.{suffix}.partial")
      yield chunk

  store.write(watched(), 24.0)
  full, part = clips.decode(out), clips.decode(killed)
  assert len(full.video_THWC) == 150 and full.fps == pytest.approx(24.0)
  assert 100 - 24 - 12 <= len(part.video_THWC) <= 100 and part.fps == pytest.approx(24.0)
  np.testing.assert_array_equal(part.video_THWC, full.video_THWC[: len(part.video_THWC)])
  if suffix == "mp4":
    data = killed.read_bytes()
    assert data.count(b"moof") >= 3 and data.index(b"moov") < data.index(b"moof")
  again = unfinished.Unfinished(killed, {"seed": 0})
  assert again.ready == 9
  former = killed.read_bytes()

  def seen():
    for i, chunk in enumerate(film(150, 24.0, Chance(24.0), kept=again, least_fps=0.0).chunks()):
      if i != 9:
        assert (killed.read_bytes() == former) == (i < 9)  # until the new file has caught up
      yield chunk

  again.write(seen(), 24.0)
  np.testing.assert_array_equal(clips.decode(killed).video_THWC, full.video_THWC)


def test_a_video_that_was_there_before_stays_until_the_new_one_is_whole(tmp_path):
  out = tmp_path / "x.mkv"
  clips.write_video(out, np.zeros((2, 4, 6, 3), np.uint8), 8.0)
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      produce(out, Chance(24.0, 7))
    assert len(clips.decode(out).video_THWC) == 2
    assert len(clips.decode(tmp_path / "x.mkv.partial" / "growing.mkv").video_THWC) > 2
  produce(out, Chance(24.0))
  assert len(clips.decode(out).video_THWC) == 150
  assert [path.name for path in tmp_path.iterdir()] == ["x.mkv"]


def test_damaged_windows_are_made_again_and_other_arguments_are_refused(tmp_path):
  out = tmp_path / "x.mkv"
  produce(tmp_path / "whole.mkv", Chance(24.0))
  with pytest.raises(KeyboardInterrupt):
    produce(out, Chance(24.0, 8))
  folder = tmp_path / "x.mkv.partial"
  with pytest.raises(ValueError, match=r"--frames was 150, is 90; --seed was 0, is 4.*: give .*"
                                       r"delete the folder .* another --out"):  # fmt: skip
    produce(out, Chance(24.0), frames=90, seed=4)
  (folder / "0-000001.npz").write_bytes((folder / "0-000001.npz").read_bytes()[:50])
  produce(out, Chance(24.0))
  want = clips.decode(tmp_path / "whole.mkv").video_THWC
  np.testing.assert_array_equal(clips.decode(out).video_THWC, want)
  folder.mkdir()
  (folder / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="x.mkv.partial is in the way"):
    produce(out, Chance(24.0))
  (folder / "arguments.json").write_text("{")
  with pytest.raises(ValueError, match="arguments.json is damaged .*; delete"):
    produce(out, Chance(24.0))


WORDS = "a red circle moves right and bounces off the walls over a "


@pytest.mark.parametrize(
  "name,before,now,said",
  [
    ("prompt", [[0.0, "a"], [2.0, f"{WORDS}red b"], [3.0, "x"]], [[0.0, "a"], [2.0, f"{WORDS}sea"]],
     'bounces off the walls over a sea"])'),
    ("prompt", [[0.0, "a"]], [[0.0, "a"], [2.0, "b"]], '(--script was not given, is [2.0, "b"])'),
    ("prompt", [[0.0, "a"]], "a", '(--script was [[0.0, "a"]], --prompt is "a")'),
    ("prompt", f"{WORDS}red b", f"{WORDS}sea", 'over a red b", is ...'),
    ("model", "0a1b", "2c3d", "(--model: other weights than the first run's)"),
    ("fps", None, 8.0, "(--fps was not given, is 8.0)"),
  ],
)  # fmt: skip
def test_what_differs_from_the_first_run_is_shown(tmp_path, name, before, now, said):
  out = tmp_path / "x.mkv"
  unfinished.Unfinished(out, {"seed": 1, name: before})[0, 0] = np.zeros((1, 2, 2, 3), np.uint8)
  with pytest.raises(ValueError) as caught:
    unfinished.Unfinished(out, {"seed": 1, name: now})
  assert said in str(caught.value)


def test_weights_are_told_apart(tmp_path):
  a, b = tmp_path / "a", tmp_path / "b"
  a.write_bytes(b"x" * (3 << 20))
  b.write_bytes(b"x" * ((3 << 20) - 1) + b"y")
  one = unfinished.fingerprint([a])
  assert one == unfinished.fingerprint([str(a)])
  a.write_bytes(b.read_bytes())
  assert one != unfinished.fingerprint([a])
