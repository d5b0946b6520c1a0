"""The diffusion transformer: packed rows against clips alone, leaks, sizes, names, options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import SIZES, DiTConfig
from sora_jax.ops import packing, positions
from sora_jax.sharding import AXIS_RULES

CONFIG = DiTConfig(
  width=24, depth=2, heads=2, in_channels=5, out_channels=3, text_width=8, time_features=16,
  pooled_text=True,
)  # fmt: skip
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
    """Each clip in a batch of the same shape, so that one compiled program serves all."""
    empty = [[] for _ in self.clips[1:]]
    return [[pack([[clip], *empty]) for clip in row] for row in self.clips]


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
  shapes = nn.meta.unbox(jax.eval_shape(DiT(config).init, jax.random.key(0), *args))["params"]
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
  params = jax.tree.map(draw, shapes)
  gains = lambda path, x: x + 1 if path[-1].key == "scale" else x  # noqa: E731
  return jax.tree_util.tree_map_with_path(gains, params)


def predict(config, params, args):
  return DiT(config).apply({"params": params}, *args)


def squared_error(config, params, args, target):
  out = predict(config, params, args)
  error = jnp.square(out.astype(jnp.float32) - target)
  return jnp.where((args[2].segment_RL > 0)[..., None], error, 0).sum(), out


gradients = jax.jit(jax.grad(squared_error, argnums=1, has_aux=True), static_argnums=0)


def close(got, want, tolerance):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-30)


# bf16 keeps 8 bits: products and sums of differently placed clips may round apart by a few of them.
@pytest.mark.parametrize(
  "dtype, tolerance, spread",
  [
    (dtype, tolerance, spread)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 3e-2))
    for spread in ((), (6.0, 1.0, 0.1))
  ],
)
def test_packed_rows_equal_their_clips_alone(dtype, tolerance, spread):
  config = dataclasses.replace(CONFIG, dtype=dtype, spread=spread, level=spread[::-1])
  case = Case(config=config)
  params = random_params(config, case.batch[0])
  gradient, out = gradients(config, params, *case.batch)
  packed = packing.unpack(out, case.batch[0][2].segment_RL)
  summed = jax.tree.map(np.zeros_like, params)
  for row, row_alone in zip(packed, case.alone()):
    for got, (args, target) in zip(row, row_alone):
      its_gradient, its_out = gradients(config, params, args, target)
      close(got, its_out[0, : len(got)], tolerance)
      summed = jax.tree.map(lambda a, b: a + np.asarray(b), summed, its_gradient)
  for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(summed)):
    assert np.abs(want).max() > 0
    close(got, want, tolerance)


def test_padding_gives_zero_and_nothing_is_nan():
  case = Case()
  params = random_params(CONFIG, case.batch[0])
  gradient, out = gradients(CONFIG, params, *case.batch)
  padding = np.asarray(case.batch[0][2].segment_RL) == 0
  assert padding.any() and not np.asarray(out)[padding].any()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_nothing_leaks_between_segments():
  """Exactly 0, by perturbation and by gradient; within a segment, everything matters."""
  case = Case()
  args, _ = case.batch
  params = random_params(CONFIG, args)
  layout = args[2]
  first = np.asarray(layout.segment_RL) == 1
  first_text = np.asarray(layout.text_segment_RM) == 1

  def of_first(tokens, time, text):
    out = predict(CONFIG, params, (tokens, time, layout, text))
    return jnp.where(first[..., None], out, 0)

  @jax.jit
  def probe(tokens, time, text):
    out, pull = jax.vjp(of_first, tokens, time, text)
    return out, pull(jnp.ones_like(out))

  out, given = probe(args[0], args[1], args[3])
  for gradient, own in zip(given, (first, np.arange(SEGMENTS)[None] == 0, first_text)):
    gradient = np.asarray(gradient).reshape(len(first), gradient.shape[1], -1)
    own = np.broadcast_to(own, gradient.shape[:2])
    assert not gradient[~own].any()
    assert np.abs(gradient[own]).sum(-1).min() > 0
  other = np.random.default_rng(5)
  disturb = lambda x, own: x + np.where(own, 0, other.normal(size=x.shape)).astype(np.float32)  # noqa: E731
  moved, _ = probe(
    disturb(args[0], first[..., None]),
    disturb(args[1], np.arange(SEGMENTS)[None] == 0),
    disturb(args[3], first_text[..., None]),
  )
  assert np.array_equal(out, moved)
  moved, _ = probe(args[0] + 0.1, args[1], args[3])
  assert not np.array_equal(out, moved)


def test_order_of_segments_does_not_matter():
  case = Case()
  params = random_params(CONFIG, case.batch[0])
  gradient, out = gradients(CONFIG, params, *case.batch)
  turned, target = pack([row[::-1] for row in case.clips][::-1])
  its_gradient, its_out = gradients(CONFIG, params, turned, target)
  one = packing.unpack(out, case.batch[0][2].segment_RL)
  other = packing.unpack(its_out, turned[2].segment_RL)
  for row, its_row in zip(one, other[::-1]):
    for got, want in zip(row, its_row[::-1]):
      close(got, want, 1e-5)
  jax.tree.map(lambda a, b: close(a, b, 1e-5), gradient, its_gradient)


def test_every_token_may_have_its_own_time():
  """Two slots in one segment: each token's time reaches it, and one slot alone is the same."""
  case = Case(rows=[[((2, 2, 2), 12.0)]], texts=[[3]])
  (tokens, time, layout, text), _ = case.batch
  params = random_params(CONFIG, case.batch[0])
  slot_RL = jnp.where(layout.coord_RL3[..., 0] == 1, 1, 0) * (layout.segment_RL > 0)
  two = layout._replace(slot_RL=slot_RL, slot_segment_RQ=jnp.array([[1, 1, 0, 0]]))
  run = jax.jit(lambda time, layout: predict(CONFIG, params, (tokens, time, layout, text)))
  same = run(jnp.broadcast_to(time[:, :1], time.shape), two)
  close(run(time, layout), same, 1e-6)
  assert not np.allclose(run(time.at[0, 1].set(0.9).at[0, 0].set(0.1), two), same)


@functools.partial(jax.jit, static_argnames=("config", "methods"))
def predict_scaled(config, params, args, methods, extent=(1.5, 3.0)):
  """Prediction with positions scaled beyond an extent of 1.5 s and 3 tokens."""
  layout = args[2]
  fps = layout.fps_RS
  seconds = jnp.where(fps > 0, layout.grid_RS3[..., 0] / jnp.maximum(fps, 1), 0.0)
  scale = positions.position_scale(layout.grid_RS3, seconds, extent, methods)
  return DiT(config).apply({"params": params}, *args, position_scale=scale)


@pytest.mark.parametrize("methods", [("interpolate", "ntk"), ("ntk", "interpolate")])
def test_a_segment_too_large_is_scaled_and_its_neighbours_are_not(methods):
  """Packed as alone; what lies within the trained extent is predicted as without, to the bit."""
  rows = [[((2, 2, 3), 24.0), ((2, 2, 5), 0.5), ((1, 3, 2), 0.0)]]
  case = Case(rows=rows, texts=[[3, 1, 4]])
  args = case.batch[0]
  params = random_params(CONFIG, args)
  segment = args[2].segment_RL
  plain = packing.unpack(jax.jit(predict, static_argnums=0)(CONFIG, params, args), segment)[0]
  got = packing.unpack(predict_scaled(CONFIG, params, args, methods), segment)[0]
  for i in (0, 2):
    np.testing.assert_array_equal(got[i], plain[i])
  assert np.abs(got[1] - plain[1]).max() > 1e-3 * np.abs(plain[1]).max()
  for want, (alone, _) in zip(got, case.alone()[0]):
    close(predict_scaled(CONFIG, params, alone, methods)[0, : len(want)], want, 1e-5)
  with pytest.raises(ValueError, match="only rotary positions can be scaled"):
    predict_scaled(dataclasses.replace(CONFIG, position="sincos"), params, args, methods)


def shapes_of(config, rows=1, row_len=8, segments=2, text_len=4):
  """Parameters of a config as shapes with their logical names; nothing is computed."""

  def make():
    tables = packing.place([[]] * rows, row_len, segments)
    layout = packing.layout_of({**tables, "text_segment": np.zeros((rows, text_len), np.int32)})
    tokens = jnp.zeros((rows, row_len, config.cells * config.in_channels))
    text = jnp.zeros((rows, text_len, config.text_width)) if config.text_width else None
    label = jnp.zeros((rows, segments), jnp.int32) if config.classes else None
    return DiT(config).init(
      jax.random.key(0), tokens, jnp.zeros((rows, segments)), layout, text, label
    )["params"]

  return jax.eval_shape(make)


# The ladder of sizes was set by a formula that leaves out the smallest conditions: within 3 %.
@pytest.mark.parametrize(
  "name, millions",
  [("tiny", 1.8), ("small", 5.1), ("s", 30), ("b", 119), ("l", 412), ("xl", 606),
   ("3b", 2940), ("10b", 10900)],
)  # fmt: skip
def test_sizes_have_their_parameters(name, millions):
  shapes = shapes_of(DiTConfig(**SIZES[name]))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == pytest.approx(1e6 * millions, rel=0.03)


def test_dit_xl_2_has_the_papers_parameters():
  """675 M parameters (DiT paper, table 4) hold a label table of 1000 classes."""
  config = DiTConfig(
    width=1152, depth=28, heads=16, in_channels=4, out_channels=8, classes=1001, modulation="full",
    qk_norm="none", qkv_bias=True, position="sincos", fraction_octaves=0, size_condition=False,
  )  # fmt: skip
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config)))
  assert count == pytest.approx(675e6, rel=0.005)


@pytest.mark.parametrize(
  "options",
  [
    {},
    dict(modulation="full", classes=4, qkv_bias=True),
    dict(spread=(1.0,) * 3, level=(1.0,) * 3),
  ],
)
def test_every_parameter_names_its_axes(options):
  boxes = jax.tree.leaves(
    shapes_of(dataclasses.replace(CONFIG, **options)),
    is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
  )
  for box in boxes:
    assert isinstance(box, nn.LogicallyPartitioned)
    assert len(box.names) == len(box.value.shape)
    assert set(box.names) <= dict(AXIS_RULES).keys() and len(set(box.names)) == len(box.names), (
      box.names
    )


@pytest.mark.parametrize("options", [dict(remat="block"), dict(remat="dots"), dict(scan_unroll=2)])
def test_recomputation_and_unrolling_change_nothing(options):
  case = Case()
  params = random_params(CONFIG, case.batch[0])
  want, _ = gradients(CONFIG, params, *case.batch)
  got, _ = gradients(dataclasses.replace(CONFIG, **options), params, *case.batch)
  jax.tree.map(lambda a, b: close(a, b, 1e-5), got, want)


def test_a_fresh_network_predicts_zero_and_learns():
  case = Case()
  (tokens, time, layout, text), target = case.batch
  params = nn.meta.unbox(jax.jit(DiT(CONFIG).init)(jax.random.key(0), tokens, time, layout, text))[
    "params"
  ]
  gradient, out = gradients(CONFIG, params, (tokens, time, layout, text), target)
  assert not np.asarray(out).any()
  assert np.asarray(gradient["head"]["linear"]["kernel"]).any()


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(heads=5), "width 24 over 5 heads"),
    (dict(modulation="lora"), "modulation='lora'; choose one of single, full"),
    (dict(mlp_activation="swish"), "mlp_activation='swish'; choose one of gelu_tanh"),
    (dict(heads=12), "even head size of at least 6, got 2"),
    (dict(heads=0), "heads is 0; it must be at least 1"),
    (dict(depth=0), "depth is 0; it must be at least 1"),
    (dict(mlp_ratio=-1.0), "mlp_ratio is -1.0; it must be above 0"),
    (dict(mlp_ratio=float("inf")), "mlp_ratio is inf; it must be above 0, and finite"),
    (dict(norm_eps=float("nan")), "norm_eps is nan; it must be above 0"),
    (dict(rotary_theta=-1.0), "rotary_theta is -1.0; it must be above 0"),
    (dict(rotary_scale=()), r"rotary_scale is \(\); it must be three numbers above 0"),
    (dict(rotary_scale=(2.0,)), r"rotary_scale is \(2.0,\); it must be three"),
    (dict(rotary_scale=(1.0, float("nan"), 1.0)), "rotary_scale is .*; it must be three"),
    (dict(rotary_scale=(1.0, 2.0, 2.0)), r"rotary_scale=\(1.0, 2.0, 2.0\) does nothing with"),
    (dict(head_width=-1), "head_width is -1; it must be at least 0"),
    (dict(fraction_octaves=-1), "fraction_octaves is -1; it must be at least 0"),
    (dict(time_shift=16.0, time_features=32), "time_shift is 16.0; .* below half of time_features"),
    (dict(patch=(1, 2)), r"patch is \(1, 2\); it must be three whole numbers"),
  ],
)
def test_impossible_configs_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **options)


def test_inputs_that_do_not_fit_are_refused():
  (tokens, time, layout, text), _ = Case().batch
  net = DiT(CONFIG)
  with pytest.raises(ValueError, match="4 cells of 5 channels need 20"):
    jax.eval_shape(net.init, jax.random.key(0), tokens[..., :-1], time, layout, text)
  with pytest.raises(ValueError, match="text embeddings of width 0; the config's text_width is 8"):
    jax.eval_shape(net.init, jax.random.key(0), tokens, time, layout)
