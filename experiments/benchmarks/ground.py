"""What `prompting.py` stands on: flags, held-out clips, the model and the baselines, measures."""

import dataclasses
import math
import pathlib
import time

import numpy as np
from absl import flags

from sora_jax.data import transforms
from sora_jax.data.world import World, WorldConfig, captions, vocabulary
from sora_jax.evaluation import detectors, metrics, reports, seams
from sora_jax.prompting import tasks, timeline

MODEL = flags.DEFINE_string("model", "tiny", "Shipped name, model folder or work directory.")
TASKS = flags.DEFINE_list("tasks", [], "Names of tasks, comma-separated; all by default.")
CLIPS = flags.DEFINE_integer("clips", 64, "Held-out clips of each task.")
SIZES = flags.DEFINE_list("sizes", ["48x48", "56x40", "40x56", "96x64"], "Taken in turn.")
OUT = flags.DEFINE_string("out", "runs/prompting", "Folder of figures and pictures.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps; the model's by default.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Strength of the text; the model's by default.")
IMAGE_GUIDANCE = flags.DEFINE_float("image_guidance", 1.0, "Strength of what is known.")
STRENGTH = flags.DEFINE_float("strength", 0.6, "Of edit.")
BASELINES = flags.DEFINE_boolean("baselines", True, "Also freeze, cross-fade and paste.")

FRAMES, CONTEXT, SHORT = 17, 9, 48
SHOWN, RESAMPLED = 4, 1000
OTHER = {name: 1000 + k for k, name in enumerate(("second", "edit", "wide"))}
"""Seeds of the worlds that second clips come from."""
SHARES = frozenset({
  "as asked", "backgrounds", "changed", "changes_once", "color", "cut", "direction", "exact",
  "jump_0.5_to_1.5", "kept", "object", "object_made", "same", "shape", "single", "steady", "whole",
})  # fmt: skip
"""Figures that are 1 or 0 for a clip, or a mean of such over its seams."""


class Raw(timeline.Timeline):
  """A timeline that gives back what was made as it was made, with nothing pasted over it."""

  def finish(self, made_THWC):
    return made_THWC


def raw(line):
  """The same timeline, but what is made of it comes back unpasted."""
  return Raw(**{f.name: getattr(line, f.name) for f in dataclasses.fields(line)})


def clips(motions, count, frames=FRAMES, seed=7, **changes):
  """`count` held-out clips, the sizes in turn."""
  levels = tuple(sorted({vocabulary.LEVEL_OF[m] for m in motions}))
  found, sizes = [], changes.pop("sizes", None) or parse(SIZES.value)
  for k, size in enumerate(sizes):
    world = World(
      WorldConfig(
        levels=levels, motions=motions, sizes=(size,), frames=frames, split="test",
        seed=seed + k, radius=(0.18, 0.26), num_clips=-(-count // len(sizes)), **changes,
      )
    )  # fmt: skip
    found.append([world[i] for i in range(len(world))])
  return [clip for turn in zip(*found) for clip in turn][:count]


INNER = np.s_[:, :, 16:56]
"""The square in the middle of a frame of 72x40."""


def reaches(clip):
  """Whether the object crosses the border of the square in some frame, more than a tenth of it."""
  x_T, radius = np.array(clip.truth["objects"][0]["position"])[:, 0] * 40, 40 * 0.22
  cut = np.minimum(abs(x_T - 16), abs(x_T - 56)) < 0.8 * radius
  return cut.mean() > 0.25


def outpainted(clip):
  """The square in the middle is given, and what lies beside it is to be made."""
  inside = np.zeros((40, 72), bool)
  inside[:, 16:56] = True
  video = np.ascontiguousarray(clip.video_THWC[INNER])
  return tasks.outpaint(video, clip.captions["short"], (72, 40), clip.fps), inside


def inpainted(clip):
  """The square in the middle is to be made."""
  mask = np.zeros((1, 40, 72), bool)
  mask[INNER] = True
  return tasks.inpaint(clip.video_THWC, mask, clip.captions["short"], None, clip.fps), ~mask[0]


def turns(first, second):
  """The prompt of a morph from one clip of constant motion to another."""
  a, b = first.truth, second.truth
  return captions.short(
    a
    | {
      "motion": "morph",
      "objects": a["objects"] + b["objects"],
      "shots": [
        {"background": t["background"], "direction": t["objects"][0]["direction"]} for t in (a, b)
      ],
    }
  )


def parse(words):
  """[(96, 64)] of ["96x64"].  Raises: ValueError that names --sizes."""
  if not words:
    raise ValueError("--sizes is empty; give WIDTHxHEIGHT in pixels, comma-separated, like 48x48")
  return WorldConfig(sizes=[transforms.parse_size(word, "sizes") for word in words]).sizes


class Maker:
  """A model with the settings of the command line, and the baselines."""

  def __init__(self, model):
    self.model = model
    self.seconds = 0.0

  def __call__(self, lines, seed=0):
    """Videos of timelines, packed together, and as the autoencoder gave them: [(video, raw)]."""
    started = time.perf_counter()
    made = self.model.make(
      [raw(line) for line in lines], seed=[seed + i for i in range(len(lines))],
      steps=STEPS.value, guidance=GUIDANCE.value, image_guidance=IMAGE_GUIDANCE.value,
    )  # fmt: skip
    self.seconds += time.perf_counter() - started
    return [line.finish(video) for line, video in zip(lines, made)], made

  def truth(self, lines, videos):
    """The true videos as the autoencoder gives them back, and what is known pasted over them."""
    coded = [self.model.decode(self.model.encode(video), len(video)) for video in videos]
    return [
      self.model.finish(line, np.ascontiguousarray(video[:, : line.size[1], : line.size[0]]))
      for line, video in zip(lines, coded)
    ]

  def paste(self, lines):
    """From text alone, and what is known pasted over it."""
    empty = [timeline.blank(line.prompt, line.frames, line.size, line.fps) for line in lines]
    return [line.finish(video) for line, video in zip(lines, self(empty)[0])]


def nearest(line):
  """(indices of frames known as a whole, all frames: each unknown one is the nearest of these, or
  gray where there are none)."""
  whole = np.flatnonzero(line.known_THW.all((1, 2)))
  if not len(whole):
    return whole, np.full_like(line.pixels_THWC, 128)
  near = whole[np.abs(np.arange(line.frames)[:, None] - whole).argmin(1)]
  return whole, line.pixels_THWC[near]


def freeze(line):
  """Every unknown frame is the nearest known one; unknown regions are gray."""
  return line.finish(nearest(line)[1])


def cross_fade(line):
  """Every unknown frame is a mixture of the known ones on either side."""
  whole, made_THWC = nearest(line)
  for a, b in zip(whole, whole[1:]):
    made_THWC[a + 1 : b] = tasks.cross_fade(made_THWC[a], made_THWC[b], b - a - 1)
  return line.finish(made_THWC)


def every_way(make, lines, truth=None):
  """{way: videos} of the model and the baselines, and the model's unpasted videos.

  truth: the videos that the lines were cut from; through the autoencoder, what a perfect model
  would give.
  """
  made, unpasted = make(lines)
  ways = {"model": made}
  if BASELINES.value:
    if truth is not None:
      ways["truth"] = make.truth(lines, truth)
    ways |= {
      "freeze": [freeze(line) for line in lines],
      "cross_fade": [cross_fade(line) for line in lines],
      "paste": make.paste(lines),
    }
  return ways, unpasted


def track(video):
  """Centroids [T, 2] in pixels of a frame whose short side has SHORT, NaN where nothing is."""
  return SHORT * detectors.detect(video).centroid_T2


def truth_track(clip):
  """Where the clip's object is, like `track`."""
  return SHORT * np.asarray(clip.truth["objects"][0]["position"], float)


def errors_at(clip, video, frame):
  """Distance of the object from where it should be in a frame; a lost one is a short side away."""
  away = float(np.linalg.norm(track(video)[frame] - truth_track(clip)[frame]))
  return SHORT if np.isnan(away) else away


def rounded(values):
  """To four places; None for what is not a number, which JSON has no word for."""
  return [round(float(x), 4) if math.isfinite(x) else None for x in values]


def note(figures, name, values, count):
  """Adds a figure to those of a summary, and in `of` how many of its clips it is of, if not all."""
  figures[name] = rounded(values)
  if count < figures["clips"]:
    figures.setdefault("of", {})[name] = count


def speed_read(clips, videos, known, end):
  """How much farther made objects go for each pixel that true ones go farther, between the frames
  `known` and `end`, with where they are at `known` held fixed: ([slope, low, high], count).

  1 = their speeds are read off what is known, 0 = guessed. For motion straight on. It is of the
  clips whose object is found; NaN if these are fewer than the three unknowns of the line.
  """
  rows = []
  for clip, video in zip(clips, videos):
    path, made_2 = truth_track(clip), track(video)[end]
    way_2 = path[end] - path[known]
    unit_2 = way_2 / max(np.linalg.norm(way_2), 1e-9)
    place = (path[known] - SHORT / 2) @ unit_2
    rows.append([way_2 @ unit_2, place, 1.0, (made_2 - path[known]) @ unit_2])
  rows_N4 = np.array([row for row in rows if not np.isnan(row).any()])
  if len(rows_N4) < 3:
    return [math.nan] * 3, len(rows_N4)
  rng = np.random.default_rng(0)
  again = [rng.integers(0, len(rows_N4), len(rows_N4)) for _ in range(RESAMPLED)]
  slopes = [
    np.linalg.lstsq(part[:, :3], part[:, 3], rcond=None)[0][0]
    for part in [rows_N4, *(rows_N4[chosen] for chosen in again)]
  ]
  return [slopes[0], *np.quantile(slopes[1:], (0.025, 0.975))], len(rows_N4)


def evenness(videos, part, frames_per_latent):
  """How evenly objects move in a part of videos that begins where a latent ends: what
  `seams.evenness` tells, and of how many videos."""
  paces = [seams.paces(track(video)[part], frames_per_latent) for video in videos]
  return seams.evenness(paces, RESAMPLED), int(np.isfinite(paces).all(1).sum())


def seam_figures(line, video, source):
  """Seams of one video; {} where no whole frames meet.

  Steps across seams are in units of the video's own median step, motion in the source's. Even true
  latents give seams of 1.25 of the source's: the autoencoder adds so much to every step.
  """
  places = [k for k in seams.seams_of(line.known_THW) if k < len(video)]
  if not places:
    return {}
  unit, own = (float(np.median(seams.steps(v))) for v in (source, video))
  jumps = [seams.jump(video, k, own) for k in places]
  made_T = ~line.known_THW.all((1, 2))[: len(video)]
  return {
    "jump": float(np.median(jumps)),
    "jump_0.5_to_1.5": float(np.mean([0.5 <= j <= 1.5 for j in jumps])),
    "brightness": max(seams.brightness_step(video, k) for k in places),
    "motion": seams.motion(video, made_T, unit),
  }


def identity(video, ends=5):
  """How often the object's colour changes from that of the first frames to that of the last.

  A frame has the one that it is nearer to: a mixture of red and blue reads as purple where all
  names are asked. How far it is off the way between the two, in levels of 255, says whether there
  was a third. Frames without an object count as changes.
  """
  rgb = [detectors.detect(frame[None]).rgb for frame in video]
  rgb_T3 = np.array([(np.nan,) * 3 if found is None else found for found in rgb])
  a_3, b_3 = (np.nanmedian(part, axis=0) for part in (rgb_T3[:ends], rgb_T3[-ends:]))
  share_T, off_T = seams.way(rgb_T3, a_3, b_3)
  last_T = [None if np.isnan(share) else share > 0.5 for share in share_T]
  turns = seams.changes(last_T) + 2 * last_T.count(None)
  return {
    "identity_changes": float(turns), "changes_once": float(turns == 1),
    "color_off_way": float(np.nanmax(off_T)),
  }  # fmt: skip


def summary(rows):
  """{name: [middle, low, high], "clips": number} over clips, with 95 % intervals.

  Means of `SHARES` with Wilson's intervals, which hold where all clips succeed; medians of all else
  with bootstrap ones. A figure that some clips do not have, or have as NaN, is of the others, `of`
  so many; one that none has is left out.
  """
  found, rng = {"clips": len(rows)}, np.random.default_rng(0)
  for name in {name: 0 for row in rows for name in row}:
    values = np.array([float(row[name]) for row in rows if name in row])
    values = values[~np.isnan(values)]
    if not len(values):
      found.setdefault("of", {})[name] = 0
    elif name in SHARES:
      # a clip with two seams may count half: the interval is that of both whole numbers beside
      low, _ = metrics.wilson(math.floor(values.sum()), len(values))
      _, high = metrics.wilson(math.ceil(values.sum()), len(values))
      note(found, name, (values.mean(), low, high), len(values))
    else:
      again = values[rng.integers(0, len(values), (RESAMPLED, len(values)))]
      low, high = np.quantile(np.median(again, axis=1), (0.025, 0.975))
      note(found, name, (np.median(values), low, high), len(values))
  return found


def right(video, truth, *names):
  """Whether all of these attributes are read as the truth says."""
  scores = detectors.score(detectors.detect(video), truth)
  return float(all(scores[name] for name in names))


def steady(video):
  """Whether every frame has the background that most have; `right` looks at the median alone."""
  border = detectors.border_colors(video)
  return float(np.linalg.norm(border - np.median(border, axis=0), axis=1).max() <= 20)


def sheet(name, given, ways, labels):
  """A contact sheet: for each of the first clips what is given, and a strip for each way."""
  videos, texts = [], []
  for i in np.linspace(0, len(given) - 1, min(SHOWN, len(given))).astype(int):
    videos += [given[i]] + [made[i] for made in ways.values()]
    texts += [f"{labels[i]} (source)"] + list(ways)
  reports.contact_sheet(
    videos, texts, pathlib.Path(OUT.value) / f"prompting_{name}.png", frames=9, frame_height=64,
    columns=1 + len(ways),
  )  # fmt: skip


def shown(line):
  """What a timeline knows, the rest gray."""
  return np.where(line.known_THW[..., None], line.pixels_THWC, np.uint8(128))


def judged(ways, judge):
  """{way: summary of judge(i, video)}."""
  return {
    way: summary([judge(i, video) for i, video in enumerate(made)]) for way, made in ways.items()
  }


def shows_style(video, style):
  """Whether a video is of a style, by its background's light and its object's filling."""
  seen = detectors.detect(video)
  return seen.night if style == "night" else not seen.night and seen.filling == style


def correlation(a_T2, b_T2):
  """Pearson's, over both coordinates, each about its mean; NaN counts as 0."""
  a, b = (x - np.nanmean(x, axis=0) for x in (a_T2, b_T2))
  both = ~np.isnan(a).any(1) & ~np.isnan(b).any(1)
  a, b = a[both].ravel(), b[both].ravel()
  if len(a) < 4:
    return 0.0
  return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))
