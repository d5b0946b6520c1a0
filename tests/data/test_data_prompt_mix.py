"""Prompts of training: shares, masks, and rows that tell the network what is known and no more."""

import collections
import dataclasses

import numpy as np
import pytest

from sora_jax.data import prompt_mix, records
from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.ops.patchify import patchify

F = 4
MIX = PromptMix(dropout=0.0)
PIPELINE = PipelineConfig(
  rows=2, row_len=96, max_segments=8, text_row_len=64, streams=2, window=16, seed=3,
  prompts=dataclasses.replace(MIX, frame_times=0.5), frames_per_latent=F, max_slots=14,
)  # fmt: skip


def test_kinds_come_in_their_shares_and_pictures_know_regions_alone():
  rng = np.random.default_rng(0)
  counts = collections.Counter(MIX.kind(5, rng) for _ in range(20_000))
  for kind, share in zip(prompt_mix.KINDS, MIX.shares):
    assert abs(counts[kind] / 20_000 - share) < 0.01, kind
  assert abs(counts[None] / 20_000 - 0.4) < 0.02
  counts = collections.Counter(MIX.kind(1, rng) for _ in range(5_000))
  assert counts.keys() == {None, "boxes"} and abs(counts["boxes"] / 5_000 - 0.1) < 0.02
  half = dataclasses.replace(MIX, dropout=0.5)
  counts = collections.Counter(half.kind(5, rng) for _ in range(5_000))
  assert abs(counts[None] / 5_000 - 0.7) < 0.03


@pytest.mark.parametrize("kind", ["tail", "ends", "both", "keyframes", "random"])
@pytest.mark.parametrize("frames", [5, 9, 16, 17])
def test_each_kind_knows_some_frames_and_not_all(kind, frames):
  rng = np.random.default_rng(1)
  seen = [prompt_mix.frames_known(kind, frames, rng) for _ in range(200)]
  assert all(known.any() and not known.all() for known in seen)
  assert len({known.tobytes() for known in seen}) > (1 if kind != "ends" else 0)
  if kind == "tail":
    assert all(known[-1] and not known[0] for known in seen)
    assert max(known.sum() for known in seen) == 2 * frames // 3
  if kind in ("ends", "both"):
    assert all(known[0] for known in seen) and any(known[-1] for known in seen)
  if kind == "keyframes":
    assert all(known[0] and not known[1] for known in seen)


def test_regions_are_boxes_what_is_around_them_and_strips():
  rng = np.random.default_rng(2)
  seen = [prompt_mix.box((4, 6), rng) for _ in range(500)]
  whole_columns = sum((known.all(0) | ~known.any(0)).all() and not known.all() for known in seen)
  assert whole_columns > 50  # as reframing to a wider picture leaves them
  assert sum(known[0, 0] and not known.all() for known in seen) > 50
  assert len({known.tobytes() for known in seen}) > 100
  for cells in ((4, 6), (1, 6), (6, 1), (2, 1)):
    for _ in range(200):
      known = prompt_mix.box(cells, rng)
      assert known.any() and not known.all(), cells
  assert prompt_mix.box((1, 1), rng).all()


def test_masks_are_whole_first_latents_or_frames_without_those_that_pad():
  rng = np.random.default_rng(3)
  first = prompt_mix.prefix_mask("first", (3, 2, 2), F, rng)
  assert first[0].all() and not first[1:].any()
  for latents, lengths in ((2, {1}), (3, {2}), (5, {2, 3}), (7, {2, 3, 4})):  # 2 tell a motion
    heads = [prompt_mix.prefix_mask("head", (latents, 2, 2), F, rng) for _ in range(80)]
    assert {int(mask.any((1, 2, 3)).sum()) for mask in heads} == lengths, latents
  known = np.zeros((8, 2, 3), bool)
  known[-1] = True
  mask = prompt_mix.variant_mask(known, 3, F)
  assert mask.shape == (3, 2, 3, F)
  assert mask[2, 0, 0].tolist() == [0, 0, 1, 0] and mask.sum() == 6


def test_impossible_shares_are_refused():
  with pytest.raises(ValueError, match="first=1.5; it is a share"):
    PromptMix(first=1.5)
  with pytest.raises(ValueError, match="add up to 1.35, above 1"):
    PromptMix(first=0.9)
  with pytest.raises(ValueError, match="variants=0"):
    PromptMix(variants=0)
  with pytest.raises(ValueError, match="max_slots=3; each of max_segments=8"):
    dataclasses.replace(PIPELINE, max_slots=3)


def clips(count, canvases=True):
  """Clips whose latents are 1, 2, 3, ..., and whose canvases are 0.5 in the cells they know."""
  rng, found = np.random.default_rng(0), []
  for i in range(count):
    t, h, w = [(1, 4, 4), (3, 4, 6), (5, 2, 4)][i % 3]
    latent = 1 + np.arange(t * h * w * 2, dtype=np.float32).reshape(t, h, w, 2)
    made = []
    for _ in range(2):
      mask = rng.integers(0, 2, (t, h, w, F), dtype=np.uint8)
      made.append(
        records.Canvas(
          "boxes", mask, (0.5 * mask.max(-1, keepdims=True).repeat(2, -1)).astype("f2")
        )
      )
    found.append(
      records.Clip(
        id=f"c{i}", fps=None if t == 1 else 8.0, captions={"short": "s", "long": "l"},
        latent_thwZ=latent, pixel_shape=(4 * t - 3, 8 * h, 8 * w),
        canvases=tuple(made) if canvases else (),
      )
    )  # fmt: skip
  return found


def tokenize(text):
  return [ord(c) for c in text] + [1]


def rows(config=PIPELINE, source=None):
  iterator = iter(packed_rows(source or clips(30), config, patchify, tokenize))
  return [next(iterator) for _ in range(30)]


def test_rows_tell_what_is_known_and_nothing_of_the_rest():
  kinds = collections.Counter()
  for batch in rows():
    assert batch["known"].shape == (2, 96, 4 * F) and batch["known"].dtype == np.uint8
    known = batch["known"].reshape(2, 96, 4, F).max(-1) > 0
    canvas = batch["canvas"].reshape(2, 96, 4, 2)
    latent = batch["patch"].reshape(2, 96, 4, 2)
    np.testing.assert_array_equal((canvas != 0).all(-1), known)
    is_variant = canvas == 0.5
    np.testing.assert_array_equal(
      canvas[known & ~is_variant[..., 0]], latent[known & ~is_variant[..., 0]]
    )
    assert not known[batch["segment"] == 0].any()
    for r in range(2):
      for s in range(1, 9):
        here = batch["segment"][r] == s
        if here.any():
          kinds[
            "none"
            if not known[r, here].any()
            else "variant"
            if is_variant[r, here].any()
            else "prefix"
          ] += 1
  total = kinds.total()
  assert kinds["prefix"] / total > 0.1 and kinds["variant"] / total > 0.15 < kinds["none"] / total


def test_some_clips_have_a_time_for_each_latent_frame_within_the_row_s_table():
  own = 0
  for batch in rows():
    assert batch["slots"].sum(1).max() <= PIPELINE.max_slots
    for r, s in np.argwhere(batch["slots"] > 1):
      here = batch["segment"][r] == s + 1
      assert batch["slots"][r, s] == batch["grid"][r, s, 0]
      np.testing.assert_array_equal(batch["slot"][r, here], batch["coord"][r, here, 0])
      own += 1
    single = batch["slots"] == 1
    for r, s in np.argwhere(single):
      assert not batch["slot"][r, batch["segment"][r] == s + 1].any()
  assert own > 20


def test_rows_without_prompts_are_what_they_were_and_missing_canvases_are_named():
  plain = dataclasses.replace(PIPELINE, prompts=None)
  for with_prompts, without in zip(rows(), rows(plain)):
    assert "known" not in without
    for name in ("patch", "segment", "coord", "text", "clip"):
      np.testing.assert_array_equal(with_prompts[name], without[name])
  with pytest.raises(ValueError, match="clip 'c.*' has no canvases"):
    rows(source=clips(30, canvases=False))


def test_canvases_are_kept_in_records():
  clip = clips(2)[1]
  again = records.from_bytes(records.to_bytes(clip))
  assert [c.kind for c in again.canvases] == ["boxes", "boxes"]
  for a, b in zip(clip.canvases, again.canvases):
    np.testing.assert_array_equal(a.known_thwF, b.known_thwF)
    np.testing.assert_array_equal(a.latent_thwZ, b.latent_thwZ)
  assert records.from_bytes(records.to_bytes(clips(1, canvases=False)[0])).canvases == ()
