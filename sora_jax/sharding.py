"""The mesh, and the one table that says which logical axis lies on which mesh axis.

A mesh has four axes. `data` and `fsdp` share out the rows of a batch; `fsdp` stores parameters, and
all that an optimizer keeps of them, in parts, which are gathered where they are used; `context`
splits rows along their tokens; `tensor` splits heads and hidden layers. Lines of a video lie on
`context`, columns on `tensor`: the compiler then exchanges the borders that convolutions need. Any
may be 1.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from sora_jax.ops import flash, ring
from sora_jax.ops.attention import Attention
from sora_jax.shapes import WHOLE, Share

MESH_AXES = ("data", "fsdp", "context", "tensor")
AXIS_RULES = (
  # of activations
  ("row", ("data", "fsdp")),
  ("token", "context"),
  ("word", None),  # tokens of texts
  ("slot", None),
  ("channel", None),  # of a token; `width` is the same axis of a parameter
  ("patch", None),  # of parameters too
  ("frame", None),  # of videos and of their latents
  ("line", "context"),
  ("column", "tensor"),
  # of parameters
  ("width", "fsdp"),
  ("mlp", "tensor"),
  ("heads", "tensor"),
  ("head_size", None),
  ("layers", None),
  ("qkv", None),
  ("modulation", None),
  ("condition", None),
  ("fraction", None),
  ("text", None),
  ("class", None),
  ("vocab", None),
  ("buckets", None),
)
"""(logical axis, mesh axes): modules name the left, only this file the right."""

LEAST_SHARED = 1 << 15
"""Entries of a matrix that is worth being made orthogonal by several devices together."""

CONTEXT_METHODS = ("auto", "ring", "ulysses")


def check_shape(shape: tuple[int, ...]) -> None:
  """Raises ValueError for sizes that are no mesh's, whatever the devices."""
  wrong = [size for size in shape if not isinstance(size, int) or (size < 1 and size != -1)]
  if len(shape) != len(MESH_AXES) or wrong or list(shape).count(-1) > 1:
    raise ValueError(
      f"mesh is {tuple(shape)}; it must be four sizes ({', '.join(MESH_AXES)}), each 1 or more, but"
      " for one that may be -1: the devices that are left"
    )


def make_mesh(shape: tuple[int, int, int, int] = (1, 1, 1, 1), devices=None) -> Mesh:
  """Returns a mesh (data, fsdp, context, tensor); one -1 takes the devices that are left.

  On TPUs neighbours on the mesh are neighbours in the slice. Of several slices, which only the
  data-centre network joins, each holds a share of the data axis: across it gradients are summed
  once a step, and nothing else.

  Raises: ValueError if the sizes do not multiply to the number of devices, or if the slices cannot
    share the data axis.
  """
  check_shape(shape)
  devices = jax.devices() if devices is None else devices
  sizes, fixed = list(shape), int(np.prod([s for s in shape if s != -1]))
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // fixed
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
      f"mesh {tuple(shape)} over {MESH_AXES} does not fit {len(devices)} devices;"
      " their product must be the number of devices"
    )
  # GPUs have such a number too, of their host; any mesh may span these.
  on_tpu = devices[0].platform == "tpu"
  slices = len({getattr(d, "slice_index", None) for d in devices}) if on_tpu else 1
  if sizes[0] % slices:
    raise ValueError(
      f"mesh {tuple(sizes)}: {slices} slices share the data axis, which must be a multiple of them"
    )
  if slices > 1:
    inside = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
  elif on_tpu:
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  else:
    grid = np.asarray(devices).reshape(sizes)
  return Mesh(grid, MESH_AXES)


def spec(*logical: str | None) -> PartitionSpec:
  """Returns the partition of an array with these logical axes.

  Raises: ValueError for a name that the table lacks: never replicated in silence.
  """
  rules = dict(AXIS_RULES)
  unknown = [name for name in logical if name is not None and name not in rules]
  if unknown:
    raise ValueError(f"logical axes {unknown} have no rule; those with one: {', '.join(rules)}")
  return PartitionSpec(*(None if name is None else rules[name] for name in logical))


def parts(mesh: Mesh | AbstractMesh, name: str | None) -> int:
  """Returns into how many parts a mesh splits a logical axis."""
  return int(np.prod([mesh.shape[axis] for axis in _over(name)]))


def _over(name: str | None) -> tuple[str, ...]:
  """Mesh axes over which a logical axis is split."""
  over = dict(AXIS_RULES).get(name) or ()
  return (over,) if isinstance(over, str) else over


def fitting(mesh: Mesh, names: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
  """Returns the sharding of an array, whole along the axes that the mesh cannot split evenly."""
  kept = (name if size % parts(mesh, name) == 0 else None for name, size in zip(names, shape))
  return NamedSharding(mesh, spec(*kept))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


@contextlib.contextmanager
def using(mesh: Mesh | None) -> Iterator[None]:
  """Within it, what modules say of their activations' axes holds on this mesh; for tracing."""
  if mesh is None or mesh.size == 1:
    yield
    return
  with nn.logical_axis_rules(AXIS_RULES), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    yield


def of_tree(mesh: Mesh, axes: Any) -> Any:
  """Shardings for a tree of tuples of logical axes.

  Raises: ValueError for a name without a rule.
  """
  return jax.tree.map(
    lambda names: NamedSharding(mesh, spec(*names)), axes, is_leaf=lambda x: isinstance(x, tuple)
  )


def of_state(mesh: Mesh | AbstractMesh, shapes: Any, axes: Any) -> Any:
  """Shardings of a training state: what has a parameter's name and shape lies as it does.

  Muon's momentum is shared out over the data axis as well. Its matrices are made orthogonal where
  they lie, so that each device does a part of what all of them would do alike.

  Args:
    shapes: the state's tree; parameters, their averages and the optimizer's moments are found in
      it by the end of their path. axes: the parameters' logical axes; None = all whole.
  """
  whole = replicated(mesh)
  if axes is None:
    return jax.tree.map(lambda _: whole, shapes)
  is_names = lambda x: isinstance(x, tuple)  # noqa: E731
  named = {
    _plain(path): names
    for path, names in jax.tree_util.tree_flatten_with_path(axes, is_leaf=is_names)[0]
  }

  def place(path: tuple, leaf: Any) -> NamedSharding:
    path = _plain(path)
    for start in range(len(path)):
      names = named.get(path[start:])
      if names is not None and len(names) == leaf.ndim:
        made = spec(*names)
        if "muon" in path[:start]:
          made = shared_out(mesh, made, names, leaf.shape)
        return NamedSharding(mesh, made)
    return whole

  return jax.tree_util.tree_map_with_path(place, shapes)


def shared_out(
  mesh: Mesh | AbstractMesh, whole: PartitionSpec, names: tuple[str, ...], shape: tuple[int, ...]
) -> PartitionSpec:
  """The partition of an array that the data axis splits too, if it can do so evenly.

  It splits layers, which have nothing to do with each other, or else the longest axis, best one
  that the mesh leaves whole, of arrays of `LEAST_SHARED` entries or more.

  Args: whole: the partition to begin with.  names: logical axes of the array.  shape: its sizes.
  """
  n, cut = mesh.shape["data"], [parts(mesh, name) for name in names]
  fit = [i for i, size in enumerate(shape) if size % (n * cut[i]) == 0]
  layers = [i for i in fit if names[i] == "layers"]
  if n == 1 or not fit or (not layers and int(np.prod(shape)) < LEAST_SHARED):
    return whole
  split = layers[0] if layers else max(fit, key=lambda i: (cut[i] == 1, shape[i]))
  over = list(whole)
  over[split] = (*_over(names[split]), "data")
  return PartitionSpec(*over)


def _plain(path: tuple) -> tuple[str, ...]:
  """The keys of a path, of whatever kind of container."""
  return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def check_sizes(mesh: Mesh | AbstractMesh, shapes: Any, axes: Any) -> None:
  """Raises a ValueError that names an array whose axes this mesh cannot split evenly.

  shapes: a tree of arrays or their shapes. axes: the same tree of tuples of logical axes.
  """
  is_names = lambda x: isinstance(x, tuple)  # noqa: E731
  named = jax.tree_util.tree_flatten_with_path(axes, is_leaf=is_names)[0]
  for (path, names), leaf in zip(named, jax.tree.leaves(shapes), strict=True):
    for name, size in zip(names, leaf.shape):
      over = _over(name)
      count = parts(mesh, name)
      if size % count:
        raise ValueError(
          f"{'.'.join(_plain(path))} has {size} along {name!r}, which is split over the mesh axes"
          f" {' x '.join(over)}, {count} parts: choose axes whose product divides {size}"
        )


def host_share(mesh: Mesh) -> Share:
  """What this process loads of each batch; see `host_shares`, which says what it raises."""
  return host_shares(mesh)[jax.process_index()]


def host_shares(mesh: Mesh) -> dict[int, Share]:
  """What each process loads of each batch, by its index: the blocks of rows on its devices.

  Processes whose devices hold the same rows, split along other axes, load the same share.
  Raises: ValueError if processes hold rows that overlap without being the same.
  """
  rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
  held = {}
  for number, devices in enumerate(rows):
    for device in devices:
      held.setdefault(device.process_index, set()).add(number)
  shares = {tuple(sorted(numbers)) for numbers in held.values()}
  if sum(map(len, shares)) != len(rows) or len(set(map(len, shares))) > 1:
    raise ValueError(
      f"mesh {tuple(mesh.shape.values())}: processes hold rows that overlap; choose context and"
      " tensor axes whose product divides a process's devices, or is a multiple of them"
    )
  whole = len(shares) == 1
  return {i: WHOLE if whole else Share(tuple(sorted(n)), len(rows)) for i, n in held.items()}


def put_batch(
  mesh: Mesh,
  batch: dict,
  axes: dict[str, tuple] | None = None,
  share: Share | None = None,
) -> dict:
  """Puts a host's part of a batch on the mesh.

  Args:
    batch: numpy arrays, this host's rows. axes: logical axes of each array; by default its leading
      axis is "row" and the others are whole. share: which rows these are; None = as `host_share`,
      `WHOLE` where every host has all of them.
  """
  share = host_share(mesh) if share is None else share

  def put(name: str, value: np.ndarray) -> jax.Array:
    lies = NamedSharding(mesh, spec(*(axes or {}).get(name, ("row",))))
    rows = len(value) * share.of // len(share.blocks)
    place = {row: here for here, row in enumerate(share.rows(rows))}

    def part(at: tuple[slice, ...]) -> np.ndarray:  # a device's rows lie within a block
      start, stop, _ = at[0].indices(rows)
      return value[(slice(place[start], place[start] + stop - start), *at[1:])]

    return jax.make_array_from_callback((rows, *value.shape[1:]), lies, part)

  return {name: put(name, value) for name, value in batch.items()}


def attentions(
  mesh: Mesh | AbstractMesh, heads: int, method: str = "auto"
) -> tuple[Attention, Attention]:
  """Returns attention among tokens and from tokens to texts, for rows that lie on this mesh.

  Args:
    heads: A. method: how rows that are split find their keys: "ring", "ulysses" (see `ops.ring`),
      or "auto": ulysses where the heads suffice.
  Raises: ValueError if the mesh cannot split the heads.
  """
  if mesh.size == 1:
    return flash.attend, flash.attend
  context, tensor = mesh.shape["context"], mesh.shape["tensor"]
  if method not in CONTEXT_METHODS:
    raise ValueError(f"context method {method!r}; allowed: {', '.join(CONTEXT_METHODS)}")
  if heads % tensor:
    raise ValueError(
      f"{heads} heads cannot be split over a tensor axis of {tensor}; choose one that divides them"
    )
  can_swap = heads // tensor % context == 0
  if method == "ulysses" and not can_swap:
    raise ValueError(
      f"{heads // tensor} heads a device cannot be swapped over a context axis of {context}; use"
      " method 'ring', or a context axis that divides them"
    )
  if context == 1:
    within = flash.attend
  elif method == "ring" or not can_swap:
    within = lambda q, k, v, segment, _: ring.ring("context", q, k, v, segment)  # noqa: E731
  else:
    within = lambda q, k, v, s, _: ring.ulysses("context", flash.attend, q, k, v, s)  # noqa: E731
  tokens, words = ("row", "token"), ("row", "word")
  return _on_mesh(mesh, within, tokens, tokens), _on_mesh(mesh, flash.attend, tokens, words)


def _on_mesh(mesh: Mesh | AbstractMesh, attend, queries: tuple, keys: tuple) -> Attention:
  """An attention function for whole arrays, run by every device on its own part."""
  q, k = (spec(*names, "heads", "head_size") for names in (queries, keys))
  return functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(q, k, k, spec(*queries), spec(*keys)), out_specs=q,
    check_vma=False,
  )(attend)  # fmt: skip
