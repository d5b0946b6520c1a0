"""The one-way stairs: a file imports only from lower floors or from its own room."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "sora_jax"
FLOORS = {
  "shapes": 0,
  "ops": 1, "diffusion": 1,
  "nn": 2, "data": 2, "sharding": 2, "weights": 2,
  "prompting": 3, "planning": 3, "train": 3, "evaluation": 3, "language": 3,
  "tasks": 4, "train/loop": 4, "model": 4,
  "main": 5, "generate": 5, "evaluate": 5, "prepare": 5, "plan": 5, "doctor": 5, "export": 5,
}  # fmt: skip
FLOOR_1_BANS = {"flax", "orbax", "ml_collections", "absl", "logging", "grain", "av"}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room(dotted: str) -> str | None:
  """Room of `sora_jax.a.b`; None for the package itself."""
  parts = dotted.split(".")[1:]
  if not parts:
    return None
  if parts[:2] == ["train", "loop"]:
    return "train/loop"
  return parts[0]


def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
  """Every (module, at top level) that a file imports; `from a import b` counts as a.b."""
  tree = ast.parse(path.read_text())
  found = []
  for node in ast.walk(tree):
    top = node in tree.body
    if isinstance(node, ast.Import):
      found += [(alias.name, top) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      found += [(f"{node.module}.{alias.name}", top) for alias in node.names]
  return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_the_stairs(path):
  name = "sora_jax." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
  here = room(name)
  assert here in FLOORS, f"{path}: no floor for the room {here!r}; add it to FLOORS"
  for module, _ in imports(path):
    top_package = module.split(".")[0]
    if top_package != "sora_jax":
      if FLOORS[here] == 1:
        assert top_package not in FLOOR_1_BANS, f"{here} (floor 1) may not import {top_package}"
      if here == "data":
        assert top_package not in {"jax", "jaxlib", "flax", "optax"}, (
          f"{path}: data never names jax"
        )
      if top_package in {"tensorflow", "tensorflow_datasets"} or module.startswith("clu.metric_w"):
        assert path.name in {"tfds_builder.py", "tensorboard.py"}, f"{path}: TensorFlow"
      continue
    there = room(module)
    if there is None or there == here or there.startswith("__"):
      continue
    assert FLOORS[there] < FLOORS[here], (
      f"{path.name} ({here}, floor {FLOORS[here]}) may not import {module} ({FLOORS[there]})"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_without_a_subject(path):
  assert path.stem not in {"utils", "common", "helpers", "misc"}
