"""Programs that make videos, to be compiled and not run: what `plan` plans beside training."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sora_jax import sharding
from sora_jax.data import tokenizers, transforms
from sora_jax.data.transforms import Size
from sora_jax.nn import conditioning, vae_losses, vae_streaming
from sora_jax.nn import vae as vae_lib
from sora_jax.prompting import sampling
from sora_jax.prompting.requests import Request, RowShape
from sora_jax.prompting.sampling import Method, Sampler
from sora_jax.shapes import Grid
from sora_jax.tasks import build, costs, programs
from sora_jax.tasks.programs import WORDS, Load, Program
from sora_jax.tasks.text_to_video import TextToVideo
from sora_jax.tasks.typed import part


def sample(config: Mapping, mesh: Mesh, size: Size, frames: int) -> Program:
  """The sampling of one call: a clip for each share of the mesh's rows, all solver steps, guided as
  config.evaluation says.

  A longer video is made in windows (`prompting.long`): then `frames` are those of a window.

  Raises: ValueError for a config, size or mesh that cannot be.
  """
  if config["task"] != "text_to_video":
    raise ValueError("only a text_to_video config has something to sample; plan its vae_decode")
  for name, whole in (("time_low", 0.0), ("time_high", 1.0)):
    if (got := config["diffusion"][name]) != whole:
      raise ValueError(
        f"config.diffusion.{name} is {got:g}: two networks are sampled then, of which a step needs "
        f"one; plan with {name}={whole:g}, and add the bytes of one network"
      )
  # As `Model` runs it, whatever the training's choices are.
  config = {
    **config, "train": {**config["train"], "context": "auto"},
    "model": {**config["model"], "scan_unroll": 1},
  }  # fmt: skip
  task = build.sketch(config, mesh, trains=False)
  e, dit = config["evaluation"], task.dit.config
  v = build.sketched_autoencoder(config)
  cells = v.latent_shape(*padded(size, frames, v, dit.patch))
  grid = Grid(*(-(-cell // p) for cell, p in zip(cells, dit.patch)))
  fps = 0.0 if frames == 1 else float(config["data"]["world"]["fps"][0])
  request = Request("", (1,) * WORDS, grid, fps, guidance=float(e["guidance"]))
  method = Method(
    **part(e, "solver", "steps", "grid"), interval=e["guidance_interval"],
    branches=sampling.branches([request]),
  )  # fmt: skip
  sampler = sampler_of(task, mesh)
  ((batch, _),) = sampler.packed([request] * sharding.parts(mesh, "row"))
  names = sampling.ROW_AXES
  shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
  shapes["noise"] = jax.ShapeDtypeStruct(shapes["start"].shape, jnp.float32)
  lie = {name: NamedSharding(mesh, sharding.spec(*names.get(name, ("row",)))) for name in shapes}
  axes = task.axes()
  params = jax.eval_shape(task.init, jax.random.key(0))
  arguments = (
    programs.placed_shapes(params, sharding.of_tree(mesh, axes)),
    programs.placed_shapes(shapes, lie),
  )
  load = sampling_load(task, batch, method, mesh.shape["tensor"])
  static = {"method": method}
  return Program(sampler.program, arguments, programs.count(params), load, "call", static)


def padded(size: Size, frames: int, v: vae_lib.VAEConfig, patch: tuple) -> tuple[int, int, int]:
  """(frames, height, width) that a clip is padded to, for whole tokens."""
  if min(*size, frames) < 1:
    raise ValueError(f"{frames} frames of {size[0]}x{size[1]}; all must be at least 1")
  sides = (-(-n // (v.spatial * p)) * v.spatial * p for n, p in zip(size[::-1], patch[1:]))
  return (transforms.padded_frames(frames, v.temporal), *sides)


def sampler_of(task: TextToVideo, mesh: Mesh) -> Sampler:
  """The sampler of a task's networks on its mesh, as `model.Model` makes it of trained ones."""
  c = task.pipeline
  null = tokenizers.load(task.tokenizer_name).tokenize(conditioning.NULL_PROMPT)

  def predict(params, tokens_RLP, time_RQ, layout, text_RMU):
    return task.dit.apply({"params": params}, tokens_RLP, time_RQ, layout, text_RMU)

  def encode_text(params, ids_RM, segment_RM):
    return task.text.apply({"params": params}, ids_RM, segment_RM)

  return Sampler(
    predict, encode_text, patch=c.patch, channels=task.dit.config.out_channels,
    frames_per_latent=task.frames_per_latent, kind=task.diffusion.prediction,
    shift=task.diffusion.shift_config, null_ids=null, mesh=mesh,
    rows=RowShape(c.row_len, c.max_segments, c.text_row_len),
  )  # fmt: skip


def sampling_load(task: TextToVideo, batch: dict, method: Method, copies: int) -> Load:
  """What a call needs: the transformer for every step, under each branch where guidance acts, and
  the text encoder twice."""
  sizes, dit, text = task.matrix_sizes, task.dit.config, task.text.config
  (R, L), M = batch["segment"].shape, batch["text"].shape[1]
  evaluations = sampling.evaluations(method)
  texts = min(method.branches, 2)
  real = costs.real_flops(sizes, dit, text, batch)
  slots = batch["grid"].shape[1]
  dots = costs.product_flops(sizes, dit, text, L, M, slots)
  once = dots.dit + costs.slot_products(dit, L, slots, copies, training=False)
  near, far = programs.shared(batch)
  return Load(
    float((batch["segment"] > 0).sum()), evaluations * real.dit + texts * real.encoder,
    R * (evaluations * once + texts * dots.encoder), near, far,
  )  # fmt: skip


def vae_decode(config: Mapping, mesh: Mesh, size: Size, frames: int) -> Program:
  """The decoding of a chunk, a latent frame of a clip: what is repeated for videos of any length.
  For pictures (frames = 1) it is the first chunk.

  Raises: ValueError for a config or size that cannot be, or a mesh that shares out rows: videos are
    decoded one by one.
  """
  if sharding.parts(mesh, "row") > 1:
    raise ValueError(
      f"a mesh of {sharding.parts(mesh, 'row')} parts for rows (data x fsdp) would decode the same"
      " video in each: videos are decoded one by one; share out its lines and columns, as"
      f" --mesh=context={mesh.size}, or context and tensor"
    )
  v = build.sketched_autoencoder(config)
  _, *sides = padded(size, frames, v, config["model"]["patch"])
  _, h, w = v.latent_shape(1, *sides)
  variables = jax.eval_shape(lambda: vae_lib.init(v, jax.random.key(0)))
  variables = {"params": {"decoder": variables["params"]["decoder"]}, "stats": variables["stats"]}
  latent = jax.ShapeDtypeStruct((1, 1, h, w, v.latent), jnp.float32)
  first = functools.partial(vae_streaming.decode_first, v)
  function, given = first, (variables, latent)
  if frames > 1:
    function = functools.partial(vae_streaming.decode_next, v)
    given = (variables, jax.eval_shape(first, variables, latent)[1], latent)
  plain = functools.partial(function.func, vae_losses.counted(v))
  flops = vae_losses.product_flops(jax.make_jaxpr(plain)(*given).jaxpr)
  whole = lambda x: sharding.replicated(mesh)  # noqa: E731
  split = lambda x: sharding.fitting(mesh, vae_lib.AXES, x.shape)  # noqa: E731
  lie = jax.tree.map(whole, variables), *(jax.tree.map(split, x) for x in given[1:])
  pixels = sides[0] * sides[1] * (v.temporal if frames > 1 else 1)
  return Program(
    jax.jit(function), programs.placed_shapes(given, lie), programs.count(variables["params"]),
    Load(float(pixels), flops, flops, unit="pixels"), "chunk",
  )  # fmt: skip
