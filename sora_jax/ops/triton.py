"""Attention for long rows on NVIDIA GPUs: Pallas kernels in Triton, told by the block plan what to
skip.

A program of a kernel holds one block of queries (of keys, for the gradients of keys and values) of
one row and head, and reads the blocks that it may share a segment with, from the first to the last.
The forward pass is FlashAttention-2 (Dao 2023, arXiv 2307.08691, algorithm 1); its gradients
(algorithm 2) are two kernels, so that no two programs add to one place.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from sora_jax.ops.attention import MASKED, TINY
from sora_jax.ops.block_plan import pad_to_blocks, shared_blocks
from sora_jax.shapes import PAD_SEGMENT

LEAST = 16
"""Least rows and columns of a matrix that tensor cores multiply."""
BITS = math.log2(math.e)
"""exp(x) = exp2(BITS x): GPUs have an instruction for exp2."""


Shaped = Array | jax.ShapeDtypeStruct
"""What has a shape and a dtype."""


class Blocks(NamedTuple):
  """Tokens that a program holds, tokens that it reads at a time, and its warps of 32 threads."""

  held: int
  read: int
  warps: int = 4


def blocks_for(channels: int, dtype: jnp.dtype, backward: bool) -> Blocks:
  """Blocks that fit the 99 KiB of shared memory and the registers of GPUs from Ampere on.

  Args: channels: of a head.  backward: for the gradients, which read twice as many arrays.
  """
  bits = jnp.dtype(dtype).itemsize * 8
  if bits > 16:
    return Blocks(32, 32) if channels > 64 or backward else Blocks(64, 32)
  return Blocks(64, 64) if backward else Blocks(128, 64, warps=8)


def forward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  blocks: Blocks | None = None, interpret: bool = False,
) -> tuple[Float[Array, "R L A K"], Float[Array, "R L A"]]:  # fmt: skip
  """As `ops.flash.forward`.

  Args:
    blocks: None: those of `blocks_for`.  interpret: run the kernels in Python, without a GPU.
  """
  _, L, A, K = q_RLAK.shape
  blocks = blocks or blocks_for(K, q_RLAK.dtype, False)
  kernel = functools.partial(_forward_kernel, scale=K**-0.5)
  call = Call(blocks, segment_RL, segment_RM, A, interpret)
  log_RAL = jax.ShapeDtypeStruct((len(q_RLAK), A, call.held_len), jnp.float32)
  out, log_RAL = call(kernel, held=(q_RLAK,), read=(k_RMAK, v_RMAK), out=(q_RLAK, log_RAL))
  return out[:, :L, :, :K], log_RAL.swapaxes(1, 2)[:, :L]


def backward(
  q_RLAK: Float[Array, "R L A K"], k_RMAK: Float[Array, "R M A K"],
  v_RMAK: Float[Array, "R M A K"], segment_RL: Int[Array, "R L"], segment_RM: Int[Array, "R M"],
  out_RLAK: Float[Array, "R L A K"], log_RLA: Float[Array, "R L A"],
  given_RLAK: Float[Array, "R L A K"], blocks: Blocks | None = None, interpret: bool = False,
) -> tuple[Array, Array, Array]:  # fmt: skip
  """As `ops.flash.backward`. blocks, interpret: see `forward`."""
  _, L, A, K = q_RLAK.shape
  M = k_RMAK.shape[1]
  blocks = blocks or blocks_for(K, q_RLAK.dtype, True)
  along_RLA = (given_RLAK.astype(jnp.float32) * out_RLAK).sum(-1)
  of_queries = (q_RLAK, given_RLAK, log_RLA.swapaxes(1, 2), along_RLA.swapaxes(1, 2))
  of_keys = (k_RMAK, v_RMAK)
  kernel = functools.partial(_query_kernel, scale=K**-0.5)
  call = Call(blocks, segment_RL, segment_RM, A, interpret)
  (to_q,) = call(kernel, held=of_queries, read=of_keys, out=(q_RLAK,))
  kernel = functools.partial(_key_kernel, scale=K**-0.5)
  call = Call(blocks, segment_RM, segment_RL, A, interpret)
  to_k, to_v = call(kernel, held=of_keys, read=of_queries, out=of_keys)
  return to_q[:, :L, :, :K], to_k[:, :M, :, :K], to_v[:, :M, :, :K]


class Call:
  """A kernel over all rows, heads and blocks held.

  Its arguments are references to: the first block to read and the one after the last, for each
  block held; segments and arrays of the tokens held; segments and arrays of all tokens of the row
  on the other side; results for the tokens held. Arrays of a head are `[tokens, channels]`.
  """

  def __init__(
    self, blocks: Blocks, held_RL: Array, read_RM: Array, heads: int, interpret: bool
  ) -> None:
    """held_RL, read_RM: segments of the tokens that programs hold and read."""
    held, read = (min(b, size(s.shape[1])) for b, s in zip(blocks, (held_RL, read_RM)))
    self._blocks = Blocks(held, read, blocks.warps)
    self._held_RL, self._read_RM = pad_to_blocks(held_RL, held), pad_to_blocks(read_RM, read)
    shared_RIJ = shared_blocks(held_RL, read_RM, held, read)
    self._grid = (len(held_RL), heads, shared_RIJ.shape[1])
    self._bounds = bounds(shared_RIJ)
    self.held_len = self._held_RL.shape[1]
    self._interpret = interpret

  def __call__(self, kernel: Callable, held: tuple, read: tuple, out: tuple) -> tuple:
    """Arrays are `[R, tokens, A, K]` and `[R, A, tokens]`; results are in whole blocks.

    Args: out: arrays, or their shapes, like the results.
    """
    segment_H = pl.BlockSpec((None, self._blocks.held), lambda r, a, i: (r, i))
    all_segments = pl.BlockSpec((None, self._read_RM.shape[1]), lambda r, a, i: (r, 0))
    bound = pl.BlockSpec((None, self._grid[2]), lambda r, a, i: (r, 0))
    of_block = functools.partial(padded, block=self._blocks.held)
    held, read = [*map(of_block, held)], [padded(x, self._blocks.read) for x in read]
    out = [jax.eval_shape(of_block, x) for x in out]
    return pl.pallas_call(
      functools.partial(kernel, block=self._blocks.read),
      grid=self._grid,
      in_specs=[
        bound, bound, segment_H, *map(self._of_block, held), all_segments, *map(_of_row, read)
      ],
      out_specs=[self._of_block(x) for x in out],
      out_shape=out,
      compiler_params=plgpu.CompilerParams(num_warps=self._blocks.warps, num_stages=2),
      interpret=self._interpret,
      name=kernel.func.__name__.strip("_"),
    )(*self._bounds, self._held_RL, *held, self._read_RM, *read)  # fmt: skip

  def _of_block(self, x: Shaped) -> pl.BlockSpec:
    """A program's part of a padded array of the side that is held."""
    B = self._blocks.held
    if x.ndim == 3:
      return pl.BlockSpec((None, None, B), lambda r, a, i: (r, a, i))
    return pl.BlockSpec((None, B, None, x.shape[3]), lambda r, a, i: (r, i, a, 0))


def padded(x: Array, block: int) -> Array:
  """`[R, A, L]` in whole blocks; `[R, L, A, K]` too, with K a power of two."""
  if x.ndim == 3:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block)))
  more = size(x.shape[3]) - x.shape[3]
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, more)))


def _of_row(x: Shaped) -> pl.BlockSpec:
  """A program's part of a padded array of the side that is read: a row of one head."""
  if x.ndim == 3:
    return pl.BlockSpec((None, None, x.shape[2]), lambda r, a, i: (r, a, 0))
  return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda r, a, i: (r, 0, a, 0))


def size(length: int) -> int:
  """The least side of a kernel's block, a power of two, that holds so many."""
  return max(LEAST, pl.next_power_of_2(length))


def bounds(shared_RIJ: Bool[Array, "R I J"]) -> tuple[Array, Array]:
  """First block J that each block I shares a segment with, and the one after the last; 0, 0: none.

  Where segments lie in order, all between share one too.
  """
  J = shared_RIJ.shape[2]
  any_RI = shared_RIJ.any(-1)
  first_RI = jnp.where(any_RI, shared_RIJ.argmax(-1), 0)
  stop_RI = jnp.where(any_RI, J - shared_RIJ[..., ::-1].argmax(-1), 0)
  return first_RI.astype(jnp.int32), stop_RI.astype(jnp.int32)


def product(a: Array, b: Array) -> Array:
  """a b in float32; factors of float32 are not rounded to fewer bits."""
  return plgpu.dot(a, b, allow_tf32=False if a.dtype == jnp.float32 else None)


def shared(segment_B: Array, segment_C: Array) -> Array:
  """Which tokens of two blocks see each other."""
  return (segment_B[:, None] == segment_C[None, :]) & (segment_C != PAD_SEGMENT)[None, :]


def over_blocks(first_ref: Any, stop_ref: Any, block: int, add: Callable, state: Any) -> Any:
  """`add(tokens, state)` for the slice of each block that this program reads."""
  i = pl.program_id(2)
  step = lambda j, state: add(pl.ds(j * block, block), state)  # noqa: E731
  return lax.fori_loop(first_ref[i], stop_ref[i], step, state)


def _forward_kernel(
  first_ref, stop_ref, held_ref, q_ref, read_ref, k_ref, v_ref, out_ref, log_ref, *, block, scale
):
  segment_B, q_BK = held_ref[...], q_ref[...]

  def add(tokens, state):
    peak_B, total_B, out_BK = state
    mask_BC = shared(segment_B, read_ref[tokens])
    score_BC = product(q_BK, k_ref[tokens, :].T) * (scale * BITS)
    new_B = jnp.maximum(peak_B, jnp.where(mask_BC, score_BC, MASKED).max(1))
    weight_BC = jnp.where(mask_BC, jnp.exp2(score_BC - new_B[:, None]), 0.0)
    fade_B = jnp.exp2(peak_B - new_B)
    v_CK = v_ref[tokens, :]
    out_BK = out_BK * fade_B[:, None] + product(weight_BC.astype(v_CK.dtype), v_CK)
    return new_B, total_B * fade_B + weight_BC.sum(1), out_BK

  B, K = q_BK.shape
  state = jnp.full(B, MASKED, jnp.float32), jnp.zeros(B), jnp.zeros((B, K))
  peak_B, total_B, out_BK = over_blocks(first_ref, stop_ref, block, add, state)
  least_B = jnp.maximum(total_B, TINY)
  out_ref[...] = (out_BK / least_B[:, None]).astype(out_ref.dtype)
  log_ref[...] = jnp.where(total_B > 0, (peak_B + jnp.log2(least_B)) / BITS, MASKED)


def _query_kernel(
  first_ref, stop_ref, held_ref, q_ref, given_ref, log_ref, along_ref, read_ref, k_ref, v_ref,
  to_q_ref, *, block, scale,
):  # fmt: skip
  segment_B, q_BK, given_BK = held_ref[...], q_ref[...], given_ref[...]
  log_B, along_B = log_ref[...] * BITS, along_ref[...]

  def add(tokens, to_q_BK):
    mask_BC = shared(segment_B, read_ref[tokens])
    k_CK = k_ref[tokens, :]
    score_BC = product(q_BK, k_CK.T) * (scale * BITS)
    weight_BC = jnp.where(mask_BC, jnp.exp2(score_BC - log_B[:, None]), 0.0)
    to_weight_BC = product(given_BK, v_ref[tokens, :].T)
    to_score_BC = weight_BC * (to_weight_BC - along_B[:, None])
    return to_q_BK + product(to_score_BC.astype(k_CK.dtype), k_CK)

  to_q_BK = over_blocks(first_ref, stop_ref, block, add, jnp.zeros(q_BK.shape))
  to_q_ref[...] = (to_q_BK * scale).astype(to_q_ref.dtype)


def _key_kernel(
  first_ref, stop_ref, held_ref, k_ref, v_ref, read_ref, q_ref, given_ref, log_ref, along_ref,
  to_k_ref, to_v_ref, *, block, scale,
):  # fmt: skip
  segment_C, k_CK, v_CK = held_ref[...], k_ref[...], v_ref[...]

  def add(tokens, state):
    to_k_CK, to_v_CK = state
    mask_CB = shared(segment_C, read_ref[tokens])
    q_BK, given_BK = q_ref[tokens, :], given_ref[tokens, :]
    score_CB = product(k_CK, q_BK.T) * (scale * BITS)
    weight_CB = jnp.where(mask_CB, jnp.exp2(score_CB - log_ref[tokens][None] * BITS), 0.0)
    to_weight_CB = product(v_CK, given_BK.T)
    to_score_CB = weight_CB * (to_weight_CB - along_ref[tokens][None])
    return (
      to_k_CK + product(to_score_CB.astype(q_BK.dtype), q_BK),
      to_v_CK + product(weight_CB.astype(given_BK.dtype), given_BK),
    )

  state = jnp.zeros(k_CK.shape), jnp.zeros(v_CK.shape)
  to_k_CK, to_v_CK = over_blocks(first_ref, stop_ref, block, add, state)
  to_k_ref[...] = (to_k_CK * scale).astype(to_k_ref.dtype)
  to_v_ref[...] = to_v_CK.astype(to_v_ref.dtype)
