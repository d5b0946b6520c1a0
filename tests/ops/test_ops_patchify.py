"""Patches: round trips to the bit, the order of entries, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.ops.patchify import cell_channels, join_cells, patchify, token_grid, unpatchify
from sora_jax.shapes import Grid, Patch

small = st.integers(1, 4)


@given(
  grid=st.tuples(small, small, small), patch=st.tuples(small, small, small), Z=st.integers(1, 5),
  lead=st.sampled_from([(), (2,), (2, 3)]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_unpatchify_gives_back_every_bit(grid, patch, Z, lead):
  cells = [g * p for g, p in zip(grid, patch)]
  latent = np.random.default_rng(0).normal(size=(*lead, *cells, Z)).astype(np.float32)
  patches = patchify(latent, Patch(*patch))
  assert patches.shape == (*lead, int(np.prod(grid)), int(np.prod(patch)) * Z)
  assert np.array_equal(unpatchify(patches, grid, Patch(*patch)), latent)


@pytest.mark.parametrize(
  "lead, cells, patch", [((), (2, 4, 6), (1, 2, 2)), ((2, 3), (4, 3, 2), (4, 3, 1))]
)
def test_arrays_of_jax_are_cut_as_those_of_numpy(lead, cells, patch):
  latent = np.random.default_rng(0).normal(size=(*lead, *cells, 3)).astype(np.float32)
  got = np.asarray(patchify(jnp.asarray(latent), Patch(*patch)))
  assert np.array_equal(got, patchify(latent, Patch(*patch)))


def test_order_is_t_h_w_then_pt_ph_pw_z():
  t, h, w, Z = 2, 4, 6, 3
  latent = np.arange(t * h * w * Z).reshape(t, h, w, Z)
  patches = patchify(latent, Patch(1, 2, 2))
  token = (1 * 2 + 1) * 3 + 2  # time 1, row 1, column 2 of a grid of 2 x 2 x 3
  for ph in range(2):
    for pw in range(2):
      got = patches[token, (ph * 2 + pw) * Z : (ph * 2 + pw + 1) * Z]
      assert np.array_equal(got, latent[1, 2 + ph, 4 + pw])


@pytest.mark.oracle
def test_a_linear_layer_on_patches_is_a_strided_convolution():
  torch = pytest.importorskip("torch")
  conv = torch.nn.Conv3d(5, 7, kernel_size=(1, 2, 2), stride=(1, 2, 2))
  latent = np.random.default_rng(0).normal(size=(2, 3, 4, 6, 5)).astype(np.float32)
  with torch.no_grad():
    want = conv(torch.from_numpy(latent.transpose(0, 4, 1, 2, 3))).numpy()
  kernel = conv.weight.detach().numpy().transpose(2, 3, 4, 1, 0).reshape(-1, 7)
  got = patchify(latent, Patch(1, 2, 2)) @ kernel + conv.bias.detach().numpy()
  np.testing.assert_allclose(got, want.reshape(2, 7, -1).transpose(0, 2, 1), atol=1e-5)


def test_join_cells_is_joining_latents_before_they_are_cut():
  rng, patch = np.random.default_rng(0), Patch(1, 2, 2)
  noisy, known, canvas = (
    rng.normal(size=(3, 4, 6, c)).astype(np.float32) for c in (8, 4, 8)
  )  # fmt: skip
  whole = patchify(np.concatenate([noisy, known, canvas], axis=-1), patch)
  parts = [patchify(part, patch) for part in (noisy, known, canvas)]
  assert np.array_equal(join_cells(*parts, patch), whole)
  assert np.array_equal(np.asarray(join_cells(*map(jnp.asarray, parts), patch)), whole)
  assert whole.shape[-1] == 4 * cell_channels(8, 4)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"\(3, 5, 4\) cells is not a whole number of \(1, 2, 2\)"):
    patchify(np.zeros((3, 5, 4, 2)), Patch(1, 2, 2))
  with pytest.raises(ValueError, match="do not fill a grid of"):
    unpatchify(np.zeros((5, 8)), (1, 2, 2), Patch(1, 2, 2))
  with pytest.raises(ValueError, match="known has 5 entries"):
    join_cells(np.zeros((1, 8)), np.zeros((1, 5)), np.zeros((1, 8)), Patch(1, 2, 2))
  with pytest.raises(ValueError, match="a latent has axes"):
    patchify(np.zeros((4, 4, 2)), Patch(1, 2, 2))
  assert token_grid((3, 4, 6), (1, 2, 2)) == Grid(3, 2, 3)
