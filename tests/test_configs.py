"""Configs are diffs of one base: every key once, typed at the door, mistakes named early."""

import dataclasses
import functools
import importlib
import importlib.util
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import shipped
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.nn import dit_config as dit_lib
from sora_jax.nn import text as text_lib
from sora_jax.nn import vae as vae_lib
from sora_jax.nn.dit import DiT
from sora_jax.nn.vae_losses import LossConfig
from sora_jax.ops import packing
from sora_jax.ops.patchify import cell_channels
from sora_jax.tasks import autoencoder, build, sections
from sora_jax.tasks.text_to_video import DiffusionConfig
from sora_jax.tasks.typed import typed, without
from sora_jax.train import optimizer
from sora_jax.train.loop import LoopConfig
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.weights import store

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = {
  "tiny": ("", "smoke"),
  "tiny_clips": ("", "smoke"),
  "shipped": ("plain", "aspects", "large", "prompted", "tasks", "plain,smoke", "tasks,smoke"),
  "vae": (*vae_lib.SIZES, "tiny_second") + tuple(f"{s},smoke" for s in vae_lib.SIZES),
  "dit": (*dit_lib.SIZES,) + tuple(f"{s},smoke" for s in dit_lib.SIZES),
}
PLANNING = ROOT / "experiments" / "planning"
ALL = [(name, arg) for name, args in ARGUMENTS.items() for arg in args]


@pytest.fixture(scope="module", autouse=True)
def root_on_path():
  sys.path.insert(0, str(ROOT))
  yield
  sys.path.remove(str(ROOT))


def config_of(name, arg=""):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def test_every_config_file_is_listed_here():
  files = {p.stem for p in (ROOT / "configs").glob("*.py")} - {"base", "__init__"}
  assert files == ARGUMENTS.keys()


@pytest.mark.parametrize(("name", "arg"), ALL)
def test_configs_are_typed_and_possible(name, arg, tmp_path):
  c = config_of(name, arg).to_dict()
  typed(LoopConfig, "train", without(c["train"], *build.OF_THE_TASK))
  typed(OptimizerConfig, "optimizer", c["optimizer"])
  typed(DiffusionConfig, "diffusion", c["diffusion"])
  typed(LossConfig, "vae.loss", c["vae"]["loss"])
  dit = dit_config(c)
  assert sections.pipeline_config(c, dit.patch, 4).rows == c["data"]["rows"]
  if c["data"]["source"] == "world" and name != "vae":
    v = vae_lib.SIZES.get(c["vae"]["weights"], vae_lib.SIZES["tiny"])
    source = build.ClipsConfig("world", tmp_path, 1, sections.world_config(c))
    sections.fits(source, sections.pipeline_config(c, dit.patch, 4), v)


@pytest.mark.parametrize(("name", "arg"), ALL + [("shipped", size) for size in shipped.SIZES])
def test_no_config_asks_for_times_of_latent_frames_that_rows_have_no_slots_for(name, arg, caplog):
  c = config_of(name, arg).to_dict()
  with caplog.at_level("WARNING", "absl"):
    sections.pipeline_config(c, c["model"]["patch"], 4)
  assert not caplog.records


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"on": True}, "config.data.prompts.frame_times=0.15: a row has 16 times"),
    ({"on": True, "staged": 0.2, "frame_times": 0.0}, "config.data.prompts.staged=0.2: a row"),
    ({"caption_shots": 0.3}, "config.data.caption_shots=0.3: a row"),
    ({"on": True, "max_slots": 20}, None),
    ({"on": True, "frame_times": 0.0}, None),
    ({}, None),
  ],
)
def test_shares_that_rows_have_no_slots_for_are_warned_of(changes, told, caplog):
  c = config_of("base").to_dict()
  for key, value in changes.items():
    (c["data"] if key in c["data"] else c["data"]["prompts"])[key] = value
  with caplog.at_level("WARNING", "absl"):
    sections.pipeline_config(c, (1, 2, 2), 4)
  if told is None:
    assert not caplog.records
  else:
    (record,) = caplog.records
    assert told in record.message and "as with config.data.max_slots=48" in record.message


def dit_config(c):
  v = vae_lib.SIZES[c["vae"]["weights"]]
  return typed(
    dit_lib.DiTConfig, "model", without(c["model"], "precondition"), out_channels=v.latent,
    in_channels=cell_channels(v.latent, v.temporal), text_width=c["text"]["width"], classes=0,
    spread=(), level=(),
  )  # fmt: skip


@pytest.mark.parametrize("size", dit_lib.SIZES)
def test_sizes_reach_the_model(size):
  c = config_of("dit", size)
  for name in ("width", "depth", "heads"):
    assert c.model[name] == dit_lib.SIZES[size][name]
  assert c.text.width == dit_lib.SIZES[size]["text_width"]


MILLIONS = {
  "tiny": 1.917, "small": 5.363, "s": 30.49, "b": 120.9, "l": 416.2, "xl": 613.7, "3b": 2962,
  "10b": 10943,
}  # fmt: skip


@pytest.mark.parametrize("size", dit_lib.SIZES)
def test_the_transformers_that_configs_build_have_their_parameters(size):
  given = config_of("dit", size).to_dict()
  c = dit_config(given)
  if given["model"]["precondition"]:  # training takes both from the VAE; their values add nothing
    c = dataclasses.replace(c, spread=(1.0,) * c.out_channels, level=(1.0,) * c.out_channels)

  def make():
    """Parameters for one row of 8 tokens, with 4 of text."""
    tables = packing.place([[((1, 2, 2), 0.0)]], 8, 1)
    layout = packing.layout_of(tables | {"text_segment": np.zeros((1, 4), np.int32)})
    tokens, text = jnp.zeros((1, 8, c.cells * c.in_channels)), jnp.zeros((1, 4, c.text_width))
    return DiT(c).init(jax.random.key(0), tokens, jnp.zeros((1, 1)), layout, text)

  count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make)))
  assert count == pytest.approx(1e6 * MILLIONS[size], rel=0.01)


@pytest.mark.parametrize("leg", ["aspects", "large", "prompted", "tasks"])
def test_legs_of_the_shipped_transformer_train_one_model_on_rows_that_fit(leg, tmp_path):
  first, later = config_of("shipped", "plain").to_dict(), config_of("shipped", leg).to_dict()
  assert first["model"] == later["model"] and first["text"] == later["text"]
  source = build.ClipsConfig("world", tmp_path, 1, sections.world_config(later))
  pipeline = sections.pipeline_config(later, dit_config(later).patch, 4)
  sections.fits(source, pipeline, vae_lib.SIZES["tiny"])


@pytest.mark.parametrize("leg", ["early", "onward", "late"])
def test_legs_of_two_networks_go_on_from_the_shipped_model(leg):
  if "tiny" not in store.shipped():
    pytest.skip("no transformer is shipped")
  c = config_of("shipped", leg).to_dict()
  own = build.parts_of(c, autoencoder.load_autoencoder("tiny"))["dit"].config
  assert build.networks_beside(c, store.shipped()["tiny"], own).keys() == {
    "text",
    "dit",
    store.HIGH,
  }


@pytest.mark.parametrize("size", ["tiny", "s"])
def test_a_config_builds_at_true_size_without_memory(size):
  c = config_of("dit", size).to_dict()
  text = typed(text_lib.TextConfig, "text", without(c["text"], "tokenizer"), vocab_size=300)
  ids = jax.ShapeDtypeStruct((1, 8), "int32")
  shapes = jax.eval_shape(text_lib.TextEncoder(text).init, jax.random.key(0), ids, ids)
  transform = optimizer.make(OptimizerConfig(name="muon"))
  jax.eval_shape(transform.init, nn.meta.unbox(shapes["params"]))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_left_over_arguments_are_refused(name):
  for wrong in ("huge", "smoke,smoke", "tiny,nano,smoke"):
    with pytest.raises(ValueError, match="config argument"):
      config_of(name, wrong)


def test_the_base_lists_every_field_once():
  c = config_of("base").to_dict()
  owners = {
    "train": (LoopConfig, set(build.OF_THE_TASK), set()),
    "optimizer": (OptimizerConfig, set(), set()),
    "diffusion": (DiffusionConfig, set(), set()),
    "data.prompts": (PromptMix, {"on"}, set()),
    "evaluation": (sections.EvaluationConfig, set(), set()),
    "model": (
      dit_lib.DiTConfig, {"precondition"},
      {"in_channels", "out_channels", "text_width", "classes", "spread", "level"},
    ),
    "text": (text_lib.TextConfig, {"tokenizer"}, {"vocab_size"}),
  }  # fmt: skip
  for section, (cls, more, derived) in owners.items():
    fields = {f.name for f in dataclasses.fields(cls)}
    found = c
    for key in section.split("."):
      found = found[key]
    assert set(found) == (fields | more) - derived, section


def test_base_keys_carry_defaults_of_their_dataclasses():
  c = config_of("base")
  sections = {
    OptimizerConfig: c.optimizer, DiffusionConfig: c.diffusion, PromptMix: c.data.prompts,
  }  # fmt: skip
  for cls, section in sections.items():
    for field in dataclasses.fields(cls):
      assert section[field.name] == field.default, field.name


def test_a_misspelt_key_in_a_config_file_is_named():
  c = config_of("base")
  with pytest.raises(AttributeError, match='Did you mean "width"'):
    c.model.widht = 3


def test_no_config_is_read_with_a_default_of_its_own():
  places = [ROOT / "configs", ROOT / "sora_jax" / "tasks", ROOT / "sora_jax" / "train"]
  files = [p for place in places for p in place.rglob("*.py")] + [ROOT / "sora_jax" / "main.py"]
  pattern = re.compile(r"\b(c|w|d|e|config|data|world|train|tree)(\[[^]]*\])?\.get\(")
  for path in files:
    for number, line in enumerate(path.read_text().splitlines(), 1):
      assert not pattern.search(line), f"{path.name}:{number} reads a config with a default"


@functools.cache
def planned():
  """Configs for which experiments/planning finds the smallest slice."""
  spec = importlib.util.spec_from_file_location("smallest", PLANNING / "smallest.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return tuple(module.CONFIGS)


def stated_slice(name: str, size: str) -> str:
  """What a config's docstring says: `names slice; names slice`, or one slice for all."""
  text = " ".join(importlib.import_module(f"configs.{name}").__doc__.split())
  said = re.search(r"[Ss]mallest TPU slices[^:]*: (.*?\dx\d\w*)\.(?: |$)", text).group(1)
  parts = [part.rsplit(" ", 1) for part in said.split("; ")]
  for *names, found in parts:
    if not names or size in names[0].split(", "):
      return found
  return ""


@pytest.mark.parametrize("config", planned())
def test_every_config_says_which_slice_it_fits_as_compiled(config):
  name, _, size = config.partition(":")
  path = PLANNING / "results" / f"smallest_{config.replace(':', '_')}.json"
  found = json.loads(path.read_text())
  plan, fitted = found["plan"], [one["said"] == "fits" for one in found["tried"]]
  assert plan["fits"] and plan["hbm_bytes_per_chip"] <= plan["hbm_limit_bytes"]
  assert fitted == [False] * (len(fitted) - 1) + [True]
  assert stated_slice(name, size) == plan["topology"] == found["tried"][-1]["topology"]
  if plan["topology"] != "v5e:1x1":
    row = rf"\| `{name}.py:{size}` \| {plan['topology']} \|"
    assert re.search(row, (ROOT / "docs" / "pods.md").read_text())


def test_every_size_of_every_config_was_planned():
  sizes = {(name, arg) for name, arg in ALL if "smoke" not in arg}
  sizes |= {("shipped", leg) for leg in shipped.SIZES}
  assert {(name, size) for name, _, size in (c.partition(":") for c in planned())} == sizes


@pytest.mark.parametrize("config", ["dit:b", "dit:xl", "dit:3b", "dit:10b"])
def test_compiled_products_are_those_of_the_formula(config):
  for kind in ("smallest", "large"):
    path = PLANNING / "results" / f"{kind}_{config.replace(':', '_')}.json"
    plan = json.loads(path.read_text())["plan"]
    assert plan["fits"] and abs(plan["dot_flops_compiled"] / plan["dot_flops_formula"] - 1) < 0.03
