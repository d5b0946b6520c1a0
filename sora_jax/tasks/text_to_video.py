"""Text to video: where the transformer, the text encoder and diffusion meet on packed rows."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.data import tokenizers
from sora_jax.data.pipeline import PipelineConfig, packed_rows
from sora_jax.data.table import ClipSource
from sora_jax.diffusion import loss as loss_lib
from sora_jax.diffusion import process, segments, times
from sora_jax.nn import networks
from sora_jax.nn.dit import DiT
from sora_jax.nn.text import TextEncoder
from sora_jax.ops import packing, patchify
from sora_jax.tasks import captions, costs, inputs
from sora_jax.tasks.clips import Sources
from sora_jax.train.task import Ratio
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store
from sora_jax.weights.folder import Network

SAMPLED = ("prediction", "shift_reference", "shift_space", "shift_frames", "shift_high")
"""Keys of config.diffusion that a sampler must know."""
NO_LIMIT = 1e9
"""Seconds, of a data set without videos."""


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """Target, loss and times, named as in `configs/base.py`."""

  prediction: str = "x"
  loss: str = "v"
  loss_floor: float = process.FLOOR
  gamma: float = 0.5
  time_mean: float = 0.0
  time_std: float = 1.0
  time_uniform: float = 0.1
  time_low: float = 0.0
  time_high: float = 1.0
  shift_reference: float = 64.0
  shift_space: float = 0.5
  shift_frames: float = 0.25
  shift_high: float = 7.0

  def __post_init__(self):
    for name in ("prediction", "loss"):
      if getattr(self, name) not in process.KINDS:
        raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(process.KINDS)}")
    if not 0 <= self.gamma <= 1:
      raise ValueError(f"gamma is {self.gamma}; it must be in [0, 1]")
    if not 0 < self.loss_floor <= 1:
      raise ValueError(f"loss_floor is {self.loss_floor}; it must be above 0 and at most 1")
    if self.time_low > 0 and self.time_high < 1:
      raise ValueError(
        f"time_low is {self.time_low} and time_high {self.time_high}: each leaves a part of the "
        "way to another network, and a model has two; set time_low=0 or time_high=1"
      )
    self.time_config, self.shift_config  # noqa: B018 (they check themselves)

  @property
  def is_part(self) -> bool:
    """Whether the rest of the way is left to another network, which reads text as this one."""
    return self.time_low > 0 or self.time_high < 1

  @property
  def time_config(self) -> times.TimeConfig:
    return times.TimeConfig(
      self.time_mean, self.time_std, self.time_uniform, self.time_low, self.time_high
    )

  @property
  def shift_config(self) -> times.ShiftConfig:
    return times.ShiftConfig(
      self.shift_reference, self.shift_space, self.shift_frames, high=self.shift_high
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TextToVideo:
  """Denoising of packed latents under their captions; see `train.task.Task`.

  sources: clips with cached latents; None = to be compiled alone.  vae: the network that made them,
  kept for export.  frames_per_latent: f_t.  tokenizer_name: as in the config.
  sampling: what a sampler should use by default.  heldout_batches: of the held-out loss.
  init_from: a model folder or None.  start: the network of it that this one starts from.
  beside: where a part of the way alone is trained, the networks of init_from, of which the export
  changes that one.
  grow: parameters that init_from lacks start at random instead of being an error.
  context_method: see `sharding.attentions`.  mesh: where it runs; None = one device.
  """

  dit: DiT
  text: TextEncoder
  diffusion: DiffusionConfig
  pipeline: PipelineConfig
  sources: Sources | None
  vae: Network
  frames_per_latent: int
  tokenizer_name: str
  sampling: dict
  heldout_batches: int = 8
  init_from: Path | None = None
  start: str = "dit"
  beside: dict[str, Network] | None = None
  grow: bool = False
  context_method: str = "auto"
  mesh: Mesh | None = None
  name: str = "text_to_video"

  def init(self, key):
    if self.init_from is not None:
      there = folder_lib.read(self.init_from)
      found = {"dit": there[self.start].tree, "text": there["text"].tree}
      if self.grow:
        found = store.filled(found, nn.meta.unbox(self.init_new(key)))
      store.check(found, jax.eval_shape(self.init_new, key), str(self.init_from))
      return jax.tree.map(jnp.asarray, found)
    return nn.meta.unbox(self.init_new(key))

  def init_new(self, key):
    """Fresh parameters, in boxes that hold the names of their axes."""
    return networks.init(self.dit, self.text, key)

  def axes(self):
    return networks.axes(self.dit, self.text)

  def fixed(self):
    return ("text",) if self.diffusion.is_part else ()

  def on(self, mesh):
    near, far = sharding.attentions(mesh, self.dit.config.heads, self.context_method)
    dit = self.dit.clone(attention=near, cross_attention=far)
    return dataclasses.replace(self, dit=dit, mesh=mesh)

  def batch_axes(self):
    token, tokens = ("row", "token"), ("row", "token", None)
    axes = {"segment": token, "slot": token, "coord": tokens, "patch": tokens}
    return axes | {"known": tokens, "canvas": tokens}

  def loss(self, params, batch, key, progress):
    del progress
    c = self.diffusion
    layout = packing.layout_of(batch, self.pipeline.max_slots)
    time_key, noise_key, prompt_key = jax.random.split(key, 3)
    shift_RS = times.segment_shift(layout.grid_RS3, c.shift_config, self.dit.config.patch[0])
    shift_RQ = times.slot_shift(shift_RS, layout.slot_segment_RQ)
    time_RQ = times.training_times(time_key, layout.slot_segment_RQ > 0, shift_RQ, c.time_config)
    if self.pipeline.prompts is not None and self.pipeline.prompts.near_noise > 0:
      key = jax.random.fold_in(prompt_key, 1)
      time_RQ = self.prompted_times(key, time_RQ, shift_RQ, batch, layout)
    if "one_time" in batch:
      time_RQ = packing.same_times(time_RQ, layout, batch["slots"], batch["one_time"])
    if "staged" in batch:
      told_RL = (batch["known"].max(-1) > 0) & (layout.segment_RL > 0)
      time_RQ = times.staged(
        jax.random.fold_in(prompt_key, 2), time_RQ, shift_RQ,
        packing.slots_away(told_RL, layout.slot_RL, layout.slot_segment_RQ),
        layout.slot_segment_RQ, jnp.asarray(batch["staged"]), c.time_low,
      )  # fmt: skip
    time_RL = times.token_times(time_RQ, layout.slot_RL)
    x0_RLP = batch["patch"]
    eps_RLP = jax.random.normal(noise_key, x0_RLP.shape)
    noisy_RLP = process.add_noise(x0_RLP, eps_RLP, time_RL[..., None])
    known_RLX, canvas_RLP = self.prompts(batch, prompt_key)
    tokens = patchify.join_cells(noisy_RLP, known_RLX, canvas_RLP, self.dit.config.patch)
    text_params = params["text"]
    if c.is_part:  # it reads the text as the network for the rest of the way does
      text_params = jax.lax.stop_gradient(text_params)
    text_RMU = self.text.apply({"params": text_params}, batch["text"], batch["text_segment"])
    out_RLP = self.dit.apply({"params": params["dit"]}, tokens, time_RQ, layout, text_RMU)
    target_RLP = process.target(c.prediction, x0_RLP, eps_RLP)
    error_RL = loss_lib.token_error(
      out_RLP, target_RLP, time_RL, c.prediction, c.loss, c.loss_floor
    )
    S = batch["grid"].shape[1]
    packed = loss_lib.packed_loss(error_RL, layout.segment_RL, S, c.gamma)
    real = (layout.segment_RL > 0).astype(jnp.float32)
    fill = Ratio(real.sum(), jnp.asarray(real.size, jnp.float32))
    return Ratio(packed.numerator, packed.denominator), {"fill": fill}

  def prompted_times(self, key, time_RQ, shift_RQ, batch, layout) -> jax.Array:
    """Times in which those of some of the clips with a prompt are near pure noise."""
    S, share = batch["grid"].shape[1], self.pipeline.prompts.near_noise
    choice_key, time_key = jax.random.split(key)
    told_RL = jnp.where(batch["known"].max(-1) > 0, layout.segment_RL, 0)
    told_RS = segments.count(told_RL, S) > 0
    told_RS &= jax.random.bernoulli(choice_key, share, told_RS.shape)
    chosen_RQ = packing.take_segments(told_RS, layout.slot_segment_RQ)
    return times.near_noise(time_key, time_RQ, shift_RQ, chosen_RQ, self.diffusion.time_low)

  def prompts(self, batch, key) -> tuple[jax.Array, jax.Array]:
    """What the network is told of each token: known frames, and their canvas, which half the clips
    see noised. A sampler that builds on its own frames meets such flaws."""
    x0_RLP, mix = batch["patch"], self.pipeline.prompts
    if mix is None:
      frames = self.dit.config.cells * self.frames_per_latent
      return jnp.zeros((*x0_RLP.shape[:2], frames)), jnp.zeros_like(x0_RLP)
    half_key, time_key, noise_key = jax.random.split(key, 3)
    shape_RS = batch["grid"].shape[:2]
    time_RS = mix.noise * jax.random.uniform(time_key, shape_RS)
    time_RS *= jax.random.bernoulli(half_key, 0.5, shape_RS)
    time_RL1 = packing.take_segments(time_RS, batch["segment"])[..., None]
    known_RLX, canvas_RLP = batch["known"].astype(jnp.float32), batch["canvas"]
    noisy_RLP = process.add_noise(
      canvas_RLP, jax.random.normal(noise_key, canvas_RLP.shape), time_RL1
    )  # fmt: skip
    by_cell = (*canvas_RLP.shape[:2], self.dit.config.cells, -1)
    is_known = known_RLX.reshape(by_cell).max(-1, keepdims=True) > 0
    shown = jnp.where(is_known, noisy_RLP.reshape(by_cell), 0.0)
    return known_RLX, shown.reshape(canvas_RLP.shape)

  def batches(self):
    return iter(self._rows(self.sources.train, self.pipeline))

  def _rows(self, source: Any, config: PipelineConfig):
    tokenizer = tokenizers.load(self.tokenizer_name)
    return packed_rows(source, config, patchify.patchify, tokenizer.tokenize)

  def evaluators(self):
    return [HeldOutLoss(self, self.heldout_batches)]

  def heldout(self):
    """Returns the stream of validation batches, always the same."""
    calm = dataclasses.replace(
      self.pipeline, workers=0, prefetch=0, token_drop=None, drop_to_fill=0.0, caption_dropout=0.0
    )
    return iter(self._rows(self.sources.validation, calm))

  def cost(self, batch):
    return costs.packed_cost(self.matrix_sizes, self.dit.config, self.text.config, batch)

  @functools.cached_property
  def matrix_sizes(self) -> costs.Sizes:
    """Entries of the matrices that tokens, words and slots meet."""
    return costs.sizes_of(networks.shapes(self.dit, self.text))

  def names(self, batch):
    clips = np.unique(batch["clip"][batch["clip"] >= 0])
    return lambda: [self.sources.train[int(i)].id for i in clips]

  def inputs(self):
    """Hashes of what is read by path, see `train.task.Task`."""
    maker = self.sources.train[0].latent_source
    found = inputs.of_clips(self.sources.train) | inputs.of_tokenizer(self.tokenizer_name)
    return found | ({} if maker is None else {"vae.weights": maker})

  def export(self, params, folder: Path, provenance: dict) -> dict[str, float]:
    c, p = self.diffusion, self.pipeline
    tokenizer = tokenizers.load(self.tokenizer_name)
    pieces = getattr(tokenizer, "model_bytes", None)
    dit = {
      "network": self.dit.config,
      "diffusion": {name: getattr(c, name) for name in SAMPLED},
      "rows": {name: getattr(p, name) for name in ("row_len", "max_segments", "text_row_len")},
      "sampling": self.sampling,
      "prompts": p.prompts is not None,
      "extent": extent(self.sources.train, p.patch, self.frames_per_latent),
    }
    text = {
      "network": self.text.config,
      "tokenizer": folder_lib.TOKENIZER_NAME if pieces is not None else "bytes",
    }
    made = {
      "vae": self.vae, "text": Network(params["text"], text), "dit": Network(params["dit"], dit)
    }  # fmt: skip
    if self.beside is not None:
      name, config = "dit", self.beside["dit"].config
      if c.time_low > 0:  # a second network that goes on keeps the time that it begins at
        above = folder_lib.boundary(self.beside)
        name = store.HIGH
        config = {"network": self.dit.config, "above": c.time_low if above is None else above}
      made |= self.beside | {name: Network(params["dit"], config)}
    folder_lib.write(folder, made, pieces, provenance)
    return {}


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOutLoss:
  """The training loss on validation clips, with the same noise and times at every evaluation, and
  how much higher it is with the captions of other clips: what the captions are worth. That is told
  of clips that another one's caption could be found for, if there are any."""

  task: TextToVideo
  batches: int
  name: str = "heldout"

  def __call__(self, params, step, folder):
    del step, folder
    task, total, weight = self.task, np.zeros((2, 2)), 0.0
    stream = task.heldout()
    for i in range(self.batches):
      batch = next(stream)
      others, changed_RS = captions.exchanged(batch)
      for which, given in enumerate((batch, others)):
        ratio = _loss_of(task, params, self._put(given), jax.random.key(i))
        total[which] += float(ratio.numerator), float(ratio.denominator)
      told = self._put({"segment": batch["segment"], "changed": changed_RS})
      weight += float(_weight_of(task, told))
    figures = {"loss": total[0, 0] / total[0, 1]}
    if weight:  # of other clips the loss is the same, so the difference is theirs alone
      figures["caption_gain"] = (total[1, 0] - total[0, 0]) / weight
    return figures

  def _put(self, batch: dict) -> dict:
    """A batch on the mesh, if there is one."""
    task = self.task
    return batch if task.mesh is None else sharding.put_batch(task.mesh, batch, task.batch_axes())


@functools.partial(jax.jit, static_argnums=0)
def _loss_of(task, params, batch, key):
  with sharding.using(task.mesh):
    return task.loss(params, batch, key, jnp.ones(()))[0]


@functools.partial(jax.jit, static_argnums=0)
def _weight_of(task, batch):
  """What the loss divides by, of the clips that are named as `changed` alone."""
  with sharding.using(task.mesh):
    segment_RL, changed_RS = jnp.asarray(batch["segment"]), jnp.asarray(batch["changed"])
    counted_RL = packing.take_segments(changed_RS, segment_RL)
    error_RL, S = jnp.zeros(segment_RL.shape), changed_RS.shape[1]
    gamma = task.diffusion.gamma
    return loss_lib.packed_loss(error_RL, segment_RL, S, gamma, counted_RL).denominator


def extent(source: ClipSource, patch: Sequence[int], frames_per_latent: int) -> list[float]:
  """[seconds, tokens] of a data set's longest clip and longest side; pictures have no length."""
  seconds, side = 0.0, 1
  for index in range(len(source)):
    clip = source[index]
    t, h, w, _ = clip.latent_thwZ.shape
    frames = 1 + (t - 1) * frames_per_latent
    seconds = max(seconds, frames / clip.fps if clip.fps else 0.0)
    side = max(side, h // patch[1], w // patch[2])
  return [seconds or NO_LIMIT, float(side)]
