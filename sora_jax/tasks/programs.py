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
from sora_jax.tasks.vae import VaeTask
from sora_jax.train import optimizer as optimizer_lib
from sora_jax.train import state as state_lib
from sora_jax.train import step as step_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.weights import folder as folder_lib

WORDS = 24
"""Text ids of a typical caption of the world."""


class Load(NamedTuple):
  """What a run of a program does with typical data, on all devices.

  tokens: real ones, or what else is counted. flops: of the products that the model needs for them,
  nothing recomputed. dots: the same for every position of every row, padding included, attention
  of long rows left out: what the compiled products should come to. near, far: of the block pairs
  of a row, the share in which tokens, and tokens and words, share a segment. unit: of `tokens`.
  """

  tokens: float
  flops: float
  dots: float
  near: float = 1.0
  far: float = 1.0
  unit: str = "real tokens"


class Program(NamedTuple):
  """A jitted function with the shapes of its arguments, placed on a mesh.

  run: what one run of it is called. static: arguments that are no arrays, by name.
  """

  function: Any
  arguments: tuple
  parameters: int
  load: Load
  run: str = "step"
  static: Mapping = {}


def train(config: Mapping, mesh: Mesh) -> Program:
  """The training step.  Raises: ValueError for a config that `build.check` would refuse, or that
  this mesh cannot share out."""
  task = build.sketch(config, mesh)
  optimizer = typed(OptimizerConfig, "optimizer", config["optimizer"])
  axes = task.axes()
  transform = optimizer_lib.make(optimizer, axes)
  shapes = jax.eval_shape(lambda: state_lib.create(task.init, transform, 0, 1))
  placed = sharding.of_state(mesh, shapes, axes)
  state = placed_shapes(shapes, placed)
  step = step_lib.make_step(task.loss, optimizer, config["train"]["accumulate"], axes, mesh, placed)
  batch = video_shapes(task) if isinstance(task, VaeTask) else row_shapes(task)
  load = video_load(task, batch) if isinstance(task, VaeTask) else load_of(config, task, mesh)
  own = optimizer_lib.product_flops(optimizer, shapes.params, axes)
  load = load._replace(dots=load.dots + own)
  names = task.batch_axes()
  lie = {name: NamedSharding(mesh, sharding.spec(*names.get(name, ("row",)))) for name in batch}
  return Program(step, (state, placed_shapes(batch, lie)), count(shapes.params), load)


def placed_shapes(shapes: Any, lie: Any) -> Any:
  """A tree of shapes with the shardings of another like it."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, lie
  )


def count(params: Any) -> int:
  """Entries of all arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def row_shapes(task: TextToVideo) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a step's batch over all hosts."""
  row, rows = empty_row(task.pipeline, task.dit.config.out_channels), task.pipeline.rows
  return {name: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype) for name, v in row.items()}


def video_shapes(task: VaeTask) -> dict[str, jax.ShapeDtypeStruct]:
  """The same for the autoencoder: of the batch with the most pixels."""
  sizes = {bucket: task.video.batch_size(bucket) for bucket in task.video.buckets}
  most = max(sizes, key=lambda bucket: bucket.size * sizes[bucket])
  video = jax.ShapeDtypeStruct((sizes[most], *most, 3), np.uint8)
  return {"video": video, "clip": jax.ShapeDtypeStruct((sizes[most],), np.int32)}


def video_load(task: VaeTask, batch: dict) -> Load:
  """The load of a step of the autoencoder's training."""
  cost = task.cost(batch)
  return Load(1000 * cost.tokens, cost.flops, cost.flops, unit="pixels")


def load_of(config: Mapping, task: TextToVideo, mesh: Mesh, sample: int = 32) -> Load:
  """The typical load of a step, from rows packed with clips such as the config's world makes.

  Clips of a folder are not known here: each row is then taken for one clip that fills it.

  Args: sample: rows that are packed to find out.
  """
  batch, c, dit = typical_rows(config, task, sample), task.pipeline, task.dit.config
  cost, scale = task.cost(batch), c.rows / sample
  sizes = c.row_len, c.text_row_len, c.max_slots
  dots = costs.product_flops(task.matrix_sizes, dit, task.text.config, *sizes).training
  dots += costs.slot_products(dit, c.row_len, c.max_slots, mesh.shape["tensor"])
  near, far = shared(batch)
  return Load(cost.tokens * scale, cost.flops * scale, dots * c.rows, near, far)


def shared(batch: dict) -> tuple[float, float]:
  """Shares of a batch's block pairs in which tokens, and tokens and words, share a segment."""
  own, words = jnp.asarray(batch["segment"]), jnp.asarray(batch["text_segment"])
  block, text_block = (splash.block_of(x.shape[1]) for x in (own, words))
  near = block_plan.shared_blocks(own, own, block, block)
  far = block_plan.shared_blocks(own, words, block, text_block)
  return float(near.mean()), float(far.mean())


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
