"""Large sizes, traced without memory: 2048x2048, and 81 frames of 1920x1080, `base` VAE, `xl` DiT.

Nothing is computed: what is checked is the count of tokens, that every program can be built at such
sizes, and that no program of the transformer holds all pairs of a row's tokens.
"""

import functools
import importlib
import math
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.extend
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.data import transforms
from sora_jax.nn import text as text_lib
from sora_jax.nn import vae, vae_streaming, vae_tiles
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.ops import attention, flash, packing
from sora_jax.ops.patchify import cell_channels
from sora_jax.prompting import requests, sampling
from sora_jax.prompting.requests import Request, RowShape
from sora_jax.shapes import Grid, Patch
from sora_jax.tasks.text_to_video import DiffusionConfig
from sora_jax.tasks.typed import typed, without

ROOT = pathlib.Path(__file__).parents[1]
IDS = tuple(range(2, 40)) + (1,)
TILE = 32


class Clip(NamedTuple):
  """What is asked for, and what the rules of sizes have to make of it."""

  frames: int
  width: int
  height: int
  padded: tuple[int, int, int]
  grid: Grid
  tokens: int


CLIPS = {
  "image": Clip(1, 2048, 2048, (1, 2048, 2048), Grid(1, 128, 128), 16384),
  "video": Clip(81, 1920, 1080, (81, 1088, 1920), Grid(21, 68, 120), 171360),
}
each_clip = pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)


def spec(*shape, dtype="float32"):
  return jax.ShapeDtypeStruct(shape, dtype)


def specs(tree):
  return jax.tree.map(lambda x: spec(*x.shape, dtype=x.dtype), tree)


class Networks(NamedTuple):
  """The networks as configs name them, and their parameters as shapes."""

  autoencoder: vae.VAEConfig
  variables: dict
  dit: DiTConfig
  text: text_lib.TextConfig
  rows: RowShape
  diffusion: DiffusionConfig
  params: dict

  @property
  def patch(self):
    return Patch(*self.dit.patch)


@functools.cache
def networks() -> Networks:
  sys.path.insert(0, str(ROOT))
  try:
    of = lambda name, size: importlib.import_module(f"configs.{name}").get_config(size).to_dict()  # noqa: E731
    v, c = vae.SIZES[of("vae", "base")["vae"]["size"]], of("dit", "xl")
  finally:
    sys.path.remove(str(ROOT))
  assert c["vae"]["weights"] == "base"
  dit = typed(
    DiTConfig, "model", without(c["model"], "precondition"), text_width=c["text"]["width"],
    out_channels=v.latent, in_channels=cell_channels(v.latent, v.temporal), classes=0,
    spread=(1.0,) * v.latent, level=(1.0,) * v.latent,
  )  # fmt: skip
  text = typed(text_lib.TextConfig, "text", without(c["text"], "tokenizer"), vocab_size=300)
  rows = RowShape(*(c["data"][name] for name in ("row_len", "max_segments", "text_row_len")))
  key, ids = jax.random.key(0), spec(1, 8, dtype="int32")
  made = {
    "dit": jax.eval_shape(DiT(dit).init, key, *inputs(dit, [], 8)),
    "text": jax.eval_shape(text_lib.TextEncoder(text).init, key, ids, ids),
  }
  params = {name: nn.meta.unbox(tree["params"]) for name, tree in made.items()}
  variables = nn.meta.unbox(jax.eval_shape(lambda: vae.init(v, jax.random.key(0))))
  diffusion = typed(DiffusionConfig, "diffusion", c["diffusion"])
  return Networks(v, variables, dit, text, rows, diffusion, params)


def inputs(config, segments, row_len, text_row_len=8):
  """Shapes of the network's inputs for one row of (token grid, frames per second)."""
  slots = max(len(segments), 1)
  tables = packing.place([segments], row_len, slots)
  layout = packing.layout_of({**tables, "text_segment": np.zeros((1, text_row_len), np.int32)})
  tokens = spec(1, row_len, config.cells * config.in_channels)
  text = spec(1, text_row_len, config.text_width)
  return tokens, spec(1, slots), specs(layout), text


def largest(closed) -> int:
  """Elements of the largest array in a program, loops and calls inside it included."""

  def arrays(jaxpr):
    for variable in (*jaxpr.invars, *jaxpr.constvars):
      yield variable.aval
    for equation in jaxpr.eqns:
      for variable in equation.outvars:
        yield variable.aval
      for inner in jax.extend.core.jaxprs_in_params(equation.params):
        yield from arrays(inner)

  return max(math.prod(getattr(aval, "shape", ())) for aval in arrays(closed.jaxpr))


@each_clip
def test_sizes_have_their_tokens(clip):
  n = networks()
  v, patch = n.autoencoder, n.patch
  assert (v.temporal, v.spatial, patch) == (4, 8, Patch(1, 2, 2))
  frame = np.broadcast_to(np.uint8(0), (1, clip.height, clip.width, 3))
  _, *sides, _ = transforms.pad_size(frame, v.spatial * math.lcm(patch.h, patch.w)).shape
  padded = (transforms.padded_frames(clip.frames, v.temporal), *sides)
  assert padded == clip.padded
  cells = v.latent_shape(*padded)
  grid = Grid(*(cell // p for cell, p in zip(cells, patch)))
  assert grid == clip.grid and grid.size == clip.tokens
  assert [cell % p for cell, p in zip(cells, patch)] == [0, 0, 0]
  assert len(packing.token_coords(grid)) == clip.tokens


def stream(config, variables, frames, height, width, cells):
  """Traces encoding and decoding in chunks; the sizes are those of one frame and its latents."""
  run = {name: functools.partial(jax.eval_shape, f) for name, f in
         vae_streaming.programs(config).items()}  # fmt: skip
  latent, state = run["encode_first"](variables, spec(1, 1, height, width, 3))
  assert latent.shape == (1, 1, *cells, config.latent)
  video, back = run["decode_first"](variables, latent)
  assert video.shape == (1, 1, height, width, 3)
  if frames > 1:
    chunk = spec(1, config.temporal, height, width, 3)
    latent, after = run["encode_next"](variables, state, chunk)
    assert latent.shape == (1, 1, *cells, config.latent)
    assert specs(after) == specs(state)  # one program for all chunks after the first
    video, after = run["decode_next"](variables, back, latent)
    assert video.shape == chunk.shape and specs(after) == specs(back)


@each_clip
def test_the_autoencoder_streams_whole_frames(clip):
  n = networks()
  v, (frames, height, width) = n.autoencoder, clip.padded
  t, h, w = v.latent_shape(*clip.padded)
  stream(v, n.variables, frames, height, width, (h, w))
  decode = functools.partial(vae_streaming.decode_scanned, v)
  video = jax.eval_shape(decode, n.variables, spec(1, t, h, w, v.latent))
  assert video.shape == (1, *clip.padded, 3) and video.dtype == np.float32


@each_clip
def test_the_autoencoder_streams_tiles_that_make_the_frame(clip):
  n = networks()
  v, (frames, *_) = n.autoencoder, clip.padded
  _, *cells = v.latent_shape(*clip.padded)
  for decoding in (False, True):
    unit, lengths = v.spatial if decoding else 1, []
    for side in cells:
      tiles = vae_tiles.plan(v, side, TILE, decoding)
      edges = [0] + [tile.write.stop for tile in tiles]
      assert [tile.write.start for tile in tiles] == edges[:-1] and edges[-1] == side * unit
      for tile in tiles:
        assert tile.keep.stop - tile.keep.start == tile.write.stop - tile.write.start
      (length,) = {tile.read.stop - tile.read.start for tile in tiles}
      lengths.append(length if decoding else length // v.spatial)
    assert math.prod(lengths) < math.prod(cells)
    stream(v, n.variables, frames, *(v.spatial * length for length in lengths), tuple(lengths))


def forward(config, attend, segments, row_len, text_row_len):
  """The transformer's program on one row."""
  args = inputs(config, segments, row_len, text_row_len)
  params = networks().params["dit"]
  network = DiT(config, attend)
  return jax.make_jaxpr(lambda p, *args: network.apply({"params": p}, *args))(params, *args)


@pytest.mark.parametrize("names", [("image",), ("video",), ("video", "image")], ids="+".join)
def test_the_transformer_takes_such_rows_without_all_pairs(names):
  n = networks()
  segments = [(CLIPS[name].grid, 24.0 if name == "video" else 0.0) for name in names]
  row_len = sum(CLIPS[name].tokens for name in names)
  program = forward(n.dit, flash.attend, segments, row_len, n.rows.text_row_len)
  (out,) = program.out_avals
  assert out.shape == (1, row_len, n.dit.cells * n.dit.out_channels) and out.dtype == np.float32
  assert largest(program) < row_len**2
  if names == ("image",):  # all scores at once are seen, if they are there
    dense = forward(n.dit, attention.attention, segments, row_len, n.rows.text_row_len)
    assert largest(dense) == n.dit.heads * row_len**2


@each_clip
def test_the_sampler_is_one_program_without_all_pairs(clip):
  n = networks()
  dit, encoder, v = DiT(n.dit), text_lib.TextEncoder(n.text), n.autoencoder

  def predict(p, tokens, time, layout, text, scale=None):
    return dit.apply({"params": p}, tokens, time, layout, text, position_scale=scale)

  sampler = sampling.Sampler(
    predict, lambda p, ids, segment: encoder.apply({"params": p}, ids, segment),
    patch=n.patch, channels=v.latent, frames_per_latent=v.temporal, kind=n.diffusion.prediction,
    shift=n.diffusion.shift_config, rows=n.rows, null_ids=(1,),
  )  # fmt: skip
  group = [Request("p", IDS, clip.grid, 0.0 if clip.frames == 1 else 24.0, guidance=5.0)]
  shape = requests.shape_for(group, n.rows)
  assert clip.tokens <= shape.row_len < 2 * clip.tokens
  ((batch, _),) = requests.batches(group, shape, n.patch, v.latent, v.temporal, (1,))
  batch = specs(batch)
  tables = {name: batch[name] for name in ("key", "segment", "coord")}
  batch["noise"] = jax.eval_shape(sampler.noise, tables)
  method = sampling.Method(
    branches=sampling.branches(group), rotary_method="ntk", trained_extent=(65 / 24, 20)
  )
  program = jax.make_jaxpr(functools.partial(sampler.sample_rows, method=method))(n.params, batch)
  (out,) = program.out_avals
  assert out.shape == batch["noise"].shape == (1, shape.row_len, n.dit.cells * v.latent)
  assert largest(program) < shape.row_len**2
