"""Seams: closed cases, and what must be told apart: frozen, brighter, framed."""

import numpy as np
import pytest

from sora_jax.evaluation import seams


def slide(frames: int = 9, speed: int = 2) -> np.ndarray:
  """A white bar, 4 pixels wide, on black, moving right: each step changes 2 x speed columns."""
  video = np.zeros((frames, 16, 40, 3), np.uint8)
  for k in range(frames):
    video[k, :, 2 + speed * k : 6 + speed * k] = 255
  return video


def test_steps_are_mean_absolute_differences():
  np.testing.assert_allclose(seams.steps(slide()), 255 * 4 / 40)


def test_seams_lie_where_whole_frames_meet_others():
  known = np.zeros((7, 2, 2), bool)
  known[:2] = known[5] = True
  known[3, 0] = True  # a part of a frame makes no seam
  assert seams.seams_of(known) == [2, 5, 6]


def test_a_smooth_seam_has_size_1_a_frozen_one_0_a_leap_more():
  video, unit = slide(), float(np.median(seams.steps(slide())))
  assert seams.jump(video, 4, unit) == pytest.approx(1.0)
  assert seams.jump(np.repeat(video[:1], 9, 0), 4, unit) == 0.0
  assert seams.jump(video[::2], 2, unit) == pytest.approx(2.0)  # 4 columns a step
  assert np.isfinite(seams.jump(video, 4, 0.0))  # of a source that stands still


def test_brightness_is_told_from_motion():
  video = slide()
  assert seams.brightness_step(video, 4) == 0.0
  lit = np.concatenate([video[:4], np.maximum(video[4:], 51)])
  assert seams.brightness_step(lit, 4) == pytest.approx(0.2 * 36 / 40)


def test_motion_of_what_was_made_in_units_of_what_was_given():
  made, unit = np.arange(9) >= 4, float(np.median(seams.steps(slide())))
  assert seams.motion(slide(), made, unit) == pytest.approx(1.0)
  assert seams.motion(slide(speed=1), made, unit) == pytest.approx(0.5)
  frozen = np.concatenate([slide()[:4], np.repeat(slide()[3:4], 5, 0)])
  assert seams.motion(frozen, made, unit) == 0.0
  assert np.isnan(seams.motion(slide(), np.arange(9) == 4, unit))


def test_even_motion_has_one_pace_and_halting_motion_two():
  way = np.array([0.6, -0.8])
  even = 3.0 + np.arange(9)[:, None] * way
  assert seams.paces(even, 4) == pytest.approx((1.0, 1.0))
  halting = np.cumsum([0, 2, 0.5, 0.5, 0.5, 3, 0.5, 0.5, 0.5])[:, None] * way
  assert seams.paces(halting, 4) == pytest.approx((0.5, 2.5))
  lost = halting.copy()
  lost[2] = np.nan  # two of the steps cannot be seen
  assert seams.paces(lost, 4) == pytest.approx((0.5, 2.5))
  assert np.isnan(seams.paces(np.ones((9, 2)), 4)).all()
  within, between = seams.paces(even[:2], 4)
  assert np.isnan(within) and between == pytest.approx(1.0)
  assert seams.evenness([seams.paces(even, 4)] * 3) == pytest.approx((1.0, 1.0, 1.0))
  ratio, low, high = seams.evenness([(0.5, 2.5), (0.4, 2.0), (1.0, 2.0), (np.nan, 1.0)])
  assert (
    ratio == pytest.approx(0.5 / 2.0) and low == pytest.approx(0.2) and high == pytest.approx(0.5)
  )
  assert np.isnan(seams.evenness([(np.nan, 1.0)])).all()


def test_a_border_that_cannot_be_told_and_one_that_can():
  ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None] * 4, (3, 16, 40, 3)).copy()
  known = np.zeros((16, 40), bool)
  known[:, 10:30] = True
  assert seams.border_ratio(ramp, known) == pytest.approx(1.0)
  framed = ramp.copy()
  framed[:, :, 10:30] += 40  # up by 40 at the left, down by 40 at the right, beside 4 a pixel
  assert seams.border_ratio(framed, known) == pytest.approx((44 + 36) / 8)
  column = np.arange(23)
  curve = (column * (column - 1) // 2).astype(np.uint8)[:, None]  # steeper to the right
  bent = np.broadcast_to(curve, (3, 16, 23, 3)).copy()
  assert seams.border_ratio(bent, known[:, 5:28]) == pytest.approx(1.0)
  with pytest.raises(ValueError, match="no border"):
    seams.border_ratio(ramp, np.ones((16, 40), bool))


def test_monotone_share_and_changes():
  assert seams.monotone_share(np.array([0.0, 0.2, 0.5, 1.0])) == 1.0
  assert seams.monotone_share(np.array([1.0, 0.5, 0.6, 0.0])) == pytest.approx(2 / 3)
  assert seams.monotone_share(np.array([1.0, 0.5, 0.52, 0.0]), slack=0.05) == 1.0
  assert seams.monotone_share(np.zeros(4)) == 1.0
  assert seams.monotone_share(np.array([0.0, 1.0, 0.0])) == 0.0
  assert seams.changes(["red", "red", None, "blue", "blue"]) == 1
  assert seams.changes(["red", "blue", "red"]) == 2


def test_way_tells_how_far_values_have_come_and_how_far_they_are_off():
  values = np.array([[10.0, 0.0], [20.0, 0.0], [15.0, 3.0], [np.nan, 0.0]])
  share, off = seams.way(values, values[0], values[1])
  np.testing.assert_allclose(share, [0.0, 1.0, 0.5, np.nan])
  np.testing.assert_allclose(off, [0.0, 0.0, 3.0, np.nan])
  with pytest.raises(ValueError, match="no way"):
    seams.way(values, values[0], values[0])
