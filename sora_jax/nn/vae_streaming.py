"""The video autoencoder in chunks: constant memory for any length, equal to the whole.

The state between chunks is a pytree of fixed shapes (collection "stream": the last inputs of every
layer in time), so one compiled program serves every chunk after the first, and `encode_next` and
`decode_next` may as well be scanned over. Latents are normalised and pixels in [-1, 1], as
everywhere outside training.

Source of the scheme: Wan 2.1 (arXiv 2503.20314, section 4.1.2); here without flags in the state.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sora_jax.nn.causal_conv import STREAM
from sora_jax.nn.vae import CausalVAE, VAEConfig

State = Mapping
"""What a chunk hands to the next."""


def encode_first(
  config: VAEConfig, variables: Mapping, frame: Float[Array, "B 1 H W C"]
) -> tuple[Float[Array, "B 1 h w Z"], State]:
  """The first latent of a clip and the state after it; sides are multiples of `spatial`."""
  return _chunk(config, variables, None, frame, "encode_latents")


def encode_next(
  config: VAEConfig, variables: Mapping, state: State, frames: Float[Array, "B T H W C"]
) -> tuple[Float[Array, "B t h w Z"], State]:
  """Latents of the next `temporal` * t frames, and the state after them."""
  return _chunk(config, variables, state, frames, "encode_latents")


def decode_first(
  config: VAEConfig, variables: Mapping, latent: Float[Array, "B 1 h w Z"]
) -> tuple[Float[Array, "B 1 H W C"], State]:
  """The first frame of a clip and the state after it."""
  return _chunk(config, variables, None, latent, "decode_latents")


def decode_next(
  config: VAEConfig, variables: Mapping, state: State, latent: Float[Array, "B t h w Z"]
) -> tuple[Float[Array, "B T H W C"], State]:
  """The next `temporal` * t frames, and the state after them."""
  return _chunk(config, variables, state, latent, "decode_latents")


def _chunk(config, variables, state, x, method):
  mode = "first" if state is None else "next"
  variables = {**variables, STREAM: state or {}}
  y, new = CausalVAE(config).apply(variables, x, mode, method=method, mutable=[STREAM])
  return y, new[STREAM]


@functools.cache
def programs(config: VAEConfig) -> dict:
  """The four functions above, jitted with `config` bound: one program each per size of frame."""
  chunked = (encode_first, encode_next, decode_first, decode_next)
  return {f.__name__: jax.jit(functools.partial(f, config)) for f in chunked}


def decode_stream(
  config: VAEConfig,
  variables: Mapping,
  latents: Iterable[Array | np.ndarray] | Float[Array | np.ndarray, "B t h w Z"],
  frames: int | None = None,
  put: Callable[[Array | np.ndarray], Array] = jnp.asarray,
) -> Iterator[np.ndarray]:
  """Yields frames as they are decoded, in memory that does not depend on the clip's length.

  Args:
    latents: normalised, [B, t, h, w, Z], or an iterable of single ones [B, h, w, Z].
    frames: stop after so many; None = all. put: lays latents [B, 1, h, w, Z] on devices.

  Yields: float32 [B, T, H, W, 3] in [-1, 1]: one frame, then `temporal` at a time.
  """
  run, state, given = programs(config), None, 0
  if hasattr(latents, "ndim"):
    one_by_one = (latents[:, i] for i in range(latents.shape[1]))
  else:
    one_by_one = latents
  for latent in one_by_one:
    latent = put(latent[:, None])
    if state is None:
      video, state = run["decode_first"](variables, latent)
    else:
      video, state = run["decode_next"](variables, state, latent)
    keep = video.shape[1] if frames is None else min(video.shape[1], frames - given)
    given += keep
    yield np.asarray(video[:, :keep])
    if given == frames:
      return
  if frames is not None and given < frames:
    raise ValueError(f"the latents hold {given} frames, not {frames}; ask for fewer")


def encode_stream(
  config: VAEConfig, variables: Mapping, video: Iterable[Array | np.ndarray],
  put: Callable[[Array | np.ndarray], Array] = jnp.asarray,
) -> Iterator[np.ndarray]:  # fmt: skip
  """Yields normalised latents float32 [B, 1, h, w, Z] of a clip whose frames come one by one.

  Args: video: frames [B, H, W, 3] in [-1, 1], sides multiples of `spatial`. A last chunk that is
  not full is filled with its last frame. put: lays frames [B, T, H, W, 3] on devices.
  """
  run, state, waiting = programs(config), None, []
  for frame in video:
    if state is None:
      latent, state = run["encode_first"](variables, put(frame[:, None]))
      yield np.asarray(latent)
      continue
    waiting.append(np.asarray(frame))
    if len(waiting) == config.temporal:
      latent, state = run["encode_next"](variables, state, put(np.stack(waiting, 1)))
      waiting = []
      yield np.asarray(latent)
  if waiting:
    waiting += [waiting[-1]] * (config.temporal - len(waiting))
    latent, _ = run["encode_next"](variables, state, put(np.stack(waiting, 1)))
    yield np.asarray(latent)


def decode_scanned(
  config: VAEConfig, variables: Mapping, latent_BthwZ: Float[Array, "B t h w Z"]
) -> Float[Array, "B T H W C"]:
  """`vae.decode` as one scan over latents: activations of one chunk at a time, all pixels kept.

  For use inside a larger jitted program; `decode_stream` keeps no pixels either.
  """
  first, state = decode_first(config, variables, latent_BthwZ[:, :1])
  if latent_BthwZ.shape[1] == 1:
    return first

  def body(state, latent_BhwZ):
    video, state = decode_next(config, variables, state, latent_BhwZ[:, None])
    return state, video

  _, rest = jax.lax.scan(body, state, jnp.moveaxis(latent_BthwZ[:, 1:], 1, 0))
  t, B, T, H, W, C = rest.shape
  rest = jnp.moveaxis(rest, 0, 1).reshape(B, t * T, H, W, C)
  return jnp.concatenate([first, rest], axis=1)
