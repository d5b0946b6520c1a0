"""Pixels' range, geometry and timing: exact inverses, and bounds by property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import transforms


def stripes(T=2, H=8, W=12):
  return np.random.default_rng(0).integers(0, 256, (T, H, W, 3), dtype=np.uint8)


def test_every_byte_survives_the_round_trip():
  pixels = np.arange(256, dtype=np.uint8)
  floats = transforms.to_float(pixels)
  assert floats.dtype == np.float32
  assert (floats[0], floats[255]) == (-1.0, 1.0)
  np.testing.assert_array_equal(transforms.to_uint8(floats), pixels)


def test_floats_are_clipped_and_checked():
  got = transforms.to_uint8(np.array([-7.0, 0.0, 7.0], np.float32))
  np.testing.assert_array_equal(got, [0, 128, 255])
  with pytest.raises(ValueError, match="finite"):
    transforms.to_uint8(np.array([np.nan], np.float32))
  with pytest.raises(ValueError, match="int64"):
    transforms.to_uint8(np.arange(3))
  with pytest.raises(ValueError, match="float32"):
    transforms.to_float(np.zeros(3, np.float32))


ONE = 1 << 16


@pytest.mark.parametrize(
  ("matrix", "turn"),
  [
    ((ONE, 0, 0, ONE), lambda x: x),
    ((0, ONE, -ONE, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
    ((-ONE, 0, 0, -ONE), lambda x: np.rot90(x, 2)),
    ((0, -ONE, ONE, 0), lambda x: np.rot90(x, 1)),
    ((-ONE, 0, 0, ONE), lambda x: x[:, ::-1]),
    ((ONE, 0, 0, -ONE), lambda x: x[::-1]),
    ((0, ONE, ONE, 0), lambda x: x.swapaxes(0, 1)),
    ((46341, 46341, -46341, 46341), lambda x: x),  # 45 degrees: left alone
  ],
)
def test_orient_follows_the_display_matrix(matrix, turn):
  frame_HWC = stripes()[0]
  a, b, c, d = matrix
  full = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)
  np.testing.assert_array_equal(transforms.orient(frame_HWC, full), turn(frame_HWC))
  np.testing.assert_array_equal(transforms.orient(frame_HWC, None), frame_HWC)


def test_resize_averages_what_it_covers():
  checks = np.zeros((1, 64, 64, 3), np.uint8)
  checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
  small = transforms.resize(checks, (8, 8))
  assert small.shape == (1, 8, 8, 3)
  assert np.abs(small.astype(int) - 127).max() <= 2, "aliasing"
  flat = np.full((1, 30, 50, 3), 200, np.uint8)
  np.testing.assert_array_equal(transforms.resize(flat, (7, 5)), 200)
  assert transforms.resize(flat, (50, 30)) is flat


def test_resize_keeps_position_and_orientation():
  video = np.zeros((1, 40, 80, 3), np.uint8)
  video[:, :20, 60:] = (255, 0, 0)
  small = transforms.resize(video, (8, 4))
  assert small[0, 0, 7].tolist() == [255, 0, 0]
  assert small[0, 3, 0].tolist() == [0, 0, 0]


def test_resize_refuses_other_layouts():
  for bad in (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32)):
    with pytest.raises(ValueError, match="uint8"):
      transforms.resize(bad, (2, 2))
  with pytest.raises(ValueError, match="0x2"):
    transforms.resize(stripes(), (0, 2))


@settings(max_examples=300, deadline=None)
@given(
  st.integers(1, 5000),
  st.integers(1, 5000),
  st.integers(1, 400),
  st.sampled_from([1, 8, 16, 32]),
  st.booleans(),
)
def test_fit_size_stays_inside_the_budget(width, height, cells, multiple, upscale):
  budget = cells * multiple * multiple
  w, h = transforms.fit_size(width, height, budget, multiple, upscale=upscale)
  assert w % multiple == 0 and h % multiple == 0
  assert 0 < w * h <= budget
  if not upscale:
    assert w <= max(width, multiple) and h <= max(height, multiple)


@settings(max_examples=200, deadline=None)
@given(st.integers(300, 4000), st.integers(300, 4000))
def test_fit_size_keeps_aspect_and_fills_a_large_budget(width, height):
  if not 1 / 3 < width / height < 3:
    return
  w, h = transforms.fit_size(width, height, 256 * 64, 8, upscale=True)
  assert abs(np.log((w / h) / (width / height))) < 0.1
  assert w * h > 0.82 * 256 * 64


@pytest.mark.parametrize(
  ("size", "budget", "multiple", "expected"),
  [
    ((1920, 1080), 96 * 64, 8, (104, 56)),
    ((1080, 1920), 96 * 64, 8, (56, 104)),
    ((512, 512), 64 * 64, 8, (64, 64)),
    ((96, 64), 96 * 64, 8, (96, 64)),
    ((20, 20), 96 * 64, 8, (16, 16)),
    ((5, 5), 96 * 64, 8, (8, 8)),
    ((100_000, 3), 64 * 16, 8, (128, 8)),
  ],
)
def test_fit_size_on_known_sizes(size, budget, multiple, expected):
  assert transforms.fit_size(*size, budget, multiple) == expected


def test_fit_size_needs_one_cell():
  with pytest.raises(ValueError, match="budget of 63"):
    transforms.fit_size(10, 10, 63, 8)


def test_the_centre_is_cut_out():
  video = stripes(H=8, W=12)
  np.testing.assert_array_equal(transforms.center_crop(video, (8, 8)), video[:, :, 2:10])
  with pytest.raises(ValueError, match="13x8"):
    transforms.center_crop(video, (13, 8))


def test_fit_keeps_circles_round():
  yy, xx = np.mgrid[:200, :300]
  video = np.zeros((1, 200, 300, 3), np.uint8)
  video[0][(yy - 100) ** 2 + (xx - 150) ** 2 < 80**2] = 255
  small = transforms.fit(video, 96 * 64, 8)
  assert small.shape == (1, 64, 96, 3)
  mask = small[0, :, :, 0] > 127
  assert abs(int(mask.any(0).sum()) - int(mask.any(1).sum())) <= 1


@pytest.mark.parametrize(
  ("frames", "temporal", "padded"), [(1, 4, 1), (2, 4, 5), (16, 4, 17), (17, 4, 17), (3, 1, 3)]
)
def test_frames_are_padded_by_the_last(frames, temporal, padded):
  video = stripes(T=frames)
  out = transforms.pad_frames(video, temporal)
  assert len(out) == padded == transforms.padded_frames(frames, temporal)
  np.testing.assert_array_equal(out[:frames], video)
  np.testing.assert_array_equal(out[frames:], np.repeat(video[-1:], padded - frames, axis=0))


def test_sizes_are_padded_by_the_edge():
  video = stripes(H=7, W=9)
  out = transforms.pad_size(video, 8)
  assert out.shape == (2, 8, 16, 3)
  np.testing.assert_array_equal(out[:, :7, :9], video)
  np.testing.assert_array_equal(out[:, 7, 9:], np.repeat(video[:, -1:, -1], 7, axis=1))
  assert transforms.pad_size(out, 8) is out


@pytest.mark.parametrize(
  "text", ["96", "96by64", "0x64", "96x64x2", "-96x64", "x", "", "9.5x4", "²x4"]
)
def test_a_size_that_is_none_is_named(text):
  with pytest.raises(ValueError, match=f"^--sizes={text}; give WIDTHxHEIGHT in pixels"):
    transforms.parse_size(text, "sizes")
  assert transforms.parse_size("96X 64") == (96, 64)
