"""Do samples show what their prompts say, in every aspect ratio?

  python experiments/shipped/evaluate_dit.py --model=tiny --prompts=256 --out=runs/shipped

Prompts of constant motion that were not trained on (split "test"), as many for each size, and such
whose combination of colour, shape and direction was held out (split "heldout"), sampled packed, a
chunk at a time. The detector reads the samples; shares come with Wilson's 95 % intervals. Other
styles are scored apart, without an aim. Prints one JSON object as its last line; writes it as
dit.json, what there is of it after each split, with dit.png: samples of each size, dit_wrong.png:
misread ones, dit_nearest.png: eight samples above the nearest training clips of the last legs'
worlds, dit_styles.png, and dit_levels.png: levels 2 to 4.
"""

import collections
import dataclasses
import json
import time

import harness
import nearest
import numpy as np
from absl import app, flags

from sora_jax import model as model_lib
from sora_jax.data.world import prompts
from sora_jax.evaluation import arguments, detectors, release, reports, seams
from sora_jax.tasks.report import Wish
from sora_jax.weights import folder as folder_lib

PROMPTS = flags.DEFINE_integer("prompts", 256, "Held-out prompts for each size.", lower_bound=1)
HELDOUT = flags.DEFINE_integer("heldout", 64, "Prompts of held-out combinations for each size.")
NAME = flags.DEFINE_string("name", "dit", "Of the figures and pictures.")
SIZES = flags.DEFINE_list("sizes", list(harness.DIT_SIZES), "WIDTHxHEIGHT, comma-separated.")
FRAMES = flags.DEFINE_list("frames", ["9", "17"], "Taken in turn; comma-separated.")
CHUNK = flags.DEFINE_integer("chunk", 80, "Samples made together.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance", None, "Strength of the text; the model's by default.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps; the model's by default.")
SOLVER = flags.DEFINE_string("solver", None, "Name of a solver; the model's by default.")
SEED = flags.DEFINE_integer("seed", 0, "Of prompts and noise.")
EACH_STYLE = flags.DEFINE_integer("each_style", 5, "Prompts of each other style for each size.")
TRAINED = flags.DEFINE_integer("trained", 1024, "Training clips of a size searched, of all worlds.")
LEVELS = flags.DEFINE_list("levels", ["2", "3", "4"], "Sampled and shown.")
EACH_LEVEL = flags.DEFINE_integer("each_level", 6, "Prompts of each of these levels.")
SHOWN, COMPARED = 3, 8
"""Samples of each size on the sheet; samples with nearest training clips."""
LEGS = 4
"""Last legs of each transformer whose worlds are searched for these."""
AIMS = {"test": 0.95, "heldout": 0.85}


def wishes(world, count, split):
  """`count` wishes for each size of --sizes, see `harness.wishes`."""
  frames = harness.counts(FRAMES.value)
  return harness.wishes(world, count, split, harness.sizes(SIZES.value), frames, SEED.value)


def sample(model, asked, seed):
  """Videos of some wishes, made packed together."""
  return model.generate(
    [wish.prompt for wish in asked], [wish.size for wish in asked],
    [wish.frames for wish in asked], [seed + i for i in range(len(asked))],
    fps=[wish.fps for wish in asked], guidance=GUIDANCE.value, steps=STEPS.value,
    solver=SOLVER.value,
  )  # fmt: skip


def label(wish, seen=None):
  """Text above a sample."""
  about = f"{harness.size_name(wish.size)}, {wish.frames} frames"
  return f"{wish.prompt}\n{about}" + (
    f"; read: {seen.color} {seen.shape} {seen.direction}" if seen else ""
  )


class Scores:
  """Samples of one split, scored a chunk at a time; a few are kept to be shown."""

  def __init__(self, asked):
    self.asked, self.seconds, self.paces = asked, 0.0, []
    self.found = collections.defaultdict(list)
    self.shown, self.wrong = collections.defaultdict(list), []

  def run(self, model, split):
    """Samples and scores all wishes."""
    progress = harness.Progress(f"{split} prompts", len(self.asked), every=0)
    for start in range(0, len(self.asked), CHUNK.value):
      chunk, clock = self.asked[start : start + CHUNK.value], time.perf_counter()
      videos = sample(model, chunk, SEED.value + start)
      self.seconds += time.perf_counter() - clock
      for wish, video in zip(chunk, videos):
        self.add(wish, video, model.autoencoder.temporal)
      note = {k: round(release.shares(self.found["all"])[k], 3) for k in release.ATTRIBUTES}
      progress(len(chunk), json.dumps(note))
    return self

  def add(self, wish, video, frames_per_latent):
    """Scores one sample."""
    seen = detectors.detect(video)
    self.paces.append(seams.paces(seen.centroid_T2, frames_per_latent))
    found = detectors.score(seen, wish.truth)
    self.found["all"].append(found)
    self.found[harness.size_name(wish.size)].append(found)
    if not all(found[name] for name in release.ATTRIBUTES) and len(self.wrong) < 16:
      self.wrong.append((wish, video, seen))
    if len(self.shown[wish.size]) < SHOWN:
      self.shown[wish.size].append((wish, video, seen))

  def figures(self, aim):
    """Shares for all and for each size."""
    lines = {size: release.shares(found) for size, found in self.found.items()}
    meets = all(line[name] >= aim for line in lines.values() for name in release.ATTRIBUTES)
    speed = self.seconds / max(1, len(self.asked))
    return lines | {
      "meets": {f"at least {aim} in every size": meets}, "sec_per_sample": round(speed, 3),
      "evenness": [round(x, 3) for x in seams.evenness(self.paces)],
    }  # fmt: skip


def sheet(ending, cards):
  """A contact sheet of (wish, video, what is read off it); its name begins with --name."""
  if cards:
    videos, labels = [video for _, video, _ in cards], [label(w, seen) for w, _, seen in cards]
    reports.contact_sheet(videos, labels, harness.out() / (NAME.value + ending), columns=2)


def show_styles(model, world, styles):
  """Shares for each of these styles; draws some samples."""
  found, cards = {}, []
  for style in styles if EACH_STYLE.value else ():
    asked = wishes(dataclasses.replace(world, styles=(style,)), EACH_STYLE.value, "test")
    scored = Scores(asked).run(model, style)
    found[style] = release.shares(scored.found["all"])
    cards += [group[0] for group in scored.shown.values()]
  sheet("_styles.png", cards)
  return found


def show_levels(model, world):
  """Samples prompts of other levels; returns them."""
  cards, sizes = [], harness.sizes(SIZES.value)
  for word in LEVELS.value if EACH_LEVEL.value else ():
    level = dataclasses.replace(world, levels=int(word), motions=(), seed=2000 + SEED.value)
    asked = []
    for i in range(EACH_LEVEL.value):
      size, frames = sizes[i % len(sizes)], int(FRAMES.value[-1])
      seeded = dataclasses.replace(level, seed=level.seed + i)
      ((text, truth),) = prompts(seeded, 1, size=size, frames=frames, split="test")
      asked.append(Wish(text, size, frames, float(truth["fps"]), truth))
    cards += [(w, v, None) for w, v in zip(asked, sample(model, asked, SEED.value))]
    harness.say(f"level {word}: sampled {len(asked)}")
  return cards


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  started, path = time.perf_counter(), harness.out()
  with arguments.refusing():
    folder = folder_lib.find(harness.MODEL.value)
    world, trained = harness.plain_world(folder), harness.trained_world(folder)
    asked = wishes(world, PROMPTS.value, "test")
    model = model_lib.from_folder(folder)
  figures = {
    "guidance": GUIDANCE.value if GUIDANCE.value is not None else model.defaults["guidance"],
    "steps": STEPS.value or model.defaults["steps"],
    "solver": SOLVER.value or model.defaults["solver"],
    "frames": harness.counts(FRAMES.value),
  }
  test = Scores(asked).run(model, "test")
  figures["test"] = test.figures(AIMS["test"])
  harness.keep(NAME.value, figures, started)
  cards = [card for group in test.shown.values() for card in group]
  sheet(".png", cards)
  wrong = test.wrong
  if HELDOUT.value:
    held = Scores(wishes(world, HELDOUT.value, "heldout")).run(model, "heldout")
    figures["heldout"] = held.figures(AIMS["heldout"])
    harness.keep(NAME.value, figures, started)
    wrong = wrong + held.wrong
  sheet("_wrong.png", wrong)
  styles = {*trained.styles} - {"plain"} if trained else ()
  figures["styles"] = show_styles(model, world, sorted(styles))
  harness.keep(NAME.value, figures, started)
  worlds = harness.trained_worlds(folder, LEGS)
  if TRAINED.value and worlds:  # copies of what it has not been trained on would tell nothing
    chosen = [cards[i] for i in np.linspace(0, len(cards) - 1, COMPARED).astype(int)]
    picture = path / f"{NAME.value}_nearest.png"
    figures["nearest"] = nearest.show(chosen, worlds, TRAINED.value, picture)
    harness.keep(NAME.value, figures, started)
  sheet("_levels.png", show_levels(model, world))
  harness.finish(NAME.value, figures | {"sampler_programs": model.sampler.programs}, started)


if __name__ == "__main__":
  app.run(main)
