# ruff: noqa: E501 (a compiler's lines are long)
"""The walk over compiled programs: on text written by hand, and on programs of this machine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.planning import hlo, walk

TEXT = """HloModule jit_step, is_scheduled=true

%fused (p0: bf16[64,8,16], p1: s32[], p2: bf16[32,8]) -> bf16[32,16] {
  %p0 = bf16[64,8,16]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[32,8]{1,0:T(8,128)S(1)} parameter(2)
  %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %kernel = bf16[8,16]{1,0} bitcast(%slice)
  ROOT %conv = bf16[32,16]{1,0} convolution(%p2, %kernel), dim_labels=bf_io->bf, metadata={op_name="jit(step)/jvp(M)/up/dot_general"}
}

%body (state: (s32[], bf16[32,8], bf16[64,8,16])) -> (s32[], bf16[32,8], bf16[64,8,16]) {
  %state = (s32[]{:T(128)}, bf16[32,8]{1,0}, /*index=2*/bf16[64,8,16]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[32,8]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %w = bf16[64,8,16]{2,1,0} get-tuple-element(%state), index=2
  %y = bf16[32,16]{1,0} fusion(%w, %i, %x), kind=kOutput, calls=%fused
  %gather.1 = bf16[8,16]{1,0} all-gather(%y), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, dimensions={1}
  %again = bf16[32,16]{1,0} dot(%x, %gather.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/checkpoint/rematted_computation/up/dot_general"}
  %splash_mha_fwd.7 = (f32[8,128]{1,0}, bf16[2,32,8]{2,1,0}) custom-call(%i, %q, %w), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"blocks":"{512, 512}"
}}, metadata={op_name="jit(step)/attention"}
  ROOT %out = (s32[], bf16[32,8], bf16[64,8,16]) tuple(%i, %x, %w)
}

%all-reduce-scatter.3 (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  %sum = f32[64]{0} all-reduce(%p), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %part = f32[16]{0} dynamic-slice(%sum, %n), dynamic_slice_sizes={16}
}

%cond (state: (s32[], bf16[32,8], bf16[64,8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(34)
  %state.1 = (s32[], bf16[32,8], bf16[64,8,16]) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[64]) -> f32[16] {
  %a = f32[64]{0} parameter(0)
  %t = (s32[], bf16[32,8], bf16[64,8,16]) tuple(%a)
  %loop = (s32[], bf16[32,8], bf16[64,8,16]) while(%t), condition=%cond, body=%body
  ROOT %r = f32[16]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
MESH = (("data", 4), ("fsdp", 2))


@pytest.mark.parametrize("scope, to_words", [("attention", False), ("cross/shard_map", True)])
def test_loops_are_multiplied_and_kinds_of_work_kept_apart(scope, to_words):
  text = TEXT.replace('op_name="jit(step)/attention"', f'op_name="jit(step)/blocks/{scope}"')
  costs, _ = walk.walk(hlo.parse(text), MESH)
  assert costs.dot_flops == 34 * 2 * 32 * 8 * 16
  assert costs.recomputed_flops == 34 * 2 * 32 * 8 * 16
  (((name, _, *marks), times),) = costs.kernels.items()
  assert (name, *marks, times) == ("splash_mha_fwd", to_words, False, 34)


NAMED = "jit(step)/transpose(jvp(M))/checkpoint/"
WOVEN = """HloModule jit_step

%product (p0: bf16[32,8], p1: bf16[8,16]) -> (bf16[32,16], bf16[8,16]) {
  %p0 = bf16[32,8]{1,0} parameter(0)
  %p1 = bf16[8,16]{1,0} parameter(1)
  %conv = bf16[32,16]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
  ROOT %both = (bf16[32,16]{1,0}, bf16[8,16]{1,0}) tuple(%conv, %p1)
}

%made (p: bf16[32,8]) -> bf16[32,8] {
  %p = bf16[32,8]{1,0} parameter(0)
  ROOT %norm = bf16[32,8]{1,0} multiply(%p, %p), metadata={op_name="NAMED"}
}

ENTRY %main (a: bf16[32,8], w: bf16[8,16]) -> bf16[32,16] {
  %a = bf16[32,8]{1,0} parameter(0)
  %w = bf16[8,16]{1,0} parameter(1)
  %x = bf16[32,8]{1,0} fusion(%a), kind=kLoop, calls=%made
  %w.1 = bf16[8,16]{1,0} copy(%w), metadata={op_name="jit(step)/transpose(jvp(M))/slice"}
  %y = (bf16[32,16]{1,0}, bf16[8,16]{1,0}) fusion(%x, %w.1), kind=kOutput, calls=%product
  %y.0 = bf16[32,16]{1,0} get-tuple-element(%y), index=0
  %y.1 = bf16[8,16]{1,0} get-tuple-element(%y), index=1
  ROOT %z = bf16[32,16]{1,0} dot(%y.0, %y.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""


@pytest.mark.parametrize(
  "name, repeated",
  [
    ("jit(step)/jvp(M)/norm/mul", False), (f"{NAMED}rematted_computation/norm/mul", True),
    (f"{NAMED}up/mul", False),
  ],
)  # fmt: skip
def test_a_product_without_a_name_is_known_by_what_it_takes_in(name, repeated):
  """A second product takes in what the first has made: it is what the first is."""
  costs, _ = walk.walk(hlo.parse(WOVEN.replace("NAMED", name)))
  first, second = 2 * 32 * 8 * 16, 2 * 32 * 16 * 16
  assert costs.recomputed_flops == (first + second if repeated else 0)
  assert costs.dot_flops == (0 if repeated else first + second)


@pytest.mark.parametrize(
  "start, limit, step, trips", [(0, 4, 2, 2), (0, 5, 2, 3), (3, 9, 1, 6), (9, 3, 1, 0)]
)
def test_loops_may_count_in_twos_and_from_anywhere(start, limit, step, trips):
  text = f"""HloModule m

%body (s: (f32[8,8], u32[])) -> (f32[8,8], u32[]) {{
  %s = (f32[8,8]{{1,0}}, u32[]) parameter(0)
  %x = f32[8,8]{{1,0}} get-tuple-element(%s), index=0
  %i = u32[] get-tuple-element(%s), index=1
  %by = u32[] constant({step})
  %next = u32[] add(%i, %by)
  %y = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (f32[8,8]{{1,0}}, u32[]) tuple(%y, %next)
}}

%cond (s: (f32[8,8], u32[])) -> pred[] {{
  %s = (f32[8,8]{{1,0}}, u32[]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=1
  %limit = u32[] constant({limit})
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (a: f32[8,8]) -> (f32[8,8], u32[]) {{
  %a = f32[8,8]{{1,0}} parameter(0)
  %zero = u32[] constant({start})
  %t = (f32[8,8]{{1,0}}, u32[]) tuple(%a, %zero)
  ROOT %loop = (f32[8,8]{{1,0}}, u32[]) while(%t), condition=%cond, body=%body
}}
"""
  costs, _ = walk.walk(hlo.parse(text))
  assert costs.dot_flops == trips * 2 * 8 * 8 * 8


def test_exchanges_have_their_axes_bytes_and_kind():
  _, found = walk.walk(hlo.parse(TEXT), MESH)
  gather, scatter = found
  assert (gather.kind, gather.axes, gather.group) == ("all-gather", ("fsdp",), 2)
  assert gather.bytes == 34 * 2 * 32 * 16 and gather.count == 34  # the larger side
  assert (scatter.kind, scatter.axes, scatter.group) == ("reduce-scatter", ("data",), 4)
  assert scatter.bytes == 4 * 64


def test_of_a_stack_only_the_slice_is_read_and_fast_memory_is_free():
  program = hlo.parse(TEXT)
  body = program.computations["body"]
  moved = walk.moved_bytes(body["y"], body, program)
  index, part, out = 4, 2 * (8 * 16), 2 * (32 * 16)
  assert moved == index + part + out


@pytest.mark.parametrize(
  "groups, members",
  [
    ("{{0,1},{2,3},{4,5},{6,7}}", [0, 1]),
    ("[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
    ("[4,2]<=[8]", [0, 1]),
    ("mesh['x'=4,'y'=2] {'x'}", [0, 2, 4, 6]),
    ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", [0, 2, 4, 6]),
    ("{}", list(range(8))),
  ],
)  # fmt: skip
def test_groups_are_read_as_xla_writes_them(groups, members):
  axes = {2: ("fsdp",), 4: ("data",), 8: ("data", "fsdp")}[len(members)]
  assert walk.span(groups, MESH) == (axes, len(members))


def test_a_program_of_several_slices_names_the_devices_of_one():
  assert walk.span("{}", MESH, slices=2) == (("data", "fsdp"), 4)
  assert walk.span("{{0,2},{1,3}}", MESH, slices=2) == (("data",), 2)


@pytest.mark.parametrize(
  "size, kernel, stride, pad, dilate",
  [(9, 3, 1, (1, 1), 1), (8, 3, 2, (0, 1), 1), (5, 4, 3, (0, 0), 4), (6, 6, 1, (5, 5), 1)],
)
def test_convolutions_count_the_pairs_that_meet_an_entry(size, kernel, stride, pad, dilate):
  reach = (size - 1) * dilate + 1 + sum(pad)
  out = (reach - kernel) // stride + 1
  ones = jnp.ones((1, 1, size))
  count = jax.lax.conv_general_dilated(
    ones, jnp.ones((1, 1, kernel)), (stride,), [pad], lhs_dilation=(dilate,)
  )
  assert count.shape[-1] == out
  assert walk.valid_positions(size, kernel, out, stride, pad, dilate, 1) == int(count.sum())


def test_a_window_as_wide_as_many_rows_is_counted_without_a_table():
  n = 1 << 20  # the compiler writes some products over rows as convolutions
  assert walk.valid_positions(n, n, n, 1, (n - 1, 0), 1, 1) == n * (n + 1) // 2


@pytest.mark.parametrize("depth", [2, 4])
def test_a_scanned_program_costs_what_its_unrolled_one_does(depth):
  w = jnp.ones((depth, 24, 24))

  def loss(w, x, again, unroll):
    layer = lambda x, k: (jnp.tanh(x @ k), None)  # noqa: E731
    layer = jax.checkpoint(layer) if again else layer
    return jnp.sum(jax.lax.scan(layer, x, w, unroll=unroll)[0])

  def costs(again, unroll):
    step = jax.jit(jax.grad(functools.partial(loss, again=again, unroll=unroll), argnums=(0, 1)))
    text = step.lower(w, jnp.ones((16, 24))).compile().as_text()
    return walk.walk(hlo.parse(text))[0]

  once = depth * 2 * 16 * 24 * 24
  assert costs(False, 1).dot_flops == costs(False, depth).dot_flops == 3 * once
  assert costs(False, 1).recomputed_flops == 0
  assert costs(True, 1).dot_flops == 3 * once and costs(True, 1).recomputed_flops == once


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("HloModule nothing\n")


def test_shapes_know_their_bytes():
  (shape,) = hlo.parse(TEXT).computations["fused"]["p2"].shapes
  assert shape.fast and shape.bytes == 2 * np.prod(shape.dims) == 512
