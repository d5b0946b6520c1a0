"""TensorBoard is an extra: half of it installed is as good as none, and never stops a run."""

import importlib.util

import pytest

from sora_jax.train import tensorboard


@pytest.mark.parametrize("missing", tensorboard.NEEDS)
def test_a_part_that_is_missing_leaves_it_silent(missing, tmp_path, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *a: (
      None if name == missing else found("json") if name in tensorboard.NEEDS else found(name, *a)
    ),
  )
  board = tensorboard.TensorBoard(tmp_path / "board")
  board.write(1, {"loss": 0.5, "name": "not a number"})
  board.close()
  assert not (tmp_path / "board").exists()


def test_scalars_are_written_where_all_is_installed(tmp_path):
  for name in tensorboard.NEEDS:
    pytest.importorskip(name)
  board = tensorboard.TensorBoard(tmp_path / "board")
  board.write(1, {"loss": 0.5, "name": "not a number"})
  board.close()
  (events,) = (tmp_path / "board").glob("events*")
  assert b"loss" in events.read_bytes()
