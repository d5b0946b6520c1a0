"""What several processes share; those that need several run in `tests/test_meshes.py`."""

import pytest

from sora_jax.train import hosts


def test_states_of_all_processes_become_one():
  parts = [{"step": 3, "streams": {"0": "a", "2": "c"}}, {"step": 3, "streams": {"1": "b"}}]
  assert hosts.union(parts) == {"step": 3, "streams": {"0": "a", "1": "b", "2": "c"}}
  with pytest.raises(ValueError, match="disagree"):
    hosts.union([{"step": 3}, {"step": 4}])


@pytest.mark.parametrize(
  "given, message",
  [(("here:1", 2, -1), "give all three"), (("", 2, 0), "give all three"),
   (("here:1", 2, 2), "process=2 of 2; the first is 0")],
)  # fmt: skip
def test_half_an_address_is_named(given, message):
  with pytest.raises(ValueError, match=message):
    hosts.connect(*given)


def test_alone_there_is_nothing_to_do(tmp_path):
  hosts.connect(devices=tmp_path)
  assert hosts.is_first() and hosts.agree_to_stop(1, True) and not hosts.agree_to_stop(1, False)
  assert hosts.merged({"step": 1}) == {"step": 1} and hosts.of_first(7) == 7
  assert hosts.every(True) and not hosts.every(False)
  with hosts.in_turn("nothing"):
    hosts.wait("nothing")
