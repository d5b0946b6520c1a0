"""The few layers that every transformer here is made of, with a logical name on every axis.

Names say what an axis is, never where it lives: `sharding.py` maps them to a mesh. Parameters are
float32; `dtype` is the type in which a layer computes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import RulesFallback
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sora_jax.ops.linear import linear

Initializer = Callable[..., Array]


Names = tuple[str | None, ...]

STORED_IN_PARTS = {"width": "channel"}
"""Axes of parameters that devices share between them, and what the axis is called once a device
has gathered the parameter to compute with it."""

PRODUCT = "product"
"""What products of matrices are called, for `jax.checkpoint` to keep them: it does not see into
functions that have a gradient rule of their own."""

TOKENS = ("row", "token")
SLOTS = ("row", "slot")
WORDS = ("row", "word")
"""Leading axes of what is known of each token, each time slot (or segment), each text token."""


def constrain(x: Array, *names: str | None) -> Array:
  """Says which logical axes an activation has: a constraint on where it lies on a mesh.

  Outside a mesh (`sharding.using`) it is the identity.

  Raises: ValueError for a name that no rule knows.
  """
  return nn.with_logical_constraint(x, names, fallback=RulesFallback.RAISE_ERROR)


def computed(names: Names) -> Names:
  """Names of the axes of a parameter as it is computed with."""
  return tuple(STORED_IN_PARTS.get(name, name) for name in names)


def gathered(param: Array, names: Names, dtype: DTypeLike = jnp.float32) -> Array:
  """A parameter as it is computed with: cast, then whole along the axes stored in parts.

  Devices so exchange it in `dtype` and just before it is used; its gradient is summed straight into
  the parts (ZeRO stage 3: Rajbhandari et al. 2019, arXiv 1910.02054).
  """
  return _gathered(tuple(names), jnp.dtype(dtype), jnp.dtype(param.dtype), param)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(names: Names, dtype: DTypeLike, stored: DTypeLike, param: Array) -> Array:
  del stored
  return constrain(param.astype(dtype), *computed(names))


_gathered.defvjp(
  lambda names, dtype, stored, param: (_gathered(names, dtype, stored, param), None),
  lambda names, dtype, stored, _, given: (constrain(given, *names).astype(stored),),
)


def relu_squared(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """max(x, 0)^2 (So et al. 2021, arXiv 2109.08668): as expressive as GELU, no transcendental."""
  positive = jnp.maximum(x, 0)
  return positive * positive


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "relu_squared": relu_squared,
  "silu": jax.nn.silu,
}


def xavier(num_in: int = 1) -> Initializer:
  """Xavier-uniform over one matrix [inputs, outputs] of a kernel with several axes.

  Args:
    num_in: leading axes that are inputs; the rest are outputs.
  """

  def init(key, shape, dtype=jnp.float32):
    fan_in, fan_out = 1, 1
    for axis, size in enumerate(shape):
      fan_in, fan_out = (fan_in * size, fan_out) if axis < num_in else (fan_in, fan_out * size)
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def stacked(init: Initializer, axis: int) -> Initializer:
  """Initialises a kernel as several independent ones that share it along `axis`."""

  def stacked_init(key, shape, dtype=jnp.float32):
    one = shape[:axis] + shape[axis + 1 :]
    keys = jax.random.split(key, shape[axis])
    return jnp.stack([init(k, one, dtype) for k in keys], axis=axis)

  return stacked_init


class Linear(nn.Module):
  """y = x W + b over the last `num_in` axes of x, to any number of output axes.

  Attributes:
    out: sizes of the output axes.
    names: logical names of the kernel's axes, inputs first; the bias takes the outputs' names.
    num_in: how many trailing axes of x are contracted.
    bias: whether there is one (zeros at the start).
    start: kernel initialiser; Xavier-uniform by default.
    dtype: type of the product.
    lead: logical names of the axes of x that are kept.
  """

  out: tuple[int, ...]
  names: Names
  num_in: int = 1
  bias: bool = True
  start: Initializer | None = None
  dtype: DTypeLike = jnp.float32
  lead: Names = TOKENS

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    n = self.num_in
    shape = (*x.shape[-n:], *self.out)
    init = self.start or xavier(n)
    kernel = self.param("kernel", nn.with_logical_partitioning(init, self.names), shape)
    y = linear(x.astype(self.dtype), gathered(kernel, self.names, self.dtype), n)
    if self.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.names[n:])
      bias = gathered(self.param("bias", zeros, self.out), self.names[n:], self.dtype)
      y = y + bias.reshape(*(1,) * (y.ndim - bias.ndim), *bias.shape)
    return checkpoint_name(constrain(y, *self.lead, *computed(self.names[n:])), PRODUCT)


def layer_norm(x: Float[Array, "... D"], eps: float = 1e-6) -> Float[Array, "... D"]:
  """(x - mean) / sqrt(variance + eps) over the last axis, in float32, without parameters.

  Source: Ba et al. 2016 (arXiv 1607.06450), Eq. 3. Returns: float32.
  """
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  centred = x - mean
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps)


class LayerNorm(nn.Module):
  """Layer norm with gain and offset; computes in float32 and returns float32."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    shape, names = (x.shape[-1],), ("width",)
    gain = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, names), shape)
    offset = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names), shape)
    gain, offset = gathered(gain, names), gathered(offset, names)
    lead = (1,) * (x.ndim - 1)
    return layer_norm(x, self.eps) * gain.reshape(*lead, -1) + offset.reshape(*lead, -1)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) times a gain, over the last `axes` axes; float32 inside.

  Source: Zhang and Sennrich 2019 (arXiv 1910.07467), Eq. 4. Over one head (`axes` 1) it needs no
  exchange between devices that split the heads; over all heads (2) it is Wan's form.

  Attributes:
    names: logical names of the normalised axes. eps: in the units of x squared.
  """

  names: Names
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    n = len(self.names)
    shape = x.shape[-n:]
    gain = self.param(
      "scale", nn.with_logical_partitioning(nn.initializers.ones, self.names), shape
    )
    gain = gathered(gain, self.names)
    y = x.astype(jnp.float32)
    over = tuple(range(x.ndim - n, x.ndim))
    y = y * jax.lax.rsqrt(jnp.square(y).mean(over, keepdims=True) + self.eps)
    return (y * gain.reshape(*(1,) * (x.ndim - n), *shape)).astype(x.dtype)


class MLP(nn.Module):
  """Two linear layers with an activation between, the transformer's per-token part.

  Attributes:
    hidden: F. activation: a key of `ACTIVATIONS`. dtype: of products and activation.
  """

  hidden: int
  activation: str = "gelu_tanh"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    y = Linear((self.hidden,), ("width", "mlp"), dtype=self.dtype, name="up")(x)
    y = ACTIVATIONS[self.activation](y)
    return Linear((x.shape[-1],), ("mlp", "width"), dtype=self.dtype, name="down")(y)
