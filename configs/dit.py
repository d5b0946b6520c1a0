"""The diffusion transformer in every size of the ladder, on the procedural world.

  python -m sora_jax.main --config=configs/dit.py:small --workdir=runs/dit_small

Sizes: tiny, small (2 CPU cores, hours); s, b (a few accelerators); l, xl, 3b, 10b (pods, days).
Smallest TPU slices, with the meshes of docs/pods.md: tiny, small v5e:1x1; s v5e:2x2; b v5e:4x4;
l v5e:4x8; xl v5e:8x8; 3b v5p:2x4x4; 10b v5p:4x8x8. With train.accumulate it may be fewer. From s on
they read latents of the VAE `base`, which is not shipped: train it first, then name its work
directory.

  python -m sora_jax.main --config=configs/vae.py:base --workdir=runs/vae_base
  python -m sora_jax.main --config=configs/dit.py:s --workdir=runs/dit_s \
    --config.vae.weights=runs/vae_base

Add `,smoke` for a minute on two cores with the true width and depth where memory allows, and with a
narrow stand-in above `s`.
"""

from ml_collections import ConfigDict

from configs import base
from sora_jax.nn.dit_config import SIZES

ROWS = {
  # Several of the longest clips a row: of 256 tokens those of tiny are full to 80 %, of 512 to 95.
  # size: (rows, row_len, max_segments, lr, warmup_steps)
  "tiny": (8, 512, 32, 2e-3, 100),
  "small": (4, 512, 16, 3e-3, 100),
  "s": (64, 2048, 32, 3e-4, 1000),
  "b": (128, 4096, 32, 1e-4, 1000),
  "l": (256, 8192, 64, 1e-4, 2000),
  "xl": (256, 16384, 64, 1e-4, 5000),
  "3b": (256, 32768, 128, 1e-4, 5000),
  "10b": (512, 65536, 128, 5e-5, 5000),
}
FSDP = {"l": 16, "xl": 16, "3b": 32, "10b": 64}
"""Devices that share a state. The part of the width that each stores must be a multiple of 8: the
TPU compiler otherwise gathers by sums, at twice the cost."""


def get_config(arg: str = "tiny") -> ConfigDict:
  size, smoke = base.parse(arg, SIZES)
  size = size or "tiny"
  c = base.get_config()
  table = SIZES[size]
  for name in ("width", "depth", "heads"):
    c.model[name] = table[name]
  d = c.data
  d.rows, d.row_len, d.max_segments, c.optimizer.lr, c.optimizer.warmup_steps = ROWS[size]
  d.text_row_len = d.max_segments * 16
  d.streams = max(d.streams, d.rows)
  c.train.mesh = (-1, FSDP.get(size, 1), 1, 1)
  if size in ("tiny", "small"):
    d.world.levels = (1, 2, 3, 4)
    d.world.sizes = ((48, 48), (64, 32), (32, 64), (56, 40), (40, 56))
    d.world.frames = (9, 17)
    d.world.num_clips = 32768
    c.model.scan_unroll = c.model.depth
    c.optimizer.ema_decay = 0.999
    c.diffusion.shift_reference, c.diffusion.shift_high = 1.0, 20.0  # see configs/tiny.py
  else:
    c.text.width = table["text_width"]
    c.text.heads, c.text.head_size = c.text.width // 64, 64
    c.text.mlp_width = 4 * c.text.width
    c.vae.weights = "base"
    c.model.dtype = c.text.dtype = "bfloat16"
    c.model.remat = "dots" if size in ("s", "b") else "block"
    d.world.levels = (1, 2, 3, 4)
    d.world.sizes = ((256, 256), (320, 192), (192, 320), (288, 224), (224, 288))
    d.world.frames = (17, 33) if size in ("s", "b") else (17, 33, 65)
    if size == "s":
      d.world.sizes = ((128, 128), (160, 96), (96, 160), (144, 112), (112, 144))
    d.world.num_clips = 1_000_000
    c.diffusion.gamma = 1.0
    c.diffusion.shift_reference = 256.0
  if size == "small":
    c.model.mlp_activation = "relu_squared"  # 2 % faster than GELU, benchmarks/train_step.py
    c.optimizer.name = "muon"
  if size in ("3b", "10b"):
    c.optimizer.b2 = 0.95
  if smoke:
    base.smoke(c)
    c.vae.weights = "tiny"
    if size not in ("tiny", "small", "s"):
      c.model.width, c.model.depth = 8 * c.model.heads, 2
      c.text.width, c.text.heads, c.text.mlp_width = 128, 2, 512
  return c
