"""Does a draft made at full size keep what the draft shows, and at which strength?

  python experiments/shipped/evaluate_draft.py --model=tiny --prompts=24 --out=runs/shipped

Samples drafts, makes each at full size at every strength, and reads both with the detector: how far
the object's centroid moved (mean over frames and the 95th percentile over samples, in short sides),
the ratio of its areas, and shares of right attributes of draft and result. Small strengths keep the
draft's blur and mistakes, large ones make another video. Prints one JSON object as its last line;
writes it as draft.json, with draft.png: drafts above what was made of them.
"""

import time

import harness
import numpy as np
from absl import app, flags

from sora_jax import model as model_lib
from sora_jax.data import transforms
from sora_jax.evaluation import arguments, detectors, release, reports
from sora_jax.weights import folder as folder_lib

PROMPTS = flags.DEFINE_integer("prompts", 24, "Held-out prompts for each size.", lower_bound=1)
FRAMES = flags.DEFINE_list("frames", ["9", "17"], "Taken in turn; comma-separated.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Strength of the text; the model's by default.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps at full size; the model's by default.")
SEED = flags.DEFINE_integer("seed", 0, "Of prompts and noise.")
STRENGTHS = flags.DEFINE_list("strengths", ["0.1", "0.2", "0.3", "0.4", "0.6"], "To compare.")
FULL_SIZES = flags.DEFINE_list("full_sizes", ["96x64", "64x96"], "Sizes that drafts are made to.")
SHOWN = 6


def agreement(draft_THWC, video_THWC):
  """(centroids' distance in short sides, ratio of areas) of a draft and what it was made to."""
  before, after = detectors.detect(draft_THWC), detectors.detect(video_THWC)
  away_T = np.linalg.norm(before.centroid_T2 - after.centroid_T2, axis=1)
  both_T = before.present_T & after.present_T
  if not both_T.any():
    return np.nan, np.nan
  return float(away_T[both_T].mean()), float(
    after.area_T[both_T].mean() / before.area_T[both_T].mean()
  )


def compare(drafts, videos, asked):
  """Figures of one strength; NaN for those of samples whose object is found if there are none."""
  away, ratio = np.array([agreement(d, v) for d, v in zip(drafts, videos)]).T
  scored = [detectors.score(detectors.detect(v), w.truth) for v, w in zip(videos, asked)]
  both = ~np.isnan(away)
  moved, areas = (each[both] if both.any() else np.array([np.nan]) for each in (away, ratio))
  return {
    "moved": float(moved.mean()), "moved_95": float(np.quantile(moved, 0.95)),
    "within_0.1": float((moved < 0.1).sum() / len(away)),
    "area_ratio": float(np.median(areas)), "lost": int((~both).sum()),
    "area_within_0.25": float((np.abs(areas - 1) < 0.25).sum() / len(away)),
  } | release.shares(scored)  # fmt: skip


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  started, path = time.perf_counter(), harness.out()
  with arguments.refusing():
    folder = folder_lib.find(harness.MODEL.value)
    sizes, frames = harness.sizes(FULL_SIZES.value, "full_sizes"), harness.counts(FRAMES.value)
    world = harness.plain_world(folder)
    asked = harness.wishes(world, PROMPTS.value, "test", sizes, frames, SEED.value)
    model = model_lib.from_folder(folder)
  what = {
    "prompt": [w.prompt for w in asked], "size": [w.size for w in asked],
    "frames": [w.frames for w in asked], "fps": [w.fps for w in asked],
    "seed": [SEED.value + i for i in range(len(asked))],
    "guidance": GUIDANCE.value, "steps": STEPS.value,
  }  # fmt: skip
  drafts = model.generate(**what, draft=True)
  enlarged = [transforms.resize(draft, wish.size) for draft, wish in zip(drafts, asked)]
  scored = [detectors.score(detectors.detect(v), w.truth) for v, w in zip(drafts, asked)]
  figures = {key: model.defaults[key] for key in ("guidance", "steps")} | {
    key: what[key] for key in ("guidance", "steps") if what[key] is not None
  }
  figures, made = figures | {"drafts": release.shares(scored)}, {}
  for word in STRENGTHS.value:
    made[word] = model.generate(**what, from_draft=drafts, strength=float(word))
    figures[word] = compare(enlarged, made[word], asked)
    harness.say(f"strength {word}: {figures[word]}")
    harness.keep("draft", figures, started)
  columns = [i for i in range(len(asked))][:SHOWN]
  videos, labels = [], []
  for i in columns:
    videos += [enlarged[i]] + [made[word][i] for word in STRENGTHS.value]
    labels += [asked[i].prompt] + [f"strength {word}" for word in STRENGTHS.value]
  reports.contact_sheet(
    videos, labels, path / "draft.png", frames=3, columns=1 + len(STRENGTHS.value)
  )
  harness.finish("draft", figures, started)


if __name__ == "__main__":
  app.run(main)
