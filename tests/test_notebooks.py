"""The notebooks run from top to bottom, and are stored without outputs."""

import pathlib

import nbclient
import nbformat
import pytest

from sora_jax.weights import store

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "experiments/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_defines_nothing_and_keeps_no_output(path):
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == "code":
      assert not cell.outputs, f"{path.name}: clear the outputs"
      assert "def " not in cell.source and "class " not in cell.source, "notebooks only call"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS")  # it computes for longer than it compiles
  if "tiny" not in store.shipped():
    pytest.skip("no transformer is shipped yet: the notebooks have nothing to load")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": path.parent}}
  )
  client.execute()
  last = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
  assert "(17, 64, 96, 3)" in last, last
