"""Attention within segments: every implementation against the definition, that against torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn.dit import DiT
from sora_jax.ops import block_attention, segment_attention, splash, triton
from sora_jax.ops.attention import attention, reference_attention
from sora_jax.ops.block_plan import block_plan, shared_blocks
from sora_jax.ops.flash import KEPT, LONG, attend, flash


def by(kernel, **options):
  """Attention by a kernel's two passes, as `ops.flash.flash` joins them."""

  @jax.custom_vjp
  def attend(*inputs):
    return kernel.forward(*inputs, **options)[0]

  def keep(*inputs):
    out, log = kernel.forward(*inputs, **options)
    return out, (*inputs, out, log)

  attend.defvjp(keep, lambda saved, g: (*kernel.backward(*saved, g, **options), None, None))
  return attend


IMPLEMENTATIONS = {
  "written out": attention,
  "flash": flash,
  "blocks of 8": by(block_attention, block=8),
  "one block": by(block_attention, block=128),
  "segments": by(segment_attention, sizes=3),
  "splash": by(splash, interpret=True),
  "triton": by(triton, blocks=triton.Blocks(16, 16), interpret=True),
}
SELF = jnp.array(
  [[1] * 9 + [2] + [3] * 12 + [4] * 5 + [0] * 3, [1] * 30, [0] * 30, [1, 2, 3] + [0] * 27]
)
TEXT = jnp.array(
  [[1] * 3 + [2] * 2 + [4] * 4 + [0] * 2, [1] * 11, [1] * 4 + [0] * 7, [1, 2, 2, 3] + [0] * 7]
)
"""Rows with padding, one segment, padding alone, one-token segments; one segment has no text."""


def heads(key, segment, count=3, dtype=jnp.float32):
  keys = jax.random.split(key, count)
  return [jax.random.normal(k, (*segment.shape, 2, 6)).astype(dtype) for k in keys]


def inputs(key, cross, dtype=jnp.float32):
  keys_segment = TEXT if cross else SELF
  (q,) = heads(key, SELF, 1, dtype)
  k, v = heads(jax.random.fold_in(key, 1), keys_segment, 2, dtype)
  return (q, k, v), (SELF, keys_segment)


@functools.cache  # of what several tests ask for, one program
def both(implementation):
  @jax.jit
  def run(qkv, segments, given):
    out, pull = jax.vjp(lambda *x: implementation(*x, *segments), *qkv)
    return out, pull(given)

  return run


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("cross", [False, True])
# bf16: weights and products are rounded to 8 bits at different places
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_implementations_agree_with_the_definition(name, cross, dtype, tolerance, key):
  qkv, segments = inputs(key, cross, dtype)
  given = jax.random.normal(key, qkv[0].shape).astype(dtype)
  out, gradient = both(IMPLEMENTATIONS[name])(qkv, segments, given)
  want, want_gradient = both(reference_attention)(qkv, segments, given)
  assert out.dtype == dtype
  for got, wanted in zip((out, *gradient), (want, *want_gradient)):
    wanted = np.asarray(wanted, np.float32)
    np.testing.assert_allclose(
      np.asarray(got, np.float32), wanted, atol=tolerance * np.abs(wanted).max(), rtol=0
    )


@pytest.mark.parametrize("name", ["reference", *IMPLEMENTATIONS])
@pytest.mark.parametrize("cross", [False, True])
def test_nothing_leaks_and_padding_is_zero(name, cross, key):
  run = both(IMPLEMENTATIONS.get(name, reference_attention))
  (q, k, v), (segment, key_segment) = inputs(key, cross)
  mine, my_keys = segment == 1, key_segment == 1
  given = jnp.where(mine[..., None, None], 1.0, 0.0) * jax.random.normal(key, q.shape)
  out, gradient = run((q, k, v), (segment, key_segment), given)
  assert not np.asarray(out)[np.asarray(segment) == 0].any()
  assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in gradient)
  for got, own in zip(gradient, (mine, my_keys, my_keys)):
    assert not np.asarray(got)[~np.asarray(own)].any()
    assert np.asarray(got)[np.asarray(own)].any()
  other = tuple(
    jnp.where(own[..., None, None], x, 50 * x - 3)
    for x, own in zip((q, k, v), (mine, my_keys, my_keys))
  )
  moved, _ = run(other, (segment, key_segment), given)
  assert np.array_equal(np.asarray(out)[np.asarray(mine)], np.asarray(moved)[np.asarray(mine)])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_scores_of_hundreds_are_weighed(name, key):
  """Exponentials of what is not lowered first would overflow."""
  (q, k, v), segments = inputs(key, False)
  given = jax.random.normal(key, q.shape)
  got = both(IMPLEMENTATIONS[name])((200 * q, k, v), segments, given)
  want = both(reference_attention)((200 * q, k, v), segments, given)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, atol=2e-4 * np.abs(b).max(), rtol=0)


def test_blocks_that_splash_takes_in_parts_agree_with_the_definition(key, monkeypatch):
  monkeypatch.setattr(splash, "BLOCK", 128)
  monkeypatch.setattr(
    splash, "BLOCKS", 2
  )  # 600 tokens exceed them, as more than 262,144 do 512 of 512
  assert splash.block_of(600) == 256 and splash.block_of(256) == 128
  segment = jnp.repeat(jnp.array([[1, 2, 1, 3, 0]]), 120, axis=1)
  qkv, given = heads(key, segment), jax.random.normal(key, (1, 600, 2, 6))
  got = both(by(splash, interpret=True))(qkv, (segment, segment), given)
  want = both(reference_attention)(qkv, (segment, segment), given)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max(), rtol=0)


def test_a_segment_without_keys_gets_zero(key):
  qkv, segments = inputs(key, True)
  for implementation in (reference_attention, *IMPLEMENTATIONS.values()):
    out = np.asarray(jax.jit(implementation)(*qkv, *segments))
    assert not out[0][np.asarray(SELF[0]) == 3].any()
    assert out[0][np.asarray(SELF[0]) == 4].all()


def test_segments_may_have_any_names(key):
  """A part of a row holds names from anywhere in the row, and keys in any order."""
  qkv, (segment, key_segment) = inputs(key, True)
  far, far_keys = (jnp.where(x > 0, 400 - 7 * x, 0) for x in (segment, key_segment))
  given = jax.random.normal(key, qkv[0].shape)
  run = both(IMPLEMENTATIONS["segments"])
  got = run([qkv[0], *(x[:, ::-1] for x in qkv[1:])], (far, far_keys[:, ::-1]), given)
  out, (to_q, *to_kv) = run(qkv, (segment, key_segment), given)
  for a, b in zip(jax.tree.leaves(got), (out, to_q, *(x[:, ::-1] for x in to_kv))):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.oracle
def test_definition_equals_torch(key):
  torch = pytest.importorskip("torch")
  qkv, (segment, key_segment) = inputs(key, False)
  real = np.asarray(segment) > 0
  mask = np.asarray(segment[:, :, None] == key_segment[:, None, :]) & real[:, :, None]
  mask |= ~real[:, :, None]  # torch gives NaN for a query without keys
  tensors = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in qkv]
  want = torch.nn.functional.scaled_dot_product_attention(
    *tensors, attn_mask=torch.tensor(mask)[:, None]
  )
  want = want.transpose(1, 2).numpy() * real[..., None, None]
  np.testing.assert_allclose(reference_attention(*qkv, segment, key_segment), want, atol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
def test_the_plan_holds_every_pair_that_shares_a_segment(cross):
  keys = TEXT if cross else SELF
  plan = jax.jit(block_plan, static_argnums=(2, 3))(SELF, keys, 4, 3)
  count = int(plan.count)
  pairs = list(zip(*(np.asarray(x)[:count].tolist() for x in plan[:3])))
  assert len(set(pairs)) == count
  needed = set()
  for r, l, m in np.ndindex(*SELF.shape, keys.shape[1]):
    if SELF[r, l] == keys[r, m] != 0:
      needed.add((r, l // 4, m // 3))
  assert needed <= set(pairs)
  if not cross:
    assert needed == set(pairs)


@pytest.mark.parametrize("row_len, dense", [(512, True), (4096, False)])
def test_long_rows_hold_no_square_of_scores(row_len, dense):
  assert DiT.attention is attend and (row_len**2 <= LONG) == dense
  x = jax.ShapeDtypeStruct((1, row_len, 2, 8), jnp.float32)
  segment = jax.ShapeDtypeStruct((1, row_len), jnp.int32)
  compiled = jax.jit(attend).lower(x, x, x, segment, segment).compile()
  square = 4 * 2 * row_len**2
  assert (compiled.memory_analysis().temp_size_in_bytes > square / 8) == dense


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [64, 72, 128])
def test_on_nvidia_gpus_long_rows_become_triton_kernels(dtype, channels):
  """Lowered for a GPU, without one: three kernels, no loop of our own over blocks."""
  x = jax.ShapeDtypeStruct((2, 1000, 2, channels), dtype)
  segment = jax.ShapeDtypeStruct((2, 1000), jnp.int32)
  lowered = both(attend).trace((x, x, x), (segment, segment), x).lower(lowering_platforms=("cuda",))
  text = lowered.as_text()
  assert text.count("__gpu$xla.gpu.triton") == 3 and "stablehlo.while" not in text
  for name in ("forward_kernel", "query_kernel", "key_kernel"):
    assert f'name = "{name}"' in text


def test_kernels_read_the_blocks_that_the_plan_names():
  shared = jnp.array([[[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]], bool)
  first, stop = triton.bounds(shared)
  assert first.tolist() == [[1, 0, 0]] and stop.tolist() == [[3, 0, 1]]


def test_the_plan_of_equal_clips_is_their_diagonal():
  segment = jnp.repeat(1 + jnp.arange(8), 16)[None]
  shared = np.asarray(shared_blocks(segment, segment, 16, 16))[0]
  assert np.array_equal(shared, np.eye(8, dtype=bool))


@pytest.mark.parametrize("kept", [True, False])
def test_a_policy_can_keep_what_the_forward_kernel_gave(kept, key, capsys):
  (qkv, segments) = inputs(key, False)
  names = (KEPT,) if kept else ()
  policy = jax.checkpoint_policies.save_only_these_names(*names)
  layer = jax.checkpoint(lambda *x: jnp.sum(flash(*x, *segments) ** 2), policy=policy)
  jax.ad_checkpoint.print_saved_residuals(layer, *qkv)
  saved = [line for line in capsys.readouterr().out.splitlines() if "from the argument" not in line]
  assert ("named 'attention'" in "\n".join(saved)) == kept


@pytest.mark.parametrize(("blocks", "bits"), [(128, 8), (129, 16), (384, 16)])
def test_tables_of_blocks_take_as_few_bits_as_hold_their_indices(blocks, bits):
  index_IJ = jnp.tile(jnp.arange(blocks, dtype=jnp.int32)[None], (2, 1))
  table_IJ = splash.narrow(index_IJ)
  assert table_IJ.dtype.itemsize * 8 == bits
  np.testing.assert_array_equal(np.asarray(table_IJ, np.int32), index_IJ)


@pytest.mark.parametrize("L", [196_608, 262_144, 500_000])
def test_tables_of_long_rows_fit_into_scalar_memory(L):
  def tables(x_LAK, segment_L):
    info = splash.prepare(x_LAK, x_LAK, x_LAK, segment_L, segment_L)[-1](False)
    return info.data_next, info.block_mask

  shapes = jax.ShapeDtypeStruct((L, 4, 128), jnp.bfloat16), jax.ShapeDtypeStruct((L,), jnp.int32)
  tables = jax.eval_shape(tables, *shapes)
  assert sum(table.size * table.dtype.itemsize for table in tables) < 0.9 * 2**20
