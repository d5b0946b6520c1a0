"""A small model on your own clips, prepared by `python -m sora_jax.prepare`.

  python -m sora_jax.prepare --input=DIR --output=runs/clips
  python -m sora_jax.main --config=configs/tiny_clips.py --workdir=runs/tiny_clips

Hardware: 2 CPU cores, about an hour; smallest TPU slices: v5e:1x1. It shows that a folder of clips
trains; it takes thousands of clips and a larger model to make new ones.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
  _, smoke = base.parse(arg, {})
  c = base.get_config()
  c.data.source = "clips"
  c.data.folder = "runs/clips"
  c.data.validation_clips = 4
  c.data.rows, c.data.row_len, c.data.max_segments = 4, 1024, 8
  c.data.text_row_len = 512
  c.data.too_long = "fit"
  c.text.tokenizer = "bytes"
  c.model.width, c.model.depth, c.model.heads = 192, 6, 6
  c.model.scan_unroll = 6
  c.optimizer.name = "muon"
  c.optimizer.lr = 2e-3
  c.optimizer.ema_decay = 0.999
  c.train.steps = 2000
  c.train.minutes = 50.0
  c.train.log_every = 10
  c.train.save_every = 200
  c.evaluation.prompts = 6
  if smoke:
    base.smoke(c)
    c.data.row_len, c.data.text_row_len = 1024, 512
  return c
