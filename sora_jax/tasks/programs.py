"""The true programs of a config, with the shapes of what they are given, to be compiled and not
run: what `plan` plans."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from sora_jax import sharding
from sora_jax.data.streams import empty_row
from sora_jax.nn import vae as vae_lib
from sora_jax.ops import block_plan, splash
from sora_jax.tasks import build, costs, sections
from sora_jax.tasks.text_to_video import TextToVideo
from sora_jax.tasks.typed import typed
from sora_jax.train import optimizer as optimizer_lib
from sora_jax.train import state as state_lib
from sora_jax.train import step as step_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.weights import folder as folder_lib

WORDS = 24
"""Text ids of a typical caption of the world."""


class Load(NamedTuple):
  """What a run of a program does with typical data, on all devices.

  tokens: real ones. flops: of the products that the model needs for them, forward and backward,
  nothing recomputed. dots: the same for every position of every row, padding included, attention
  of long rows left out: what the compiled products should come to. near, far: of the block pairs
  of a row, the share in which tokens, and tokens and words, share a segment.
  """

  tokens: float
  flops: float
  dots: float
  near: float
  far: float


class Program(NamedTuple):
  """A jitted function with the shapes of its arguments, placed on a mesh."""

  function: Any
  arguments: tuple
  parameters: int
  load: Load


def train(config: Mapping, mesh: Mesh) -> Program:
  """The training step.  Raises: ValueError for a config that `build.check` would refuse, or that
  this mesh cannot share out."""
  task = build.sketch(config, mesh)
  optimizer = typed(OptimizerConfig, "optimizer", config["optimizer"])
  axes = task.axes()
  transform = optimizer_lib.make(optimizer, axes)
  shapes = jax.eval_shape(lambda: state_lib.create(task.init, transform, 0, 1))
  placed = sharding.of_state(mesh, shapes, axes)
  state = jax.tree.map(
    lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), shapes, placed
  )
  step = step_lib.make_step(task.loss, optimizer, config["train"]["accumulate"], axes, mesh, placed)
  rows = task.pipeline.rows
  return Program(
    step, (state, batch_shapes(task, mesh)), _count(shapes.params),
    load_of(config, task, rows),
  )  # fmt: skip


def batch_shapes(task: TextToVideo, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a step's batch over all hosts, placed as `sharding.put_batch` does."""
  axes = task.batch_axes()

  def of(name: str, row: np.ndarray) -> jax.ShapeDtypeStruct:
    names = axes.get(name, ("row",))
    lies = NamedSharding(mesh, sharding.spec(*names))
    return jax.ShapeDtypeStruct((task.pipeline.rows, *row.shape), row.dtype, sharding=lies)

  row = empty_row(task.pipeline, task.dit.config.out_channels)
  return {name: of(name, value) for name, value in row.items()}


def load_of(config: Mapping, task: TextToVideo, rows: int, sample: int = 32) -> Load:
  """The typical load of a step, from rows packed with clips such as the config's world makes.

  Clips of a folder are not known here: each row is then taken for one clip that fills it.

  Args:
    rows: of a step. sample: rows that are packed to find out.
  """
  batch = typical_rows(config, task, sample)
  cost, scale = task.cost(batch), rows / sample
  c = task.pipeline
  dots = costs.product_flops(
    task.matrix_sizes, task.dit.config, task.text.config, c.row_len, c.text_row_len, c.max_slots
  )
  own, words = jnp.asarray(batch["segment"]), jnp.asarray(batch["text_segment"])
  block, text_block = splash.block_of(c.row_len), splash.block_of(c.text_row_len)
  near = block_plan.shared_blocks(own, own, block, block)
  far = block_plan.shared_blocks(own, words, block, text_block)
  return Load(
    cost.tokens * scale, cost.flops * scale, dots * rows, float(near.mean()), float(far.mean())
  )


def typical_rows(config: Mapping, task: TextToVideo, rows: int) -> dict[str, np.ndarray]:
  """Segment ids of `rows` rows of clips drawn as the world draws them, the longest placed first."""
  c, rng = task.pipeline, np.random.default_rng(0)
  tables = ("segment", "text_segment", "grid", "clip", "slots", "slot", "slot_text")
  empty = empty_row(c, task.dit.config.out_channels)
  batch = {name: np.stack([empty[name]] * rows) for name in tables if name in empty}
  words = min(WORDS, c.text_row_len)
  drawn = [clip_tokens(config, task, rng)]
  while sum(drawn) < rows * c.row_len:
    drawn.append(clip_tokens(config, task, rng))
  end, texts, count = [0] * rows, [0] * rows, [0] * rows
  for n in sorted(drawn, reverse=True):
    fits = (
      r for r in range(rows)
      if end[r] + n <= c.row_len and texts[r] + words <= c.text_row_len
      and count[r] < c.max_segments
    )  # fmt: skip
    r = next(fits, None)
    if r is None:
      continue
    batch["clip"][r, count[r]], batch["slots"][r, count[r]] = 0, 1
    count[r] += 1
    batch["segment"][r, end[r] : end[r] + n] = count[r]
    batch["text_segment"][r, texts[r] : texts[r] + words] = count[r]
    if "slot_text" in batch:
      batch["slot_text"][r, count[r] - 1] = count[r]
    end[r], texts[r] = end[r] + n, texts[r] + words
  return batch


def clip_tokens(config: Mapping, task: TextToVideo, rng: np.random.Generator) -> int:
  """Tokens of a clip drawn at random, at most a row's."""
  c = task.pipeline
  if config["data"]["source"] != "world":
    return c.row_len
  world = sections.world_config(config)
  v = vae_lib.VAEConfig(**folder_lib.frozen(task.vae.config["network"]))
  width, height = world.sizes[rng.integers(len(world.sizes))]
  frames = 1 if rng.random() < world.image_fraction else world.frames[
    rng.integers(len(world.frames))
  ]  # fmt: skip
  return min(sections.tokens_of(width, height, frames, v, c.patch), c.row_len)


def _count(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))
