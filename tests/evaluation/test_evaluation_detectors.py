"""The detector on true frames, blurred frames, shuffled prompts and blank videos; the metrics."""

import math

import numpy as np
import pytest
from scipy import ndimage

from sora_jax.data.world import World, WorldConfig
from sora_jax.evaluation import detectors, metrics

NAMES = ("present", "color", "shape", "direction", "single", "background")


def clips(count: int = 100, **changes) -> list:
  world = World(WorldConfig(motions=("constant",), split="test", num_clips=count, **changes))
  return [world[i] for i in range(count)]


def rates(found: list[dict]) -> dict[str, float]:
  return {name: float(np.mean([scores[name] for scores in found])) for name in NAMES}


def blurred(video: np.ndarray, sigma: float, noise: float) -> np.ndarray:
  """Looks like a coarse reconstruction: softened, with grain."""
  soft = ndimage.gaussian_filter(video.astype(float), (0.3, sigma, sigma, 0))
  grain = np.random.default_rng(0).normal(0, noise, video.shape)
  return (soft + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
  "changes",
  [
    {"sizes": ((32, 32),)},
    {"sizes": ((43, 24), (32, 24), (24, 32), (24, 43))},
    {"sizes": ((128, 96),), "frames": 5},
    {"styles": "outline"},
    {"styles": "night"},
    {"image_fraction": 1.0},
  ],
)
def test_true_frames_are_read_right(changes):
  found = rates(
    [detectors.score(detectors.detect(c.video_THWC), c.truth) for c in clips(**changes)]
  )
  assert min(found.values()) > 0.99, found


@pytest.mark.parametrize("style", ["plain", "outline", "hatched", "night"])
def test_the_filling_is_read_whether_sharp_or_blurred(style):
  want = "plain" if style == "night" else style
  drawn = clips(60, sizes=((48, 48),), styles=style, radius=(0.18, 0.26))
  for change in (lambda video: video, lambda video: blurred(video, 0.5, 4)):
    seen = [detectors.detect(change(clip.video_THWC)) for clip in drawn]
    assert np.mean([s.filling == want for s in seen]) > 0.95
    assert np.mean([s.night == (style == "night") for s in seen]) > 0.95


def test_blurred_frames_are_read_right():
  found = rates(
    [detectors.score(detectors.detect(blurred(c.video_THWC, 0.8, 6)), c.truth) for c in clips()]
  )
  assert min(found.values()) > 0.97, found


def test_centroids_and_velocity_are_those_of_the_truth():
  for clip in clips(20):
    seen, record = detectors.detect(clip.video_THWC), clip.truth["objects"][0]
    np.testing.assert_allclose(seen.centroid_T2, record["position"], atol=0.01)
    np.testing.assert_allclose(seen.velocity_2 * clip.fps, record["velocity"][0], atol=0.02)


def test_a_second_object_is_counted_against_a_clip_that_has_one():
  for clip in clips(20, sizes=((96, 64),)):
    double = np.concatenate([clip.video_THWC, clip.video_THWC], axis=2)
    scores = detectors.score(detectors.detect(double), clip.truth)
    assert scores["present"] and not scores["single"] and not scores["all"]
    assert scores["color"] and scores["shape"] and scores["direction"]  # all of them miss it


def test_shuffled_prompts_score_at_chance():
  drawn = clips(200)
  seen = [detectors.detect(clip.video_THWC) for clip in drawn]
  found = rates([detectors.score(s, c.truth) for s, c in zip(seen, drawn[1:] + drawn[:1])])
  for name, chance in (("color", 1 / 8), ("shape", 1 / 4), ("direction", 1 / 8)):
    assert abs(found[name] - chance) < 4 * math.sqrt(chance * (1 - chance) / 200), (name, found)


@pytest.mark.parametrize("rgb", [(0, 0, 0), (112, 112, 112), (238, 224, 186), (226, 38, 38)])
@pytest.mark.parametrize("noise", [0, 6])
def test_nothing_is_seen_in_a_blank_video(rgb, noise):
  video = np.full((9, 32, 32, 3), rgb, np.float32)
  video += np.random.default_rng(0).normal(0, noise, video.shape)
  seen = detectors.detect(video.clip(0, 255).astype(np.uint8))
  assert not seen.present and (seen.color, seen.shape, seen.direction) == (None, None, None)
  scores = detectors.score(seen, clips(1)[0].truth)
  assert not any(
    scores[name] for name in ("present", "color", "shape", "direction", "single", "all")
  )


def test_reversed_and_frozen_videos_are_told_from_the_original():
  for clip in clips(20):
    assert not detectors.score(detectors.detect(clip.video_THWC[::-1]), clip.truth)["direction"]
    frozen = np.repeat(clip.video_THWC[:1], 9, axis=0)
    assert detectors.detect(frozen).direction is None


def test_a_video_of_another_kind_is_refused():
  with pytest.raises(ValueError, match="float32"):
    detectors.detect(np.zeros((9, 32, 32, 3), np.float32))


def test_wilson_interval_against_published_and_exact_values():
  low, high = metrics.wilson(81, 263)  # Newcombe 1998, Stat. Med. 17:857, table I: .2553 to .3662
  assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
  low, high = metrics.wilson(0, 20)  # same table: 0 to .1611
  assert low == 0.0 and round(high, 4) == 0.1611
  assert metrics.wilson(10, 10)[1] == 1.0
  with pytest.raises(ValueError, match="5 successes of 4"):
    metrics.wilson(5, 4)


def test_psnr_of_a_known_error_over_all_and_over_a_mask():
  a = np.full((2, 4, 4, 3), 100, np.uint8)
  b = a.copy()
  b[:, :2] = 110
  mask = np.zeros((2, 4, 4), bool)
  mask[:, :2] = True
  np.testing.assert_allclose(metrics.psnr(a, b, mask), 20 * math.log10(25.5))
  np.testing.assert_allclose(metrics.psnr(a, b), 20 * math.log10(25.5) + 10 * math.log10(2))
  assert metrics.psnr(a, a) == math.inf
  with pytest.raises(ValueError, match="mask"):
    metrics.psnr(a, b, ~mask & mask)


def test_object_mask_covers_the_object_and_little_else():
  for clip in clips(5):
    mask = metrics.object_mask(clip.truth)
    background = np.median(clip.video_THWC.reshape(-1, 3), axis=0)
    away = np.abs(clip.video_THWC - background).max(-1) > 40
    assert not (away & ~mask).any() and mask.sum() < 4 * away.sum()
