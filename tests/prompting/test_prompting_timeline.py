"""Timelines and tasks: what is known where, as latents tell it; what comes back untouched."""

import numpy as np
import pytest

from sora_jax.data import known
from sora_jax.prompting import tasks, timeline

RNG = np.random.default_rng(0)


def video(frames, width=6, height=4):
  return RNG.integers(1, 256, (frames, height, width, 3), dtype=np.uint8)


def made(line):
  """What a model that ignores everything would make: black."""
  return np.zeros_like(line.pixels_THWC)


def test_masks_of_cells_hold_one_bit_for_each_frame_and_repeat_that_of_the_first():
  known_THW = np.zeros((9, 4, 6), bool)
  known_THW[0], known_THW[6, :, :3], known_THW[8, :2, :2] = True, True, True
  mask = known.cell_mask(known_THW, 4, 2)
  assert mask.shape == (3, 2, 3, 4) and mask.dtype == np.uint8
  assert mask[0].all()
  assert mask[1].sum() == 0 and mask[2, :, 0, 1].all()
  assert not mask[2, :, 1].any()  # half a cell is not known
  assert mask[2, 0, 0].tolist() == [0, 1, 0, 1] and mask[2, 1, 0].tolist() == [0, 1, 0, 0]
  again = known.cell_mask(known.pixel_mask(mask, 2), 4, 2)
  np.testing.assert_array_equal(again, mask)
  with pytest.raises(ValueError, match="8 frames of 6x4; expected 1 \\+ 4 k frames"):
    known.cell_mask(known_THW[:8], 4, 2)


def test_nothing_of_what_is_not_known_enters_the_canvas():
  mask = RNG.integers(0, 2, (3, 2, 3, 4), dtype=np.uint8)
  mask[0] = mask[0, ..., :1]
  a = RNG.standard_normal((9, 4, 6, 3)).astype("f")
  b = np.where(known.pixel_mask(mask, 2)[..., None], a, RNG.standard_normal(a.shape)).astype("f")
  np.testing.assert_array_equal(known.blanked(a, mask, 2), known.blanked(b, mask, 2))
  assert not known.blanked(a, mask, 2)[~known.pixel_mask(mask, 2)].any()
  latent = 1 + RNG.random((3, 2, 3, 5))
  got = known.canvas(latent, mask)
  np.testing.assert_array_equal((got > 0).all(-1), mask.any(-1))
  np.testing.assert_array_equal(got[mask.any(-1)], latent[mask.any(-1)])


def test_latents_are_exact_where_an_encoder_sees_nothing_unknown():
  known_THW = np.ones((13, 8, 10), bool)
  known_THW[5:9] = False  # the third latent frame
  mask = known.cell_mask(known_THW, 4, 2)
  assert known.exact_cells(mask).all((1, 2)).tolist() == [True, True, False, False]
  assert known.exact_cells(mask, (0, 1)).all((1, 2)).tolist() == [True, True, False, True]
  assert not known.exact_cells(mask, (1, 0))[2:].any()
  region_THW = np.zeros((5, 8, 10), bool)
  region_THW[:, :, 3:] = True  # of the second column of cells the left half is unknown
  mask = known.cell_mask(region_THW, 4, 2)
  for side in (0, 1, 2):
    exact = known.exact_cells(mask, (0, side))
    assert exact[:, :, 2 + side :].all() and not exact[:, :, : 2 + side].any()
  assert not known.exact_cells(mask).any()


def test_extending_a_long_clip_shows_its_near_end_and_keeps_every_frame():
  clip = video(30)
  for forward, backward in ((7, 0), (0, 7), (3, 4)):
    line = tasks.extend(clip, "p", None, 8.0, forward, backward)
    out = line.finish(made(line))
    assert len(out) == 37
    np.testing.assert_array_equal(out[backward : backward + 30], clip)
    assert not out[:backward].any() and not out[backward + 30 :].any()
    if not (forward and backward):
      assert line.frames == 7 + tasks.CONTEXT
  with pytest.raises(ValueError, match="forward is 0, backward 0"):
    tasks.extend(clip, "p", None, 8.0)


def test_a_picture_is_the_frame_that_was_asked_for():
  image = video(1)
  line = tasks.animate(image, "p", None, 9, 8.0, at=5)
  out = line.finish(made(line))
  np.testing.assert_array_equal(out[5], image[0])
  assert not out[np.arange(9) != 5].any() and line.known_THW.sum() == 24
  assert tasks.animate(image, "p", (12, 12), 9, 8.0).size == (12, 12)
  with pytest.raises(ValueError, match="at is 9; a video of 9 frames"):
    tasks.animate(image, "p", None, 9, 8.0, at=9)
  with pytest.raises(ValueError, match="image has 2 frames"):
    tasks.animate(video(2), "p", None, 9, 8.0)


@pytest.mark.parametrize("lengths", [(4, 3), (20, 15)])
def test_both_clips_stay_as_they_are_when_they_are_connected(lengths):
  start, end = (video(n) for n in lengths)
  line = tasks.connect(start, end, "p", None, sum(lengths) + 6, 8.0)
  out = line.finish(made(line))
  assert len(out) == sum(lengths) + 6 and line.frames == 6 + sum(min(n, 9) for n in lengths)
  np.testing.assert_array_equal(out[: len(start)], start)
  np.testing.assert_array_equal(out[-len(end) :], end)
  assert not out[len(start) : -len(end)].any()
  with pytest.raises(ValueError, match="frames is 7, but the clips have 4 and 3"):
    tasks.connect(video(4), video(3), "p", None, 7, 8.0)


def test_the_way_between_two_clips_may_begin_as_a_cross_fade():
  start, end = np.full((3, 4, 6, 3), 10, np.uint8), np.full((2, 4, 6, 3), 50, np.uint8)
  line = tasks.connect(start, end, "p", None, 8, 8.0, strength=0.6)
  np.testing.assert_array_equal(line.start_THWC[:, 0, 0, 0], [10, 10, 10, 20, 30, 40, 50, 50])
  assert line.strength == 0.6 and not line.known_THW[3:6].any()
  by_default = tasks.connect(start, end, "p", None, 8, 8.0)
  np.testing.assert_array_equal(by_default.start_THWC, line.start_THWC)
  assert by_default.strength == tasks.BLEND
  free = tasks.connect(start, end, "p", None, 8, 8.0, strength=1.0)
  assert free.start_THWC is None and free.strength == 1.0


@pytest.mark.parametrize("length", [6, 20])
def test_a_loop_is_shown_its_beginning_behind_its_end(length):
  clip = video(length)
  line = tasks.loop(clip, "p", None, length + 8, 8.0)
  shown = min(length, tasks.CONTEXT)
  assert line.frames == shown + 8 + shown
  np.testing.assert_array_equal(line.pixels_THWC[-shown:], clip[:shown])
  np.testing.assert_array_equal(line.pixels_THWC[:shown], clip[-shown:])
  out = line.finish(made(line))
  assert len(out) == length + 8
  np.testing.assert_array_equal(out[:length], clip)
  for bad, message in ((video(4), "has 4 frames; a loop"), (video(14), "frames is 14, but")):
    with pytest.raises(ValueError, match=message):
      tasks.loop(bad, "p", None, 14, 8.0)


def test_regions_and_frames_in_between():
  clip = video(3)
  mask = np.zeros((1, 4, 6), bool)
  mask[0, 1:3, 2:4] = True
  line = tasks.inpaint(clip, mask, "p", None, 8.0)
  out = line.finish(made(line))
  assert not out[:, 1:3, 2:4].any()
  np.testing.assert_array_equal(out[:, 0], clip[:, 0])
  for bad, message in ((mask[:, 1:], "mask has 1 frames of 6x3"), (mask & False, "mask is black")):
    with pytest.raises(ValueError, match=message):
      tasks.inpaint(clip, bad, "p", None, 8.0)
  line = tasks.outpaint(clip, "p", (12, 4), 8.0)
  np.testing.assert_array_equal(line.finish(made(line))[:, :, 3:9], clip)
  assert line.known_THW.sum() == 3 * 24
  with pytest.raises(ValueError, match="nothing to add"):
    tasks.outpaint(clip, "p", (12, 8), 8.0)
  line = tasks.interpolate(clip, "p", None, 8.0, 3)
  assert line.fps == 24.0 and line.frames == 7
  np.testing.assert_array_equal(line.finish(made(line))[::3], clip)
  with pytest.raises(ValueError, match="factor is 1"):
    tasks.interpolate(clip, "p", None, 8.0, 1)


def test_an_edit_starts_from_the_clip_and_knows_nothing():
  clip = video(3)
  line = tasks.edit(clip, "p", None, 8.0, 0.6)
  np.testing.assert_array_equal(line.start_THWC, clip)
  assert line.strength == 0.6 and not line.known_THW.any()
  with pytest.raises(ValueError, match="strength is 2"):
    tasks.edit(clip, "p", None, 8.0, 2.0)


def test_what_sticks_out_is_refused():
  line = timeline.blank("p", 5, (6, 4), 8.0)
  for place in ({"at": 3}, {"at": -1}, {"corner": (1, 0)}):
    with pytest.raises(ValueError, match="does not fit in 5 frames of 6x4"):
      line.place(video(3), **place)
  for arguments, message in (
    ((0, (6, 4), 8.0), "frames is 0"),
    ((5, (0, 4), 8.0), "size is 0x4"),
    ((100_001, (6, 4), 8.0), "frames is 100001; at most 100000 are made at once"),
  ):
    with pytest.raises(ValueError, match=message):
      timeline.blank("p", *arguments)


def test_what_is_no_video_is_not_placed():
  line, clip = timeline.blank("p", 5, (6, 4), 8.0), video(3)
  for bad in (clip / 255, clip[..., :1], clip[:0], clip.astype(int)):
    with pytest.raises(ValueError, match=r"got .* \(.*\); a video is uint8 \[T, H, W, 3\]"):
      line.place(bad)
  np.testing.assert_array_equal(line.place(clip[0], at=2).pixels_THWC[2], clip[0])


def test_a_prompt_changes_where_most_of_a_latent_s_frames_do():
  line = timeline.blank([(0, "a"), (3, "b"), (7, "c")], 13, (6, 4), 8.0)
  assert line.prompt == "a" and line.later == ((3, "b"), (7, "c"))
  # latents hold frames 0, 1-4, 5-8, 9-12; their middles are 0, 3, 7, 11
  assert line.latent_prompts(4) == [(0, "a"), (1, "b"), (2, "c")]
  late = timeline.blank([(0, "a"), (4, "b"), (5, "c")], 13, (6, 4), 8.0)
  assert late.latent_prompts(4) == [(0, "a"), (2, "c")]  # b holds in the middle of nothing
  assert timeline.blank("a", 13, (6, 4), 8.0).latent_prompts(4) == [(0, "a")]


def test_prompts_keep_their_place_where_frames_are_not_shown():
  clip = video(20)
  line = tasks.extend(clip, [(0, "a"), (15, "b"), (24, "c")], None, 8.0, forward=8)
  assert line.frames == 17 and line.prompt == "a" and line.later == ((4, "b"), (13, "c"))
  line = tasks.extend(clip, [(0, "a"), (5, "b"), (24, "c")], None, 8.0, forward=8)
  assert line.prompt == "b" and line.later == ((13, "c"),)


@pytest.mark.parametrize(
  ("lay_out", "first", "later"),
  [
    (lambda p: tasks.extend(video(100), p, None, 8.0, backward=8), "a", ()),
    (lambda p: tasks.extend(video(50), p, None, 8.0, backward=50), "a", ((50, "b"),)),
    (lambda p: tasks.extend(video(50), p, None, 8.0, forward=4), "a", ((9, "b"),)),
    (lambda p: tasks.connect(video(60), video(60), p, None, 135, 8.0), "b", ()),
    (lambda p: tasks.connect(video(30), video(60), p, None, 105, 8.0), "a", ((29, "b"),)),
    (lambda p: tasks.connect(video(20), video(60), p, None, 95, 8.0), "a", ()),
  ],
)
def test_prompts_are_counted_in_frames_of_the_result(lay_out, first, later):
  line = lay_out([(0, "a"), (50, "b")])
  assert (line.prompt, line.later) == (first, later)
  total = len(line.finish(made(line)))
  with pytest.raises(ValueError, match=rf"\[0, {total}\] of {total}; the first begins at 0"):
    lay_out([(0, "a"), (total, "b")])


@pytest.mark.parametrize(
  ("length", "prompts", "later"),
  [
    (6, [(0, "a")], ()),
    (6, [(0, "a"), (9, "b")], ((9, "b"), (18, "a"))),
    (6, [(0, "a"), (3, "b")], ((3, "b"), (18, "a"), (21, "b"))),
    (6, [(0, "a"), (9, "b"), (12, "a")], ((9, "b"), (12, "a"))),
    (16, [(0, "a"), (3, "b"), (12, "c")], ((5, "c"), (11, "a"), (14, "b"))),
  ],
)
def test_a_loop_reads_the_prompts_of_its_beginning_behind_its_end(length, prompts, later):
  line = tasks.loop(video(length), prompts, None, 18, 8.0)
  assert line.later == later and line.prompt == ("a" if length == 6 else "b")
  for frame in (18, 20):
    with pytest.raises(ValueError, match=rf"\[0, {frame}\] of 18; the first begins at 0"):
      tasks.loop(video(length), [(0, "a"), (frame, "b")], None, 18, 8.0)


@pytest.mark.parametrize("begins", [(1, 3), (0, 0), (0, 5, 3), (0, 13), ()])
def test_prompts_that_do_not_follow_each_other_are_refused(begins):
  with pytest.raises(ValueError, match="of 13; the first begins at 0"):
    timeline.blank([(frame, "p") for frame in begins], 13, (6, 4), 8.0)


def test_a_known_region_does_not_show_by_its_edge():
  known_THW = np.zeros((4, 12, 40), bool)
  known_THW[:2, :, :10], known_THW[3] = True, True
  truth_THWC = np.full((4, 12, 40, 3), 250, np.uint8)
  made_THWC = truth_THWC - np.uint8(20)
  made_THWC[1, :, 10:] = 250  # with what is added above 255: it must not wrap around
  line = timeline.Timeline("p", 8.0, np.where(known_THW[..., None], truth_THWC, 0), known_THW)
  before_THWC = made_THWC.copy()
  got = line.blended(made_THWC, 4.0)
  np.testing.assert_array_equal(made_THWC, before_THWC)
  np.testing.assert_array_equal(got[known_THW], made_THWC[known_THW])
  np.testing.assert_array_equal(got[2:], made_THWC[2:])
  want_W = np.rint(230 + 20 * np.exp(-np.arange(1, 31) / 4.0))
  np.testing.assert_array_equal(got[0, :, 10:], np.broadcast_to(want_W[:, None], (12, 30, 3)))
  assert got[0, 0, 10, 0] == 246 and got[0, 0, -1, 0] == 230
  np.testing.assert_array_equal(got[1, 0, [10, 14, 18], 0], [255, 255, 252])


def test_the_difference_of_the_nearest_known_pixel_is_what_is_added():
  known_THW = np.zeros((1, 2, 30), bool)
  known_THW[..., :3] = known_THW[..., -3:] = True
  pixels_THWC = np.zeros((1, 2, 30, 3), np.uint8)
  pixels_THWC[:, :, :3], pixels_THWC[:, 1, -3:] = 120, 80
  line = timeline.Timeline("p", 8.0, pixels_THWC, known_THW)
  got = line.blended(np.full_like(pixels_THWC, 100), 2.0)[0, ..., 0].astype(int) - 100
  assert (np.diff(got[:, 3:15]) <= 0).all() and got[0, 3] == got[1, 3] == 12
  assert got[1, 26] == -12 and got[0, 26] == -61
