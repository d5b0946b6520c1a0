"""Model folders: replaced as a whole, wherever the writer ends."""

import itertools
import os

import numpy as np
import pytest

from sora_jax.weights import folder, store


class Killed(BaseException):
  """Stands for the end of the process."""


def until(call, folder_of, left):
  """A call of os that ends the process at a change in a folder, once none is left."""

  def change(*args, **kwargs):
    place = str(args)
    if str(folder_of) in place and ".safetensors." not in place and next(left, None) is None:
      raise Killed
    return call(*args, **kwargs)

  return change


def networks(value, *more):
  return {
    name: folder.Network({"w": np.full(2, value, np.float32)}, {"network": {}})
    for name in (*store.NETWORKS, *more)
  }


def values(path):
  return {name: float(network.tree["w"][0]) for name, network in folder.read(path).items()}


@pytest.mark.parametrize("reader", [values, folder.find, lambda path: folder.find(path.parent)])
@pytest.mark.parametrize("back", [False, True], ids=["to less", "to more"])
def test_a_writer_that_ends_anywhere_leaves_one_model(tmp_path, monkeypatch, reader, back):
  old, new = (networks(1.0, store.HIGH), b"old"), (networks(2.0), None)
  if back:
    old, new = new, old
  for ended in itertools.count():
    left = iter(range(ended))
    path = tmp_path / str(ended) / "model"
    folder.write(path, *old, {"seed": 1})
    (path / "notes.txt").write_text("mine")
    with monkeypatch.context() as m:
      for name in ("replace", "rename", "unlink"):
        m.setattr(os, name, until(getattr(os, name), path, left))
      try:
        folder.write(path, *new, {"seed": 2})
        finished = True
      except Killed:
        finished = False
    reader(path)
    assert not (path / folder.READY).exists()
    found = values(path)
    assert len(set(found.values())) == 1, f"a mix: {found}"
    is_new = found == {name: new[0][name].tree["w"][0] for name in new[0]}
    assert is_new or found == {name: old[0][name].tree["w"][0] for name in old[0]}
    assert (path / folder.TOKENIZER_NAME).exists() == ((new if is_new else old)[1] is not None)
    assert (path / "notes.txt").read_text() == "mine"
    folder.write(path, *new, {"seed": 2})
    assert set(values(path)) == set(new[0]) and [p.name for p in path.parent.iterdir()] == ["model"]
    assert not [p.name for p in path.iterdir() if p.is_dir()]
    if finished:
      assert is_new and ended > 4
      break


def test_a_reader_that_cannot_end_what_a_writer_began_says_so(tmp_path, monkeypatch):
  path = tmp_path / "model"
  folder.write(path, networks(1.0), None, {})

  def no(*args):
    raise OSError(30, "Read-only file system")

  with monkeypatch.context() as m:
    moved = os.replace
    m.setattr(os, "replace", lambda a, b: no() if b.parent == path else moved(a, b))
    with pytest.raises(OSError):
      folder.write(path, networks(2.0), None, {})
    with pytest.raises(OSError, match="model is being replaced .*Read-only.*writable.*again"):
      folder.read(path)
  assert values(path) == dict.fromkeys(store.NETWORKS, 2.0)
