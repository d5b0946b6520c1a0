"""In chunks, in tiles and as a whole the video autoencoder computes the same."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.nn import vae, vae_streaming, vae_tiles

SPEC = importlib.util.spec_from_file_location(
  "vae_cases", pathlib.Path(__file__).with_name("test_nn_vae.py")
)
CASES = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CASES)
random_variables, clip, close = CASES.random_variables, CASES.clip, CASES.close
encode, decode, jitted = CASES.encode, CASES.decode, CASES.jitted


@CASES.each_config
def test_streaming_equals_parallel(config):
  variables, video = random_variables(config), clip(config, latents=4)
  whole = encode(config, variables, video)
  frames = (video[:, i] for i in range(video.shape[1]))
  pieces = list(vae_streaming.encode_stream(config, variables, frames))
  close(np.concatenate(pieces, axis=1), whole)
  decoded = decode(config, variables, whole)
  pieces = list(vae_streaming.decode_stream(config, variables, whole))
  assert [p.shape[1] for p in pieces] == [1] + [config.temporal] * 3
  close(np.concatenate(pieces, axis=1), decoded)
  close(jitted(vae_streaming.decode_scanned, config)(variables, whole), decoded)


def test_chunks_may_hold_several_latents():
  config = CASES.LEVEL
  variables, video = random_variables(config), clip(config, latents=5)
  whole = encode(config, variables, video)
  run = vae_streaming.programs(config)
  first, state = run["encode_first"](variables, video[:, :1])
  rest, _ = run["encode_next"](variables, state, video[:, 1:])
  close(jnp.concatenate([first, rest], axis=1), whole)
  first, state = run["decode_first"](variables, whole[:, :1])
  rest, _ = run["decode_next"](variables, state, whole[:, 1:])
  close(jnp.concatenate([first, rest], axis=1), decode(config, variables, whole))


def test_a_stream_stops_at_the_frames_asked_for_and_fills_a_last_chunk():
  config = CASES.LEVEL
  variables, video = random_variables(config), clip(config, latents=3)
  frames = [video[:, i] for i in range(4)]
  pieces = list(vae_streaming.encode_stream(config, variables, frames))
  close(np.concatenate(pieces, axis=1), encode(config, variables, video[:, :4]))
  latent = encode(config, variables, video)
  got = list(vae_streaming.decode_stream(config, variables, latent, frames=4))
  assert [p.shape[1] for p in got] == [1, 2, 1]
  with pytest.raises(ValueError, match="ask for fewer"):
    list(vae_streaming.decode_stream(config, variables, latent, frames=6))


def test_decoding_17_and_257_frames_takes_one_program_and_the_same_memory():
  config = dataclasses.replace(CASES.CONFIGS["cells"], width=12)  # a config no other test compiles
  variables = random_variables(config)
  run = vae_streaming.programs(config)
  rng = np.random.default_rng(0)

  def held():
    """Bytes of all arrays on the device."""
    return sum(array.nbytes for array in jax.live_arrays())

  def most(frames):
    """Of these bytes, between two pieces; and how many frames there are."""
    latents = (rng.normal(size=(1, 2, 3, 4)).astype(np.float32) for _ in range(1 + frames // 4))
    before, found, shown = held(), [], 0
    for piece in vae_streaming.decode_stream(config, variables, latents):
      shown += piece.shape[1]
      found.append(held() - before)
    return max(found), shown

  (short, few), (long, many) = most(17), most(257)
  assert 0 < short == long and (few, many) == (17, 257)
  assert run["decode_first"]._cache_size() == run["decode_next"]._cache_size() == 1


def test_the_scanned_decoder_needs_the_same_temporary_memory_for_any_length():
  config = CASES.LEVEL
  variables = random_variables(config)

  def body(state, latent):
    video, state = vae_streaming.decode_next(config, variables, state, latent)
    return state, jnp.mean(video)

  def temporary(length):
    def brightness(latents):
      _, state = vae_streaming.decode_first(config, variables, latents[0])
      return jax.lax.scan(body, state, latents[1:])[1]

    shape = jax.ShapeDtypeStruct((length, 1, 1, 4, 4, 4), jnp.float32)
    return jax.jit(brightness).lower(shape).compile().memory_analysis().temp_size_in_bytes

  short, long = temporary(5), temporary(65)
  # the scan's inputs are sliced off first: 256 bytes a latent; activations do not grow
  assert long - short <= 60 * 256 + 1024


@pytest.mark.parametrize("name", ["level", "levels", "cells", "window"])
def test_tiles_equal_the_whole(name):
  config = CASES.CONFIGS[name]
  variables = random_variables(config)
  f = config.spatial
  # in clip 2 a norm magnifies rounding at one pixel, 46 times as much as at the middle one
  video = np.asarray(clip(config, latents=2, size=(42 * f, 7 * f), seed=4))
  whole = np.asarray(encode(config, variables, video))
  close(vae_tiles.encode_tiled(config, variables, video, tile=14), whole)
  for decoding in (False, True):
    tiles = vae_tiles.plan(config, 42, 14, decoding)
    reads = [tile.read.stop - tile.read.start for tile in tiles]
    assert len(set(reads)) == 1 and reads[0] < 42 * (1 if decoding else f)
  close(vae_tiles.decode_tiled(config, variables, whole, tile=14), decode(config, variables, whole))


@pytest.mark.parametrize("name", ["level", "levels", "cells"])
def test_the_halo_is_the_receptive_field(name):
  """By gradient: nothing outside the halo reaches a cell, and the halo's ends do."""
  config = CASES.CONFIGS[name]
  variables, f = random_variables(config), config.spatial
  wide = 31
  network = vae.CausalVAE(config)
  video = jax.random.uniform(jax.random.key(0), (1, 1, f, wide * f, 3))
  latent = jax.random.normal(jax.random.key(1), (1, 1, 1, wide, config.latent))

  def of_latent(x):
    return jnp.sum(network.apply(variables, x, method="encode")[0][:, :, :, 15] ** 2)

  def of_pixels(z):
    return jnp.sum(network.apply(variables, z, method="decode")[:, :, :, 15 * f : 16 * f] ** 2)

  for function, x, need in (
    (of_latent, video, vae_tiles.encoder_needs(config, vae_tiles.Span(15, 16))),
    (of_pixels, latent, vae_tiles.decoder_needs(config, vae_tiles.Span(15 * f, 16 * f))),
  ):
    reach = jnp.abs(jax.jit(jax.grad(function))(x)).max(axis=(0, 1, 2, 4))
    found = np.flatnonzero(reach)
    assert (found.min(), found.max() + 1) == tuple(need)


def test_attention_over_whole_frames_cannot_be_tiled():
  config = CASES.CONFIGS["wan"]
  with pytest.raises(ValueError, match="no halo is wide enough"):
    vae_tiles.decode_tiled(config, {}, np.zeros((1, 1, 8, 8, 4), np.float32))
