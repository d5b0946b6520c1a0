"""Prompting with images and videos: does each task do what it says, and do the baselines fail?

  python experiments/benchmarks/prompting.py --model=tiny [--tasks=animate,extend] [--clips=64]

Held-out clips of the world, --clips of them for each task. Each task is done by the model and by
baselines: freeze (the nearest known frame), cross-fade (known frames mixed), paste (the video that
the model makes from the text alone, with what is known pasted over it). Where there is a true clip,
`truth` is that through the autoencoder: what a perfect model would give. Positions are read off the
pixels by `evaluation/detectors.py`, in pixels of a frame whose short side has 48; steps across
seams in units of the clip's median step. Shares come with Wilson's 95 % intervals, medians with
bootstrap ones (resampled clips); `of` tells how many clips a figure is of where not all have it.
Prints one JSON object as its last line; writes it as prompting.json, with a contact sheet
for each task: what is given, what was made, and what the baselines made.
"""

import json
import sys
import time

import ground
import numpy as np
from absl import app

from sora_jax import model as model_lib
from sora_jax.data import transforms
from sora_jax.data.world import captions, vocabulary
from sora_jax.evaluation import arguments, detectors, metrics, seams
from sora_jax.prompting import tasks, timeline


def animate(make):
  """The first frame is given; does the object move as the text says?"""
  given = ground.clips(("constant",), ground.CLIPS.value)
  lines = [
    tasks.animate(c.video_THWC[:1], c.captions["short"], None, ground.FRAMES, c.fps) for c in given
  ]
  ways, unpasted = ground.every_way(make, lines, [c.video_THWC for c in given])

  def judge(i, video):
    clip = given[i]
    found = {
      "direction": ground.right(video, clip.truth, "direction"),
      "object": ground.right(video, clip.truth, "color", "shape", "single"),
      "exact": float((video[0] == clip.video_THWC[0]).all()),
    }
    unit = np.median(seams.steps(video))
    return found | {
      "jump": seams.jump(video, 1, float(unit)),
      "brightness": seams.brightness_step(video, 1),
    }

  figures = ground.judged(ways, judge)
  figures["model"] |= ground.summary(
    [{"given_psnr": metrics.psnr(c.video_THWC[:1], v[:1])} for c, v in zip(given, unpasted)]
  )
  ground.sheet(
    "animate", [ground.shown(line) for line in lines], ways, [line.prompt for line in lines]
  )
  return figures


def extend(make, motions=("constant",), backward=False, slowest=1.0):
  """Half of a clip is given; is the object where it should be, and is the seam smooth?

  slowest: of the world; below 1 speeds are not given away by an object's place.
  """
  given = ground.clips(motions, ground.CLIPS.value, slowest=slowest)
  made_frames = ground.FRAMES - ground.CONTEXT
  known, rest = np.s_[: ground.CONTEXT], np.s_[ground.CONTEXT :]
  if backward:
    known, rest = np.s_[made_frames:], np.s_[:made_frames]
  lines = [
    tasks.extend(
      c.video_THWC[known], c.captions["short"], None, c.fps,
      **{"backward" if backward else "forward": made_frames},
    )
    for c in given
  ]  # fmt: skip
  ways, _ = ground.every_way(make, lines, [c.video_THWC for c in given])
  ways["last_velocity"] = [None] * len(lines)

  def judge(i, video):
    clip, path = given[i], ground.truth_track(given[i])
    places = {n: made_frames - n if backward else ground.CONTEXT - 1 + n for n in (4, 8)}
    if video is None:
      seen = path[: ground.CONTEXT][::-1] if not backward else path[-ground.CONTEXT :]
      velocity = seen[0] - seen[1]
      return {
        f"error_{n}": float(np.linalg.norm(seen[0] + n * velocity - path[place]))
        for n, place in places.items()
      }
    found = {f"error_{n}": ground.errors_at(clip, video, place) for n, place in places.items()}
    found |= ground.seam_figures(lines[i], video, clip.video_THWC[known])
    return found | {
      "object": ground.right(video, clip.truth, "color", "shape", "single"),
      "object_made": ground.right(video[rest], clip.truth, "color", "shape", "single"),
      "exact": float((video[known] == clip.video_THWC[known]).all()),
    }

  figures = ground.judged(ways, judge)
  del ways["last_velocity"]
  if motions == ("constant",):
    nearest, step = (made_frames, -8) if backward else (ground.CONTEXT - 1, 8)
    for way, made in ways.items():
      read = ground.speed_read(given, made, nearest, nearest + step)
      ground.note(figures[way], "speed_read", *read)
      part = np.s_[: nearest + 1] if backward else np.s_[nearest:]
      even = ground.evenness(made, part, make.model.autoencoder.temporal)
      ground.note(figures[way], "evenness", *even)
  name = f"extend_{'backward' if backward else 'forward'}_{motions[0]}"
  name += "_slow" if slowest < 1 else ""
  ground.sheet(name, [c.video_THWC for c in given], ways, [line.prompt for line in lines])
  return figures


def loop(make, motion="swing"):
  """A short clip is led back to its beginning: is the way closed in place and velocity?

  Of an object that swings, or of one that moves straight on and so must turn twice.
  """
  given, total = ground.clips((motion,), ground.CLIPS.value), 16
  lines = [
    tasks.loop(
      c.video_THWC[:5], captions.short(c.truth | {"motion": "swing"}), None, total, c.fps
    )
    for c in given
  ]  # fmt: skip
  ways, _ = ground.every_way(make, lines)

  def judge(i, video):
    closed = np.concatenate([video, video[:2]])
    unit = float(np.median(seams.steps(closed)))
    path = ground.track(closed)
    velocity = np.diff(path, axis=0)
    speed = np.median(np.linalg.norm(velocity[:4], axis=1))
    return {
      "closing_step": seams.jump(closed, total, unit),
      "closing_speed": float(np.linalg.norm(velocity[total - 1]) / max(speed, 0.05)),
      "velocity_change": float(
        np.linalg.norm(velocity[total] - velocity[total - 1]) / max(speed, 0.05)
      ),
      "largest_step": float(seams.steps(closed).max()) / max(unit, seams.STILL),
      "object": ground.right(video, given[i].truth, "color", "shape", "single"),
    } | ground.seam_figures(lines[i], video, given[i].video_THWC[:5])

  ground.sheet(
    f"loop_{motion}", [ground.shown(line) for line in lines], ways, [line.prompt for line in lines]
  )
  return ground.judged(ways, judge)


def connect(make):
  """Two clips of different objects and backgrounds: is the way between them gradual?"""
  starts = ground.clips(("constant",), ground.CLIPS.value, frames=5)
  ends = ground.clips(("constant",), ground.CLIPS.value, frames=5, seed=ground.OTHER["second"])
  lines = [
    tasks.connect(a.video_THWC, b.video_THWC, ground.turns(a, b), None, 25, a.fps)
    for a, b in zip(starts, ends)
  ]
  ways, _ = ground.every_way(make, lines)

  def judge(i, video):
    a, b = starts[i].truth, ends[i].truth
    border = detectors.border_colors(video)
    found = {
      "exact": float(
        (video[:5] == starts[i].video_THWC).all() and (video[-5:] == ends[i].video_THWC).all()
      )
    }
    if float(np.linalg.norm(border[-1] - border[0])) > 20:
      share, _ = seams.way(border, border[0], border[-1])
      found["background_monotone"] = seams.monotone_share(share, slack=0.05)
      found["between"] = float(((share[5:-5] > 0.1) & (share[5:-5] < 0.9)).sum())
    if (a["objects"][0]["color"]) != b["objects"][0]["color"]:
      found |= ground.identity(video)
    # From black to cream in so few frames every step is above 1 %: only what an even way would not
    # have counts.
    level_T = video.astype(np.float32).mean((1, 2, 3)) / 255
    even = abs(level_T[-5] - level_T[4]) / (len(video) - 9)
    beyond = [seams.brightness_step(video, k) - even for k in (5, len(video) - 5)]
    found["brightness_beyond_even"] = float(max(0.0, *beyond))
    source = np.concatenate([starts[i].video_THWC, starts[i].video_THWC[-1:]])[:5]
    return found | ground.seam_figures(lines[i], video, source)

  ground.sheet(
    "connect", [ground.shown(line) for line in lines], ways, [line.prompt for line in lines]
  )
  return ground.judged(ways, judge)


CHANGES = ("color", "shape", "background", "style")


def edit(make):
  """A clip is made again under a new prompt: is the change there, and the motion kept?"""
  given, lines, wanted = ground.clips(("constant",), ground.CLIPS.value), [], []
  words = {
    "color": tuple(vocabulary.COLORS), "shape": vocabulary.SHAPES,
    "background": tuple(vocabulary.BACKGROUNDS), "style": vocabulary.STYLES,
  }  # fmt: skip
  rng = np.random.default_rng(ground.OTHER["edit"])
  for i, clip in enumerate(given):
    what = CHANGES[(i + i // len(CHANGES)) % len(CHANGES)]  # at every size in turn
    truth, record = dict(clip.truth), dict(clip.truth["objects"][0])
    holder = record if what in record else truth
    holder[what] = str(rng.choice([word for word in words[what] if word != holder[what]]))
    truth["objects"] = [record]
    wanted.append((what, truth))
    lines.append(
      tasks.edit(clip.video_THWC, captions.short(truth), None, clip.fps, ground.STRENGTH.value)
    )
  made, _ = make(lines)
  rows = {what: [] for what in CHANGES}
  for clip, video, (what, truth) in zip(given, made, wanted):
    path, new_path = ground.truth_track(clip), ground.track(video)
    there = (
      ground.shows_style(video, truth["style"])
      if what == "style"
      else ground.right(video, truth, what)
    )
    rows[what].append({
      "changed": float(there), "trajectory": ground.correlation(path, new_path),
      "steady": ground.steady(video),
    })  # fmt: skip
  figures = {what: ground.summary(found) for what, found in rows.items()}
  figures["all"] = ground.summary([row for found in rows.values() for row in found])
  ground.sheet(
    "edit", [c.video_THWC for c in given], {"model": made}, [line.prompt for line in lines]
  )
  return figures


def region(make, name, line_of):
  """Outpaint and inpaint: are objects that reach into what is made whole?

  line_of: (clip) -> (timeline, known region bool [H, W]).
  """
  given = [
    c
    for c in ground.clips(("constant",), 4 * ground.CLIPS.value, sizes=[(72, 40)])
    if ground.reaches(c)
  ]
  given = given[: ground.CLIPS.value]
  laid = [line_of(clip) for clip in given]
  lines = [line for line, _ in laid]
  ways, unpasted = ground.every_way(make, lines, [c.video_THWC for c in given])

  def judge(i, video):
    return {
      "whole": ground.right(video, given[i].truth, "color", "shape", "single"),
      "direction": ground.right(video, given[i].truth, "direction"),
      "border": seams.border_ratio(video, laid[i][1]),
      "exact": float((video == lines[i].pixels_THWC)[lines[i].known_THW].all()),
    }

  figures = ground.judged(ways, judge)
  figures["model"] |= ground.summary(
    [
      {"known_psnr": metrics.psnr(line.pixels_THWC, video, line.known_THW)}
      for line, video in zip(lines, unpasted)
    ]
  )
  ground.sheet(name, [ground.shown(line) for line in lines], ways, [line.prompt for line in lines])
  return figures


def interpolate(make):
  """Every second frame is given: are the others in between?"""
  given = ground.clips(("constant",), ground.CLIPS.value)
  lines = [
    tasks.interpolate(c.video_THWC[::2], c.captions["short"], None, c.fps / 2, 2) for c in given
  ]
  ways, _ = ground.every_way(make, lines, [c.video_THWC for c in given])

  def judge(i, video):
    away = np.linalg.norm(ground.track(video) - ground.truth_track(given[i]), axis=1)[1::2]
    return {
      "error": float(np.median(np.where(np.isnan(away), ground.SHORT, away))),
      "object": ground.right(video, given[i].truth, "color", "shape", "single"),
    } | ground.seam_figures(lines[i], video, given[i].video_THWC)

  ground.sheet(
    "interpolate", [ground.shown(line) for line in lines], ways, [line.prompt for line in lines]
  )
  return ground.judged(ways, judge)


def unseen(make):
  """Text alone, at sizes and lengths of training and at others: how well are prompts obeyed?"""
  figures = {}
  for name, size, frames in (
    ("trained", (72, 40), 17), ("unseen aspect", (88, 40), 17), ("twice as long", (48, 48), 33),
    ("larger", (104, 104), 9),
  ):  # fmt: skip
    given = ground.clips(("constant",), ground.CLIPS.value, frames=frames, sizes=[size])
    videos = make([
      timeline.blank(c.captions["short"], frames, size, c.fps) for c in given
    ])[0]  # fmt: skip
    figures[name] = ground.summary(
      [
        {word: ground.right(v, c.truth, word) for word in ("color", "shape", "direction", "single")}
        for c, v in zip(given, videos)
      ]
    )
    ground.sheet(
      name.replace(" ", "_"), [c.video_THWC for c in given], {"model": videos},
      [c.captions["short"] for c in given],
    )  # fmt: skip
  return figures


def draft(make):
  """Is what a draft shows kept when it is made at full size?"""
  given = ground.clips(("constant",), ground.CLIPS.value, sizes=[(96, 64), (64, 96)])
  what = {
    "prompt": [c.captions["short"] for c in given], "size": [c.size for c in given],
    "frames": ground.FRAMES, "fps": [c.fps for c in given], "seed": list(range(len(given))),
    "guidance": ground.GUIDANCE.value, "steps": ground.STEPS.value,
  }  # fmt: skip
  drafts = make.model.generate(**what, draft=True)
  videos = make.model.generate(**what, from_draft=drafts)
  rows = []
  for before, after in zip(drafts, videos):
    a, b = detectors.detect(before), detectors.detect(after)
    away = np.linalg.norm(a.centroid_T2 - b.centroid_T2, axis=1)
    same = a.present and b.present and (a.color, a.shape, a.direction) == (
      b.color, b.shape, b.direction,
    )  # fmt: skip
    moved = float(np.nanmean(away)) if a.present and b.present else 1.0
    rows.append({"same": float(same), "moved": moved, "kept": float(same and moved < 0.1)})
  enlarged = [transforms.resize(video, c.size) for video, c in zip(drafts, given)]
  ground.sheet("draft", enlarged, {"full size": videos}, what["prompt"])
  return ground.summary(rows)


def cuts(make):
  """Two shots of one object: does it keep its colour and shape across the cut?"""
  given = ground.clips(("cut",), ground.CLIPS.value)
  videos = make([
    timeline.blank(c.captions["short"], ground.FRAMES, c.size, c.fps) for c in given
  ])[0]  # fmt: skip
  rows = []
  for clip, video in zip(given, videos):
    at = 1 + int(seams.steps(video).argmax())
    unit = float(np.median(seams.steps(video)))
    truth = dict(clip.truth)
    shots = [detectors.detect(shot) for shot in (video[:at], video[at:])]
    asked = truth["objects"][0]["color"], truth["objects"][0]["shape"]
    wanted = [shot["background"] for shot in truth["shots"]]
    rows.append({
      "kept": float(
        all(s.present for s in shots) and shots[0].color == shots[1].color
        and shots[0].shape == shots[1].shape
      ),
      "as asked": float(all((s.color, s.shape) == asked for s in shots)),
      "backgrounds": float([s.background for s in shots] == wanted),
      "cut": float(seams.jump(video, at, unit) > 4 or seams.brightness_step(video, at) > 0.02),
    })  # fmt: skip
  ground.sheet(
    "cuts", [c.video_THWC for c in given], {"model": videos}, [c.captions["short"] for c in given]
  )
  return ground.summary(rows)


TABLE = {
  "animate": animate,
  "extend_forward": extend,
  "extend_backward": lambda make: extend(make, backward=True),
  "extend_slow": lambda make: extend(make, slowest=0.3),
  "extend_bounce": lambda make: extend(make, ("bounce",)),
  "extend_gravity": lambda make: extend(make, ("gravity",)),
  "loop": loop,
  "loop_constant": lambda make: loop(make, "constant"),
  "connect": connect,
  "edit": edit,
  "outpaint": lambda make: region(make, "outpaint", ground.outpainted),
  "inpaint": lambda make: region(make, "inpaint", ground.inpainted),
  "interpolate": interpolate,
  "unseen": unseen,
  "draft": draft,
  "cuts": cuts,
}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  if unknown := set(ground.TASKS.value) - set(TABLE):
    raise app.UsageError(f"--tasks: unknown {', '.join(unknown)}; allowed: {', '.join(TABLE)}")
  started = time.perf_counter()
  with arguments.refusing():
    out = arguments.folder(ground.OUT.value)
    ground.parse(ground.SIZES.value)
    make = ground.Maker(model_lib.load(ground.MODEL.value))
  figures = {"model": ground.MODEL.value, "clips": ground.CLIPS.value}
  for name in ground.TASKS.value or TABLE:
    began = time.perf_counter()
    figures[name] = TABLE[name](make)
    line = f"{name}: {time.perf_counter() - began:.0f} s {json.dumps(figures[name])}"
    print(line, file=sys.stderr, flush=True)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    (out / "prompting.json").write_text(json.dumps(figures, indent=2) + "\n")
  print(json.dumps(figures))


if __name__ == "__main__":
  app.run(main)
