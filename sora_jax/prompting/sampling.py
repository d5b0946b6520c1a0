"""The sampling program: packed requests in, latents out; one compiled program per row length.

The network and the text encoder are handed in as functions of their parameters, so this room knows
neither. Guidance repeats the rows: with everything that is asked for, with the empty prompt, and
with the empty prompt and nothing known.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.diffusion import guidance, process, sampler, solvers, times
from sora_jax.ops import packing, positions
from sora_jax.ops.patchify import join_cells, unpatchify
from sora_jax.prompting.requests import Request, RowShape, batches, shape_for
from sora_jax.shapes import WHOLE, Patch


@runtime_checkable
class Predict(Protocol):
  """The network: (params, tokens, time_RQ, layout, text_RMU) -> its prediction [R, L, P]; what a
  token holds is said in `ops.patchify.join_cells`.

  A `Method` with a `rotary_method` hands it a sixth argument, an `ops.positions.PositionScale`;
  networks that are never sampled so need not take it.
  """

  def __call__(self, params: Any, tokens_RLP, time_RQ, layout: packing.Layout, text_RMU) -> Any: ...


@runtime_checkable
class EncodeText(Protocol):
  """The text encoder: (params, ids_RM, segment_RM) -> embeddings [R, M, U]."""

  def __call__(self, params: Any, ids_RM, segment_RM) -> Any: ...


ROW_AXES = {
  **dict.fromkeys(("segment", "slot"), ("row", "token")),
  **dict.fromkeys(
    ("coord", "start", "canvas", "known", "exact", "is_exact", "noise"), ("row", "token", None)
  ),
}
"""Logical axes of the tables of a batch that hold something for each token."""


@dataclasses.dataclass(frozen=True)
class Method:
  """How samples are made; everything but `steps` and the flags may be the same for all requests.

  Attributes:
    solver: a key of `diffusion.solvers.SOLVERS`.  steps: of the solver.
    grid: a key of `diffusion.sampler.GRIDS`.
    stages: frames of tokens of requests that are made `one_by_one` take the first step of the grid
      alone, those next to known ones first, in up to so many turns, the last of them for all that
      is left; see `diffusion.sampler.staged_grid`. More than a clip needs are steps that the rest
      of it lacks; see `lowered`.
    interval: (low, high) of the grid, before the shift and as shares of where a clip starts:
      guidance acts above `low` and up to `high`; elsewhere rows are evaluated once.
    rescale: share of the deviation given back after guidance, see `guidance.rescale`.
    branches: how often a row is evaluated: 1, without guidance; 2, with the empty prompt too; 3,
      with the empty prompt and nothing known besides. The sampler lowers it to what is needed.
    rotary_method: what becomes of the positions of clips that are larger than `trained_extent`:
      "none" leaves them, "interpolate" squeezes them into that extent, "ntk" slows the slow
      frequencies down; see `ops.positions.frequencies`. One name, or one for time and one for space
      (it is kept as such a pair). Every clip has a scale of its own, and those within the extent
      are made as with "none", to the bit.
    trained_extent: (seconds, side in tokens) of the longest clip and of the longest side in
      training; infinity never scales.
  """

  solver: str = "dpmpp_2m"
  steps: int = 20
  grid: str = "uniform"
  stages: int = 1
  interval: Sequence[float | int] = guidance.ALL_TIMES
  rescale: float = 0.0
  branches: int = 3
  rotary_method: str | Sequence[str] = "none"
  trained_extent: Sequence[float | int] | None = None

  def __post_init__(self):
    for name, table in (("solver", solvers.SOLVERS), ("grid", sampler.GRIDS)):
      if getattr(self, name) not in table:
        raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(table)}")
    if self.steps < 1:
      raise ValueError(f"steps={self.steps}; a sample needs at least 1 solver step")
    if not 1 <= self.stages <= self.steps:
      raise ValueError(
        f"stages={self.stages}; allowed: 1 (all at once) up to steps={self.steps}, since each takes"
        " a step of its own"
      )
    object.__setattr__(self, "interval", guidance.checked_interval(self.interval))
    self._check_positions()

  def _check_positions(self):
    """Makes a pair of `rotary_method` and floats of `trained_extent`; refuses what cannot be."""
    given, extent = self.rotary_method, self.trained_extent
    names = (given, given) if isinstance(given, str) else tuple(given)
    if len(names) != 2 or not set(names) <= set(positions.METHODS):
      raise ValueError(
        f"rotary_method={given!r}; allowed: {', '.join(positions.METHODS)}, or two of them, for "
        "time and for space"
      )
    if extent is None and names != ("none", "none"):
      raise ValueError(f"rotary_method={given!r} needs trained_extent=(seconds, side in tokens)")
    if extent is not None and (len(extent) != 2 or not min(extent) > 0):
      raise ValueError(f"trained_extent={extent}; it must be (seconds, side in tokens), above 0")
    object.__setattr__(self, "rotary_method", names)
    if extent is not None:
      object.__setattr__(self, "trained_extent", tuple(float(n) for n in extent))


class Sampler:
  """Samples latents for requests of any sizes, packed into rows.

  Attributes: program: `sample_rows`, jitted.

  Args: predict, encode_text: the networks.  patch: cells of a token.  channels: Z.
    frames_per_latent: pixel frames of a latent frame, f_t.
    kind: what the network predicts, "x", "v" or "eps".  shift: as in training.
    rows: shape of the rows; see `requests.shape_for`.  null_ids: ids of the empty prompt.
    mesh: where it runs; None = one device. Rows of a call then are as many as share its rows, or
      the least multiple of them, and tokens are shared out over its context axis.
    boundary: time, before the shift, above which a second network, params["dit_high"], denoises;
      None = there is none. One that works out what happens where, and one for details: expert
      denoisers (eDiff-I, arXiv 2211.01324), two of them as in Wan 2.2.
  Raises: ValueError if the mesh's context axis does not divide the rows' length.
  """

  def __init__(
    self,
    predict: Predict,
    encode_text: EncodeText,
    *,
    patch: Patch,
    channels: int,
    frames_per_latent: int,
    kind: process.Kind,
    shift: times.ShiftConfig,
    rows: RowShape,
    null_ids: Sequence[int],
    mesh: Mesh | None = None,
    boundary: float | None = None,
  ):
    self._boundary = boundary
    self._patch, self._channels, self._kind, self._shift = Patch(*patch), channels, kind, shift
    self._frames = frames_per_latent
    self._predict, self._encode_text = predict, encode_text
    self._rows, self._null_ids, self._mesh = rows, tuple(null_ids), mesh
    whole = None
    if mesh is not None:
      shares, tokens = sharding.parts(mesh, "row"), sharding.parts(mesh, "token")
      if rows.row_len % (4 * tokens):
        raise ValueError(
          f"rows of {rows.row_len} tokens, a quarter of it for few small clips, cannot be split"
          f" over a context axis of {tokens}"
        )
      self._rows = dataclasses.replace(rows, rows=-(-rows.rows // shares) * shares)
      whole = sharding.replicated(mesh)
    self.program = jax.jit(self.sample_rows, static_argnames="method", out_shardings=whole)
    self._noise_program = jax.jit(self.noise)

  def __call__(
    self,
    params: Any,
    requests: Sequence[Request],
    method: Method,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[np.ndarray]:
    """Samples all requests.

    Args: params: {"dit": ..., "text": ...}, and "dit_high" if there is a boundary.  progress:
      called with (rows done, rows in all).
    Returns: for each request a clean latent, float32 [t, h, w, Z].
    """
    if not requests:
      return []
    method = dataclasses.replace(method, branches=min(method.branches, branches(requests)))
    calls = self.packed(requests)
    done = [None] * len(requests)
    for number, (batch, group) in enumerate(calls):
      segment_RL, batch = batch["segment"], self.placed(batch)
      tables = {name: batch[name] for name in ("key", "segment", "coord")}
      batch["noise"] = self._noise_program(tables)
      x0_RLP = np.asarray(self.program(params, batch, method=method))
      for row, x0_LP, segment_L in zip(group, x0_RLP, segment_RL):
        for s, i in enumerate(row):
          done[i] = unpatchify(x0_LP[segment_L == s + 1], requests[i].grid, self._patch)
      if progress is not None:
        progress(number + 1, len(calls))
    return done

  def packed(self, requests: Sequence[Request]) -> list[tuple[dict, list[list[int]]]]:
    """Requests as the batches of the program's calls, noise left out; see `requests.batches`."""
    shape = shape_for(requests, self._rows)
    return batches(requests, shape, self._patch, self._channels, self._frames, self._null_ids)

  @property
  def programs(self) -> int:
    """Number of programs compiled so far."""
    return self.program._cache_size()

  @property
  def row_len(self) -> int:
    """Tokens of a row, as in training; larger requests get longer rows."""
    return self._rows.row_len

  def placed(self, batch: dict[str, np.ndarray]) -> dict:
    """A batch on the mesh; without one, as it is."""
    if self._mesh is None:
      return batch
    return sharding.put_batch(self._mesh, batch, ROW_AXES, WHOLE)

  def noise(self, batch: dict, number: Any = None) -> jax.Array:
    """The noise of a batch's samples [R, L, P], 0 at padding: what they start from, or what
    evaluation `number` of a stochastic solver draws."""
    key_RS = jax.random.wrap_key_data(jnp.asarray(batch["key"]), impl="threefry2x32")
    if number is not None:
      key_RS = sampler.fold_keys(key_RS, number)
    segment_RL, coord_RL3 = jnp.asarray(batch["segment"]), jnp.asarray(batch["coord"])
    return sampler.noise_at(key_RS, segment_RL, coord_RL3, self._patch, self._channels)

  def sample_rows(self, params: Any, batch: dict, method: Method) -> jax.Array:
    """The program: clean latents [R, L, P] of packed rows with their noise; 0 at padding."""
    with sharding.using(self._mesh):
      return self._sample_rows(params, batch, method)

  def _sample_rows(self, params: Any, batch: dict, method: Method) -> jax.Array:
    layout = packing.layout_of(batch)
    plain_JRQ, time_JRQ = self._times(batch, layout, method)
    time_JRL1 = jax.vmap(lambda t_RQ: packing.take_slots(t_RQ, layout.slot_RL))(time_JRQ)[..., None]
    scale = self._position_scale(layout, method)
    text_RMU = self._encode_text(params["text"], batch["text"], batch["text_segment"])
    null_RMU = None
    if method.branches > 1:
      null_RMU = self._encode_text(params["text"], batch["null_text"], batch["null_segment"])
    under = {
      n: _conditions(batch, layout, text_RMU, null_RMU, scale, n) for n in {1, method.branches}
    }
    is_exact_RLP = jnp.repeat(jnp.asarray(batch["is_exact"]) > 0, self._channels, axis=-1)

    def predict(x_RLP, j, n):
      """x0 of n branches, [n R, L, P], which lie behind each other as rows."""
      x_nLP, time_nQ, time_nL1, plain_nQ = (
        jnp.tile(a, (n, 1, 1)[: a.ndim]) for a in (x_RLP, time_JRQ[j], time_JRL1[j], plain_JRQ[j])
      )
      known_nLX, canvas_nLP, *rest = under[n]
      tokens_nLP = join_cells(x_nLP, known_nLX, canvas_nLP, self._patch)
      prediction_nLP = self._evaluate(params, plain_nQ, tokens_nLP, time_nQ, *rest)
      return process.to_x0(self._kind, prediction_nLP, x_nLP, time_nL1)

    def guided(x_RLP, j):
      x0_nLP = predict(x_RLP, j, method.branches)
      return kept(self._guide(x0_nLP, batch, layout, method))

    def plain(x_RLP, j):
      return kept(predict(x_RLP, j, 1))

    def kept(x0_RLP):
      return jnp.where(is_exact_RLP, batch["exact"], x0_RLP)

    start_RLP = process.add_noise(batch["start"], batch["noise"], time_JRL1[0])
    draw = functools.partial(self.noise, batch)
    solver = solvers.by_name(method.solver)
    each_J = [guided if acts else plain for acts in guided_points(method)]
    x0_RLP = sampler.integrate(solver, each_J, start_RLP, time_JRL1, draw)
    return jnp.where((layout.segment_RL > 0)[..., None], x0_RLP, 0.0)

  def _evaluate(self, params: Any, plain_RQ, tokens_RLP, time_RQ, layout, *rest) -> jax.Array:
    """The prediction of the network that each token's time (plain_RQ: before the shift) is for; a
    network that no token needs is not evaluated."""
    if self._boundary is None:
      return self._predict(params["dit"], tokens_RLP, time_RQ, layout, *rest)
    high_RL = packing.take_slots(plain_RQ, layout.slot_RL) > self._boundary
    evaluate = lambda name: self._predict(params[name], tokens_RLP, time_RQ, layout, *rest)  # noqa: E731
    nothing = jax.eval_shape(functools.partial(evaluate, "dit"))

    def where_needed(name, here_RL):
      needed = jnp.any(here_RL & (layout.segment_RL > 0))
      skip = functools.partial(jnp.zeros, nothing.shape, nothing.dtype)
      return jax.lax.cond(needed, functools.partial(evaluate, name), skip)

    high_RLP, low_RLP = where_needed("dit_high", high_RL), where_needed("dit", ~high_RL)
    return jnp.where(high_RL[..., None], high_RLP, low_RLP)

  def _position_scale(
    self, layout: packing.Layout, method: Method
  ) -> positions.PositionScale | None:
    """Scale of each segment's positions; None where the method scales none."""
    if method.rotary_method == ("none", "none"):
      return None
    frames_RS = 1 + (layout.grid_RS3[..., 0] * self._patch.t - 1) * self._frames
    moves_RS = layout.fps_RS > 0
    seconds_RS = jnp.where(moves_RS, frames_RS / jnp.where(moves_RS, layout.fps_RS, 1.0), 0.0)
    return positions.position_scale(
      layout.grid_RS3, seconds_RS, method.trained_extent, method.rotary_method
    )

  def _times(self, batch: dict, layout: packing.Layout, method: Method) -> tuple:
    """Times [J, R, Q] of every slot from its start down to 0, before the shift and after."""
    times_JK = _grid(method)
    start_RQ = packing.take_segments(jnp.asarray(batch["start_time"]), layout.slot_segment_RQ)
    stage_RQ = jnp.zeros(start_RQ.shape, jnp.int32)
    if method.stages > 1:
      told_RL = (jnp.asarray(batch["known"]).max(-1) > 0) & (layout.segment_RL > 0)
      away_RQ = packing.slots_away(told_RL, layout.slot_RL, layout.slot_segment_RQ)
      stage_RQ = jnp.clip(away_RQ - 1, 0, method.stages - 1)
    plain_JRQ = times_JK[:, stage_RQ] * start_RQ[None]
    shift_RS = times.segment_shift(layout.grid_RS3, self._shift, self._patch.t)
    shift_RQ = times.slot_shift(shift_RS, layout.slot_segment_RQ)
    return plain_JRQ, times.shift(shift_RQ[None], plain_JRQ)

  def _guide(self, x0_nLP, batch: dict, layout: packing.Layout, method: Method):
    """Guided x0 from the predictions of all branches, which lie behind each other as rows."""
    both_RLP, image_RLP, *free_RLP = jnp.split(x0_nLP, method.branches)
    scales = [
      packing.take_segments(jnp.asarray(batch[name]), layout.segment_RL)[..., None]
      for name in ("guidance", "image_guidance")[: method.branches - 1]
    ]
    if method.branches == 2:
      guided_RLP = guidance.guide(both_RLP, image_RLP, *scales)
    else:
      guided_RLP = guidance.guide_two(both_RLP, image_RLP, *free_RLP, *scales)
    if method.rescale > 0:
      num_segments = layout.grid_RS3.shape[1]
      guided_RLP = guidance.rescale(
        guided_RLP, both_RLP, layout.segment_RL, num_segments, method.rescale
      )
    return guided_RLP


def _conditions(batch, layout, text_RMU, null_RMU, scale, n: int) -> tuple:
  """What rows are predicted under, n branches of them behind each other: known, canvas, layout and
  text, and the scale of positions if there is one."""
  null_layout = layout._replace(text_segment_RM=jnp.asarray(batch["null_segment"]))
  layouts = [layout] + [null_layout] * (n - 1)
  known_nLX, canvas_nLP = (
    jnp.concatenate([rows] * min(n, 2) + [jnp.zeros_like(rows)] * (n - 2))
    for rows in (jnp.asarray(batch["known"]), jnp.asarray(batch["canvas"]))
  )
  extra = () if scale is None else (jax.tree.map(lambda a: jnp.tile(a, (n, 1, 1)), scale),)
  return (
    known_nLX, canvas_nLP, jax.tree.map(lambda *each: jnp.concatenate(each), *layouts),
    jnp.concatenate([text_RMU] + [null_RMU] * (n - 1)), *extra,
  )  # fmt: skip


def guided_points(method: Method) -> list[bool]:
  """Whether guidance acts, at each point of the grid but the last."""
  if method.branches == 1:
    return [False] * method.steps
  with jax.ensure_compile_time_eval():
    return guidance.in_interval(_grid(method)[:-1, -1], method.interval).tolist()


def _grid(method: Method) -> jax.Array:
  """The times [J, K] of each stage."""
  with jax.ensure_compile_time_eval():
    return sampler.staged_grid(method.grid, method.steps, method.stages)


def evaluations(method: Method) -> int:
  """How often a row goes through the network: all its branches where guidance acts, else once."""
  at_E = solvers.by_name(method.solver).plan(jnp.linspace(1.0, 0.0, method.steps + 1))["at"]
  acts_J = np.asarray(guided_points(method))
  return len(at_E) + (method.branches - 1) * int(acts_J[at_E].sum())


def branches(requests: Sequence[Request]) -> int:
  """How often rows of these requests must be evaluated; see `Method`."""
  if any(r.image_guidance != 1.0 and r.known is not None for r in requests):
    return 3
  return 2 if any(r.guidance != 1.0 for r in requests) else 1


def lowered(method: Method, request: Request) -> Method:
  """The method with no more stages than a request needs: as many as a frame of tokens may be away
  from a known one."""
  most = 1
  if request.one_by_one and request.known is not None and request.known.any():
    told_t = np.flatnonzero(request.known.reshape(request.grid[0], -1).any(1))
    most = max(1, int(np.abs(np.arange(request.grid[0])[:, None] - told_t).min(1).max()))
  return dataclasses.replace(method, stages=min(method.stages, most))
