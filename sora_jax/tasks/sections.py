"""Sections of a config as the typed values that tasks are built from, checked one by one."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from sora_jax import sharding
from sora_jax.data.packing import TokenDrop
from sora_jax.data.pipeline import PipelineConfig
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.data.transforms import padded_frames
from sora_jax.data.world import WorldConfig
from sora_jax.diffusion import guidance
from sora_jax.diffusion.sampler import GRIDS
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.shapes import WHOLE, Patch, Share
from sora_jax.tasks.autoencoder import factors
from sora_jax.tasks.clips import ClipsConfig
from sora_jax.tasks.typed import check_names, part, typed, without
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

PIPELINE = (
  "rows", "row_len", "max_segments", "text_row_len", "streams", "window", "caption_long",
  "caption_shots", "caption_dropout", "drop_to_fill", "too_long", "workers", "max_slots",
)  # fmt: skip
"""Keys of config.data that the pipeline reads."""
OF_FRAMES = ("frame_times", "staged")
"""Keys of config.data.prompts: shares of visits in which latent frames have times of their own."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Names as in `configs/base.py`."""

  prompts: int
  sizes: tuple
  frames: int
  solver: str
  steps: int
  grid: str
  extend_grid: str
  extend_stages: int
  guidance: float
  guidance_interval: tuple
  batches: int
  seed: int

  def __post_init__(self):
    for name, table in (("solver", SOLVERS), ("grid", GRIDS), ("extend_grid", GRIDS)):
      if getattr(self, name) not in table:
        raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(table)}")
    if min(self.prompts, self.steps, self.extend_stages, self.batches) < 1 or self.frames < 0:
      raise ValueError(
        "prompts, steps, extend_stages and batches must be at least 1, frames at least 0"
      )
    if not isinstance(self.sizes, list | tuple) or not all(map(_is_size, self.sizes)):
      raise ValueError(
        f"sizes is {self.sizes}; give (width, height) pairs in pixels, like ((32, 32),)"
      )
    if self.seed < 0:
      raise ValueError(f"seed is {self.seed}; it must be at least 0")
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}; it must be a number, 1 = off")
    guidance.checked_interval(self.guidance_interval)


def _is_size(size) -> bool:
  """Whether it is a (width, height) in whole pixels."""
  pair = isinstance(size, list | tuple) and len(size) == 2
  return pair and all(isinstance(n, int) and n > 0 for n in size)


def check_evaluation(evaluation: EvaluationConfig, world: WorldConfig | None) -> None:
  """Raises a ValueError if the world cannot show the sizes and lengths that are to be sampled."""
  if world is None:
    return
  sizes, frames = evaluation.sizes or world.sizes, evaluation.frames or max(world.frames)
  try:
    dataclasses.replace(world, sizes=sizes, frames=frames)
  except ValueError as error:
    raise ValueError(f"config.evaluation: {error}") from error


def check_values(config: Mapping) -> None:
  """Raises a ValueError for values that are used far from here, and numbers that are not finite."""
  if config["train"]["context"] not in sharding.CONTEXT_METHODS:
    raise ValueError(
      f"config.train.context is {config['train']['context']!r}; allowed:"
      f" {', '.join(sharding.CONTEXT_METHODS)}"
    )
  batch = config["data"]["encode_batch"]
  if not isinstance(batch, int) or batch < 1:
    raise ValueError(f"config.data.encode_batch is {batch!r}; it must be at least 1")
  _check_finite(config, "config")


def _check_finite(value: Any, where: str) -> None:
  """Raises a ValueError that names the first number of a tree that is none."""
  if isinstance(value, Mapping):
    for name, part_of in value.items():
      _check_finite(part_of, f"{where}.{name}")
  elif isinstance(value, list | tuple):
    for part_of in value:
      _check_finite(part_of, where)
  elif isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where} is {value}; it must be a finite number")


def check_accumulate(config: Mapping, clips: int, what: str) -> None:
  """Raises a ValueError if a batch cannot be split into `train.accumulate` equal parts."""
  parts = config["train"]["accumulate"]
  if parts < 1 or clips % parts:
    raise ValueError(
      f"config.train.accumulate is {parts}, but {what}; choose one that divides it, or 1"
    )


def check_cuts(config: Mapping, spatial: int) -> None:
  """Raises a ValueError for sizes of cuts that the VAE, of this spatial factor, cannot take."""
  sizes = config["vae"]["sizes"]
  if not isinstance(sizes, list | tuple):
    raise ValueError(f"config.vae.sizes is {sizes}; give (width, height) pairs, like ((32, 32),)")
  for size in sizes:
    if not _is_size(size) or any(n % spatial for n in size):
      raise ValueError(
        f"config.vae.sizes has {size}; each must be a (width, height) in multiples of {spatial},"
        f" which is a latent cell of vae.size={config['vae']['size']!r}"
      )


def world_config(config: Mapping) -> WorldConfig:
  """The world that is trained on."""
  return typed(WorldConfig, "data.world", config["data"]["world"], split="train")


def pipeline_config(
  config: Mapping, patch: tuple, frames_per_latent: int, share: Share = WHOLE
) -> PipelineConfig:
  """The pipeline's view of the data section; share: see `sharding.host_share`."""
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
    pipeline = PipelineConfig(**values, token_drop=token_drop, share=share)
  except ValueError as error:
    raise ValueError(f"config.data: {error}") from error
  warn_of_slots(pipeline)
  return pipeline


def warn_of_slots(pipeline: PipelineConfig) -> None:
  """Warns of shares of visits that most clips lack the slots for: where a row is full of clips, it
  has none left for their latent frames."""
  asked = {"caption_shots": pipeline.caption_shots}
  if pipeline.prompts is not None:
    asked |= {f"prompts.{name}": getattr(pipeline.prompts, name) for name in OF_FRAMES}
  names = [f"config.data.{name}={share:g}" for name, share in asked.items() if share]
  if names and pipeline.max_slots == pipeline.max_segments:
    logging.warning(
      "%s: a row has %d times, one for each of its max_segments clips, so few are left for latent"
      " frames with their own and less than these shares is trained; give it more, as with"
      " config.data.max_slots=%d, or set them to 0",
      ", ".join(names), pipeline.max_slots, 3 * pipeline.max_segments,
    )  # fmt: skip


def prompts_of(data: Mapping) -> PromptMix | None:
  """Shares of image and video prompts; None where they are switched off."""
  prompts = data["prompts"]
  mix = typed(PromptMix, "data.prompts", without(prompts, "on"))
  return mix if prompts["on"] else None


def tokens_of(width: int, height: int, frames: int, vae_config, patch: Patch) -> int:
  """Tokens of a clip of pixels."""
  f_t, f_s, _ = factors(vae_config)
  t = -(-(1 + (padded_frames(frames, f_t) - 1) // f_t) // patch.t)
  return t * -(-height // (f_s * patch.h)) * -(-width // (f_s * patch.w))


def fits(source: ClipsConfig, pipeline: PipelineConfig, vae_config) -> None:
  """Raises a ValueError if a clip of the world would fill more than a row."""
  if source.world is None or pipeline.too_long != "raise":
    return
  for width, height in source.world.sizes:
    for frames in source.world.frames:
      tokens = tokens_of(width, height, frames, vae_config, pipeline.patch)
      if tokens > pipeline.row_len:
        raise ValueError(
          f"config.data.row_len is {pipeline.row_len}, but a clip of {width}x{height} and"
          f" {frames} frames takes {tokens} tokens; raise row_len, or take smaller clips"
        )


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


def start_of(folder: Path | None, time_low: float) -> str:
  """The transformer of a model folder that starts a leg: for high noise, if it is trained for that
  alone and the folder has one."""
  has_one = folder is not None and (folder / f"{store.HIGH}.safetensors").is_file()
  return store.HIGH if time_low > 0 and has_one else "dit"


def provenance_of(path: Path | None, network: str = "dit") -> dict | None:
  """Returns how the weights that start a leg were made: a VAE's file, or a folder's network."""
  if path is None:
    return None
  file = path if path.is_file() else path / f"{network}.safetensors"
  return store.read_config(file)[1]["provenance"]
