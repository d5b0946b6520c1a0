"""From a config to a task: everything typed and checked before a clip is rendered."""

import collections
import dataclasses
import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.data import tokenizers
from sora_jax.data.video_batches import VideoConfig
from sora_jax.nn import networks, vae_losses
from sora_jax.nn import text as text_lib
from sora_jax.nn import vae as vae_lib
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.ops import patchify
from sora_jax.shapes import WHOLE, Share
from sora_jax.tasks import latents, sections
from sora_jax.tasks.autoencoder import Autoencoder, factors, load_autoencoder, untrained
from sora_jax.tasks.clips import ClipsConfig, open_sources
from sora_jax.tasks.text_to_video import SAMPLED, DiffusionConfig, TextToVideo
from sora_jax.tasks.typed import check_names, part, typed, without
from sora_jax.tasks.vae import NoiseConfig, VaeTask
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.task import Task
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

SECTIONS = ("task", "data", "vae", "text", "model", "diffusion", "optimizer", "train", "evaluation")
DATA = (
  "source", "folder", "world", "validation_clips", "processes", "crop", "token_drop",
  "encode_batch", "prompts", *sections.PIPELINE,
)  # fmt: skip
OF_THE_TASK = ("init_from", "init_missing", "context")
"""Keys of config.train that the task reads, not the loop."""
READ = {
  "train": ("mesh", "accumulate", "seed", "steps", "minutes", *OF_THE_TASK),
  "text": ("tokenizer",), "model": ("precondition",), "diffusion": ("time_low", "time_high"),
  "optimizer": ("weight_decay",), "evaluation": ("batches",), "data.prompts": ("on",),
}  # fmt: skip
"""Keys that are read before, or besides, the dataclass of their section."""
VAE = ("weights", "size", "sizes", "frames", "batch_pixels", "latent_noise", "noise_from",
       "isometric", "loss")  # fmt: skip

ROWS = ("row", "token")
"""Logical axes of packed rows."""

CLIPS_PER_BATCH = 8
"""Clips that the VAE's evaluation takes for each of `evaluation.batches`."""


def check_keys(config: Mapping) -> None:
  """Raises a ValueError if the config lacks a section, or a key that no dataclass asks for."""
  check_names("", config, SECTIONS)
  check_names("data", config["data"], DATA)
  check_names("vae", config["vae"], VAE)
  for section, names in READ.items():
    tree = functools.reduce(operator.getitem, section.split("."), config)
    check_names(section, {name: tree[name] for name in names if name in tree}, names)


def check(config: Mapping, workdir: Path) -> "Plan":
  """Returns the typed plan of a job; nothing is rendered, encoded or compiled.

  Raises: ValueError for an unknown key (with the nearest right name) or an impossible value.
  """
  check_keys(config)
  if config["task"] not in ("text_to_video", "vae"):
    raise ValueError(f"config.task is {config['task']!r}; allowed: 'text_to_video', 'vae'")
  data = config["data"]
  if data["crop"] not in ("none", "square"):
    raise ValueError(f"config.data.crop is {data['crop']!r}; allowed: 'none', 'square'")
  world = sections.world_config(config)
  source = ClipsConfig(
    source=data["source"],
    folder=Path(data["folder"] or Path(workdir) / "data"),
    validation_clips=data["validation_clips"],
    world=world if data["source"] == "world" else None,
    processes=data["processes"],
  )
  mesh = mesh_of(config["train"]["mesh"])
  evaluation = typed(sections.EvaluationConfig, "evaluation", config["evaluation"])
  sections.check_evaluation(evaluation, source.world)
  sections.check_values(config)
  maker = text_to_video if config["task"] == "text_to_video" else vae
  file = "vae.safetensors" if config["task"] == "vae" else "dit.safetensors"
  start = sections.init_from(config, file)
  return Plan(
    before=sections.provenance_of(start, sections.start_of(start, config["diffusion"]["time_low"])),
    optimizer=typed(OptimizerConfig, "optimizer", config["optimizer"]),
    clips=source,
    evaluation=evaluation,
    make=maker(config, source, mesh),
  )


class Plan(NamedTuple):
  """A checked job.

  make: `() -> Task`; it renders and encodes what is not there yet.  before: provenance of the
  weights that start this leg, or None.
  """

  before: dict | None
  optimizer: OptimizerConfig
  clips: ClipsConfig
  evaluation: sections.EvaluationConfig
  make: functools.partial


def mesh_of(shape: tuple) -> Mesh:
  """The mesh.  Raises: ValueError if the devices that are there do not make it."""
  try:
    return sharding.make_mesh(shape)
  except ValueError as error:
    raise ValueError(f"config.train.mesh: {error}") from error


def check_mesh(config: Mapping, mesh: Mesh, task: TextToVideo, trains: bool = True) -> None:
  """Raises a ValueError if tokens, parameters or (if it trains) rows cannot be shared out evenly
  over a mesh."""
  if mesh.size == 1:
    return
  data, parts = config["data"], config["train"]["accumulate"]
  rows = data["rows"] // parts if trains else sharding.parts(mesh, "row")
  batch = np.empty((rows, data["row_len"]), np.bool_)
  shapes = networks.shapes(task.dit, task.text)
  try:
    task.on(mesh)
    sharding.check_sizes(mesh, {"rows of a microbatch": batch}, {"rows of a microbatch": ROWS})
    sharding.check_sizes(mesh, shapes, task.axes())
  except ValueError as error:
    raise ValueError(f"config.train.mesh is {tuple(config['train']['mesh'])}: {error}") from error


def vae(config: Mapping, source: ClipsConfig, mesh: Mesh) -> functools.partial:
  """Checks the sections that the VAE's training reads, and the weights that it starts from; returns
  its maker."""
  parts = vae_parts(config, mesh, sharding.host_share(mesh))
  if parts["init_from"] is not None:
    jax.eval_shape(VaeTask(sources=None, **parts).init, jax.random.key(0))
  return functools.partial(make_vae, source, parts)


def vae_parts(config: Mapping, mesh: Mesh, share: Share) -> dict:
  """The fields of `VaeTask` other than its clips; share: see `sharding.host_share`."""
  c = config["vae"]
  if c["size"] not in vae_lib.SIZES:
    raise ValueError(f"config.vae.size is {c['size']!r}; allowed: {', '.join(vae_lib.SIZES)}")
  network = vae_lib.CausalVAE(vae_lib.SIZES[c["size"]])
  sections.check_cuts(config, network.config.spatial)
  video = typed(
    VideoConfig, "vae", part(c, "sizes", "frames", "batch_pixels"),
    seed=config["train"]["seed"], crop=config["data"]["crop"], workers=config["data"]["workers"],
    prefetch=2, share=share,
  )  # fmt: skip
  for bucket in video.buckets:
    clips = video.batch_size(bucket)
    batch = f"{bucket.t} frames of {bucket.w}x{bucket.h}"
    sections.check_accumulate(
      config, clips, f"config.vae.batch_pixels makes a batch, {batch}, of {clips} clips"
    )
    shape = (clips // config["train"]["accumulate"], *bucket, 3)
    try:
      sharding.check_sizes(mesh, {batch: np.empty(shape, np.bool_)}, {batch: vae_lib.AXES})
    except ValueError as error:
      raise ValueError(f"config.vae.batch_pixels with config.train.mesh: {error}") from error
  losses = typed(vae_losses.LossConfig, "vae.loss", c["loss"])
  if losses.perceptual:
    raise ValueError(
      f"config.vae.loss.perceptual is {losses.perceptual}, but a config cannot name the function "
      "that it weighs: set it to 0, or hand VaeTask(perceptual=...) one in code"
    )
  return {
    "network": network,
    "losses": losses,
    "noise": NoiseConfig(c["latent_noise"], c["noise_from"]),
    "video": video,
    "isometric": c["isometric"],
    "evaluate": CLIPS_PER_BATCH * config["evaluation"]["batches"],
    "init_from": sections.init_from(config, "vae.safetensors"),
    "grow": config["train"]["init_missing"] == "new",
  }


def make_vae(source: ClipsConfig, parts: dict) -> Task:
  """Renders the clips if needed and returns the VAE's task."""
  return VaeTask(sources=open_sources(source), **parts)


def text_to_video(config: Mapping, source: ClipsConfig, mesh: Mesh) -> functools.partial:
  """Checks the sections that text to video reads, and the weights that it starts from; returns its
  maker."""
  autoencoder = load_autoencoder(config["vae"]["weights"])
  parts = parts_of(config, autoencoder, sharding.host_share(mesh))
  parts["beside"] = networks_beside(config, parts["init_from"], parts["dit"].config)
  sections.fits(source, parts["pipeline"], autoencoder.network.config)
  task = TextToVideo(sources=None, **parts)
  check_mesh(config, mesh, task)
  if parts["init_from"] is not None:
    jax.eval_shape(task.init, jax.random.key(0))
  data = part(config["data"], "encode_batch", "crop")
  return functools.partial(make_text_to_video, source, parts, autoencoder, data)


def sketch(config: Mapping, mesh: Mesh, trains: bool = True) -> Task:
  """Returns a task without data, to be compiled for a mesh and not to be run.

  A VAE that is not trained yet may be named by its size.

  Args: trains: whether the rows of config.data are to be shared out, too.
  Raises: ValueError, as `check` does.
  """
  check_keys(config)
  share = min(sharding.host_shares(mesh).values())  # what one host can load, each can
  if config["task"] == "vae":
    parts = vae_parts(config, mesh, share)
    return VaeTask(
      sources=None, **parts | {"network": vae_lib.CausalVAE(sketched_autoencoder(config))}
    )
  parts = parts_of(config, named_autoencoder(config), share if trains else WHOLE)
  task = TextToVideo(sources=None, **parts)
  check_mesh(config, mesh, task, trains)
  return task.on(mesh)


def sketched_autoencoder(config: Mapping) -> vae_lib.VAEConfig:
  """The shape of a config's autoencoder, its convolutions lowered as on accelerators."""
  if config["task"] == "vae":
    shape = vae_lib.SIZES[config["vae"]["size"]]
  else:
    shape = named_autoencoder(config).network.config
  return dataclasses.replace(shape, conv="native")


def named_autoencoder(config: Mapping) -> Autoencoder:
  """The autoencoder that config.vae.weights names, or one of that size without weights."""
  name = config["vae"]["weights"]
  try:
    return load_autoencoder(name)
  except ValueError:
    if name not in vae_lib.SIZES:
      raise
    return untrained(name)


def parts_of(config: Mapping, autoencoder: Autoencoder, share: Share = WHOLE) -> dict:
  """The fields of `TextToVideo` other than its clips; share: see `sharding.host_share`."""
  v = autoencoder.network.config
  tokenizer = tokenizers.load(config["text"]["tokenizer"])
  text = typed(
    text_lib.TextConfig, "text", without(config["text"], "tokenizer"),
    vocab_size=tokenizer.vocab_size,
  )  # fmt: skip
  f_t, _, Z = factors(v)
  diffusion = typed(DiffusionConfig, "diffusion", config["diffusion"])
  spread = level = ()
  if config["model"]["precondition"]:
    if diffusion.prediction != "x":
      raise ValueError(
        f"config.model.precondition is for networks that predict data; diffusion.prediction is "
        f"{diffusion.prediction!r}: set it to 'x', or precondition to False"
      )
    stats = autoencoder.variables["stats"]
    if missing := [name for name in ("spread_Z", "level_Z") if name not in stats]:
      raise ValueError(
        f"config.model.precondition needs the statistics {' and '.join(missing)} of the latents, "
        f"which {config['vae']['weights']} lacks; export it anew, or set precondition to False"
      )
    spread, level = (tuple(float(x) for x in stats[name]) for name in ("spread_Z", "level_Z"))
  model = typed(
    DiTConfig, "model", without(config["model"], "precondition"), out_channels=Z,
    spread=spread, level=level, text_width=text.width,
    in_channels=patchify.cell_channels(Z, f_t), classes=0,
  )  # fmt: skip
  pipeline = sections.pipeline_config(config, model.patch, f_t, share)
  sections.check_accumulate(config, pipeline.rows, f"config.data.rows is {pipeline.rows}")
  e = config["evaluation"]
  start = sections.init_from(config, "dit.safetensors")
  return {
    "dit": DiT(model),
    "text": text_lib.TextEncoder(text),
    "diffusion": diffusion,
    "pipeline": pipeline,
    "vae": autoencoder.weights,
    "frames_per_latent": f_t,
    "tokenizer_name": config["text"]["tokenizer"],
    "sampling": part(
      e, "solver", "steps", "grid", "extend_grid", "extend_stages", "guidance", "guidance_interval"
    )
    | {"fps": config["data"]["world"]["fps"][0]},
    "heldout_batches": e["batches"],
    "init_from": start,
    "start": sections.start_of(start, diffusion.time_low),
    "grow": config["train"]["init_missing"] == "new",
    "context_method": config["train"]["context"],
  }


def networks_beside(config: Mapping, start: Path | None, network: DiTConfig) -> dict | None:
  """The networks of the model that a network for a part of the way belongs to: its times lie above
  diffusion.time_low, or below diffusion.time_high. None if it is trained for all of the way.

  Warns if that leaves the second network of a model behind.  network: of the one to be trained.
  Raises: ValueError if there is no model, or its transformers are of another kind, or nothing in it
    is for the rest of the way, or the optimiser would move the text encoder that they share.
  """
  low, high = (config["diffusion"][key] for key in ("time_low", "time_high"))
  if low == 0 and high == 1:
    if start is not None and (start / f"{store.HIGH}.safetensors").is_file():
      logging.warning(
        "%s has a second network, for high noise: it is not taken along, and samples of this leg "
        "are made without it", start,
      )  # fmt: skip
    return None
  asked = (
    f"config.diffusion.time_low is {low:g}" if low else f"config.diffusion.time_high is {high:g}"
  )
  if start is None:
    raise ValueError(
      f"{asked}, which trains a network for a part of the way: name the model that has one for the "
      "rest as config.train.init_from, or set time_low=0 and time_high=1"
    )
  if config["optimizer"]["weight_decay"]:
    raise ValueError(
      f"config.optimizer.weight_decay is {config['optimizer']['weight_decay']:g}, which would move "
      f"the text encoder that both networks share, but {asked}: set weight_decay to 0"
    )
  there = folder_lib.read(start)
  first = there["dit"].config
  wrong = [f"model.{key}" for key in folder_lib.differences(first["network"], network)]
  own = {name: config["diffusion"][name] for name in SAMPLED}
  wrong += [f"diffusion.{key}" for key in folder_lib.differences(first["diffusion"], own)]
  if wrong:
    raise ValueError(
      f"{asked}, but config.{', config.'.join(wrong)} are not as in {start}, whose other "
      "transformer is for the rest of the way: set them as there"
    )
  above = folder_lib.boundary(there)
  if low == 0 and (above is None or above > high):
    has = "has one network for all times" if above is None else f"has its second above {above:g}"
    raise ValueError(
      f"{asked}, but {start} {has}: train a second one with time_low first, or set time_high to at "
      "least the time that it begins at"
    )
  for name in ("near_noise", "staged"):
    if low == 0 and (share := config["data"]["prompts"][name]):
      raise ValueError(
        f"config.data.prompts.{name} is {share:g}, which draws times near pure noise, but {asked}: "
        f"set {name} to 0"
      )
  return {name: there[name] for name in there if name != "vae"}


def make_text_to_video(
  source: ClipsConfig, parts: dict, autoencoder: Autoencoder, data: dict
) -> Task:
  """Renders clips and encodes latents if needed and returns the task."""
  f_t, f_s, _ = factors(autoencoder.network.config)
  patch = parts["pipeline"].patch
  config = latents.LatentConfig(
    autoencoder.hash, f_t, f_s * max(patch.h, patch.w), data["encode_batch"], data["crop"],
    f_s, parts["pipeline"].prompts,
    parts["pipeline"].row_len * patch.t if parts["pipeline"].too_long == "fit" else 0,
  )  # fmt: skip
  encode = functools.partial(
    jax.jit(functools.partial(vae_lib.encode, autoencoder.network.config)),
    jax.tree.map(jnp.asarray, autoencoder.variables),
  )
  sources = open_sources(source, lambda shards: latents.cache(shards, config, encode))
  if source.source == "clips" and (rates := [clip.fps for clip in sources.train if clip.fps]):
    parts["sampling"]["fps"] = float(collections.Counter(rates).most_common(1)[0][0])
  return TextToVideo(sources=sources, **parts)
