"""The flag --config: values behind it are set, mistakes are one line that names the right thing."""

import pathlib

import pytest
from absl import flags

from sora_jax.tasks import config_flag

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=""):
  if arg == "none":
    return None
  if arg:
    raise ValueError(f"config argument {arg!r}: allowed is none")
  c = ConfigDict({"train": {"steps": 3, "save": True}, "sizes": (1, 2)})
  c.lock()
  return c
"""


@pytest.fixture
def parsed(tmp_path, monkeypatch):
  """Parses a command line in a folder that holds good.py, into flags of its own."""
  monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
  monkeypatch.chdir(tmp_path)
  pathlib.Path("good.py").write_text(CONFIG)
  held = config_flag.define()

  def parse(*words):
    monkeypatch.setattr("sys.argv", ["prog", *words])
    assert config_flag.parser("prog")(["prog", *words]) == ["prog"]
    return held.value.to_dict()

  return parse


def test_values_are_set(parsed):
  found = parsed("--config=good.py", "--config.train.steps=5", "--noconfig.train.save")
  assert found == {"train": {"steps": 5, "save": False}, "sizes": (1, 2)}


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--config=nope.py"], "flag --config=nope.py: there is no such file; name one"),
    (["--config=good.py:huge"], "good.py:huge: config argument 'huge': allowed is none"),
    (["--config=good.py:none"], "good.py:none: .* no ConfigDict"),
    (["--config=good.py", "--config.train.stepz=3"],
     "--config.train.stepz: config.train has no 'stepz'. Did you mean 'steps'?"),
    (["--config=good.py", "--config.trian.steps", "3"], "config has no 'trian'. Did you mean 'tr"),
    (["--config=good.py", "--noconfig.train.sav"], "config.train has no 'sav'. Did you mean 'save"),
    (["--config=good.py", "--config.train.steps.a=3"], "config.train.steps is 3, which has no key"),
    (["--config=good.py", "--config.train.[=3"], "--config.*Could not parse"),
    (["--config=good.py", "--config.train.steps=x"], "--config.train.steps=x: invalid literal"),
    (["--config.train.steps=3", "--config=good.py"], "before a value for --config"),
    (["--config=good.py", "--confg=3"], "'confg'. Did you mean: config"),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(parsed, words, says):
  with pytest.raises(SystemExit, match=says) as found:
    parsed(*words)
  assert found.value.code.startswith("prog: ") and "\n" not in found.value.code


@pytest.mark.parametrize("line", ["from parts import base", "from parts import gone"])
def test_a_config_from_another_folder_says_where_to_run(parsed, tmp_path, monkeypatch, line):
  (tmp_path / "parts").mkdir()
  (tmp_path / "parts" / "whole.py").write_text(f"{line}\n{CONFIG}")
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  monkeypatch.chdir(elsewhere)
  remedy = f"in line 1: .*parts.*; run the command from {tmp_path}, where parts is$"
  with pytest.raises(SystemExit, match=remedy) as found:
    parsed(f"--config={tmp_path}/parts/whole.py")
  assert "\n" not in found.value.code
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit, match="in line 1: .*parts'?$"):  # no remedy for what is not there
    parsed("--config=parts/whole.py")


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ("c.train.stepz = 3", "AttributeError in line 11: .*stepz.*Did you mean .steps"),
    ("c.train.steps = 'x'", "TypeError in line 11: "),
    ("import nothing_like_it", "ModuleNotFoundError in line 11: No module named"),
    ("c = (", "SyntaxError: .*line 11"),
    ("open('nothing')", "cannot be read"),
  ],
)
def test_mistakes_in_a_config_name_its_line(parsed, line, says):
  pathlib.Path("bad.py").write_text(CONFIG.replace("  return c\n", f"  {line}\n  return c\n"))
  with pytest.raises(SystemExit, match=f"^prog: flag --config=bad.py: .*{says}") as found:
    parsed("--config=bad.py")
  assert "\n" not in found.value.code and "\\n" not in found.value.code
