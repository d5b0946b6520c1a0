"""Copied random weights of diffusers' transformers give their outputs."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import dit_import
from sora_jax.nn.dit import DiT
from sora_jax.ops import packing
from sora_jax.ops.patchify import patchify, token_grid, unpatchify

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def live(name):
  for module in ("torch", "diffusers"):
    pytest.importorskip(module)
  spec = importlib.util.spec_from_file_location("make_dit", GOLDEN / "make_dit.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return getattr(module, f"make_{name}")(seed=1)


def saved(name):
  return dict(np.load(GOLDEN / f"{name}.npz"))


def split(case):
  groups = {"weights": {}, "inputs": {}}
  for key, value in case.items():
    group, _, rest = key.partition("/")
    if group in groups:
      groups[group][rest] = value
  return json.loads(str(case["config"])), groups["weights"], groups["inputs"], case["output"]


def ours(config, params, latent_BthwZ, time_B, text_BMU=None, label_B=None):
  """Our network on a batch of equal clips: one row each."""
  B, t, h, w, _ = latent_BthwZ.shape
  grid = token_grid((t, h, w), config.patch)
  tables = packing.place([[(grid, 24.0)]] * B, grid.size + 3, 2)
  M = 1 if text_BMU is None else text_BMU.shape[1]
  layout = packing.layout_of({**tables, "text_segment": np.ones((B, M), np.int32)})
  tokens = np.pad(patchify(latent_BthwZ, config.patch), ((0, 0), (0, 3), (0, 0)))
  time_B2 = jnp.stack([jnp.asarray(time_B)] * 2, axis=1).astype(jnp.float32)
  label_B2 = None if label_B is None else jnp.stack([jnp.asarray(label_B)] * 2, axis=1)
  text = None if text_BMU is None else jnp.asarray(text_BMU)
  params = jax.tree.map(jnp.asarray, params)
  out = jax.jit(DiT(config).apply)(
    {"params": params}, jnp.asarray(tokens), time_B2, layout, text, label_B2
  )
  assert not np.asarray(out[:, grid.size :]).any()
  return unpatchify(np.asarray(out[:, : grid.size]), grid, config.patch)


def same_structure(config, params, **shapes):
  """The imported tree has exactly the parameters that the network would make."""
  made = jax.eval_shape(
    lambda: DiT(config).init(
      jax.random.key(0),
      jnp.zeros((1, 4, config.cells * config.in_channels)),
      jnp.zeros((1, 1)),
      packing.layout_of(
        {**packing.place([[((1, 2, 2), 24.0)]], 4, 1), "text_segment": np.ones((1, 2), np.int32)}
      ),
      jnp.zeros((1, 2, config.text_width)) if config.text_width else None,
      jnp.zeros((1, 1), jnp.int32) if config.classes else None,
    )
  )["params"]
  from flax import linen as nn

  made = jax.tree.map(lambda x: x.shape, nn.meta.unbox(made))
  assert jax.tree.map(lambda x: x.shape, params) == made


@pytest.mark.parametrize("source", [saved, pytest.param(live, marks=pytest.mark.oracle)])
def test_dit_gives_diffusers_outputs(source):
  theirs, weights, inputs, want = split(source("dit"))
  config = dit_import.dit_config(theirs)
  params = dit_import.from_dit(config, weights)
  same_structure(config, params)
  got = ours(
    config, params, inputs["hidden_states"].transpose(0, 2, 3, 1)[:, None],
    inputs["timestep"] / 1000, label_B=inputs["class_labels"],
  )  # fmt: skip
  np.testing.assert_allclose(got[:, 0].transpose(0, 3, 1, 2), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", [saved, pytest.param(live, marks=pytest.mark.oracle)])
def test_wan_gives_diffusers_outputs(source):
  theirs, weights, inputs, want = split(source("wan"))
  config = dit_import.wan_config(theirs)
  params = dit_import.from_wan(config, weights)
  same_structure(config, params)
  got = ours(
    config, params, inputs["hidden_states"].transpose(0, 2, 3, 4, 1),
    inputs["timestep"] / 1000, text_BMU=inputs["encoder_hidden_states"],
  )  # fmt: skip
  np.testing.assert_allclose(got.transpose(0, 4, 1, 2, 3), want, atol=1e-4, rtol=0)


def test_blocks_with_other_embedders_are_refused():
  theirs, weights, _, _ = split(saved("dit"))
  name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
  weights[name] = weights[name] + 1
  with pytest.raises(ValueError, match="block 1 embeds time or class unlike block 0"):
    dit_import.from_dit(dit_import.dit_config(theirs), weights)


@pytest.mark.parametrize("name", ["dit", "wan"])
def test_weights_without_a_place_are_refused(name):
  theirs, weights, _, _ = split(saved(name))
  config = getattr(dit_import, f"{name}_config")(theirs)
  read = getattr(dit_import, f"from_{name}")
  extra = {"vace_blocks.0.proj_out.bias": np.zeros(3), "vace_blocks.0.proj_out.weight": np.eye(3)}
  with pytest.raises(ValueError, match="2 weights have no place .* vace_blocks.0.proj_out.bias"):
    read(config, {**weights, **extra})
  with pytest.raises(ValueError, match=r"weights have no place .* \w*blocks.1.attn1"):
    read(dataclasses.replace(config, depth=1), weights)


def test_the_norms_of_diffusers_are_taken_as_they_were_trained():
  theirs, _, _, _ = split(saved("dit"))
  del theirs["norm_eps"]  # as in the published config, where diffusers reads 1e-5
  for given in ({}, {"norm_eps": 1e-5}, {"norm_eps": 1e-6}):
    assert dit_import.dit_config(theirs | given).norm_eps == 1e-6
  with pytest.raises(ValueError, match="norm_eps=0.001; only 1e-6 and 1e-5 are taken"):
    dit_import.dit_config({**theirs, "norm_eps": 1e-3})


@pytest.mark.oracle
def test_diffusers_norm_eps_sets_the_norms_before_the_mlps_alone():
  pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  network = diffusers.DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, num_embeds_ada_norm=8
  )
  eps = {name: layer.eps for name, layer in network.named_modules() if hasattr(layer, "eps")}
  assert network.config.norm_eps == 1e-5 and len(eps) == 5
  assert {name: 1e-5 if name.endswith("norm3") else 1e-6 for name in eps} == eps


def test_options_we_do_not_have_are_refused():
  theirs, _, _, _ = split(saved("wan"))
  with pytest.raises(ValueError, match="image_dim=1280; only None is supported"):
    dit_import.wan_config({**theirs, "image_dim": 1280})
