"""How well does a VAE reconstruct clips that it has not seen?

  python experiments/shipped/evaluate_vae.py --model=tiny [--media=DIR] --out=runs/shipped

Held-out clips (split "test") of each level, in all styles, 48 to 96 pixels, 9 and 17 frames; means
over clips of PSNR over all pixels, and over pixels in the boxes of visible objects. Prints one JSON
object as its last line; writes it as vae.json, with vae.png: originals above reconstructions.
"""

import collections
import pathlib
import time

import harness
import numpy as np
from absl import app, flags

from sora_jax.data import clips
from sora_jax.data.world import World, WorldConfig, vocabulary
from sora_jax.evaluation import arguments, metrics, release, reports

COUNT = flags.DEFINE_integer("clips", 60, "Clips of each level.")
MEDIA = flags.DEFINE_string("media", None, "Folder of filmed clips and photographs to report on.")
SHORT_SIDE = flags.DEFINE_integer("short_side", 64, "Of filmed clips, in pixels.")
FILM_FRAMES = flags.DEFINE_integer("film_frames", 17, "First frames taken of a filmed clip.")
SHOWN = 3
"""Clips of each level on the contact sheet."""
SIZES = ((96, 54), (80, 60), (64, 64), (48, 64), (54, 96), (48, 48))
FPS = (8, 12, 16, 24)
AIMS = {"psnr": 32.0, "psnr_objects": 26.0}


class Moments:
  """Mean and standard deviation of latents, per channel."""

  def __init__(self):
    self.count, self.sum, self.squares = 0, 0.0, 0.0

  def add(self, latent_thwZ):
    """Counts every cell once."""
    flat = np.asarray(latent_thwZ, np.float64).reshape(-1, latent_thwZ.shape[-1])
    self.count += len(flat)
    self.sum, self.squares = self.sum + flat.sum(0), self.squares + (flat**2).sum(0)

  def figures(self):
    """Lists with an entry for each channel."""
    mean = self.sum / self.count
    std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
    return {"latent_mean": mean.round(4).tolist(), "latent_std": std.round(4).tolist()}


def measure_world(autoencoder):
  """(figures, videos to show, their labels)."""
  by_level, by_size = collections.defaultdict(list), collections.defaultdict(list)
  moments, shown, labels = Moments(), [], []
  progress = harness.Progress("clips", COUNT.value * len(vocabulary.MOTIONS))
  for level in vocabulary.MOTIONS:
    world = World(
      WorldConfig(
        levels=level, sizes=SIZES, frames=(9, 17), fps=FPS, styles=vocabulary.STYLES,
        split="test", seed=level, num_clips=COUNT.value,
      )
    )  # fmt: skip
    for index in range(COUNT.value):
      clip = world[index]
      latent_thwZ = autoencoder.encode(clip.video_THWC)
      recon_THWC = autoencoder.decode(latent_thwZ, clip.video_THWC.shape)
      moments.add(latent_thwZ)
      found = release.fidelity(clip, recon_THWC)
      by_level[level].append(found)
      by_size[harness.size_name(clip.size)].append(found)
      if index < SHOWN:
        shown.append(harness.above([clip.video_THWC, recon_THWC]))
        values = ", ".join(f"{name} {value:.1f} dB" for name, value in found.items())
        labels.append(f"level {level}: {clip.captions['short']}\n{values}")
      progress()
  everything = [found for group in by_level.values() for found in group]
  levels = {str(level): summary(group) for level, group in by_level.items()}
  figures = {"clips": len(everything)} | summary(everything) | {
    "levels": levels,
    "sizes": {size: summary(group) for size, group in sorted(by_size.items())},
    "meets": {
      f"{name} at least {aim} dB at every level": all(v[name] >= aim for v in levels.values())
      for name, aim in AIMS.items()
    },
  }  # fmt: skip
  return figures | moments.figures(), shown, labels


def summary(group):
  """Means over clips, and the tenth percentile."""
  line = {}
  for name in AIMS:
    values = [found[name] for found in group if name in found]
    if values:
      line[name] = round(float(np.mean(values)), 3)
      line[f"{name}_p10"] = round(float(np.percentile(values, 10)), 3)
  return line


def measure_media(autoencoder, folder):
  """The same for every file of a folder that decodes."""
  files, shown, labels = {}, [], []
  paths = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_file())
  progress = harness.Progress("files", len(paths))
  for path in paths:
    try:
      video_THWC = clips.decode(
        path, short_side=SHORT_SIDE.value, max_frames=FILM_FRAMES.value
      ).video_THWC
    except clips.MediaError:
      harness.say(f"{path.name} is no video or picture")
    else:
      recon_THWC = autoencoder(video_THWC)
      files[path.name] = round(min(release.CAP, metrics.psnr(video_THWC, recon_THWC)), 3)
      shown.append(harness.above([video_THWC, recon_THWC]))
      labels.append(f"{path.name}\npsnr {files[path.name]:.1f} dB")
    progress()
  if not files:
    raise SystemExit(f"evaluate_vae: nothing in {folder} decodes")
  return {"media": {"psnr": float(np.mean(list(files.values()))), "files": files}}, shown, labels


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  started = time.perf_counter()
  if MEDIA.value and not pathlib.Path(MEDIA.value).is_dir():
    raise SystemExit(
      f"evaluate_vae: --media={MEDIA.value} is no folder; give one of clips, or none"
    )
  path = harness.out()
  with arguments.refusing():
    autoencoder = harness.Autoencoder(harness.MODEL.value)
  figures, shown, labels = measure_world(autoencoder)
  reports.contact_sheet(shown, labels, path / "vae.png", frames=5, columns=2)
  harness.keep("vae", figures, started)
  if MEDIA.value:
    more, shown, labels = measure_media(autoencoder, MEDIA.value)
    figures |= more
    reports.contact_sheet(shown, labels, path / "vae_media.png", frames=4, columns=2)
  harness.finish("vae", figures, started)


if __name__ == "__main__":
  app.run(main)
