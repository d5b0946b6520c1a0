"""Sampling packed requests: the same as alone, one program, noise by content, guidance per clip."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.diffusion import sampler, times
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops.packing import layout_of
from sora_jax.ops.patchify import patchify
from sora_jax.prompting import requests, sampling
from sora_jax.prompting.requests import Request, RowShape
from sora_jax.shapes import Grid, Patch

Z, PATCH = 3, Patch(1, 2, 2)
ROWS = RowShape(row_len=48, max_segments=4, text_row_len=16)
METHOD = sampling.Method(solver="dpmpp_2m", steps=3)
DIT = DiTConfig(
  width=24, depth=1, heads=2, in_channels=2 * Z + 2, out_channels=Z, text_width=8, mlp_ratio=2.0,
  time_features=16,
)  # fmt: skip
TEXT = TextConfig(vocab_size=20, width=8, depth=1, heads=2, head_size=4, mlp_width=8)
A = Request("a", (5, 6, 1), Grid(2, 2, 3), 8.0, seed=1, guidance=3.0)
B = Request("bb", (7, 1), Grid(1, 4, 2), 0.0, seed=1, guidance=1.5)
C = Request("c", (9, 3, 4, 1), Grid(3, 1, 5), 12.0, seed=2, guidance=2.0)


@functools.cache
def params(pooled=False):
  """Random weights everywhere: layers that start at zero would hide mistakes."""
  rng = np.random.default_rng(0)
  key, text_RM = jax.random.key(0), jnp.zeros((1, 16), jnp.int32)
  batch = requests.batches([A], ROWS, PATCH, Z, 2, (1,))[0][0]
  inputs = (
    jnp.zeros((1, ROWS.row_len, PATCH.h * PATCH.w * DIT.in_channels)), jnp.zeros((1, 4)),
    layout_of(batch), jnp.zeros((1, 16, TEXT.width)),
  )  # fmt: skip
  shapes = {
    "dit": jax.eval_shape(DiT(dataclasses.replace(DIT, pooled_text=pooled)).init, key, *inputs)[
      "params"
    ],
    "text": jax.eval_shape(TextEncoder(TEXT).init, key, text_RM, text_RM)["params"],
  }

  def fill(leaf):
    fan_in = max(1, leaf.size // leaf.shape[-1])
    return rng.standard_normal(leaf.shape).astype("f") / fan_in**0.5

  return jax.tree.map(fill, nn.meta.unbox(shapes))


@functools.cache
def make_sampler(scalable=False, pooled=False):
  """`scalable`: its network takes the scale of positions, too, and all its angles are large."""

  def plain(p, x_RLP, time_RQ, layout, text_RMU):
    network = DiT(dataclasses.replace(DIT, pooled_text=pooled))
    return network.apply({"params": p}, x_RLP, time_RQ, layout, text_RMU)

  def scaled(p, x_RLP, time_RQ, layout, text_RMU, scale=None):
    network = DiT(dataclasses.replace(DIT, rotary_theta=2.0))
    return network.apply({"params": p}, x_RLP, time_RQ, layout, text_RMU, position_scale=scale)

  return sampling.Sampler(
    scaled if scalable else plain,
    lambda p, ids, segment: TextEncoder(TEXT).apply({"params": p}, ids, segment),
    patch=PATCH, channels=Z, frames_per_latent=2, kind="v",
    shift=times.ShiftConfig(reference=2.0), rows=ROWS,
    null_ids=(1,),
  )  # fmt: skip


def close(a, b, tolerance=1e-4):
  assert a.shape == b.shape
  assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_packed_samples_are_those_sampled_alone(solver):
  method = dataclasses.replace(METHOD, solver=solver)
  run = make_sampler()
  together = run(params(), [A, B, C], method)
  for request, sample in zip([A, B, C], together):
    grid = request.grid
    assert sample.shape == (grid.t, 2 * grid.h, 2 * grid.w, Z) and sample.dtype == np.float32
    # two requests that do not fit the smallest row: the same program as for three
    close(run(params(), [request, dataclasses.replace(A, seed=9)], method)[0], sample)


def two_networks(boundary):
  """A sampler whose networks predict a velocity, params["dit"] and params["dit_high"]; no shift."""
  return sampling.Sampler(
    lambda p, x_RLP, time_RQ, layout, text_RMU: jnp.full((*x_RLP.shape[:2], 4 * Z), p),
    lambda p, ids, segment: ids[..., None].astype(jnp.float32),
    patch=PATCH, channels=Z, frames_per_latent=2, kind="v",
    shift=times.ShiftConfig(reference=1e6, frames=0.0, low=1.0), rows=ROWS, null_ids=(1,),
    boundary=boundary,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("grid", "boundary", "share"),
  [("uniform", 0.5, 0.5), ("uniform", 0.7, 0.5), ("uniform", 0.8, 0.25), ("quadratic", 0.5, 0.75),
   ("uniform", 1.0, 0.0), ("uniform", 0.1, 1.0)],
)  # fmt: skip
def test_a_second_network_takes_the_way_down_to_its_boundary(grid, boundary, share):
  """Its velocity is 3, the first's 1. In one row with a whole way, for a boundary of 0.5: a clip
  that starts at 0.4 never meets it, one that starts at 0.8 does at 0.8 and 0.6."""
  method = sampling.Method(solver="euler", steps=4, grid=grid)
  params = {"dit": 1.0, "dit_high": 3.0, "text": None}
  latent = np.zeros((2, 4, 6, Z), np.float32)
  edits = [dataclasses.replace(A, start_latent=latent, start_time=start) for start in (0.4, 0.8)]
  ways = [(1.0, share)]
  if (grid, boundary) == ("uniform", 0.5):
    ways += [(0.4, 0.0), (0.8, 0.5)]
  asked = [A, *edits][: len(ways)]
  made = two_networks(boundary)(params, asked, method)
  for video, request, (start, high) in zip(made, asked, ways):
    noise = sampler.noise_cells(request.seed, request.text, request.sample, Grid(2, 4, 6), Z)
    moved = start * (3.0 * high + 1.0 * (1 - high))
    np.testing.assert_allclose(video, start * np.asarray(noise) - moved, rtol=1e-5, atol=1e-5)


def test_two_networks_of_the_same_weights_are_one():
  run, plain = sampling.Sampler.__new__(sampling.Sampler), make_sampler()
  run.__dict__.update(plain.__dict__)
  run._boundary = 0.5
  run.program = jax.jit(functools.partial(run.sample_rows), static_argnames="method")
  same = params() | {"dit_high": params()["dit"]}
  for got, want in zip(run(same, [A, B, C], METHOD), plain(params(), [A, B, C], METHOD)):
    close(got, want)
  moved = params() | {"dit_high": jax.tree.map(lambda x: 1.1 * x, params()["dit"])}
  assert np.abs(run(moved, [A], METHOD)[0] - run(same, [A], METHOD)[0]).max() > 1e-2


def test_one_program_serves_all_sizes_texts_and_strengths():
  run = sampling.Sampler.__new__(sampling.Sampler)
  run.__dict__.update(make_sampler().__dict__)
  run.program = jax.jit(functools.partial(run.sample_rows), static_argnames="method")
  run(params(), [A, B, C], METHOD)
  for grid in (Grid(4, 3, 3), Grid(1, 1, 40), Grid(2, 4, 5)):
    run(params(), [Request("other", (4, 4, 4, 1), grid, 9.0, guidance=4.0)], METHOD)
  assert run.programs == 1


@pytest.mark.parametrize("rotary", ["interpolate", "ntk", ("ntk", "none")])
def test_clips_beyond_the_trained_extent_are_scaled_and_others_are_not(rotary):
  """A lasts 3 / 8 s and has sides of 2 and 3 tokens; the other 5 / 4 s and 8 tokens."""
  run = make_sampler(scalable=True)
  # Bits are compared of two programs: fusions are emitted as outside of tests (conftest.py).
  run.program = jax.jit(
    run.sample_rows, static_argnames="method",
    compiler_options={"xla_cpu_use_fusion_emitters": True},
  )  # fmt: skip
  requests = [
    A,
    dataclasses.replace(C, grid=Grid(3, 1, 8), fps=4.0),
    dataclasses.replace(A, seed=3),
  ]
  plain = run(params(), requests, METHOD)
  reach = functools.partial(dataclasses.replace, METHOD, rotary_method=rotary)
  within = run(params(), requests, reach(trained_extent=(5 / 4, 8)))
  some = run(params(), requests, reach(trained_extent=(3 / 8, 3)))
  for i in range(3):
    np.testing.assert_array_equal(within[i], plain[i])
  for i in (0, 2):
    np.testing.assert_array_equal(some[i], plain[i])
  assert np.abs(some[1] - plain[1]).max() > 0.01
  again = [dataclasses.replace(A, seed=9)] * 2
  for request, sample in zip(requests, some):
    alone = run(params(), [request, *again], reach(trained_extent=(3 / 8, 3)))[0]
    close(alone, sample)


def test_one_program_serves_clips_within_and_beyond_the_trained_extent():
  run = sampling.Sampler.__new__(sampling.Sampler)
  run.__dict__.update(make_sampler(scalable=True).__dict__)
  run.program = jax.jit(functools.partial(run.sample_rows), static_argnames="method")
  method = dataclasses.replace(METHOD, rotary_method="ntk", trained_extent=(0.4, 3))
  for group in ([A, B, C], [A, A], [B, C]):
    run(params(), group, method)
  assert run.programs == 1


def test_methods_that_scale_no_positions_trace_the_same_program():
  """The network is handed five arguments, as if there were no such option."""
  run = make_sampler()
  batch = requests.batches([A, B], ROWS, PATCH, Z, 2, (1,))[0][0]
  batch["noise"] = np.zeros_like(batch["start"])
  traced = [
    str(jax.make_jaxpr(functools.partial(run.sample_rows, method=method))(params(), batch))
    for method in (METHOD, dataclasses.replace(METHOD, trained_extent=(0.1, 1.0)))
  ]
  assert traced[0] == traced[1]


def test_noise_is_that_of_the_cells_in_any_company():
  run = make_sampler()
  for group in ([A, B, C], [C, A], [B]):
    for batch, rows in requests.batches(group, ROWS, PATCH, Z, 2, (1,)):
      tables = {name: batch[name] for name in ("key", "segment", "coord")}
      noise = np.asarray(run._noise_program(tables))
      for r, row in enumerate(rows):
        for s, i in enumerate(row):
          q = group[i]
          cells = Grid(q.grid.t, 2 * q.grid.h, 2 * q.grid.w)
          want = patchify(sampler.noise_cells(q.seed, q.text, q.sample, cells, Z), PATCH)
          got = noise[r, batch["segment"][r] == s + 1]
          np.testing.assert_array_equal(got, np.asarray(want))
      assert not noise[batch["segment"] == 0].any()


def test_seed_text_and_sample_number_each_change_the_sample():
  run = make_sampler()
  changed = [
    A, dataclasses.replace(A, seed=2), dataclasses.replace(A, text="x"),
    dataclasses.replace(A, sample=1),
  ]  # fmt: skip
  outs = run(params(), changed, METHOD)
  for other in outs[1:]:
    assert np.abs(outs[0] - other).max() > 0.05
  np.testing.assert_array_equal(run(params(), changed, METHOD)[0], outs[0])


def told(request, *frames):
  """The request, some latent frames of which are known."""
  known = np.zeros((*request.grid, 2), np.uint8).repeat(2, 1).repeat(2, 2)
  known[list(frames)] = 1
  canvas = np.random.default_rng(5).standard_normal((*known.shape[:3], Z)).astype("f")
  return dataclasses.replace(request, known=known, canvas=canvas * known[..., :1])


def test_frames_next_to_known_ones_are_made_before_the_rest():
  far = told(dataclasses.replace(A, grid=Grid(5, 1, 2), one_by_one=True), 4)
  mid = told(dataclasses.replace(C, one_by_one=True), 1)
  free, plain = dataclasses.replace(B, one_by_one=True), told(C, 0)
  method = sampling.Method(solver="euler", steps=6, stages=3, branches=2)
  most = dataclasses.replace(method, stages=6)
  assert [sampling.lowered(most, r).stages for r in (far, mid, free, plain)] == [4, 1, 1, 1]
  assert sampling.lowered(method, far) == method
  run = make_sampler()
  batch, group = run.packed([far, mid, plain])[0]
  times_JRQ, shifted_JRQ = run._times(batch, layout_of(batch), method)
  assert group[0] == [1, 2, 0] and times_JRQ.shape[0] == 7
  table = sampler.staged_grid("uniform", 6, 3)
  got = np.asarray(times_JRQ[:, 0, : 1 + 3 + 5])
  np.testing.assert_array_equal(got[:, 4:], table[:, np.asarray([2, 2, 1, 0, 0])])
  np.testing.assert_array_equal(got[:, :4], table[:, np.zeros(4, int)])
  for slot, (t, y, x) in ((0, mid.grid), (3, plain.grid), (4, far.grid)):  # by size
    a = max(1.0, (y * x / 2.0) ** 0.5 * t**0.25)
    want = a * got[:, slot] / (1 + (a - 1) * got[:, slot])
    np.testing.assert_allclose(shifted_JRQ[:, 0, slot], want, rtol=1e-6)
  together = run(params(), [far, mid, free, plain, A], method)
  for request, sample in zip((far, mid, free, plain, A), together):
    other = dataclasses.replace(far, seed=9)
    close(run(params(), [request, other], method)[0], sample)
  at_once = run(params(), [far, mid, free, plain, A], dataclasses.replace(method, stages=1))
  assert np.abs(at_once[0] - together[0]).max() > 0.01
  with pytest.raises(ValueError, match="stages=7; allowed: 1 .all at once. up to steps=6"):
    dataclasses.replace(method, stages=7)


def test_guidance_is_each_request_s_own_and_one_is_off():
  run = make_sampler()
  one = dataclasses.replace(A, guidance=1.0)
  plain = run(params(), [one, dataclasses.replace(C, guidance=1.0)], METHOD)[0]
  mixed = run(params(), [one, C], METHOD)
  close(mixed[0], plain)
  assert np.abs(mixed[0] - run(params(), [A, C], METHOD)[0]).max() > 0.01
  outside = run(params(), [A, C], dataclasses.replace(METHOD, interval=(0.0, 0.0)))[0]
  close(outside, plain)


def test_guidance_acts_in_its_interval_alone():
  """Three even steps predict at 1, 2/3 and 1/3; where a clip starts makes no difference."""
  run = make_sampler()
  latent = np.random.default_rng(3).standard_normal((2, 4, 6, Z)).astype("f")
  edit = dataclasses.replace(A, start_latent=latent, start_time=0.5)
  asked = [A, edit, C]

  def sample(*interval):
    return run(params(), asked, dataclasses.replace(METHOD, interval=interval))

  always, all_points, first_alone, never = (
    sample(*interval) for interval in ((0, 1), (0.3, 1), (0.7, 1), (0, 0.3))
  )
  off = run(params(), [dataclasses.replace(r, guidance=1.0) for r in asked], METHOD)
  for i in range(len(asked)):
    close(all_points[i], always[i])
    close(never[i], off[i])
    assert np.abs(first_alone[i] - always[i]).max() > 0.01
    assert np.abs(first_alone[i] - never[i]).max() > 0.01


@pytest.mark.parametrize(
  "method, number",
  [
    ({}, 4 * 3), ({"branches": 1}, 4), ({"interval": (0.5, 1.0)}, 4 + 2 * 2),
    ({"interval": (0.6, 1.0), "grid": "quadratic"}, 4 + 2),
    ({"solver": "heun"}, 7 * 3), ({"solver": "heun", "interval": (0.5, 1.0)}, 7 + 2 * 3),
  ],
)  # fmt: skip
def test_evaluations_of_a_row_are_counted(method, number):
  assert (
    sampling.evaluations(sampling.Method(**{"steps": 4, "solver": "euler", **method})) == number
  )


def test_guidance_moves_away_from_the_empty_prompt_by_its_strength():
  method = sampling.Method(solver="euler", steps=1)  # one step to time 0 gives the prediction
  run = make_sampler()
  cond, free = (dataclasses.replace(A, guidance=1.0, ids=ids) for ids in (A.ids, (1,)))
  cond, free, guided = run(params(), [cond, free, A], method)
  assert np.abs(cond - free).max() > 0.01
  close(guided, cond + (A.guidance - 1) * (cond - free))


def test_what_is_known_is_seen_and_has_a_strength_of_its_own():
  method = sampling.Method(solver="euler", steps=1)
  run, rng = make_sampler(), np.random.default_rng(4)
  seen = {
    "known": np.ones((2, 4, 6, 2), np.uint8),
    "canvas": rng.standard_normal((2, 4, 6, Z)).astype("f"),
  }
  both = dataclasses.replace(A, guidance=1.0, **seen)
  image = dataclasses.replace(both, ids=(1,))
  free = dataclasses.replace(A, guidance=1.0, ids=(1,))
  guided = dataclasses.replace(both, guidance=3.0, image_guidance=2.0)
  out_both, out_image, out_free, out, other = run(
    params(), [both, image, free, guided, C], method
  )  # fmt: skip
  assert np.abs(out_image - out_free).max() > 0.01
  close(out, out_both + 2 * (out_both - out_image) + (out_image - out_free))
  close(other, run(params(), [C], method)[0])
  assert [sampling.branches(q) for q in ([both], [A, both], [A, guided])] == [1, 2, 3]
  changed = dataclasses.replace(both, canvas=seen["canvas"] + 1)
  assert np.abs(run(params(), [changed], method)[0] - out_both).max() > 0.01
  with pytest.raises(ValueError, match="known and canvas come together"):
    dataclasses.replace(A, known=seen["known"])


def test_frames_that_are_known_exactly_stay_and_the_others_go_on_from_them():
  rng, run = np.random.default_rng(5), make_sampler()
  free, other = run(params(), [C, A], METHOD)
  exact, is_exact = rng.standard_normal(free.shape).astype("f"), np.zeros(free.shape[:3], bool)
  is_exact[0], is_exact[-1, 0, 3] = True, True  # a frame, and one cell of a patch
  held = dataclasses.replace(C, exact=exact, is_exact=is_exact)
  out, beside = run(params(), [held, A], METHOD)
  np.testing.assert_allclose(out[is_exact], exact[is_exact], atol=1e-6)
  assert np.abs(out - free)[~is_exact].min() > 0 and np.abs(out - free)[~is_exact].max() > 0.01
  assert np.abs(free - exact)[is_exact].max() > 0.01
  close(beside, other)
  nothing = dataclasses.replace(held, is_exact=np.zeros_like(is_exact))
  close(run(params(), [nothing], METHOD)[0], free)
  with pytest.raises(ValueError, match="exact and is_exact come together"):
    dataclasses.replace(C, exact=exact)


def test_a_start_is_kept_the_more_the_earlier_its_time():
  run = make_sampler()
  start = np.random.default_rng(3).standard_normal((2, 4, 6, Z)).astype("f")
  error = []
  for time in (0.01, 0.3, 1.0):
    request = dataclasses.replace(A, start_latent=start, start_time=time)
    error.append(np.abs(run(params(), [request, C], METHOD)[0] - start).max())
  assert error[0] < 0.2 < error[1] < error[2]
  close(run(params(), [request, C], METHOD)[0], run(params(), [A, C], METHOD)[0], 1e-6)


@given(
  sizes=st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 2), st.integers(1, 9)),
    min_size=1,
    max_size=12,
  )
)
@settings(max_examples=60, deadline=None)
def test_every_request_lies_in_one_row_within_its_limits(sizes):
  group = [Request("p", (1,) * n, Grid(t, h, w), 8.0) for t, h, w, n in sizes]
  rows = requests.assign(group, ROWS)
  assert sorted(i for row in rows for i in row) == list(range(len(group)))
  for row in rows:
    assert 1 <= len(row) <= ROWS.max_segments
    assert sum(group[i].grid.size for i in row) <= ROWS.row_len
    assert sum(len(group[i].ids) for i in row) <= ROWS.text_row_len


def test_rows_grow_for_large_requests_and_shrink_for_small_ones():
  assert requests.shape_for([dataclasses.replace(A, grid=Grid(1, 2, 3))], ROWS).row_len == 12
  assert requests.shape_for([A, B], ROWS).row_len == 48
  large = requests.shape_for([dataclasses.replace(A, grid=Grid(10, 3, 4), ids=(1,) * 40)], ROWS)
  assert large.row_len == 144 and large.text_row_len == 64
  longest = dataclasses.replace(A, grid=Grid(13, 3, 4))
  assert requests.shape_for([longest], ROWS).row_len == 192


def test_impossible_requests_and_methods_are_refused():
  with pytest.raises(ValueError, match="start_time=0.0"):
    dataclasses.replace(A, start_time=0.0)
  with pytest.raises(ValueError, match="end of text"):
    dataclasses.replace(A, ids=())
  with pytest.raises(ValueError, match="empty"):
    dataclasses.replace(A, grid=Grid(0, 1, 1))
  with pytest.raises(ValueError, match="solver='rk4'; allowed: euler, heun"):
    sampling.Method(solver="rk4")
  with pytest.raises(ValueError, match="grid='log'; allowed: uniform"):
    sampling.Method(grid="log")
  with pytest.raises(ValueError, match="steps=0"):
    sampling.Method(steps=0)
  for rotary in ("yarn", ("ntk", "yarn"), ("ntk",) * 3):
    with pytest.raises(ValueError, match="rotary_method=.*allowed: none, interpolate, ntk, or two"):
      sampling.Method(rotary_method=rotary, trained_extent=(1.0, 8))
  with pytest.raises(ValueError, match="'ntk' needs trained_extent=.seconds, side in tokens"):
    sampling.Method(rotary_method="ntk")
  with pytest.raises(ValueError, match="trained_extent=.0.0, 8.; it must be"):
    sampling.Method(rotary_method="ntk", trained_extent=(0.0, 8))
  with pytest.raises(ValueError, match="request 0 .'a'. needs 60 tokens"):
    requests.assign([dataclasses.replace(A, grid=Grid(1, 6, 10))], ROWS)
  assert make_sampler()(params(), [], METHOD) == []


CHANGING = Request(
  "a, then b", (5, 6, 1), Grid(4, 1, 2), 8.0, seed=4, guidance=2.0, later=((1, (7, 1)), (3, (2, 1)))
)


def text_reader():
  """A sampler whose network sees, in each token, nothing but the sum of the ids of its text."""

  def predict(p, x_RLP, time_RQ, layout, text_RMU):
    reads_RLM = layout.text_RL[..., None] == layout.text_segment_RM[:, None]
    sum_RL = jnp.where(reads_RLM, text_RMU[:, None, :, 0], 0.0).sum(-1)
    return jnp.broadcast_to(sum_RL[..., None], (*sum_RL.shape, PATCH.h * PATCH.w * Z))

  return sampling.Sampler(
    predict, lambda p, ids, segment: ids[..., None].astype(jnp.float32), patch=PATCH, channels=Z,
    frames_per_latent=2, kind="x", shift=times.ShiftConfig(), rows=ROWS, null_ids=(1,),
  )  # fmt: skip


def test_a_prompt_that_changes_is_read_by_the_frames_that_follow():
  changing = dataclasses.replace(CHANGING, guidance=1.0)
  plain = dataclasses.replace(A, guidance=1.0)
  first, both, last = text_reader()({"dit": {}, "text": {}}, [plain, changing, plain], METHOD)
  for k, want in enumerate((12.0, 8.0, 8.0, 3.0)):
    np.testing.assert_allclose(both[k], want)
  np.testing.assert_allclose(first, 12.0)
  np.testing.assert_allclose(last, 12.0)


def test_guidance_compares_every_prompt_with_the_empty_one():
  (made,) = text_reader()({"dit": {}, "text": {}}, [CHANGING], METHOD)
  for k, want in enumerate((12.0, 8.0, 8.0, 3.0)):
    np.testing.assert_allclose(made[k], 1.0 + 2.0 * (want - 1.0))


@pytest.mark.parametrize("pooled", [False, True])
def test_changing_prompts_are_made_packed_as_they_are_alone(pooled):
  sampler = make_sampler(pooled=pooled)
  alone = [sampler(params(pooled), [r], METHOD)[0] for r in (CHANGING, A, B)]
  together = sampler(params(pooled), [A, CHANGING, B, CHANGING], METHOD)
  for got, want in zip(together, (alone[1], alone[0], alone[2], alone[0])):
    close(got, want)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_prompt_that_changes_to_itself_does_not_change(pooled):
  plain = dataclasses.replace(CHANGING, later=())
  same = dataclasses.replace(CHANGING, later=((2, plain.ids),))
  sampler = make_sampler(pooled=pooled)
  want, got, other = (sampler(params(pooled), [r], METHOD)[0] for r in (plain, same, CHANGING))
  close(got, want)
  assert np.abs(other - want).max() > 1e-2


@pytest.mark.parametrize("later", [((0, (5,)),), ((2, (5,)), (2, (6,))), ((4, (5,)),), ((1, ()),)])
def test_prompts_that_cannot_follow_each_other_are_refused(later):
  with pytest.raises(ValueError, match="take over at frames"):
    dataclasses.replace(CHANGING, later=later)
