"""Matrix products with gradients laid out for speed, and a fence between fusions on CPU.

XLA's CPU compiler fuses element-wise work into each of its consumers, computing it again for each;
in a residual network that recomputes the whole sum of later layers at every use, and it transposes
long activations to form weight gradients. `settle` names the values that are to be computed once;
`linear` keeps the longer side of a weight gradient where it lies. Other backends decide
themselves: `settle` is nothing there.
"""

import functools
import math

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

traced_once = functools.partial(jax.jit, inline=True)
"""Decorates what a network does often: traced once for each shape, and no call in the program."""


@traced_once
def settle(x: Array) -> Array:
  """The identity; on CPU its value, and the gradient that comes back, are computed exactly once."""
  return _settle(x)


@traced_once
def fence(x: Array) -> Array:
  """`settle` without a gradient rule."""
  return lax.platform_dependent(x, cpu=called_apart, default=lambda value: value)


@jax.jit
def barred(x: Array) -> Array:
  """A barrier, so that JAX does not see an identity and drop it."""
  return lax.optimization_barrier(x)


def called_apart(x: Array) -> Array:
  """The identity as a call that XLA must not inline, which no fusion crosses; it copies nothing.

  (The barrier alone does not serve: XLA's CPU compiler drops it before it fuses.)
  """
  with set_xla_metadata(inlineable="false"):
    return barred(x)


@jax.custom_vjp
def _settle(x: Array) -> Array:
  return fence(x)


_settle.defvjp(lambda x: (fence(x), None), lambda _, given: (fence(given),))


def linear(x: Array, kernel: Array, num_in: int = 1) -> Array:
  """Contracts the last `num_in` axes of x with the first of a kernel.

  Args:
    x: `[..., inputs]`. kernel: `[inputs, outputs]`, of x's dtype; both may be several axes.
  Returns: `[..., outputs]`.
  """
  return _linear(num_in, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(num_in: int, x: Array, kernel: Array) -> Array:
  inputs = tuple(range(x.ndim - num_in, x.ndim))
  return lax.dot_general(x, kernel, ((inputs, tuple(range(num_in))), ((), ())))


def _linear_forward(num_in: int, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return _linear(num_in, x, kernel), (x, kernel)


def _linear_backward(num_in: int, saved: tuple[Array, Array], given: Array) -> tuple[Array, Array]:
  x, kernel = saved
  outputs = tuple(range(x.ndim - num_in, given.ndim)), tuple(range(num_in, kernel.ndim))
  to_x = lax.dot_general(given, kernel, (outputs, ((), ())))
  to_kernel = lax.platform_dependent(
    x, given, cpu=functools.partial(flat_outer, num_in),
    default=functools.partial(outer, num_in),
  )  # fmt: skip
  return to_x, to_kernel


def outer(num_in: int, x: Array, given: Array) -> Array:
  """The kernel's gradient, contracted over the tokens' axes as they are, sharded or not."""
  tokens = tuple(range(x.ndim - num_in))
  return lax.dot_general(x, given, ((tokens, tokens), ((), ())))


def flat_outer(num_in: int, x: Array, given: Array) -> Array:
  """The kernel's gradient from matrices, the narrower first: XLA's CPU products transpose it."""
  inputs, outputs = x.shape[x.ndim - num_in :], given.shape[x.ndim - num_in :]
  x, given = x.reshape(-1, math.prod(inputs)), given.reshape(-1, math.prod(outputs))
  narrow_first = x.shape[1] <= given.shape[1]
  a, b = (x, given) if narrow_first else (given, x)
  product = lax.dot_general(a, b, (((0,), (0,)), ((), ())))
  product = product if narrow_first else product.T
  return product.reshape(*inputs, *outputs)


_linear.defvjp(_linear_forward, _linear_backward)
