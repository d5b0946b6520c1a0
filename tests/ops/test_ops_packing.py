"""Tables of packed rows: slots, gathers, sums, masks, placing and unpacking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.ops import packing
from sora_jax.ops.modulation import slot_sums, take_rows

ROWS = [[((2, 1, 2), 8.0), ((1, 1, 1), 0.0), ((1, 2, 2), 0.0)], [((3, 1, 2), 24.0)]]
TABLES = packing.place(ROWS, row_len=11, max_segments=4)
SEGMENT = jnp.asarray(TABLES["segment"])


def test_place_lays_segments_one_after_the_other():
  assert TABLES["segment"].tolist() == [[1] * 4 + [2] + [3] * 4 + [0] * 2, [1] * 6 + [0] * 5]
  assert TABLES["coord"][0, :4].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
  assert TABLES["grid"][1].tolist() == [[3, 1, 2]] + [[0, 0, 0]] * 3
  assert TABLES["fps"][0].tolist() == [8, 0, 0, 0]
  assert TABLES["slots"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("row_len, segments", [(8, 4), (11, 2)])
def test_rows_that_overflow_are_refused(row_len, segments):
  with pytest.raises(ValueError, match="row 0 needs 9 tokens in 3 segments"):
    packing.place(ROWS, row_len, segments)


def test_slots_are_numbered_segment_by_segment():
  slots = jnp.array([[2, 1, 2, 0], [3, 0, 0, 0]])
  slot = jnp.array([[0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0]])
  table, owner = packing.slot_table(SEGMENT, slot, slots, 6)
  assert table.tolist()[0] == [0, 0, 1, 1, 2, 3, 3, 4, 4, 0, 0]
  assert table.tolist()[1] == [0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0]
  assert owner.tolist() == [[1, 1, 2, 3, 3, 0], [1, 1, 1, 0, 0, 0]]


def test_slots_that_share_a_time_have_that_of_their_segments_first():
  slot = np.array([[0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2, 0, 0, 0, 0, 0]])
  slots = np.array([[2, 1, 2, 0], [3, 0, 0, 0]])
  batch = TABLES | {"slot": slot, "slots": slots, "text_segment": np.zeros((2, 3), np.int32)}
  time = jnp.arange(12.0).reshape(2, 6)
  same = jnp.array([[True, True, False, False], [True, False, False, False]])
  found = packing.same_times(time, packing.layout_of(batch, 6), jnp.asarray(slots), same)
  assert found.tolist() == [[0, 0, 2, 3, 4, 5], [6, 6, 6, 9, 10, 11]]


def test_slots_know_how_far_they_are_from_what_is_told():
  owner = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 3, 0]])
  slot = jnp.asarray([[0, 0, 1, 2, 3, 4, 5, 6, 6, 7, 0]])
  told = np.zeros((1, 11), bool)
  told[0, [1, 7]] = True  # one token of slot 0, one of slot 6
  away = packing.slots_away(jnp.asarray(told), slot, owner)
  np.testing.assert_array_equal(away, [[0, 1, 2, 3, 2, 1, 0, 9, 9]])


def test_layout_has_one_slot_for_each_segment_by_default():
  layout = packing.layout_of({**TABLES, "text_segment": np.zeros((2, 3), np.int32)})
  assert layout.slot_segment_RQ.tolist() == [[1, 2, 3, 0], [1, 0, 0, 0]]
  assert layout.slot_RL.tolist()[0] == [0] * 4 + [1] + [2] * 4 + [0] * 2


def test_take_segments_gives_tokens_their_segments_entry():
  table = jnp.arange(8.0).reshape(2, 4) + 1
  assert packing.take_segments(table, SEGMENT).tolist() == [
    [1] * 4 + [2] + [3] * 4 + [0] * 2, [5] * 6 + [0] * 5
  ]  # fmt: skip
  gradient = jax.grad(lambda x: packing.take_segments(x, SEGMENT).sum())(table)
  assert gradient.tolist() == [[4, 1, 4, 0], [6, 0, 0, 0]]


def test_sums_leave_padding_out_even_if_it_is_nan():
  values = jnp.where(SEGMENT == 0, jnp.nan, 1.0)
  assert packing.segment_sums(values, SEGMENT, 4).tolist() == [[4, 1, 4, 0], [6, 0, 0, 0]]
  assert packing.segment_lengths(SEGMENT, 4).tolist() == [[4, 1, 4, 0], [6, 0, 0, 0]]
  gradient = jax.grad(lambda x: packing.segment_sums(x, SEGMENT, 4).sum())(values)
  assert np.isfinite(gradient).all()


def test_sums_of_vectors_are_full_float32_on_accelerators():
  values = jnp.where(SEGMENT == 0, jnp.nan, 1.0)[..., None] * jnp.array([1.0, 3.0])[None, None]
  sums = jax.jit(packing.vector_sums, static_argnums=2)
  for x in range(2):
    want = packing.segment_sums(values[..., x], SEGMENT, 4)
    assert sums(values, SEGMENT, 4)[..., x].tolist() == want.tolist()
  text = sums.lower(values, SEGMENT, 4).as_text()
  (product,) = [line for line in text.splitlines() if "dot_general" in line]
  assert "precision = [HIGHEST, HIGHEST]" in product


def test_padding_shares_no_segment_with_anything():
  shared = np.asarray(packing.shared_segment(SEGMENT, SEGMENT))
  segment = np.asarray(SEGMENT)
  for r, l, m in np.ndindex(shared.shape):
    assert shared[r, l, m] == (segment[r, l] == segment[r, m] != 0)


def test_unpack_splits_by_segment():
  values = np.arange(22).reshape(2, 11)
  assert [[part.tolist() for part in row] for row in packing.unpack(values, SEGMENT)] == [
    [[0, 1, 2, 3], [4], [5, 6, 7, 8]], [[11, 12, 13, 14, 15, 16]]
  ]  # fmt: skip


def test_rows_of_a_table_and_their_gradient(key):
  table = jax.random.normal(key, (2, 4, 3))
  slot = jnp.array([[0, 0, 3, 1, 1], [2, 2, 2, 0, 3]])
  want = lambda x: jnp.stack([x[r][slot[r]] for r in range(2)])  # noqa: E731
  assert np.array_equal(take_rows(table, slot), want(table))
  given = jax.random.normal(key, (2, 5, 3))
  (one,), (other,) = (jax.vjp(f, table)[1](given) for f in (lambda x: take_rows(x, slot), want))
  np.testing.assert_allclose(one, other, rtol=1e-6)
  np.testing.assert_allclose(slot_sums(given, slot, 4), other, rtol=1e-6)


def test_times_reach_their_tokens():
  time = jnp.array([[0.1, 0.2], [0.3, 0.4]])
  slot = jnp.array([[0, 1, 1], [1, 0, 0]])
  np.testing.assert_allclose(
    packing.take_slots(time, slot), [[0.1, 0.2, 0.2], [0.4, 0.3, 0.3]]
  )  # fmt: skip
