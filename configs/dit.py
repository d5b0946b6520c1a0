"""The diffusion transformer in every size of the ladder, on the procedural world.

  python -m sora_jax.main --config=configs/dit.py:small --workdir=runs/dit_small

Sizes: tiny, small (2 CPU cores, hours); s, b (one accelerator); l, xl, 3b, 10b (pods, days). Add
`,smoke` for a minute on two cores with the true width and depth where memory allows, and with a
narrow stand-in above `s`.

small is to be the shipped one, in legs, each from the one before, cheap clips first (45 minutes of
the first, in the latents of the shipped autoencoder, gave moving blobs; see experiments/latents):

  python -m sora_jax.main --config=configs/dit.py:small --workdir=runs/dit1 \
    --config.train.minutes=50
  python -m sora_jax.main --config=configs/dit.py:small_large --workdir=runs/dit2 \
    --config.train.minutes=150 --config.train.init_from=runs/dit1
"""

from ml_collections import ConfigDict

from configs import base
from sora_jax.nn.dit import SIZES

ROWS = {
  # size: (rows, row_len, max_segments, lr, warmup_steps)
  "tiny": (16, 256, 16, 2e-3, 100),
  "small": (8, 256, 8, 3e-3, 100),
  "s": (64, 2048, 32, 3e-4, 1000),
  "b": (128, 4096, 32, 1e-4, 1000),
  "l": (256, 8192, 64, 1e-4, 2000),
  "xl": (256, 16384, 64, 1e-4, 5000),
  "3b": (256, 32768, 128, 1e-4, 5000),
  "10b": (512, 65536, 128, 5e-5, 5000),
}


MOTIONS = ("constant",) * 14 + ("bounce", "gravity") * 2 + (
  "collide", "occlude", "leave", "pan", "zoom", "cut", "orbit", "paint", "eat", "game",
)  # fmt: skip
"""What small learns: half of its clips are one object in constant motion."""


def get_config(arg: str = "tiny") -> ConfigDict:
  size, smoke = base.parse(arg, (*SIZES, "small_large"))
  large = size == "small_large"
  size = "small" if large else size or "tiny"
  c = base.get_config()
  table = SIZES[size]
  for name in ("width", "depth", "heads"):
    c.model[name] = table[name]
  d = c.data
  d.rows, d.row_len, d.max_segments, c.optimizer.lr, c.optimizer.warmup_steps = ROWS[size]
  d.text_row_len = d.max_segments * 16
  d.streams = max(d.streams, d.rows)
  if size in ("tiny", "small"):
    d.world.levels = (1, 2, 3, 4)
    d.world.sizes = ((48, 48), (64, 32), (32, 64), (56, 40), (40, 56))
    d.world.frames = (9, 17)
    d.world.num_clips = 32768
    c.model.scan_unroll = c.model.depth
    c.optimizer.ema_decay = 0.999
  else:
    c.text.width = table["text_width"]
    c.vae.weights = "base"
    c.model.dtype = c.text.dtype = "bfloat16"
    c.model.remat = "none" if size in ("s", "b") else "block"
    d.world.levels = (1, 2, 3, 4)
    d.world.sizes = ((256, 256), (320, 192), (192, 320), (288, 224), (224, 288))
    d.world.frames = (17, 33) if size in ("s", "b") else (17, 33, 65)
    if size == "s":
      d.world.sizes = ((128, 128), (160, 96), (96, 160), (144, 112), (112, 144))
    d.world.num_clips = 1_000_000
    c.diffusion.gamma = 1.0
    c.diffusion.shift_reference = 256.0
  if size == "small":
    d.world.motions = MOTIONS
    d.world.styles = ("plain",) * 5 + ("outline", "hatched", "night")
    d.world.sizes = ((32, 32), (40, 32), (32, 40), (56, 32), (32, 56))
    d.world.frames = (9, 9, 17)
    d.text_row_len = 96
    c.diffusion.shift_reference, c.diffusion.shift_high = 0.25, 20.0  # see configs/tiny.py
    c.model.mlp_activation = "relu_squared"  # 2 % faster than GELU, benchmarks/train_step.py
    c.optimizer.name = "muon"
    c.train.log_every = 20
    c.train.save_every = 200
    c.evaluation.sizes = d.world.sizes
    c.evaluation.frames = 9
  if large:
    d.rows, d.row_len = 8, 512
    c.optimizer.lr = 2e-3
    aspects = ((48, 48), (56, 40), (40, 56), (72, 40), (40, 72))
    d.world.sizes = 2 * aspects + ((96, 64), (64, 96))
    d.world.num_clips = 20480
    c.evaluation.sizes = aspects
  if size in ("3b", "10b"):
    c.optimizer.b2 = 0.95
  if smoke:
    base.smoke(c)
    c.vae.weights = "tiny"
    if size not in ("tiny", "small", "s"):
      c.model.width, c.model.depth = 8 * c.model.heads, 2
  return c
