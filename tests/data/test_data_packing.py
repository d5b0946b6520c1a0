"""Packing by lengths: nothing lost, nothing too long, rows full."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import packing
from sora_jax.data.stats import PackStats

LENGTHS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 20)), min_size=1, max_size=60)


def pack(lengths, drop_to_fill=0.0, row_len=200, text_row_len=40, max_segments=6, bins=5):
  """Rows of clips given by (tokens, text ids)."""
  elements = [packing.element(i, n, u, drop_to_fill > 0) for i, (n, u) in enumerate(lengths)]
  visits = grain.MapDataset.source(elements).to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )
  return packing.best_fit(
    visits,
    row_len=row_len,
    text_row_len=text_row_len,
    max_segments=max_segments,
    bins=bins,
    drop_to_fill=drop_to_fill,
  )


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from([0.0, 0.03, 0.1]))
def test_every_clip_once_and_no_row_overflows(lengths, drop_to_fill):
  rows = list(pack(lengths, drop_to_fill))
  seen = [int(v) for row in rows for v in row["visits"]]
  assert sorted(seen) == list(range(len(lengths)))
  for row in rows:
    before = np.array([lengths[v][0] for v in row["visits"]])
    assert 1 <= len(row["visits"]) <= 6
    assert row["kept"].sum() == min(200, before.sum())
    assert sum(lengths[v][1] for v in row["visits"]) <= 40
    assert (row["kept"] <= before).all()
    assert (row["kept"] >= [packing.floor_of(int(n)) for n in before]).all()
    if not drop_to_fill:
      assert (row["kept"] == before).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(50, 900))
def test_cutting_takes_exactly_the_excess_or_refuses(tokens, row_len):
  least = sum(packing.floor_of(n) for n in tokens)
  if least > row_len:
    with pytest.raises(ValueError, match="cannot be cut"):
      packing.cut_to_fit(tokens, row_len)
    return
  kept = packing.cut_to_fit(tokens, row_len)
  assert sum(kept) == min(row_len, sum(tokens))
  assert all(packing.floor_of(n) <= k <= n for n, k in zip(tokens, kept))


def test_floor_takes_a_tenth_and_spares_the_small():
  assert [packing.floor_of(n) for n in (1, 64, 65, 70, 100, 1000)] == [1, 64, 64, 64, 90, 900]


def test_the_packers_checkpoint_law():
  rng = np.random.default_rng(0)
  lengths = [(int(n), 3) for n in rng.integers(10, 150, 30)]
  grain.experimental.assert_equal_output_after_checkpoint(pack(lengths, 0.05))


@pytest.mark.parametrize("drop_to_fill, least", [(0.0, 0.97), (0.02, 0.985)])
def test_long_rows_are_full(drop_to_fill, least):
  rng = np.random.default_rng(1)
  tokens = rng.choice([144, 256, 576, 1024], 3000) * rng.choice([1, 5, 9, 13], 3000)
  rows = list(pack([(int(n), 1) for n in tokens], drop_to_fill, 16384, 4096, 64, bins=54))[:-54]
  assert len(rows) > 300
  assert np.mean([row["kept"].sum() for row in rows]) / 16384 > least


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1000), st.integers(0, 1000))
def test_dropping_spares_the_small_and_ends(tokens, step, seed):
  drop = packing.TokenDrop(steps=1000, share=1.0)
  kept = drop.kept(tokens, step, np.random.default_rng(seed))
  assert min(tokens, packing.MIN_TOKENS) <= kept <= tokens
  assert kept >= tokens * 0.4 - 1
  if step >= 850:
    assert kept == tokens


def test_dropping_stops_at_the_smallest_clip():
  drop, rng = packing.TokenDrop(steps=100, share=1.0), np.random.default_rng(0)
  kept = {drop.kept(70, 0, rng) for _ in range(50)}
  assert min(kept) == packing.MIN_TOKENS


def test_dropping_has_the_published_rate():
  drop, rng = packing.TokenDrop(steps=100), np.random.default_rng(0)
  kept = np.array([drop.kept(1000, 10, rng) for _ in range(4000)])
  assert abs((kept < 1000).mean() - 0.5) < 0.03
  rates = 1 - kept[kept < 1000] / 1000
  assert abs(rates.mean() - 0.6 * 2 / 6) < 0.01
  assert drop.strength(70) == 1 and drop.strength(77.5) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 9, "hold": 0.9, "end": 0.8}])
def test_impossible_drop_schedules_are_refused(bad):
  with pytest.raises(ValueError, match="token dropping"):
    packing.TokenDrop(**bad)


def test_open_rows_hold_the_window():
  assert packing.bins_for(256, mean_tokens=4096.0, row_len=16384, max_segments=64) == 64
  assert packing.bins_for(256, mean_tokens=16.0, row_len=16384, max_segments=64) == 4
  assert packing.bins_for(1, mean_tokens=16.0, row_len=16384, max_segments=64) == 1


def test_stats_count_a_batch_by_hand():
  stats = PackStats()
  assert stats.to_dict()["fill"] == 0
  stats.add(
    {
      "segment": np.array([[1, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32),
      "grid": np.array([[[3, 1, 1], [1, 1, 1]], [[1, 2, 3], [0, 0, 0]]], np.int32),
      "text_segment": np.array([[1, 2], [1, 0]], np.int32),
    }
  )
  figures = stats.to_dict()
  assert figures["fill"] == stats.fill == 10 / 12
  assert figures["text_fill"] == 0.75
  assert figures["sizes"] == {"3x1x1": 1, "1x1x1": 1, "1x2x3": 1}
  assert figures["attention_cost"]["mean"] == (9 + 1 + 36) / 2
  assert figures["attention_cost"]["max_over_mean"] == 36 / 23
  assert figures["picture_token_share"] == 0.7
  assert figures["frame_sizes_per_row"] == 1.0
