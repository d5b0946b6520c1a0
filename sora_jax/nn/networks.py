"""The transformer and the text encoder that it reads, as one tree of parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.nn.dit import DiT
from sora_jax.nn.text import TextEncoder
from sora_jax.ops import packing


def init(dit: DiT, text: TextEncoder, key: jax.Array) -> dict:
  """Fresh parameters {"dit", "text"}, in boxes that hold the names of their axes."""
  dit_key, text_key = jax.random.split(key)
  R, L, S, M = 1, 8, 1, 4
  layout = packing.layout_of(packing.place([[((1, 2, 2), 0.0)]], L, S) | {
    "text_segment": jnp.zeros((R, M), jnp.int32)
  })  # fmt: skip
  tokens_RLP = jnp.zeros((R, L, dit.config.cells * dit.config.in_channels))
  text_RMU = jnp.zeros((R, M, dit.config.text_width))
  ids_RM = jnp.zeros((R, M), jnp.int32)
  alone = dit.clone(attention=DiT.attention, cross_attention=None)
  return {
    "dit": alone.init(dit_key, tokens_RLP, jnp.zeros((R, S)), layout, text_RMU)["params"],
    "text": text.init(text_key, ids_RM, ids_RM)["params"],
  }


@functools.lru_cache(maxsize=8)
def boxed_shapes(dit: DiT, text: TextEncoder) -> dict:
  """Shapes of the parameters, in boxes that hold the names of their axes."""
  return jax.eval_shape(functools.partial(init, dit, text), jax.random.key(0))


def shapes(dit: DiT, text: TextEncoder) -> dict:
  """Shapes of the parameters."""
  return nn.meta.unbox(boxed_shapes(dit, text))


def axes(dit: DiT, text: TextEncoder) -> dict:
  """For each parameter the tuple of its logical axes, see `sharding.py`."""
  is_box = functools.partial(_is_instance, nn.Partitioned)
  names = lambda x: tuple(x.names) if is_box(x) else (None,) * x.ndim  # noqa: E731
  return jax.tree.map(names, boxed_shapes(dit, text), is_leaf=is_box)


def _is_instance(kind: type, x: Any) -> bool:
  return isinstance(x, kind)
