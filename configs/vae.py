"""The video autoencoder on the procedural world, all levels.

  python -m sora_jax.main --config=configs/vae.py:tiny --workdir=runs/vae_tiny

Sizes: nano, tiny (shipped; its encoder is one linear map), base, xl; add `,smoke` for a minute on
two cores.
Hardware: tiny trains on 2 CPU cores; base and xl need accelerators. Smallest TPU slices, with the
meshes of docs/pods.md: nano, tiny, tiny_second v5e:1x1; base v5e:2x2; xl v5e:2x4.

tiny learns in two legs; the second, mostly squared error, ends what the first has begun:

  python -m sora_jax.main --config=configs/vae.py:tiny --workdir=runs/vae1 \
    --config.train.minutes=16
  python -m sora_jax.main --config=configs/vae.py:tiny_second --workdir=runs/vae2 \
    --config.train.minutes=20 --config.train.init_from=runs/vae1

Expected for tiny on held-out clips after the second leg: 36.5, 36.2, 36.5 and 35.9 dB for levels 1
to 4; over object pixels 27.4, 30.1, 28.0 and 26.1 dB.
"""

from ml_collections import ConfigDict

from configs import base
from sora_jax.data.world import vocabulary
from sora_jax.nn.vae import SIZES

SECOND = sum((vocabulary.MOTIONS[level] for level in (1, 2, 3, 4, 4)), ())
"""Motions of the second leg: the small things of level 4 twice as often."""


def get_config(arg: str = "tiny") -> ConfigDict:
  size, smoke = base.parse(arg, (*SIZES, "tiny_second"))
  second = size == "tiny_second"
  size = "tiny" if second else size
  c = base.get_config()
  c.task = "vae"
  c.vae.size = size or "tiny"
  w = c.data.world
  w.levels = (1, 2, 3, 4)
  w.sizes = ((48, 48), (64, 36), (36, 64), (56, 40), (40, 56))
  w.frames = (9, 17)
  w.fps = (8.0, 12.0, 16.0, 24.0)
  w.styles = ("plain", "outline", "hatched", "night")
  w.num_clips = 8192
  w.image_fraction = 0.0
  c.vae.sizes = ((32, 32),)
  c.vae.frames = (9, 17)  # each begins with a still; stills alone would cost four times as much
  c.vae.batch_pixels = 8 * 9 * 32 * 32
  c.vae.loss.l2 = 4.0
  c.vae.loss.ssim = 0.0  # a third of the step on CPU; flat shapes are sharp without it
  c.vae.isometric = c.vae.size == "tiny"
  c.optimizer.name = "muon"
  c.optimizer.lr = 2e-3  # at three times that, the posterior's variance explodes now and then
  c.optimizer.decay = "linear"
  c.optimizer.ema_decay = 0.999
  c.train.steps = 20_000
  c.train.eval_every = 5000
  c.train.save_every = 500
  if second:
    c.vae.latent_noise = 0.0
    c.vae.loss.l1, c.vae.loss.l2 = 0.5, 8.0
    w.motions = SECOND
    w.seed = 1
    c.train.steps = 40_000
  if c.vae.size in ("base", "xl"):
    c.vae.sizes = ((128, 128), (192, 112), (112, 192))
    c.vae.frames = (1, 5, 9, 17)
    c.vae.batch_pixels = 16 * 17 * 128 * 128
    c.vae.loss.ssim = 0.2
    w.sizes = ((256, 256), (320, 192), (192, 320))
    w.frames = (17, 33)
    c.optimizer.name = "adamw"
    c.optimizer.lr = 1e-4
    c.train.steps = 300_000
  return base.smoke(c) if smoke else c
