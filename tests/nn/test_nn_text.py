"""The text encoder: packed equals alone, nothing leaks, published sizes have published counts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import text

SMALL = {"vocab_size": 50, "width": 16, "heads": 2, "head_size": 6, "mlp_width": 20}
CONFIGS = {
  "relu_shared": text.TextConfig(**SMALL),
  "gated_each": text.TextConfig(**SMALL, activation="gated_gelu", shared_bias=False),
}
LENGTHS = (7, 1, 11)
ROW_LEN = 24


@functools.cache
def encoder(name, dtype="float32"):
  config = text.dataclasses.replace(CONFIGS[name], dtype=dtype)
  module = text.TextEncoder(config)
  ids_RM = jnp.zeros((1, ROW_LEN), jnp.int32)
  variables = nn.meta.unbox(jax.jit(module.init)(jax.random.key(1), ids_RM, ids_RM))
  return jax.jit(module.apply), variables


def packed(order=(0, 1, 2), row_len=ROW_LEN, gap=0):
  """Texts of LENGTHS in the given order after `gap` padding tokens: (ids, segments, spans)."""
  ids_M, segment_M, spans, start = np.zeros(row_len, "i4"), np.zeros(row_len, "i4"), {}, gap
  for place, which in enumerate(order):
    stop = start + LENGTHS[which]
    ids_M[start:stop] = np.random.default_rng(which).integers(3, 50, LENGTHS[which])
    segment_M[start:stop] = place + 1
    spans[which] = slice(start, stop)
    start = stop
  return ids_M[None], segment_M[None], spans


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_packed_equals_alone_at_any_place_in_the_row(name, dtype, tolerance):
  apply, variables = encoder(name, dtype)
  ids_RM, segment_RM, spans = packed(order=(2, 0, 1), gap=2)
  out_MU = np.asarray(apply(variables, ids_RM, segment_RM), np.float32)[0]
  assert (out_MU[segment_RM[0] == 0] == 0).all()
  for which, span in spans.items():
    alone_RM, one_RM, alone_spans = packed(order=(which,))
    alone_MU = np.asarray(apply(variables, alone_RM, one_RM), np.float32)[0][alone_spans[which]]
    assert np.abs(out_MU[span] - alone_MU).max() <= tolerance * np.abs(alone_MU).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_a_packed_row_are_the_sum_of_those_alone(name):
  apply, variables = encoder(name)

  def loss(variables, ids_RM, segment_RM):
    out_RMU = apply(variables, ids_RM, segment_RM)
    return jnp.sum(jnp.sin(3 * out_RMU))

  gradient = jax.jit(jax.grad(loss))
  together = gradient(variables, *packed()[:2])
  alone = [gradient(variables, *packed(order=(i,))[:2]) for i in range(len(LENGTHS))]
  total = jax.tree.map(lambda *leaves: sum(leaves), *alone)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(total))
  for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(total)):
    assert float(jnp.abs(a - b).max()) <= 1e-5 * largest


@pytest.mark.parametrize("name", CONFIGS)
def test_no_segment_sees_another_or_the_padding(name):
  apply, variables = encoder(name)
  ids_RM, segment_RM, spans = packed(gap=1)
  before = np.asarray(apply(variables, ids_RM, segment_RM))[0]
  changed_RM = ids_RM.copy()
  changed_RM[0, spans[1]] += 1
  changed_RM[0, segment_RM[0] == 0] = 9
  after = np.asarray(apply(variables, changed_RM, segment_RM))[0]
  for which in (0, 2):
    np.testing.assert_array_equal(before[spans[which]], after[spans[which]])
  assert np.abs(before[spans[1]] - after[spans[1]]).max() > 1e-3
  assert (after[segment_RM[0] == 0] == 0).all()

  def of_segment_0(table_VU):
    changed = {"params": {**variables["params"], "embedding": table_VU}}
    return jnp.sum(apply(changed, ids_RM, segment_RM)[0, spans[0]] ** 3)

  gradient_VU = np.asarray(jax.grad(of_segment_0)(variables["params"]["embedding"]))
  own = set(ids_RM[0, spans[0]].tolist())
  others = set(ids_RM[0].tolist()) - own
  assert np.abs(gradient_VU[sorted(others)]).max() == 0
  assert np.abs(gradient_VU[sorted(own)]).min() > 0


def test_order_of_words_matters():
  apply, variables = encoder("relu_shared")
  ids_RM, segment_RM, spans = packed()
  swapped_RM = ids_RM.copy()
  swapped_RM[0, spans[0]] = swapped_RM[0, spans[0]][::-1]
  a, b = (np.asarray(apply(variables, x, segment_RM))[0, spans[0]] for x in (ids_RM, swapped_RM))
  assert np.abs(a - b[::-1]).max() > 1e-3


def test_row_of_padding_gives_zeros_and_zero_finite_gradients():
  apply, variables = encoder("relu_shared")
  zeros_RM = jnp.zeros((2, ROW_LEN), jnp.int32)
  assert not np.asarray(apply(variables, zeros_RM, zeros_RM)).any()
  gradient = jax.grad(lambda v: jnp.sum(apply(v, zeros_RM, zeros_RM) ** 2))(variables)
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_buckets_by_hand():
  # 8 buckets to distance 16: 4 each way, 2 of them exact, then 2-5 and 6 and beyond
  offsets = np.array([0, -1, -2, -5, -6, -40, 1, 2, 5, 6, 40])
  want = [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7]
  np.testing.assert_array_equal(text.relative_buckets(offsets, 8, 16), want)


def count(config):
  module = text.TextEncoder(config)
  ids_RM = jax.ShapeDtypeStruct((1, 16), jnp.int32)
  params = jax.eval_shape(module.init, jax.random.key(0), ids_RM, ids_RM)
  return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params))), params


@pytest.mark.parametrize(
  "size,millions",
  [
    ("tiny", 0.4595),
    ("t5-small", 35.3),
    ("t5-base", 109.6),
    ("t5-large", 341.2),
    ("t5-xl", 1223.5),
    ("t5-xxl", 4762.3),
    ("umt5-xxl", 5680.9),
  ],
)
def test_sizes_build_with_the_published_number_of_parameters(size, millions):
  assert count(text.SIZES[size])[0] / 1e6 == pytest.approx(millions, rel=1e-3)


def test_every_parameter_names_its_axes():
  _, params = count(text.SIZES["umt5-xxl"])
  boxes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  assert all(isinstance(b, nn.LogicallyPartitioned) for b in boxes)
  for box in boxes:
    assert len(box.names) == box.value.ndim
  assert {n for b in boxes for n in b.names} == {
    *("vocab", "width", "heads", "head_size", "mlp", "buckets")
  }


@pytest.mark.parametrize(
  "key,value",
  [
    ("depth", 0), ("activation", "swish"), ("buckets", 7), ("max_distance", 2), ("dtype", "foo"),
    ("norm_eps", 0.0), ("norm_eps", float("nan")), ("norm_eps", float("inf")),
  ],
)  # fmt: skip
def test_impossible_config_is_refused(key, value):
  with pytest.raises(ValueError, match=f"{key}="):
    text.TextConfig(**{key: value})


def test_large_text_is_a_bf16_encoder_that_traces():
  config = text.dataclasses.replace(text.SIZES["t5-xxl"], dtype="bfloat16")
  module = text.TextEncoder(config)
  ids_RM = jax.ShapeDtypeStruct((2, 64), jnp.int32)
  params = jax.eval_shape(module.init, jax.random.key(0), ids_RM, ids_RM)
  out = jax.eval_shape(module.apply, params, ids_RM, ids_RM)
  assert out.shape == (2, 64, 4096) and out.dtype == jnp.bfloat16
