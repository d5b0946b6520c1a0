"""Do weights still do on this machine what they did when they were released?

`check` measures a model on a few held-out clips and prompts, always the same; a release stores what
it found, and `differences` compares. `fidelity` and `shares` are the measures, for larger sets too.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.data.records import Clip
from sora_jax.data.world import World, WorldConfig, prompts, vocabulary
from sora_jax.evaluation import detectors, metrics

Reconstruct = Callable[[np.ndarray], np.ndarray]
"""uint8 [T, H, W, 3] to the same through encoder and decoder."""
Generate = Callable[..., list[np.ndarray]]
"""`Model.generate` with lists."""

ATTRIBUTES = ("color", "shape", "direction", "single")
CAP = 80.0
"""Most that one clip counts for in a mean of PSNR, in dB."""
CLIPS = 8
"""Clips of each level, and prompts, of the check."""
SIZES = ((64, 36), (48, 48))
FRAMES = 9
STEPS = 8
SEED = 11

PSNR_TOLERANCE = 0.05
"""In dB. Sums in another order move a pixel by some 1e-4 of its 255 levels, so that one in
thousands rounds to its neighbour: below 0.001 dB at 40 dB. The rest is for narrower products."""
COUNT_TOLERANCE = 1.0
"""Of `CLIPS` samples, one may lie so near the edge between two names that rounding decides."""
LEVEL_TOLERANCE = 2.0
"""Of 255. Solver steps under guidance amplify rounding about a hundredfold, still far below this;
other weights or noise move the mean of a sample by tens."""


def check(model: Any) -> dict[str, dict]:
  """Figures of a whole model (what `sora_jax.load` returns), by network: "vae" and "dit"."""
  return {"vae": vae_check(through(model)), "dit": dit_check(model.generate)}


def through(model: Any) -> Reconstruct:
  """A model's encoder and decoder, one after the other."""

  def reconstruct(video_THWC):
    frames, height, width, _ = video_THWC.shape
    return model.decode(model.encode(video_THWC), frames, (width, height))

  return reconstruct


def vae_check(reconstruct: Reconstruct) -> dict[str, float]:
  """PSNR of `CLIPS` held-out clips of each level, in all styles, and over their object pixels."""
  found = collections.defaultdict(list)
  for level in vocabulary.MOTIONS:
    world = World(
      WorldConfig(
        levels=level, sizes=SIZES, frames=FRAMES, styles=vocabulary.STYLES, split="test",
        seed=SEED + level, num_clips=CLIPS,
      )
    )  # fmt: skip
    for index in range(CLIPS):
      clip = world[index]
      for name, value in fidelity(clip, reconstruct(clip.video_THWC)).items():
        found[f"{name}_level{level}"].append(value)
  return {name: float(np.mean(values)) for name, values in found.items()}


def dit_check(generate: Generate) -> dict[str, Any]:
  """`ATTRIBUTES` right in `CLIPS` samples, counted, and the mean level of each sample."""
  world = WorldConfig(motions="constant", split="test", seed=SEED)
  asked = [
    (size, *pair)
    for size in SIZES
    for pair in prompts(world, CLIPS // len(SIZES), size=size, frames=FRAMES)
  ]
  videos = generate(
    [prompt for _, prompt, _ in asked],
    size=[size for size, _, _ in asked],
    frames=FRAMES,
    fps=[float(truth["fps"]) for _, _, truth in asked],
    seed=list(range(len(asked))),
    steps=STEPS,
  )
  found = [detectors.score(detectors.detect(v), truth) for v, (_, _, truth) in zip(videos, asked)]
  counts = {name: sum(bool(right[name]) for right in found) for name in ATTRIBUTES}
  return counts | {"prompts": len(asked), "level": [float(video.mean()) for video in videos]}


def differences(found: Mapping[str, Mapping], recorded: Mapping[str, Mapping]) -> list[str]:
  """Lines that name what differs by more than machines do; empty where all is reproduced.

  Args: found, recorded: what `check` returns, or its part for one network.
  """
  lines = []
  for network, figures in recorded.items():
    for name, want in figures.items():
      got = found.get(network, {}).get(name)
      if got is None or np.shape(got) != np.shape(want):
        lines.append(f"{network}/{name}: recorded {want}, found {got}")
      elif not np.all(np.abs(np.subtract(got, want)) <= _tolerance(name)):
        lines.append(
          f"{network}/{name}: recorded {want}, found {got}, may be {_tolerance(name)} off"
        )
  return lines


def fidelity(clip: Clip, recon_THWC: np.ndarray) -> dict[str, float]:
  """PSNR in dB of a clip, at most `CAP`: "psnr", and "psnr_objects" where its truth has objects.

  Object pixels are those in the box of a visible object.
  """
  found = {"psnr": metrics.psnr(clip.video_THWC, recon_THWC)}
  if "objects" in clip.truth:
    mask_THW = metrics.object_mask(clip.truth)
    if mask_THW.any():
      found["psnr_objects"] = metrics.psnr(clip.video_THWC, recon_THWC, mask_THW)
  return {name: min(CAP, value) for name, value in found.items()}


def shares(found: Sequence[Mapping[str, bool]], names: Sequence[str] = ATTRIBUTES) -> dict:
  """Shares of right attributes with Wilson's 95 % intervals.

  Args: found: what `detectors.score` returns, for each sample.
  Returns: {"samples": n, name: share, name + "_low": ..., name + "_high": ...}.
  """
  line: dict[str, float] = {"samples": len(found)}
  for name in names:
    right = sum(bool(scores[name]) for scores in found)
    low, high = metrics.wilson(right, len(found))
    line |= {name: right / len(found), f"{name}_low": low, f"{name}_high": high}
  return line


def _tolerance(name: str) -> float:
  if name.startswith("psnr"):
    return PSNR_TOLERANCE
  return {"prompts": 0.0, "level": LEVEL_TOLERANCE}.get(name, COUNT_TOLERANCE)
