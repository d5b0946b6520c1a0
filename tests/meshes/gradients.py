"""First loss and gradients of text to video on meshes of eight devices, against one device.

One JSON line a mesh: its name, the worst relative difference of a leaf (of loss, sums and
gradients), and how many parameters are stored in parts. A last line, "muon": the same of the update
that Muon makes of the blocks' gradients on one mesh, and what share of its momentum a device holds.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax import sharding
from sora_jax.data.pipeline import PipelineConfig
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops import packing
from sora_jax.tasks.text_to_video import DiffusionConfig, TextToVideo
from sora_jax.train import optimizer, step

R, L, S, M = 8, 64, 6, 32
MESHES = (
  ((1, 1, 1, 1), "auto"), ((8, 1, 1, 1), "auto"), ((1, 8, 1, 1), "auto"), ((2, 2, 2, 1), "ring"),
  ((1, 2, 2, 2), "ulysses"),
)  # fmt: skip


def task() -> TextToVideo:
  dit = DiTConfig(
    width=32, depth=2, heads=4, in_channels=12, out_channels=4, text_width=16, head_width=32,
    pooled_text=True, remat="block",
  )  # fmt: skip
  text = TextConfig(vocab_size=64, width=16, depth=1, heads=4, head_size=8, mlp_width=32)
  pipeline = PipelineConfig(rows=R, row_len=L, max_segments=S, text_row_len=M, streams=R)
  return TextToVideo(
    DiT(dit), TextEncoder(text), DiffusionConfig(), pipeline, None, None, 4, "bytes", {}
  )


def batch() -> dict:
  """Rows of clips of all sizes: every device has other numbers of real tokens."""
  rng, rows = np.random.default_rng(0), []
  for _ in range(R):
    row = []
    while len(row) < S:
      grid = tuple(int(n) for n in rng.integers(1, (4, 5, 5)))
      if sum(np.prod(g) for g, _ in row) + np.prod(grid) > L:
        break
      row.append((grid, 8.0))
    rows.append(row)
  out = packing.place(rows, L, S)
  real = (out["segment"] > 0)[..., None]
  out["patch"] = (rng.normal(size=(R, L, 16)) * real).astype(np.float32)
  out["text"] = rng.integers(1, 64, (R, M)).astype(np.int32)
  texts = [np.sort(rng.integers(1, len(row) + 1, M)) for row in rows]
  out["text_segment"] = np.stack(texts).astype(np.int32)
  out["clip"] = np.zeros((R, S), np.int32)
  return out


def noisy(task):
  """Parameters drawn around 0: gates and heads start there, which hides what lies behind them."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape).astype(x.dtype), shapes)


def run(task, params, batch, mesh, accumulate=1):
  """Sums and gradients of the first step."""

  @jax.jit
  def first(params, batch):
    with sharding.using(mesh):
      return step.accumulated_gradients(
        task.loss, params, batch, jax.random.key(3), jnp.zeros(()), accumulate
      )

  return first(params, batch)


def update(axes, params, grads, mesh=None):
  """Muon's update for these gradients, and its state, placed as in training."""
  transform = optimizer.make(optimizer.OptimizerConfig(name="muon"), axes)
  state = transform.init(params)
  if mesh is not None:
    state = jax.device_put(state, sharding.of_state(mesh, state, axes))
  return jax.jit(transform.update)(grads, state, params)[0], state


def muon(axes, params, grads) -> dict:
  """How far the update on a mesh is from that on one device, and what share of the momentum of all
  matrices a device holds."""
  mesh = sharding.make_mesh((2, 2, 2, 1))
  want, _ = update(axes, params, grads)
  got, state = update(axes, jax.device_put(params, sharding.of_tree(mesh, axes)), grads, mesh)
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  held = [x for path, x in leaves if "muon" in str(path) and x.ndim > 1]
  here = sum(x.addressable_shards[0].data.size for x in held) / sum(x.size for x in held)
  return {"name": "muon", "error": worst(jax.device_get(got), jax.device_get(want)), "share": here}


def worst(got, want) -> float:
  """The largest difference of two trees, each leaf's over its largest value."""
  error = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)), got, want
  )
  return max(jax.tree.leaves(error))


def main():
  alone, rows = task(), batch()
  params = noisy(alone)
  want = jax.device_get(run(alone, params, rows, None))
  for shape, method in MESHES:
    mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    on = dataclasses.replace(alone, context_method=method).on(mesh)
    placed = jax.device_put(params, sharding.of_tree(mesh, on.axes()))
    put = sharding.put_batch(mesh, rows, on.batch_axes())
    got = jax.device_get(run(on, placed, put, mesh))
    parts = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    name = f"{'x'.join(map(str, shape))} {method}"
    print(json.dumps({"name": name, "error": worst(got, want), "parts": parts}))
  trees = (alone.axes(), params, want[1])
  print(json.dumps(muon(*(tree["dit"]["blocks"] for tree in trees))))


if __name__ == "__main__":
  main()
