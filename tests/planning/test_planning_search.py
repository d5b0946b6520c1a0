"""What a search tries, and in which order it puts what it finds."""

import pytest

from sora_jax.planning import search
from sora_jax.planning.search import Choice, Shape, Tried

FIRST = Choice((8, 1, 1, 1), "none", 64, 256, 16, 128)
SHAPE = Shape(width=64, heads=6, accumulate=1)


def figures(choice: Choice, fits: bool = True, seconds: float = 1.0) -> dict:
  return {
    "fits": fits, "hbm_bytes_per_chip": 2.0**30 * choice.mesh[0], "hbm_limit_bytes": 2.0**34,
    "tokens_per_step": 100.0, "step_seconds_lower_bound": seconds, "mfu_upper_bound": 0.5,
    "step_seconds_by_reason": {"compute": 0.5, "memory": seconds, "network": 0.1},
    "kernel_memory_exceeded": None,
  }  # fmt: skip


def plan(choice: Choice) -> Tried:
  """Tensor axes cannot be compiled, much data does not fit, remat and long rows cost time."""
  if choice.mesh[3] > 1:
    return Tried(choice, None, "refused")
  seconds = {"none": 3.0, "dots": 2.0, "block": 2.5}[choice.remat] * choice.row_len / 256
  return Tried(choice, figures(choice, choice.mesh[0] < 8, seconds + 0.1 * choice.mesh[2]))


def test_the_best_comes_first_and_each_choice_is_tried_once():
  told = []
  found = search.search(FIRST, SHAPE, 8, plan, told.append)
  assert len({one.choice for one in told}) == len(told) == len(found)
  best = found[0]
  assert best.fits and best.choice.remat == "dots" and best.choice.row_len == 256
  assert best.choice.mesh[2:] == (1, 1)
  assert not found[-1].fits and found[-1].figures is None
  assert {one.choice.row_len for one in found} == {256, 512, 1024}
  assert search.why(best, best) == "1.0 GiB, at most 50 % model-FLOP use"
  slow = next(one for one in found if one.choice.row_len == 512)
  assert "1.95 times the time a token, for memory" in search.why(slow, best)
  assert search.why(found[-1], best) == "cannot be: refused"
  exceeds = {"hbm_bytes_per_chip": None, "kernel_memory_exceeded": {"space": "smem"}}
  short = Tried(FIRST, figures(FIRST, fits=False) | exceeds)
  assert search.why(short, best) == "does not fit: a kernel's smem"


def test_a_mesh_that_fits_with_all_recomputed_is_not_missed():
  def plan(choice):
    fits = choice.mesh[2] > 1 or choice.remat == "block"
    return Tried(choice, figures(choice, fits, 2.0 if choice.mesh[2] > 1 else 1.0))

  best = search.search(FIRST, SHAPE, 8, plan, lambda one: None)[0].choice
  assert best.mesh[2:] == (1, 1) and best.remat == "block"


def test_meshes_divide_what_they_share_out():
  for mesh in search.meshes(FIRST, SHAPE, 8):
    data, fsdp, context, tensor = mesh
    assert data * fsdp * context * tensor == 8
    assert SHAPE.width % (8 * fsdp) == SHAPE.heads % tensor == FIRST.row_len % context == 0
  assert (1, 8, 1, 1) in list(search.meshes(FIRST, SHAPE, 8))
  assert not [mesh for mesh in search.meshes(FIRST, SHAPE, 8) if mesh[3] == 4]  # of 6 heads


@pytest.mark.parametrize(
  "mesh, chips, found",
  [((2, 2, 1, 2), 8, (2, 2, 1, 2)), ((-1, 2, 2, 1), 8, (2, 2, 2, 1)), ((8, 1, 1, 1), 8, None),
   ((2, 4, 1, 1), 4, None)],
)  # fmt: skip
def test_the_configs_own_mesh_is_tried_where_it_can_be(mesh, chips, found):
  told = []
  search.search(FIRST._replace(mesh=mesh, rows=4), SHAPE, chips, plan, told.append)
  meshes = [one.choice.mesh for one in told]
  assert meshes[0] == found if found else mesh not in meshes


def test_longer_rows_hold_as_many_more_clips_and_words():
  longer = FIRST.longer(2)
  assert longer.rows * longer.row_len == FIRST.rows * FIRST.row_len
  assert (longer.max_segments, longer.text_row_len) == (32, 256)
  assert longer.settings["data.max_segments"] == 32


def test_no_mesh_at_all_is_said():
  with pytest.raises(ValueError, match="no mesh of 7 chips shares out 64 rows in 1 parts"):
    search.search(FIRST, SHAPE, 7, plan, lambda one: None)
