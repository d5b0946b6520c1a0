"""From a config to a task: everything typed and checked before a clip is rendered."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from sora_jax import sharding
from sora_jax.data import tokenizers
from sora_jax.data.packing import TokenDrop
from sora_jax.data.pipeline import PipelineConfig
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.data.transforms import padded_frames
from sora_jax.data.video_batches import VideoConfig
from sora_jax.data.world import WorldConfig
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.nn import text as text_lib
from sora_jax.nn import vae as vae_lib
from sora_jax.nn import vae_losses
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.ops import patchify
from sora_jax.tasks import latents
from sora_jax.tasks.clips import ClipsConfig, open_sources
from sora_jax.tasks.text_to_video import DiffusionConfig, TextToVideo
from sora_jax.tasks.typed import check_names, part, typed, without
from sora_jax.tasks.vae import NoiseConfig, VaeTask
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.train.task import Task
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store
from sora_jax.weights.folder import Network

SECTIONS = ("task", "data", "vae", "text", "model", "diffusion", "optimizer", "train", "evaluation")
PIPELINE = (
  "rows", "row_len", "max_segments", "text_row_len", "streams", "window", "caption_long",
  "caption_shots", "caption_dropout", "drop_to_fill", "too_long", "workers", "max_slots",
)  # fmt: skip
DATA = (
  "source", "folder", "world", "validation_clips", "processes", "crop", "token_drop",
  "encode_batch", "prompts", *PIPELINE,
)  # fmt: skip
VAE = ("weights", "size", "sizes", "frames", "batch_pixels", "latent_noise", "noise_from",
       "isometric", "loss")  # fmt: skip

CLIPS_PER_BATCH = 8
"""Clips that the VAE's evaluation takes for each of `evaluation.batches`."""


class Autoencoder(NamedTuple):
  """A trained VAE: the network, its variables with latent statistics, and their hash."""

  network: vae_lib.CausalVAE
  variables: dict
  weights: Network
  hash: str


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Names as in `configs/base.py`."""

  prompts: int
  sizes: tuple
  frames: int
  solver: str
  steps: int
  guidance: float
  batches: int
  seed: int

  def __post_init__(self):
    if self.solver not in SOLVERS:
      raise ValueError(f"solver is {self.solver!r}; allowed: {', '.join(SOLVERS)}")
    if min(self.prompts, self.steps, self.batches) < 1 or self.frames < 0:
      raise ValueError("prompts, steps and batches must be at least 1, frames at least 0")
    if any(not isinstance(size, list | tuple) or len(size) != 2 for size in self.sizes):
      raise ValueError(f"sizes is {self.sizes}; give (width, height) pairs, like ((32, 32),)")
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}; it must be a number, 1 = off")


def check(config: Mapping, workdir: Path) -> "Plan":
  """Returns the typed plan of a job; nothing is rendered, encoded or compiled.

  Raises: ValueError for an unknown key (with the nearest right name) or an impossible value.
  """
  check_names("", config, SECTIONS)
  check_names("data", config["data"], DATA)
  check_names("vae", config["vae"], VAE)
  if config["task"] not in ("text_to_video", "vae"):
    raise ValueError(f"config.task is {config['task']!r}; allowed: 'text_to_video', 'vae'")
  data = config["data"]
  if data["crop"] not in ("none", "square"):
    raise ValueError(f"config.data.crop is {data['crop']!r}; allowed: 'none', 'square'")
  source = ClipsConfig(
    source=data["source"],
    folder=Path(data["folder"] or Path(workdir) / "data"),
    validation_clips=data["validation_clips"],
    world=world_config(config) if data["source"] == "world" else None,
    processes=data["processes"],
  )
  check_mesh(config["train"]["mesh"])
  evaluation = typed(EvaluationConfig, "evaluation", config["evaluation"])
  check_evaluation(evaluation, source.world)
  maker = text_to_video if config["task"] == "text_to_video" else vae
  file = "vae.safetensors" if config["task"] == "vae" else "dit.safetensors"
  return Plan(
    init_from=init_from(config, file),
    optimizer=typed(OptimizerConfig, "optimizer", config["optimizer"]),
    clips=source,
    evaluation=evaluation,
    make=maker(config, source),
  )


class Plan(NamedTuple):
  """A checked job.

  make: `() -> Task`; it renders and encodes what is not there yet.  init_from: weights that start
  this leg: a VAE's file or a model folder.
  """

  init_from: Path | None
  optimizer: OptimizerConfig
  clips: ClipsConfig
  evaluation: EvaluationConfig
  make: functools.partial


def check_mesh(shape: tuple) -> None:
  """Raises a ValueError if the devices that are there do not make this mesh."""
  try:
    sharding.make_mesh(shape)
  except ValueError as error:
    raise ValueError(f"config.train.mesh: {error}") from error


def check_evaluation(evaluation: EvaluationConfig, world: WorldConfig | None) -> None:
  """Raises a ValueError if the world cannot show the sizes and lengths that are to be sampled."""
  if world is None:
    return
  sizes, frames = evaluation.sizes or world.sizes, evaluation.frames or max(world.frames)
  try:
    dataclasses.replace(world, sizes=sizes, frames=frames)
  except ValueError as error:
    raise ValueError(f"config.evaluation: {error}") from error


def check_accumulate(config: Mapping, clips: int, what: str) -> None:
  """Raises a ValueError if a batch cannot be split into `train.accumulate` equal parts."""
  parts = config["train"]["accumulate"]
  if parts < 1 or clips % parts:
    raise ValueError(
      f"config.train.accumulate is {parts}, but {what}; choose one that divides it, or 1"
    )


def check_cuts(config: Mapping, spatial: int) -> None:
  """Raises a ValueError for sizes of cuts that the VAE, of this spatial factor, cannot take."""
  for size in config["vae"]["sizes"]:
    pair = isinstance(size, list | tuple) and len(size) == 2
    if not pair or any(not isinstance(n, int) or n < 1 or n % spatial for n in size):
      raise ValueError(
        f"config.vae.sizes has {size}; each must be a (width, height) in multiples of {spatial},"
        f" which is a latent cell of vae.size={config['vae']['size']!r}"
      )


def vae(config: Mapping, source: ClipsConfig) -> functools.partial:
  """Checks the sections that the VAE's training reads; returns its maker."""
  c = config["vae"]
  if c["size"] not in vae_lib.SIZES:
    raise ValueError(f"config.vae.size is {c['size']!r}; allowed: {', '.join(vae_lib.SIZES)}")
  network = vae_lib.CausalVAE(vae_lib.SIZES[c["size"]])
  check_cuts(config, network.config.spatial)
  video = typed(
    VideoConfig, "vae", part(c, "sizes", "frames", "batch_pixels"),
    seed=config["train"]["seed"], crop=config["data"]["crop"], workers=config["data"]["workers"],
    prefetch=2, host_index=jax.process_index(), host_count=jax.process_count(),
  )  # fmt: skip
  for bucket in video.buckets:
    clips = video.batch_size(bucket)
    batch = f"{bucket.t} frames of {bucket.w}x{bucket.h}"
    check_accumulate(
      config, clips, f"config.vae.batch_pixels makes a batch, {batch}, of {clips} clips"
    )
  losses = typed(vae_losses.LossConfig, "vae.loss", c["loss"])
  if losses.perceptual:
    raise ValueError(
      f"config.vae.loss.perceptual is {losses.perceptual}, but a config cannot name the function "
      "that it weighs: set it to 0, or hand VaeTask(perceptual=...) one in code"
    )
  parts = {
    "network": network,
    "losses": losses,
    "noise": NoiseConfig(c["latent_noise"], c["noise_from"]),
    "video": video,
    "isometric": c["isometric"],
    "evaluate": CLIPS_PER_BATCH * config["evaluation"]["batches"],
    "init_from": init_from(config, "vae.safetensors"),
  }
  return functools.partial(make_vae, source, parts)


def make_vae(source: ClipsConfig, parts: dict) -> Task:
  """Renders the clips if needed and returns the VAE's task."""
  return VaeTask(sources=open_sources(source), **parts)


def text_to_video(config: Mapping, source: ClipsConfig) -> functools.partial:
  """Checks the sections that text to video reads; returns its maker."""
  autoencoder = load_autoencoder(config["vae"]["weights"])
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
  pipeline = pipeline_config(config, model.patch, f_t)
  check_accumulate(config, pipeline.rows, f"config.data.rows is {pipeline.rows}")
  fits(source, pipeline, v)
  e = config["evaluation"]
  parts = {
    "dit": DiT(model),
    "text": text_lib.TextEncoder(text),
    "diffusion": diffusion,
    "pipeline": pipeline,
    "vae": autoencoder.weights,
    "frames_per_latent": f_t,
    "tokenizer_name": config["text"]["tokenizer"],
    "sampling": part(e, "solver", "steps", "guidance") | {"fps": config["data"]["world"]["fps"][0]},
    "heldout_batches": e["batches"],
    "init_from": init_from(config, "dit.safetensors"),
    "grow": config["train"]["init_missing"] == "new",
  }
  data = part(config["data"], "encode_batch", "crop")
  return functools.partial(make_text_to_video, source, parts, autoencoder, data)


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


def world_config(config: Mapping) -> WorldConfig:
  """The world that is trained on."""
  return typed(WorldConfig, "data.world", config["data"]["world"], split="train")


def pipeline_config(config: Mapping, patch: tuple, frames_per_latent: int) -> PipelineConfig:
  """The pipeline's view of the data section."""
  data, drop = config["data"], config["data"]["token_drop"]
  check_names("data.token_drop", drop, ("share", "scale", "hold", "end"))
  token_drop = None
  if drop["share"]:
    if config["train"]["minutes"] > 0:
      raise ValueError(
        f"config.data.token_drop.share is {drop['share']:g} with train.minutes of "
        f"{config['train']['minutes']:g}: dropping ends at a share of train.steps, and a run of so "
        "many minutes takes others; set train.minutes=0, or share=0"
      )
    token_drop = typed(TokenDrop, "data.token_drop", drop, steps=config["train"]["steps"],
                       alpha=2.0, beta=4.0)  # fmt: skip
  values = part(data, *PIPELINE) | {"patch": patch, "seed": config["train"]["seed"]}
  values |= {"prompts": prompts_of(data), "frames_per_latent": frames_per_latent}
  try:
    return PipelineConfig(
      **values, token_drop=token_drop,
      host_index=jax.process_index(), host_count=jax.process_count(),
    )  # fmt: skip
  except ValueError as error:
    raise ValueError(f"config.data: {error}") from error


def prompts_of(data: Mapping) -> PromptMix | None:
  """Shares of image and video prompts; None where they are switched off."""
  prompts = data["prompts"]
  mix = typed(PromptMix, "data.prompts", without(prompts, "on"))
  return mix if prompts["on"] else None


def fits(source: ClipsConfig, pipeline: PipelineConfig, vae_config) -> None:
  """Raises a ValueError if a clip of the world would fill more than a row."""
  if source.world is None or pipeline.too_long != "raise":
    return
  f_t, f_s, _ = factors(vae_config)
  p = pipeline.patch
  for width, height in source.world.sizes:
    for frames in source.world.frames:
      t = -(-(1 + (padded_frames(frames, f_t) - 1) // f_t) // p.t)
      tokens = t * -(-height // (f_s * p.h)) * -(-width // (f_s * p.w))
      if tokens > pipeline.row_len:
        raise ValueError(
          f"config.data.row_len is {pipeline.row_len}, but a clip of {width}x{height} and"
          f" {frames} frames takes {tokens} tokens; raise row_len, or take smaller clips"
        )


def load_autoencoder(name: str) -> Autoencoder:
  """Reads a VAE by the name of a shipped model, a file, a model folder or a work directory.

  Raises: ValueError that says what was looked for.
  """
  shipped = store.shipped("vae.safetensors")
  places = [Path(name), Path(name) / "vae.safetensors", Path(name) / "model" / "vae.safetensors"]
  if name in shipped:
    places = [shipped[name] / "vae.safetensors"]
  path = next((place for place in places if place.is_file()), None)
  if path is None:
    size = name if name in vae_lib.SIZES else "SIZE"
    raise ValueError(
      f"config.vae.weights is {name!r}: neither a shipped model"
      f" ({', '.join(shipped) or 'none is shipped'}), nor a safetensors file, nor a folder with"
      f" one; train configs/vae.py:{size} first, then give its work directory as"
      " --config.vae.weights"
    )
  tree, config, _ = store.load(path)
  network = vae_lib.CausalVAE(vae_lib.VAEConfig(**folder_lib.frozen(config["network"])))
  logging.info("video autoencoder: %s", path)
  return Autoencoder(network, tree, Network(tree, config), store.hash_of(tree))


def factors(config) -> tuple[int, int, int]:
  """(f_t, f_s, Z) of a VAE's config."""
  return config.temporal, config.spatial, config.latent


def init_from(config: Mapping, file: str) -> Path | None:
  """The weights that start this leg, or None.  Raises: ValueError if there are none that fit."""
  name, missing = config["train"]["init_from"], config["train"]["init_missing"]
  if missing not in ("raise", "new"):
    raise ValueError(f"config.train.init_missing is {missing!r}; allowed: 'raise', 'new'")
  if not name:
    return None
  if file == "dit.safetensors":
    folder_lib.check(found := folder_lib.find(name))
    return found
  for place in (Path(name), Path(name) / file, Path(name) / "model" / file):
    if place.is_file():
      return place
  raise ValueError(f"config.train.init_from is {name!r}, which holds no {file}")


def provenance_of(path: Path | None) -> dict | None:
  """Returns how the weights that start a leg were made."""
  if path is None:
    return None
  file = path if path.is_file() else path / "dit.safetensors"
  return store.read_config(file)[1]["provenance"]
