"""Orders: what counts as a list, whole numbers in whatever form, and what is refused at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.prompting import orders

ONE = {
  "prompt": "p", "size": (96, 64), "frames": 5, "seed": 0, "sample": 0, "from_draft": None,
  "fps": 8.0, "guidance": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
  "several",
  [
    {"seed": [3, 4]}, {"seed": (3, 4)}, {"seed": range(3, 5)}, {"seed": np.arange(3, 5)},
    {"seed": jnp.arange(3, 5)}, {"seed": [3.0, np.int64(4)]}, {"seed": np.float32([3, 4])},
  ],
)  # fmt: skip
def test_any_sequence_or_array_is_a_list(several):
  was_list, made = orders.spread(**ONE | several)
  assert was_list and [order.seed for order in made] == [3, 4]
  assert {type(order.seed) for order in made} == {int}


@pytest.mark.parametrize(
  "size", [(96, 64), [96, 64], (96.0, 64), np.array([96, 64]), (np.int32(96), np.float32(64))]
)
def test_a_pair_is_one_size_and_whole_floats_are_whole(size):
  was_list, (order,) = orders.spread(**ONE | {"size": size, "frames": 5.0, "sample": np.int8(1)})
  assert not was_list and order.size == (96, 64) and (order.frames, order.sample) == (5, 1)
  assert {type(n) for n in (*order.size, order.frames, order.sample)} == {int}
  for sizes in ([size, size], np.array([size, size])):
    assert [order.size for order in orders.spread(**ONE | {"size": sizes})[1]] == [(96, 64)] * 2


def test_a_draft_is_one_value_and_gives_its_frames():
  draft = np.zeros((3, 4, 4, 3), np.uint8)
  was_list, (order,) = orders.spread(**ONE | {"from_draft": draft, "frames": None})
  assert not was_list and order.frames == 3
  for drafts in ([draft, draft], np.stack([draft, draft])):
    made = orders.spread(**ONE | {"from_draft": drafts, "frames": [2, None]})[1]
    assert [order.frames for order in made] == [2, 3]


@pytest.mark.parametrize(
  "wrong,message",
  [
    ({"frames": 5.5}, "frames is 5.5; it must be a whole number, at least 1"),
    ({"frames": "5"}, "frames is '5'; it must be a whole number"),
    ({"frames": float("nan")}, "frames is nan"), ({"frames": float("inf")}, "frames is inf"),
    ({"seed": None}, "seed is None"), ({"seed": [0, "a"]}, "seed is 'a'"),
    ({"seed": range(0)}, "seed is an empty list"), ({"size": []}, "size is an empty list"),
    ({"size": 64}, "size is 64; it must be .width, height. in pixels"),
    ({"size": "96x64"}, "size is '96x64'; it must be"), ({"size": None}, "size is None; it must"),
    ({"size": (8, 8, 8)}, "size is .8, 8, 8.; it must be"), ({"size": (8, 8.5)}, "height is 8.5"),
    ({"size": [(8, 8), 8]}, "size is 8; it must be"),
    ({"from_draft": np.zeros((3, 4, 4, 3)), "frames": 4}, "frames is 4, but the draft has 3; ask"),
  ],
)  # fmt: skip
def test_what_cannot_be_is_named(wrong, message):
  with pytest.raises(ValueError, match=message):
    orders.spread(**ONE | wrong)
