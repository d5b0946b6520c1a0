"""Can the detector be trusted to score samples?

  python experiments/shipped/evaluate_detector.py --model=tiny --out=runs/shipped

It reads colour, shape and direction of held-out clips of level 1 with constant motion: off true
frames, off their VAE reconstructions, against the prompts of other clips, and off videos that show
nothing. Prints one JSON object as its last line; writes it as detector.json, with detector.png:
what is misread, then some that is read right, true frames above reconstructions.
"""

import time

import harness
import numpy as np
from absl import app, flags

from sora_jax.data.world import World, WorldConfig, vocabulary
from sora_jax.evaluation import arguments, detectors, release, reports

COUNT = flags.DEFINE_integer("clips", 100, "Clips of each size.")
SIZES = flags.DEFINE_list("sizes", list(harness.DIT_SIZES), "WIDTHxHEIGHT, comma-separated.")
FRAMES = flags.DEFINE_integer("frames", 9, "Frames of a clip.")
STYLES = flags.DEFINE_list("styles", ["plain"], "Of the world's vocabulary.")
SHOWN = 12
CHANCE = {"color": 1 / 8, "shape": 1 / 4, "direction": 1 / 8}
AIMS = {"true": 0.99, "reconstructed": 0.98}


def all_clips():
  """(style, clip), one after the other."""
  with arguments.refusing():
    worlds = [
      (style, World(
        WorldConfig(
          motions="constant", sizes=(size,), frames=FRAMES.value, styles=style, split="test",
          seed=50 + k, num_clips=COUNT.value,
        )
      ))
      for k, size in enumerate(harness.sizes(SIZES.value))
      for style in STYLES.value
    ]  # fmt: skip
  for style, world in worlds:
    for index in range(len(world)):
      yield style, world[index]


def blank(size):
  """Videos that show nothing: each background, with and without grain."""
  rng = np.random.default_rng(0)
  for rgb in vocabulary.BACKGROUNDS.values():
    for noise in (0, 6):
      video = np.asarray(rgb) + rng.normal(0, noise, (FRAMES.value, size[1], size[0], 3))
      yield video.clip(0, 255).astype(np.uint8)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  started, path = time.perf_counter(), harness.out()
  with arguments.refusing():
    autoencoder = harness.Autoencoder(harness.MODEL.value)
  found = {"true": [], "reconstructed": []}
  by_style = {style: [] for style in STYLES.value}
  detections, truths, wrong, right = [], [], [], []
  progress = harness.Progress("clips", COUNT.value * len(SIZES.value) * len(STYLES.value))
  for style, clip in all_clips():
    recon_THWC = autoencoder(clip.video_THWC)
    seen = detectors.detect(clip.video_THWC)
    detections.append(seen)
    truths.append(clip.truth)
    found["true"].append(detectors.score(seen, clip.truth))
    by_style[style].append(found["true"][-1])
    again = detectors.detect(recon_THWC)
    found["reconstructed"].append(detectors.score(again, clip.truth))
    good = found["true"][-1]["all"] and found["reconstructed"][-1]["all"]
    group = right if good else wrong
    if len(group) < SHOWN:
      pair = harness.above([clip.video_THWC, recon_THWC])
      names = [f"{d.color} {d.shape} {d.direction}" for d in (seen, again)]
      group.append((pair, f"{clip.captions['short']}\nread: {names[0]}; below: {names[1]}"))
    progress()
  found["shuffled"] = [
    detectors.score(seen, truth) for seen, truth in zip(detections, truths[1:] + truths[:1])
  ]
  found["blank"] = [
    detectors.score(detectors.detect(video), truths[0])
    for size in harness.sizes(SIZES.value)
    for video in blank(size)
  ]
  figures = {name: release.shares(lines) for name, lines in found.items()}
  figures["chance"] = CHANCE
  figures["styles"] = {style: release.shares(lines) for style, lines in by_style.items()}
  figures["meets"] = {
    f"{name} above {aim}": all(figures[name][word] > aim for word in release.ATTRIBUTES)
    for name, aim in AIMS.items()
  } | {"blank is 0": not any(figures["blank"][word] for word in release.ATTRIBUTES)}
  chosen = (wrong + right)[:SHOWN]
  reports.contact_sheet(
    [video for video, _ in chosen], [label for _, label in chosen],
    path / "detector.png", frames=5, columns=2,
  )  # fmt: skip
  harness.finish("detector", figures, started)


if __name__ == "__main__":
  app.run(main)
