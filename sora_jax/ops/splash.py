"""Attention for long rows on TPUs: JAX's splash kernels, told by the block plan what to skip.

Splash attention's segment ids only mask scores. What it skips it reads from tables of blocks
(`MaskInfo`), which JAX makes from masks known beforehand; here they are made from the segments of
each row, on the device. The kernels' own gradient rule serves one call over all keys; `backward`
calls the same kernels with the totals of keys that lie elsewhere, as a ring needs it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info
from jaxtyping import Array, Float, Int

from sora_jax.ops.attention import MASKED
from sora_jax.ops.block_plan import pad_to_blocks, shared_blocks
from sora_jax.shapes import PAD_SEGMENT

BLOCK = 512
"""Tokens per block of queries and of keys, at most, in rows of up to `BLOCKS` blocks."""
BLOCKS = 512
"""Most blocks of a row: two tables of their pairs, of 8 and 16 bits, lie in the 1 MiB of a TPU's
scalar memory. A longer row has blocks of twice as many tokens, whose keys are taken in halves.
Twice is all that their other memory holds: rows above 524,288 tokens want a context axis."""
LANES = 128
"""Blocks are a multiple of this."""


def forward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  interpret: bool = False,
) -> tuple[Float[Array, "R L A K"], Float[Array, "R L A"]]:  # fmt: skip
  """As `ops.flash.forward`. interpret: run the kernel in Python, for tests without a TPU."""
  L = q_RLAK.shape[1]

  def row(q_LAK, k_MAK, v_MAK, segment_L, segment_M):
    heads, segments, blocks, tables = prepare(q_LAK, k_MAK, v_MAK, segment_L, segment_M)
    run = kernel.SplashAttentionKernel(
      tables(False), None, None, is_mqa=False, block_sizes=blocks, save_residuals=True,
      mask_value=kernel.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None,
      residual_checkpoint_name=None, mask_function=None, interpret=interpret,
    )  # fmt: skip
    out_ALK, (log_AL,) = run(*heads, segments)
    has_AL = (log_AL > MASKED) & (segments.q != PAD_SEGMENT)[None]
    out_ALK = jnp.where(has_AL[..., None], out_ALK, 0)
    log_AL = jnp.where(has_AL, log_AL, MASKED)
    return out_ALK.swapaxes(0, 1)[:L], log_AL.T[:L]

  return over_rows(row, q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM)


def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"], interpret: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """As `ops.flash.backward`. interpret: see `forward`."""
  L, M, scale = q_RLAK.shape[1], k_RMAK.shape[1], q_RLAK.shape[-1] ** -0.5

  def row(q_LAK, k_MAK, v_MAK, segment_L, segment_M, out_LAK, log_LA, given_LAK):
    heads, segments, blocks, tables = prepare(q_LAK, k_MAK, v_MAK, segment_L, segment_M)
    size = blocks.block_q
    log_AL = padded(log_LA, size, MASKED).T
    kept = (
      *heads, segments, None, heads_first(out_LAK, size), log_AL, tables(False), tables(True),
    )  # fmt: skip
    *_, to_q, to_k, to_v, _, _ = kernel._splash_attention_bwd(
      False, kernel.DEFAULT_MASK_VALUE, False, blocks, None, None, None, interpret, kept,
      heads_first(given_LAK, size),
    )  # fmt: skip
    to_q, to_k, to_v = (x.swapaxes(0, 1) for x in (to_q, to_k, to_v))
    return (to_q[:L] * scale).astype(q_LAK.dtype), to_k[:M], to_v[:M]

  return over_rows(
    row, q_RLAK, k_RMAK, v_RMAK, segment_RL, segment_RM, out_RLAK, log_RLA, given_RLAK
  )


def over_rows(row: Callable, *arrays: Array) -> tuple[Array, ...]:
  """Applies a function of one row to each in turn: a kernel's tables are those of a row."""
  if arrays[0].shape[0] == 1:
    return jax.tree.map(lambda x: x[None], row(*(x[0] for x in arrays)))
  return lax.map(lambda parts: row(*parts), arrays)


def prepare(
  q_LAK: Array, k_MAK: Array, v_MAK: Array, segment_L: Array, segment_M: Array
) -> tuple[tuple, kernel.SegmentIds, kernel.BlockSizes, Callable]:
  """Heads first, scaled and padded; segments; block sizes; `dkv -> MaskInfo`."""
  block_l, block_m = block_of(q_LAK.shape[0]), block_of(k_MAK.shape[0])
  part = min(block_m, BLOCK)
  blocks = kernel.BlockSizes(
    block_q=block_l, block_kv=block_m, block_kv_compute=part, block_q_dq=block_l,
    block_kv_dq=block_m, block_q_dkv=block_l, block_kv_dkv=block_m, block_kv_dkv_compute=part,
  )  # fmt: skip
  scale = q_LAK.shape[-1] ** -0.5
  q_LAK = (q_LAK.astype(jnp.float32) * scale).astype(q_LAK.dtype)
  heads = heads_first(q_LAK, block_l), heads_first(k_MAK, block_m), heads_first(v_MAK, block_m)
  segment_1L, segment_1M = (
    pad_to_blocks(s[None], b) for s, b in ((segment_L, block_l), (segment_M, block_m))
  )
  shared_IJ = shared_blocks(segment_1L, segment_1M, block_l, block_m)[0]

  def tables(dkv: bool) -> mask_info.MaskInfo:
    next_1IJ = narrow(nearest_before(shared_IJ, 0 if dkv else 1))[None]
    return mask_info.MaskInfo(next_1IJ, None, shared_IJ[None].astype(jnp.int8), None, None, True)

  nowhere = jnp.where(segment_1M[0] == PAD_SEGMENT, -1, segment_1M[0])  # padding answers nobody
  return heads, kernel.SegmentIds(segment_1L[0], nowhere), blocks, tables


def block_of(length: int) -> int:
  """Tokens of a block in a row of this length."""
  whole = BLOCK if length <= BLOCK * BLOCKS else 2 * BLOCK
  return min(whole, -(-length // LANES) * LANES)


def heads_first(x_LAK: Array, block: int) -> Array:
  """`[A, L, K]`, padded to whole blocks."""
  return padded(x_LAK, block, 0.0).swapaxes(0, 1)


def padded(x_LX: Array, block: int, value: float) -> Array:
  """Padded to whole blocks."""
  edges = ((0, -x_LX.shape[0] % block), *((0, 0),) * (x_LX.ndim - 1))
  return jnp.pad(x_LX, edges, constant_values=value)


def narrow(index_IJ: Array) -> Array:
  """Indices of blocks in as few bits as hold them: tables lie in a TPU's 1 MiB of scalar memory,
  which two of 32 bits exceeded in rows of 196,608 tokens."""
  return index_IJ.astype(jnp.int8 if max(index_IJ.shape) <= 128 else jnp.int16)


def nearest_before(shared_IJ: Array, axis: int) -> Array:
  """Index along `axis` of the last block up to here that is needed: a skipped one loads nothing
  new, since the kernel finds in place what it is told to load."""
  index_IJ = lax.broadcasted_iota(jnp.int32, shared_IJ.shape, axis)
  return lax.cummax(jnp.where(shared_IJ, index_IJ, 0), axis=axis)
