"""Optimizers, learning-rate schedules and gradient clipping, built from optax.

An optimizer here returns the update for a learning rate of one; the step multiplies it by
`learning_rate(config, step, total_steps)`. So the length of a run may be measured while it runs,
and it lives in the state instead of in the compiled program.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from optax import contrib


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Names as in `configs/base.py`; `lr` is the peak rate of Adam."""

  name: str = "adamw"
  lr: float = 1e-3
  matrix_lr_ratio: float = 10.0
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  weight_decay: float = 0.0
  warmup_steps: int = 100
  decay: str = "linear"
  final_lr: float = 0.0
  clip_norm: float = 1.0
  adaptive_clip: bool = False
  skip_spikes: float = 0.0
  ema_decay: float = 0.9999

  def __post_init__(self):
    if self.name not in ("adamw", "muon"):
      raise ValueError(f"optimizer.name is {self.name!r}; allowed: 'adamw', 'muon'")
    if self.decay not in ("constant", "cosine", "linear"):
      raise ValueError(
        f"optimizer.decay is {self.decay!r}; allowed: 'constant', 'cosine', 'linear'"
      )
    for name in ("lr", "eps", "matrix_lr_ratio"):
      if not getattr(self, name) > 0:
        raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be above 0")
    for name in ("b1", "b2", "ema_decay"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be in [0, 1)")
    if not 0 <= self.final_lr <= 1:
      raise ValueError(f"optimizer.final_lr is {self.final_lr}; it is a share of lr, in [0, 1]")
    if self.warmup_steps < 0 or self.clip_norm < 0 or self.weight_decay < 0:
      raise ValueError("optimizer.warmup_steps, clip_norm and weight_decay must not be negative")
    if self.skip_spikes and not self.skip_spikes > 1:
      raise ValueError(
        f"optimizer.skip_spikes is {self.skip_spikes}; it is how many times the recent mean a"
        " gradient's norm may be: above 1, or 0 = off"
      )


def learning_rate(
  config: OptimizerConfig, step: Int[Array, ""], total_steps: Int[Array, ""]
) -> Float[Array, ""]:
  """Returns the learning rate of a step: linear warmup, then constant, cosine or linear decay.

  The decay runs from the end of warmup to `total_steps`, where the rate is `lr * final_lr`.
  """
  s, total = step.astype(jnp.float32), total_steps.astype(jnp.float32)
  warm = jnp.minimum(1.0, (s + 1.0) / max(config.warmup_steps, 1))
  share = jnp.clip((s - config.warmup_steps) / jnp.maximum(total - config.warmup_steps, 1.0), 0, 1)
  falling = {
    "constant": lambda: jnp.ones(()),
    "linear": lambda: 1.0 - share,
    "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.pi * share)),
  }[config.decay]()
  return config.lr * warm * (config.final_lr + (1.0 - config.final_lr) * falling)


LAYER_AXES = ("layers", "qkv", "modulation")
"""Logical axes that count matrices instead of being part of one."""
NEWTON_SCHULZ = 5
"""Iterations by which Muon makes a matrix nearly orthogonal."""
TABLES = ("bias", "scale", "embedding", "classes", "modulation")
"""Names of parameters that are no matrices, however many axes they have."""


def matrix_axes(
  path: tuple, leaf, names: tuple | None = None
) -> contrib.MuonDimensionNumbers | None:
  """Says which axes of a parameter form the matrix that Muon orthogonalises; None means Adam.

  names: logical names of its axes, if known. Axes in `LAYER_AXES` count matrices. Of the others
  the first is the input, or all but the last where only the last is the width (what comes back
  from heads). Without names all axes but the last are inputs, as in a convolution's kernel.
  """
  if isinstance(leaf, optax.MaskedNode):
    return None
  last = str(getattr(path[-1], "key", getattr(path[-1], "name", path[-1])))
  axes = [i for i in range(leaf.ndim) if names is None or names[i] not in LAYER_AXES]
  if last in TABLES or len(axes) < 2:
    return None
  back = names is None or (names[axes[-1]] == "width" and names[axes[0]] != "width")
  cut = len(axes) - 1 if back else 1
  return contrib.MuonDimensionNumbers(tuple(axes[:cut]), tuple(axes[cut:]))


def make(config: OptimizerConfig, axes: Any = None) -> optax.GradientTransformation:
  """Returns the optimizer for a learning rate of one: clipping, then AdamW or Muon.

  Muon (Jordan et al. 2024) takes the matrices at `matrix_lr_ratio` times the rate, Adam the rest.

  axes: a tree like the parameters, with the tuple of each one's logical axis names for a leaf.
  """
  inner = _clipped(config, axes)
  return skip_spikes(inner, config.skip_spikes) if config.skip_spikes else inner


def product_flops(config: OptimizerConfig, params: Any, axes: Any = None) -> float:
  """FLOPs of a step's matrix products: none of AdamW's, five Newton-Schulz iterations of Muon's,
  X X^T, its square, and their sum times X, with X's shorter side first (Jordan et al. 2024). Each
  is counted once; devices that hold a matrix whole make its products alike, and so repeat them."""
  if config.name != "muon":
    return 0.0
  costs = []

  def count(numbers, leaf):
    sides = [math.prod(leaf.shape[axis] for axis in part) for part in numbers or ()]
    if sides:
      short, long = sorted(sides)
      products = 2 * short**2 * long + short**3
      costs.append(2.0 * NEWTON_SCHULZ * products * (leaf.size // (short * long)))

  is_numbers = lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers)  # noqa: E731
  jax.tree.map(count, _dimensions(axes, params), params, is_leaf=is_numbers)
  return sum(costs)


def _dimensions(axes: Any, params: Any) -> Any:
  """`matrix_axes` of every parameter."""
  trees = (params,) if axes is None else (params, axes)
  return jax.tree_util.tree_map_with_path(
    matrix_axes, *trees, is_leaf=lambda x: isinstance(x, tuple)
  )


def _clipped(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
  parts = []
  if config.adaptive_clip:
    parts.append(adaptive_clip())
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  if config.name == "adamw":
    parts.append(
      optax.adamw(1.0, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    )
    return optax.chain(*parts)

  parts.append(
    contrib.muon(
      config.matrix_lr_ratio,
      eps=config.eps,
      weight_decay=config.weight_decay,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_weight_decay=config.weight_decay,
      adam_learning_rate=1.0,
      ns_steps=NEWTON_SCHULZ,
      muon_weight_dimension_numbers=functools.partial(_dimensions, axes),
    )
  )
  return optax.chain(*parts)


class SpikeState(NamedTuple):
  """Running mean of the gradient's norm, how many norms it has seen, how many were skipped, and the
  state of the optimizer inside."""

  mean: Any
  count: Any
  skipped: Any
  inner: Any


def skip_spikes(
  inner: optax.GradientTransformation, factor: float, decay: float = 0.99, warmup: int = 20,
  opening: float = 1.05,
) -> optax.GradientTransformation:  # fmt: skip
  """Leaves out a step whose gradient is `factor` times as long as the recent mean, or more.

  Such a step changes neither parameters nor the state inside (PaLM skipped batches so: Chowdhery et
  al. 2022, arXiv 2204.02311, section 5.1). The mean grows by `opening` at each skip, so that norms
  which stay large are let through in the end. The first `warmup` norms always are.
  """

  def init(params):
    return SpikeState(
      jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), inner.init(params)
    )

  def update(grads, state, params=None):
    norm = optax.tree.norm(grads)
    young = state.count < warmup
    ok = young | (norm <= factor * state.mean)
    keep = jnp.where(young, jnp.minimum(decay, state.count / (state.count + 1.0)), decay)
    updates, after = inner.update(grads, state.inner, params)
    updates = jax.tree.map(lambda u: jnp.where(ok, u, jnp.zeros_like(u)), updates)
    after = jax.tree.map(lambda new, old: jnp.where(ok, new, old), after, state.inner)
    mean = jnp.where(ok, keep * state.mean + (1.0 - keep) * norm, opening * state.mean)
    return updates, SpikeState(mean, state.count + ok, state.skipped + ~ok, after)

  return optax.GradientTransformation(init, update)


def skipped(opt_state: Any) -> jax.Array:
  """Steps that `skip_spikes` has left out so far; 0 where it is off."""
  return opt_state.skipped if isinstance(opt_state, SpikeState) else jnp.zeros((), jnp.int32)


def moved(grads: Any, updates: Any, axes: Any = None) -> Bool[Array, "U"]:
  """For each parameter, and for each layer of stacked ones, whether it is learning: its gradient
  and its update are not all zeros (weight decay alone would move what no gradient reaches).

  axes: see `make`. Names in the same order: `unit_names`.
  """
  found = []
  leaves = zip(jax.tree.leaves(grads), jax.tree.leaves(updates), _stacked(updates, axes))
  for grad, update, layers in leaves:
    inside = tuple(range(int(layers), grad.ndim))
    found.append((grad != 0).any(inside) & (update != 0).any(inside))
  return jnp.concatenate([jnp.atleast_1d(part) for part in found])


def unit_names(params: Any, axes: Any = None) -> list[str]:
  """Names like "dit/blocks/mlp/up/kernel[3]", in the order of `moved`."""
  names = []
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  for (path, leaf), layers in zip(paths, _stacked(params, axes)):
    name = "/".join(str(getattr(key, "key", key)) for key in path)
    names += [f"{name}[{i}]" for i in range(leaf.shape[0])] if layers else [name]
  return names


def _stacked(params: Any, axes: Any) -> list[bool]:
  """Of each parameter, whether its first axis counts layers."""
  if axes is None:
    return [False] * len(jax.tree.leaves(params))
  names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
  return [bool(name) and name[0] == "layers" for name in names]


class ClipState(NamedTuple):
  """Running mean and variance of the gradient's norm, and how many norms they have seen."""

  mean: Any
  var: Any
  count: Any


def adaptive_clip(
  sigmas: float = 3.0, decay: float = 0.99, warmup: int = 20
) -> optax.GradientTransformation:
  """Scales a gradient down to `mean + sigmas * std` of the recent norms.

  Source: Open-Sora Plan 1.5's adaptive clipping. Norms above the threshold do not enter the
  averages, so that one spike cannot open the gate for the next; the first `warmup` norms always do.
  """

  def init(params):
    del params
    return ClipState(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))

  def update(grads, state, params=None):
    del params
    norm = optax.tree.norm(grads)
    threshold = state.mean + sigmas * jnp.sqrt(state.var)
    young = state.count < warmup
    ok = young | (norm <= threshold)
    keep = jnp.where(young, jnp.minimum(decay, state.count / (state.count + 1.0)), decay)
    delta = norm - state.mean
    mean = state.mean + (1.0 - keep) * delta
    var = keep * (state.var + (1.0 - keep) * delta**2)
    scale = jnp.where(ok, 1.0, threshold / jnp.maximum(norm, 1e-30))
    new = ClipState(jnp.where(ok, mean, state.mean), jnp.where(ok, var, state.var), state.count + 1)
    return jax.tree.map(lambda g: g * scale, grads), new

  return optax.GradientTransformation(init, update)
