"""The scripts that make a shipped model of training runs: averages, pairs, defaults, stories."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sora_jax.weights import folder, store

SCRIPTS = pathlib.Path(__file__).parents[1] / "experiments" / "shipped"
SAMPLING = {"solver": "dpmpp_2m", "steps": 20, "guidance": 3.0, "fps": 8.0}


def write_model(path, value, width=4):
  """A model folder whose networks are one array each."""
  networks = {
    name: folder.Network(
      {"a": np.full(width, value + k, "f")},
      {"sampling": SAMPLING, "network": {"width": width}, "diffusion": {"prediction": "x"}},
    )
    for k, name in enumerate(store.NETWORKS)
  }
  leg = {"commit": f"of {value}", "command": "none", "steps": 3}
  folder.write(path, networks, b"words", leg | {"legs": [{"commit": "first"}, leg]})
  return path


def call(*arguments, script="average.py"):
  """(exit status, last line of its output, of its errors)."""
  command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
  done = subprocess.run(command, capture_output=True, text=True)
  return done.returncode, *((text.splitlines() or [""])[-1] for text in (done.stdout, done.stderr))


def test_an_average_is_weighted_and_tells_of_all_legs(tmp_path):
  models = [write_model(tmp_path / "a", 1.0), write_model(tmp_path / "b", 5.0)]
  names, to = f"--models={models[0]},{models[1]}", tmp_path / "c"
  status, said, _ = call(names, "--shares=0.25,0.75", f"--to={to}")
  assert status == 0 and json.loads(said)["shares"] == [0.25, 0.75]
  made, last = folder.read(to), folder.read(models[1])
  for name, value in (("vae", 5.0), ("text", 5.0), ("dit", 6.0)):  # of 1 + k and 5 + k
    np.testing.assert_allclose(made[name].tree["a"], value)
    assert made[name].config.items() >= last[name].config.items()
  assert (to / folder.TOKENIZER_NAME).read_bytes() == b"words"
  first, second = store.load(to / "dit.safetensors")[2]["provenance"]["legs"]
  assert first == {"commit": "first"} and second["commit"] == "of 5.0"
  assert "--shares=0.25,0.75" in second["note"]


def test_second_networks_are_averaged_and_what_is_the_same_keeps_its_story(tmp_path):
  models = []
  for value in (1.0, 5.0):
    path = write_model(tmp_path / str(value), 3.0)
    legs = [{"commit": "first"}, {"commit": f"high {value}"}]
    high = folder.Network({"a": np.full(4, value, "f")}, {"above": 0.5}, {"legs": legs})
    folder.write(path, folder.read(path) | {store.HIGH: high}, b"words", {})
    models.append(path)
  to = tmp_path / "c"
  assert call(f"--models={models[0]},{models[1]}", "--shares=0.25,0.75", f"--to={to}")[0] == 0
  made, before = folder.read(to), folder.read(models[1])
  for name in store.NETWORKS:
    np.testing.assert_array_equal(made[name].tree["a"], before[name].tree["a"])
    assert made[name].story == before[name].story
  np.testing.assert_allclose(made[store.HIGH].tree["a"], 4.0)
  first, second = made[store.HIGH].story["legs"]
  assert second["commit"] == "high 5.0" and "--shares=0.25,0.75" in second["note"]
  lone = write_model(tmp_path / "lone", 3.0)
  status, _, said = call(f"--models={lone},{to}", f"--to={tmp_path / 'd'}")
  assert status == 1 and said == f"average: {lone} has no dit_high, which another model has"


def test_two_models_become_one_of_two_networks(tmp_path):
  low, high = write_model(tmp_path / "low", 1.0), write_model(tmp_path / "high", 5.0)
  pair = functools.partial(call, f"--low={low}", script="pair.py")
  assert pair(f"--high={high}", "--above=0.4", f"--to={tmp_path / 'c'}")[0] == 0
  made, dit = folder.read(tmp_path / "c"), folder.read(high)["dit"]
  assert made["text"].story == folder.read(low)["text"].story
  np.testing.assert_array_equal(made["dit"].tree["a"], folder.read(low)["dit"].tree["a"])
  np.testing.assert_array_equal(made[store.HIGH].tree["a"], dit.tree["a"])
  assert made[store.HIGH].story == dit.story and made[store.HIGH].config["above"] == 0.4
  # what has two is taken apart again
  assert pair(f"--high={tmp_path / 'c'}", f"--to={tmp_path / 'd'}")[0] == 0
  np.testing.assert_array_equal(folder.read(tmp_path / "d")[store.HIGH].tree["a"], dit.tree["a"])
  wide = write_model(tmp_path / "wide", 1.0, width=3)
  for given, what in (
    ((f"--high={wide}",), f"pair: --high={wide} beside --low={low}: dit_high, "),
    ((f"--high={high}", "--above=1"), "pair: --above=1; give a time between 0 and 1"),
    ((f"--high={tmp_path / 'x'}",), "pair: no model"),
  ):
    status, _, said = pair(*given, f"--to={tmp_path / 'e'}")
    assert status == 1 and what in said
  assert not (tmp_path / "e").exists()
  networks = folder.read(high)
  networks["dit"].config["diffusion"] = {"prediction": "eps"}
  folder.write(high, networks, b"words", {})
  status, _, said = pair(f"--high={high}", f"--to={tmp_path / 'e'}")
  assert status == 1
  assert said.startswith(f"pair: --high={high} differs from --low={low} in diffusion.prediction; ")


def test_what_cannot_be_averaged_is_named_and_nothing_written(tmp_path):
  a, b = write_model(tmp_path / "a", 1.0), write_model(tmp_path / "b", 5.0, width=3)
  for models, shares, what in (
    (f"{a},{b}", "0.5,0.5", f"the text of {a} has other parameters"),
    (f"{a},{a}", "0.5,0.6", "give 2 numbers that add up to 1"),
    (f"{a},{a}", "half,half", "give 2 numbers that add up to 1"),
    (f"{a},{tmp_path / 'x'}", "0.5,0.5", "no model"),
  ):
    status, _, said = call(f"--models={models}", f"--shares={shares}", f"--to={tmp_path / 'c'}")
    assert status == 1 and said.startswith("average: ") and what in said
  assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def module():
  """Reads a script without flags as a module."""

  def read(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

  return read


@pytest.fixture(scope="module")
def defaults(module):
  return module("defaults")


def test_a_release_changes_the_samplers_defaults(defaults):
  found = defaults.changed(SAMPLING, '{"grid": "quadratic", "guidance_interval": [0.3, 1.0]}')
  assert found == SAMPLING | {"grid": "quadratic", "guidance_interval": [0.3, 1.0]}
  assert defaults.changed(SAMPLING, '{"extend_grid": "leap"}')["extend_grid"] == "leap"


@pytest.mark.parametrize(
  ("text", "what"),
  [
    ('{"girds": 1}', "it names girds and takes solver, steps, grid"),
    ('{"grid": "cubic"}', "grid='cubic'; allowed: "),
    ('{"extend_grid": "cubic"}', "grid='cubic'; allowed: "),
    ('{"extend_stages": 0}', "stages=0; allowed: 1 "),
    ('{"guidance_interval": [0.5, 0.2]}', "0.5"),
    ('{"steps": 0}', "steps=0"),
    ('{"fps": 0}', "fps one above 0"),
    ("grid", "Expecting value"),
  ],
)
def test_a_release_refuses_a_sampler_that_cannot_be(defaults, text, what):
  with pytest.raises(SystemExit) as refused:
    defaults.changed(SAMPLING, text)
  assert str(refused.value).startswith(f"release: --sampling={text}: ")
  assert what in str(refused.value)


def test_a_model_of_two_networks_counts_the_legs_that_they_share_once(module):
  legs = module("legs")
  told = [dict.fromkeys(legs.LEG, "x") | {"seconds": 10.0 * k, "steps": k} for k in range(4)]
  story = lambda *ks: told[ks[-1]] | {"legs": [told[k] for k in ks]}  # noqa: E731
  low, high = story(0, 1), story(0, 2, 3)
  found = legs.merged({"text and dit": low, "high-noise dit": legs.since(high, low)})
  assert [(leg["network"], leg["steps"]) for leg in found["legs"]] == [
    ("text and dit", 0), ("text and dit", 1), ("high-noise dit", 2), ("high-noise dit", 3),
  ]  # fmt: skip
  assert found["seconds"] == 60.0 and found["steps"] == 3
  del told[2]["commit"]
  with pytest.raises(SystemExit, match="a leg of high-noise dit tells no commit"):
    legs.merged({"high-noise dit": legs.since(high, low)})
