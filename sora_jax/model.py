"""The object that `load` returns: generate videos and images, encode and decode pixels.

Here the networks, diffusion and pixels meet for use, as they meet in `tasks/` for training.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.data import known, tokenizers, transforms
from sora_jax.data.transforms import Size
from sora_jax.diffusion import process, times
from sora_jax.diffusion.guidance import ALL_TIMES
from sora_jax.nn import conditioning, networks, vae, vae_streaming
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.prompting import orders, verbs
from sora_jax.prompting.orders import DRAFT_SCALE, Order
from sora_jax.prompting.requests import Request, RowShape
from sora_jax.prompting.sampling import Method, Sampler, lowered
from sora_jax.prompting.timeline import Timeline, as_video
from sora_jax.shapes import Grid, Patch
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store
from sora_jax.weights.folder import Network

Progress = Callable[[str], None]

DRAFT_STRENGTH = 0.2
"""Time to which a draft is noised before it is made at full size."""
PROMPTED_GUIDANCE = 1.5
"""Most guidance by default where frames are known: they say most of what the text would."""


def load(
  name_or_dir: str | os.PathLike = "tiny", mesh: Mesh | Sequence[int] | None = None
) -> "Model":
  """Loads a model: shipped weights by name, a model folder, or the work directory of a run.

  mesh: sizes of the axes (data, fsdp, context, tensor) over which devices share the work, or a mesh
    of `sharding.make_mesh`; None = one device.
  Raises: ValueError or FileNotFoundError that says what is missing or damaged, ValueError for a
    mesh that cannot split this model.
  """
  if mesh is not None and not isinstance(mesh, Mesh):
    mesh = sharding.make_mesh(tuple(mesh))
  return from_folder(folder_lib.find(name_or_dir), mesh)


def from_folder(path: str | os.PathLike, mesh: Mesh | None = None) -> "Model":
  """Loads a model folder (see `weights/folder.py`); mesh: see `load`."""
  parts = folder_lib.read(path)
  tokenizer = parts["text"].config["tokenizer"]
  if tokenizer == folder_lib.TOKENIZER_NAME:
    tokenizer = os.path.join(path, tokenizer)
  return Model(parts, tokenizers.load(tokenizer), mesh)


class Model(verbs.Verbs):
  """Networks, their weights and a tokenizer, ready for use.

  Attributes: autoencoder: the VAE's config.  dit, text: the flax modules.
    sampler: makes latents of packed requests.
    defaults: of solver, steps, grid, extend_grid, extend_stages, guidance, guidance_interval, fps.
    prompted: whether the transformer has seen image and video prompts in training.
    extent: (seconds, side in tokens) of the longest clip and side in training; None if not told.
  """

  def __init__(
    self, parts: dict[str, Network], tokenizer: tokenizers.Tokenizer, mesh: Mesh | None = None
  ):
    self.tokenizer = tokenizer
    self.autoencoder = _config(vae.VAEConfig, parts["vae"])
    config = _config(DiTConfig, parts["dit"])  # unrolled it is hardly faster, and compiles slowly
    self.dit = DiT(dataclasses.replace(config, scan_unroll=1))
    self.text = TextEncoder(_config(TextConfig, parts["text"]))
    dit = parts["dit"].config
    self.defaults = {"grid": "uniform", "guidance_interval": ALL_TIMES} | dit["sampling"]
    self.prompted = bool(dit.get("prompts", False))
    self.extent = dit.get("extent")
    shift = {name.removeprefix("shift_"): v for name, v in dit["diffusion"].items()}
    kind = shift.pop("prediction")
    self._mesh = mesh
    params = {name: part.tree for name, part in parts.items() if name != "vae"}
    self._place(parts["vae"].tree, params, mesh)
    self.patch = Patch(*self.dit.config.patch)
    v = self.autoencoder
    self._f_t, self._f_s, self._channels = v.temporal, v.spatial, v.latent
    self.sampler = Sampler(
      self._predict, self._encode_text, patch=self.patch, channels=self._channels,
      frames_per_latent=self._f_t, kind=kind, shift=times.ShiftConfig(**shift),
      rows=RowShape(**dit["rows"]), null_ids=tokenizer.tokenize(conditioning.NULL_PROMPT),
      mesh=mesh, boundary=folder_lib.boundary(parts),
    )  # fmt: skip

  def _place(self, variables: dict, params: dict, mesh: Mesh | None) -> None:
    """Puts weights on a mesh, and has the transformer find keys that lie on other devices."""
    if mesh is None:
      self._vae_variables, self._params = jax.tree.map(jnp.asarray, (variables, params))
      return
    axes = networks.axes(self.dit, self.text)
    axes = {name: axes["dit" if name == store.HIGH else name] for name in params}
    near, far = sharding.attentions(mesh, self.dit.config.heads)
    self.dit = self.dit.clone(attention=near, cross_attention=far)
    sharding.check_sizes(mesh, params, axes)
    self._params = jax.device_put(params, sharding.of_tree(mesh, axes))
    self._vae_variables = jax.device_put(variables, sharding.replicated(mesh))

  def generate(
    self,
    prompt: str | Sequence[str],
    size: Size | Sequence[Size] = (96, 64),
    frames: int | Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    *,
    sample: int | Sequence[int] = 0,
    fps: float | Sequence[float] | None = None,
    guidance: float | Sequence[float] | None = None,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    guidance_interval: Sequence[float | int] | None = None,
    draft: bool = False,
    from_draft: np.ndarray | Sequence[np.ndarray] | None = None,
    strength: float = DRAFT_STRENGTH,
    positions: str | Sequence[str] = "none",
    progress: Progress | None = None,
  ) -> np.ndarray | list[np.ndarray]:
    """Makes videos (or pictures: one frame) of any size from text.

    A list for any of prompt, size, frames, seed, sample, fps, guidance and from_draft gives a list
    of videos, sampled packed together; single values serve all of them. What is made depends on
    the prompt, size, frames, fps, seed, sample and how it is sampled (guidance, steps, ...), never
    on what is made beside it.

    Args:
      prompt: text.  size: (width, height) in pixels.  frames: 17 by default, or the draft's.
      seed, sample: name the noise together with the prompt: another number, another video.
      fps: frames per second that the motion is made for.  guidance: strength of the text, 1 = off.
      steps, solver, grid: of the sampler; the model's own by default. Keys of
        `diffusion.solvers.SOLVERS` and `diffusion.sampler.GRIDS`.
      guidance_interval: (low, high) in [0, 1], times at which guidance acts; the model's by
        default, (0, 1) = all; see `prompting.sampling.Method`.
      draft: makes it at half the width and height in half the steps.
      from_draft: uint8 [T, H, W, 3]; its first `frames` are made again at `size` by the same
        model: the draft is enlarged, noised to time `strength` in (0, 1] and denoised (SDEdit).
      positions: of what is larger or longer than in training: "none" leaves them, "interpolate" or
        "ntk", or two names, for time and for space; see `prompting.sampling.Method`.
      progress: called with a line of text now and then.
    Returns: uint8 [frames, height, width, 3], or a list of them.
    Raises: ValueError naming the argument, its value, and what is allowed.
    """
    d = self.defaults
    several, ordered = orders.spread(
      prompt=prompt, size=size, frames=frames, seed=seed, sample=sample, from_draft=from_draft,
      fps=d["fps"] if fps is None else fps,
      guidance=d["guidance"] if guidance is None else guidance,
    )  # fmt: skip
    steps = d["steps"] if steps is None else steps
    if draft:
      ordered = [self._draft(order) for order in ordered]
      steps = max(1, steps // DRAFT_SCALE)
    method = self._method(solver, steps, grid, guidance_interval, positions)
    report = progress or (lambda line: None)
    requests = [self._request(order, strength) for order in ordered]
    tokens = sum(request.grid.size for request in requests)
    report(f"sampling {len(requests)} of {tokens} tokens, {method.steps} steps of {method.solver}")
    latents = self.sampler(
      self._params, requests, method, lambda done, rows: report(f"sampled row {done} of {rows}")
    )
    videos = []
    for order, latent_thwZ in zip(ordered, latents):
      report(f"decoding {order.size[0]}x{order.size[1]}, {order.frames} frames")
      videos.append(self.decode(latent_thwZ, order.frames, order.size))
    return videos if several else videos[0]

  def make(
    self,
    lines: Timeline | Sequence[Timeline],
    *,
    seed: int | Sequence[int] = 0,
    sample: int = 0,
    guidance: float | None = None,
    image_guidance: float = 1.0,
    context_noise: float = 0.0,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    guidance_interval: Sequence[float | int] | None = None,
    positions: str | Sequence[str] = "none",
    stages: int | None = None,
    progress: Progress | None = None,
  ) -> np.ndarray | list[np.ndarray]:
    """Makes what timelines leave open; what they know comes back bit by bit.

    Args: lines: one or several, sampled packed together.  seed: one for all, or one for each; a
      list for a single timeline makes one video for each.  guidance: by default the model's, but at
      most PROMPTED_GUIDANCE where something is known.  grid: by default the model's, which may have
      another for clips that are gone on with (not for several seeds of one: they are to differ).
      stages: clips that are gone on with are made in so many steps from what is known on before all
      of it goes on together, see `prompting.sampling.Method`; never more than the clip needs. By
      default the model's, fewer than steps; 1 if `grid` is given, and for several seeds of one.
      image_guidance: strength of what is known, 1 = off.  context_noise: time in [0, 1) to which
      what is known is noised before the network reads it, as in training; flaws of frames that were
      made before count less then. The rest as in `generate`.
    Returns: uint8 [frames, height, width, 3], or a list of them.  Raises: ValueError.
    """
    several = not (isinstance(lines, Timeline) and np.ndim(seed) == 0)
    lines = [lines] if isinstance(lines, Timeline) else list(lines)
    seeds = list(seed) if np.ndim(seed) else [seed] * len(lines)
    seeds = [orders.whole("seed", value, 0) for value in seeds]
    to_differ = len(lines) == 1 < len(seeds)
    if len(lines) == 1:
      lines = lines * len(seeds)
    if len(seeds) != len(lines):
      raise ValueError(f"{len(seeds)} seeds for {len(lines)} timelines; give one, or one for each")
    method, d = self._method(solver, steps, grid, guidance_interval, positions), self.defaults
    if stages is None:
      most = 1 if grid or to_differ else d.get("extend_stages", 1)
      stages = min(max(1, method.steps - 1), most)
    if not to_differ:
      grid = grid or d.get("extend_grid")
    going_on = dataclasses.replace(method, grid=grid or method.grid, stages=stages)
    methods = [going_on if line.goes_on else method for line in lines]
    for name, value in (("guidance", guidance), ("image_guidance", image_guidance)):
      if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a number, 1 = off")
    if not 0 <= context_noise < 1:
      raise ValueError(f"context_noise is {context_noise}; it must lie in [0, 1), 0 = off")
    strengths = guidance, float(image_guidance), float(context_noise)
    requests = [
      self._prompted(line, seed, sample, *strengths, one_by_one=m.stages > 1)
      for line, seed, m in zip(lines, seeds, methods)
    ]
    methods = [lowered(m, request) for m, request in zip(methods, requests)]
    report = progress or (lambda line: None)
    # strength 0 keeps the start as the autoencoder gives it back: there is nothing to sample
    latents = [r.start_latent if line.strength == 0 else None for line, r in zip(lines, requests)]
    open_ones = [i for i, latent in enumerate(latents) if latent is None]
    for method in dict.fromkeys(methods[i] for i in open_ones):
      part = [i for i in open_ones if methods[i] == method]
      report(f"sampling {len(part)} videos, {method.steps} {method.grid} steps of {method.solver}")
      made = self.sampler(
        self._params, [requests[i] for i in part], method,
        lambda done, rows: report(f"sampled row {done} of {rows}"),
      )  # fmt: skip
      for i, latent_thwZ in zip(part, made):
        latents[i] = latent_thwZ
    videos = []
    for line, latent_thwZ in zip(lines, latents):
      videos.append(self.finish(line, self.decode(latent_thwZ, line.frames, line.size)))
    return videos if several else videos[0]

  def encode(self, video_THWC: np.ndarray) -> np.ndarray:
    """Latents of a video of any size and length, which is edge-padded to what the VAE needs.

    Args: video_THWC: uint8 [T, H, W, 3].
    Returns: float32 [t, h, w, Z], the normalised posterior mean.  Raises: ValueError.
    """
    return self._encode_padded(video_THWC, 1, self._f_s)

  def decode(
    self, latent_thwZ: np.ndarray, frames: int | None = None, size: Size | None = None
  ) -> np.ndarray:
    """Pixels of latents, cropped to a number of frames and a size.

    Args: latent_thwZ: normalised.  frames, size: at most what the latents hold; None = all.
    Returns: uint8 [frames, height, width, 3].  Raises: ValueError.
    """
    latent_thwZ = np.asarray(latent_thwZ, np.float32)
    if latent_thwZ.ndim != 4 or latent_thwZ.shape[-1] != self._channels:
      raise ValueError(
        f"latents of shape {latent_thwZ.shape}; expected [t, h, w, {self._channels}] as `encode` "
        "gives them, one video at a time"
      )
    t, h, w, _ = latent_thwZ.shape
    T, H, W = 1 + (t - 1) * self._f_t, h * self._f_s, w * self._f_s
    frames = T if frames is None else orders.whole("frames", frames, 1)
    width, height = (W, H) if size is None else orders.whole_size(size)
    if frames > T or width > W or height > H:
      raise ValueError(
        f"asked for {frames} frames of {width}x{height}; these latents hold {T} of {W}x{H}"
      )
    each_BhwZ = (latent_hwZ[None] for latent_hwZ in latent_thwZ)
    chunks = vae_streaming.decode_stream(
      self.autoencoder, self._vae_variables, each_BhwZ, frames, self._put_video
    )
    cropped = [transforms.to_uint8(chunk[0, :, :height, :width]) for chunk in chunks]
    return np.concatenate(cropped)[:frames]

  def _encode_padded(self, video_THWC: np.ndarray, latents: int, multiple: int) -> np.ndarray:
    """Encodes after padding to a multiple of latent frames and of pixels."""
    video_THWC = as_video(video_THWC)
    extra = self._padded_frames(len(video_THWC), latents) - len(video_THWC)
    video_THWC = np.concatenate([video_THWC, np.repeat(video_THWC[-1:], extra, axis=0)])
    return self._encode_float(transforms.to_float(transforms.pad_size(video_THWC, multiple)))

  def _encode_float(self, video_THWC: np.ndarray) -> np.ndarray:
    """Encodes a padded video in [-1, 1]."""
    chunks = vae_streaming.encode_stream(
      self.autoencoder, self._vae_variables, video_THWC[:, None], self._put_video
    )  # fmt: skip
    return np.concatenate([np.asarray(chunk[0], np.float32) for chunk in chunks])

  def _put_video(self, x_BTHWC: np.ndarray | jax.Array) -> jax.Array:
    """Pixels or latents, lines and columns shared out over the mesh where they divide evenly."""
    if self._mesh is None:
      return jnp.asarray(x_BTHWC)
    return jax.device_put(x_BTHWC, sharding.fitting(self._mesh, vae.AXES, x_BTHWC.shape))

  def _prompted(
    self,
    line: Timeline,
    seed: int,
    sample: int,
    guidance: float | None,
    image_guidance: float,
    context_noise: float = 0.0,
    one_by_one: bool = False,
  ) -> Request:
    """The request that a timeline stands for.  guidance: None = by default, see `make`."""
    p, multiple = self.patch, self._f_s * math.lcm(self.patch.h, self.patch.w)
    extra = self._padded_frames(line.frames, p.t) - line.frames
    pixels = np.pad(line.pixels_THWC, ((0, extra), (0, 0), (0, 0), (0, 0)))
    known_THW = np.pad(line.known_THW, ((0, extra), (0, 0), (0, 0)))
    pixels = transforms.pad_size(pixels, multiple)
    known_THW = transforms.pad_size(known_THW[..., None], multiple)[..., 0]
    mask_thwF = known.cell_mask(known_THW, self._f_t, self._f_s)
    t, h, w, _ = mask_thwF.shape
    cells = canvas = exact = is_exact = start = None
    if mask_thwF.any():
      self._check_prompted()
      shown = known.blanked(transforms.to_float(pixels), mask_thwF, self._f_s)
      latent_thwZ = self._encode_float(shown)
      exact = latent_thwZ
      is_exact = known.exact_cells(mask_thwF, self.autoencoder.encoder_reach)
      if context_noise:
        draw_thwZ = np.random.default_rng([seed, sample]).standard_normal(latent_thwZ.shape)
        draw_thwZ, time = jnp.asarray(draw_thwZ, jnp.float32), jnp.float32(context_noise)
        latent_thwZ = np.asarray(process.add_noise(jnp.asarray(latent_thwZ), draw_thwZ, time))
      cells, canvas = mask_thwF, known.canvas(latent_thwZ, mask_thwF)
    if guidance is None:
      limit = math.inf if cells is None else PROMPTED_GUIDANCE
      guidance = min(self.defaults["guidance"], limit)
    if line.start_THWC is not None:
      start = self._encode_padded(line.start_THWC, p.t, multiple)
    texts = [
      (k // p.t, tuple(self.tokenizer.tokenize(text))) for k, text in line.latent_prompts(self._f_t)
    ]
    return Request(
      "\n".join([line.prompt, *(text for _, text in line.later)]), texts[0][1],
      Grid(t // p.t, h // p.h, w // p.w), 0.0 if line.frames == 1 else float(line.fps),
      seed, sample, float(guidance), start, 1.0 if start is None else line.strength or 1.0, cells,
      canvas, image_guidance, tuple({k: (k, ids) for k, ids in texts if k}.values()), exact,
      is_exact, one_by_one,
    )  # fmt: skip

  def _request(self, order: Order, strength: float) -> Request:
    p = self.patch
    cell_h, cell_w = self._f_s * p.h, self._f_s * p.w
    t = 1 + -(-(order.frames - 1) // self._f_t)
    grid = Grid(-(-t // p.t), -(-order.size[1] // cell_h), -(-order.size[0] // cell_w))
    start = None
    if order.from_draft is not None:
      video = transforms.resize(order.from_draft[: order.frames], order.size)
      start = self._encode_padded(video, p.t, math.lcm(cell_h, cell_w))
      start = start[:, : grid.h * p.h, : grid.w * p.w]
    return Request(
      order.prompt, tuple(self.tokenizer.tokenize(order.prompt)), grid,
      0.0 if order.frames == 1 else float(order.fps), order.seed, order.sample,
      float(order.guidance), start, 1.0 if start is None else strength,
    )  # fmt: skip

  def _draft(self, order: Order) -> Order:
    """The order at the size of its draft: whole tokens, so that nothing is made to be cropped."""
    cell = self._f_s * max(self.patch.h, self.patch.w)
    size = tuple(max(1, round(side / DRAFT_SCALE / cell)) * cell for side in order.size)
    return dataclasses.replace(order, size=size)

  def _method(
    self,
    solver: str | None,
    steps: int | None,
    grid: str | None,
    interval: Sequence[float | int] | None,
    positions: str | Sequence[str],
  ) -> Method:
    """How samples are made; None = the model's own."""
    d = self.defaults
    if self.extent is None and positions != "none":
      raise ValueError(
        f"positions is {positions!r}, but this model's file does not tell how long and large its "
        "training clips were; export it again, by its training command"
      )
    return Method(
      solver=solver or d["solver"], steps=d["steps"] if steps is None else steps,
      grid=grid or d["grid"], interval=d["guidance_interval"] if interval is None else interval,
      rotary_method=positions, trained_extent=self.extent,
    )  # fmt: skip

  def _predict(self, params, tokens_RLP, time_RQ, layout, text_RMU, position_scale=None):
    return self.dit.apply(
      {"params": params}, tokens_RLP, time_RQ, layout, text_RMU, position_scale=position_scale
    )

  def _encode_text(self, params, ids_RM, segment_RM):
    return self.text.apply({"params": params}, jnp.asarray(ids_RM), jnp.asarray(segment_RM))


def _config(cls: type, network: Network) -> Any:
  """The frozen dataclass that a weights file's config stands for."""
  values = folder_lib.frozen(folder_lib.plain(network.config["network"]))
  known = {field.name for field in dataclasses.fields(cls)}
  if unknown := sorted(values.keys() - known):
    raise ValueError(
      f"the weights' config has unknown keys {', '.join(unknown)} for {cls.__name__}; they were "
      "made by another version of this package: install that version"
    )
  return cls(**values)
