"""The diffusion transformer: packed rows against clips alone, leaks, sizes, names, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.nn.dit import DiT, DiTConfig
from sora_jax.ops import packing

CONFIG = DiTConfig(
  width=24, depth=2, heads=2, in_channels=5, out_channels=3, text_width=8, time_features=16
)
ROW_LEN, SEGMENTS, TEXT_LEN = 40, 4, 12
ROWS = [
  [((2, 3, 4), 12.0), ((1, 1, 1), 0.0), ((1, 2, 3), 0.0)],
  [((3, 2, 2), 24.0), ((2, 2, 5), 8.0)],
]
TEXTS = [[3, 1, 4], [5, 2]]


class Case:
  """A packed batch with random contents, and the same segments one by one."""

  def __init__(self, rows=ROWS, texts=TEXTS, config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    self.config, self.rows = config, rows
    self.clips = [
      [
        dict(
          grid=grid, fps=fps, time=rng.uniform(),
          tokens=rng.normal(size=(int(np.prod(grid)), config.cells * config.in_channels)),
          text=rng.normal(size=(length, config.text_width)),
          target=rng.normal(size=(int(np.prod(grid)), config.cells * config.out_channels)),
        )
        for (grid, fps), length in zip(row, lengths)
      ]
      for row, lengths in zip(rows, texts)
    ]  # fmt: skip
    self.batch = pack(self.clips)

  def alone(self):
    return [[pack([[clip]]) for clip in row] for row in self.clips]


def pack(clips, row_len=ROW_LEN, segments=SEGMENTS, text_len=TEXT_LEN):
  """Packs rows of clips; returns the arguments of the network and the targets."""
  tables = packing.place([[(c["grid"], c["fps"]) for c in row] for row in clips], row_len, segments)
  R = len(clips)
  first = clips[0][0]
  tokens = np.zeros((R, row_len, first["tokens"].shape[-1]), np.float32)
  target = np.zeros((R, row_len, first["target"].shape[-1]), np.float32)
  text = np.zeros((R, text_len, first["text"].shape[-1]), np.float32)
  text_segment = np.zeros((R, text_len), np.int32)
  time = np.zeros((R, segments), np.float32)
  for r, row in enumerate(clips):
    at = text_at = 0
    for s, clip in enumerate(row):
      n, m = len(clip["tokens"]), len(clip["text"])
      tokens[r, at : at + n], target[r, at : at + n] = clip["tokens"], clip["target"]
      text[r, text_at : text_at + m], text_segment[r, text_at : text_at + m] = clip["text"], s + 1
      time[r, s] = clip["time"]
      at, text_at = at + n, text_at + m
  layout = packing.layout_of({**tables, "text_segment": text_segment})
  return (jnp.asarray(tokens), jnp.asarray(time), layout, jnp.asarray(text)), target


def random_params(config, args, seed=1, scale=0.2):
  """Parameters with nothing left at zero: a fresh network ignores half of its inputs."""
  params = nn.meta.unbox(DiT(config).init(jax.random.key(0), *args))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  leaves = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return jax.tree.unflatten(tree, leaves)


def predict(config, params, args):
  return DiT(config).apply({"params": params}, *args)


def squared_error(config, params, args, target):
  error = jnp.square(predict(config, params, args).astype(jnp.float32) - target)
  return jnp.where((args[2].segment_RL > 0)[..., None], error, 0).sum()


def close(got, want, tolerance):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-30)


# bf16 keeps 8 bits: products and sums of the two programs may round apart by a few of 1/256.
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_packed_rows_equal_their_clips_alone(dtype, tolerance):
  config = DiTConfig(**{**vars(CONFIG), "dtype": dtype})
  case = Case(config=config)
  params = random_params(config, case.batch[0])
  both = jax.jit(jax.value_and_grad(squared_error, argnums=1), static_argnums=0)
  run = jax.jit(predict, static_argnums=0)
  packed = packing.unpack(run(config, params, case.batch[0]), case.batch[0][2].segment_RL)
  _, gradient = both(config, params, *case.batch)
  summed = jax.tree.map(jnp.zeros_like, params)
  for row, row_alone in zip(packed, case.alone()):
    for got, (args, target) in zip(row, row_alone):
      close(got, run(config, params, args)[0, : len(got)], tolerance)
      summed = jax.tree.map(jnp.add, summed, both(config, params, args, target)[1])
  for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(summed)):
    assert np.abs(want).max() > 0
    close(got, want, tolerance)
