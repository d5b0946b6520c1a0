"""Shape and options of the diffusion transformer, and the ladder of its sizes."""

import dataclasses
import math
from collections.abc import Sequence

from sora_jax.nn.layers import ACTIVATIONS
from sora_jax.ops import positions


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape and options of a diffusion transformer.

  Attributes:
    width: D. depth: blocks. heads: A; the head size is width / heads. mlp_ratio: F / D.
    patch: latent cells per token, (t, h, w).
    in_channels: channels of a cell that enters, see `ops.patchify.cell_channels`.
    out_channels: channels of a cell that leaves (the latent's Z).
    text_width: U of the text encoder; 0 = no cross-attention.
    pooled_text: tell the modulation the mean of a segment's text embeddings, too, as SD3 does
      (arXiv 2403.03206, section 4): multiplying tokens by what the text says.
    classes: size of a table of class labels; 0 = none.
    spread, level: standard deviation of each of the out_channels within a clip and between clips;
      the network then predicts data and is preconditioned, see `ops.precondition`. () = it reads
      and predicts cells as they are.
    modulation: "single" shares one linear layer among blocks, each adding a table of its own;
      "full" gives every block its linear layer (adaLN-zero).
    qk_norm: RMS norm of queries and keys over each "head", over the "full" width, or "none".
    qkv_bias: biases in the attention's projections.
    cross_norm: layer norm with gain before cross-attention.
    mlp_activation: a key of `nn.layers.ACTIVATIONS`.
    head_width: hidden layer of a second path through the head, which reads the token as it entered
      beside the last block's output; 0 = none. For narrow networks: see `nn.dit_blocks.Head`.
    position: "rotary", or "sincos" for the fixed sums of DiT.
    rotary_theta, rotary_scale, rotary_method: see `ops.positions.frequencies`; a scale other than
      1 needs a method other than "none".
    fraction_octaves: detail of the fractional positions; 0 = none.
    size_condition: tell the model extents and frame rate.
    time_features, time_shift: see `ops.positions.fourier`.
    norm_eps: of all norms.
    remat: what the backward pass recomputes: "none", "block" (all of each block), "dots" (all but
      matrix products and attention in long rows).
    scan_unroll: blocks per turn of the loop over depth; `depth` unrolls it (faster on CPU).
    dtype: type of activations; parameters, norms, modulation and angles are float32 (on TPUs what a
      token reads of the modulation is rounded to the activations' type, see `ops.modulation.read`).
  """

  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  patch: Sequence[int] = (1, 2, 2)
  in_channels: int = 36
  out_channels: int = 16
  text_width: int = 0
  pooled_text: bool = False
  classes: int = 0
  spread: Sequence[float] = ()
  level: Sequence[float] = ()
  modulation: str = "single"
  qk_norm: str = "head"
  qkv_bias: bool = False
  cross_norm: bool = True
  mlp_activation: str = "gelu_tanh"
  head_width: int = 0
  position: str = "rotary"
  rotary_theta: float = 1e4
  rotary_scale: Sequence[float] = (1.0, 1.0, 1.0)
  rotary_method: str = "none"
  fraction_octaves: int = 4
  size_condition: bool = True
  time_features: int = 256
  time_shift: float = 0.0
  norm_eps: float = 1e-6
  remat: str = "none"
  scan_unroll: int = 1
  dtype: str = "float32"

  def __post_init__(self):
    self._check_numbers()
    for name in ("patch", "rotary_scale", "spread", "level"):
      object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, if read from JSON
    allowed = {
      "modulation": ("single", "full"), "qk_norm": ("head", "full", "none"),
      "position": ("rotary", "sincos"), "rotary_method": positions.METHODS,
      "remat": ("none", "block", "dots"), "dtype": ("float32", "bfloat16"),
      "mlp_activation": tuple(ACTIVATIONS),
    }  # fmt: skip
    for name, values in allowed.items():
      if getattr(self, name) not in values:
        raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(values)}")
    if self.rotary_method == "none" and any(s != 1 for s in self.rotary_scale):
      raise ValueError(
        f"rotary_scale={self.rotary_scale} does nothing with rotary_method='none'; choose"
        " 'interpolate' or 'ntk', or leave the scale at (1.0, 1.0, 1.0)"
      )
    if self.width % self.heads or (self.width // self.heads) % 2:
      raise ValueError(
        f"width {self.width} over {self.heads} heads gives heads of "
        f"{self.width / self.heads:g}; choose them so that each head is an even number"
      )
    for name in ("spread", "level"):
      if len(getattr(self, name)) != (self.out_channels if self.spread else 0):
        raise ValueError(
          f"{name} has {len(getattr(self, name))} entries; needed is one for each of the"
          f" {self.out_channels} channels, or none in both spread and level"
        )
    if self.position == "rotary":
      positions.axis_sizes(self.head_size)
    elif self.width % 4:
      raise ValueError(f"position='sincos' needs a width that is a multiple of 4: {self.width}")

  def _check_numbers(self):
    """Raises a ValueError for a number that is out of its range, and a patch that is none."""
    ones = ("width", "depth", "heads", "time_features", "scan_unroll")
    zeros = ("head_width", "text_width", "classes", "fraction_octaves")
    for name in (*ones, *zeros):
      if getattr(self, name) < (name in ones):
        raise ValueError(
          f"{name} is {getattr(self, name)}; it must be at least {int(name in ones)}"
        )
    for name in ("mlp_ratio", "rotary_theta", "norm_eps"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0, and finite")
    if not -math.inf < self.time_shift < self.time_features / 2:
      raise ValueError(f"time_shift is {self.time_shift}; it must be below half of time_features")
    scale = self.rotary_scale if isinstance(self.rotary_scale, Sequence) else ()
    if len(scale) != 3 or not all(isinstance(s, int | float) and 0 < s < math.inf for s in scale):
      raise ValueError(
        f"rotary_scale is {self.rotary_scale!r}; it must be three numbers above 0, of (t, y, x)"
      )
    patch = self.patch if isinstance(self.patch, Sequence) else ()
    if len(patch) != 3 or any(not isinstance(p, int) or p < 1 for p in patch):
      raise ValueError(
        f"patch is {self.patch!r}; it must be three whole numbers (t, h, w) from 1, like (1, 2, 2)"
      )

  @property
  def head_size(self) -> int:
    """K, entries of a head."""
    return self.width // self.heads

  @property
  def cells(self) -> int:
    """Latent cells per token."""
    return self.patch[0] * self.patch[1] * self.patch[2]


SIZES: dict[str, dict] = {
  "tiny": dict(width=128, depth=6, heads=4, text_width=128, in_channels=20, out_channels=8),
  "small": dict(width=192, depth=8, heads=3, text_width=128, in_channels=20, out_channels=8),
  "s": dict(width=384, depth=12, heads=6, text_width=512),
  "b": dict(width=768, depth=12, heads=12, text_width=768),
  "l": dict(width=1024, depth=24, heads=16, text_width=1024),
  "xl": dict(width=1152, depth=28, heads=16, text_width=2048),
  "3b": dict(width=2304, depth=34, heads=18, text_width=4096),
  "10b": dict(width=4096, depth=40, heads=32, text_width=4096),
}
"""The ladder of sizes; the rest of `DiTConfig` is as by default. Latents: 8 channels for the two
smallest, 16 above, four frames per latent."""
