"""Long videos: does the object stay what it is for a minute, and does memory stay what it is?

  python experiments/benchmarks/long.py --model=tiny [--videos=8] [--seconds=60] [--size=48x48]

Held-out prompts of objects that bounce. For each quarter of each video: shares of seconds in which
colour, shape, background, and that there is one object are read as the prompt says, off that second
alone; how often per second an object appears or is lost beside or instead of the one (the world of
these prompts has no cause for either); and how far the background's colour is from the asked one.
Where windows meet: the step between frames in units of the video's median, and in brightness.
Memory: the most bytes of live arrays on the device while the first 4 seconds and while the whole
are made, programs compiled after each, and the process's peak. Prints one JSON object as its last
line; writes it as long.json, with long.png (a frame every 4 seconds) and the videos as .mp4.
"""

import json
import resource
import sys
import time

import jax
import numpy as np
from absl import app, flags

from sora_jax import model as model_lib
from sora_jax.data import transforms, writing
from sora_jax.data.world import WorldConfig, prompts, vocabulary
from sora_jax.evaluation import arguments, detectors, release, reports, seams

MODEL = flags.DEFINE_string("model", "tiny", "Shipped name, model folder or work directory.")
VIDEOS = flags.DEFINE_integer("videos", 8, "Prompts, one video each.")
SECONDS = flags.DEFINE_integer("seconds", 60, "Length of each.", lower_bound=8)
SIZE = flags.DEFINE_string("size", "48x48", "Width x height in pixels.")
MOTION = flags.DEFINE_string("motion", "bounce", "Motion of the prompts.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps; the model's by default.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Strength of the text; the model's by default.")
IMAGE_GUIDANCE = flags.DEFINE_float("image_guidance", 1.0, "Strength of what is known.")
CONTEXT_NOISE = flags.DEFINE_float("context_noise", 0.0, "Time to which what is known is noised.")
OUT = flags.DEFINE_string("out", "runs/long", "Folder of figures, pictures and videos.")

FPS, SHORT_SECONDS = 8, 4
READ = ("color", "shape", "single", "background")


class Memory:
  """The most bytes of arrays that were alive on the device at a look."""

  def __init__(self):
    self.most = 0

  def look(self) -> int:
    self.most = max(self.most, sum(array.nbytes for array in jax.live_arrays()))
    return self.most


def made(model, prompt, size, seed):
  """One long video, the frames at which its windows begin, and the most live bytes of its first
  seconds and of all of it."""
  chunks, frames, memory, first, begins = [], 0, Memory(), 0, []
  how = {"steps": STEPS.value, "guidance": GUIDANCE.value, "context_noise": CONTEXT_NOISE.value}
  for chunk_THWC in model.long(
    prompt, SECONDS.value * FPS, size, float(FPS), seed, image_guidance=IMAGE_GUIDANCE.value, **how
  ):
    chunks.append(chunk_THWC)
    begins.append(frames)
    frames += len(chunk_THWC)
    most = memory.look()
    if frames <= SHORT_SECONDS * FPS:
      first = most
  return np.concatenate(chunks), begins[1:], first, memory.most


def judged(video, truth):
  """For each second what is read, and for each frame how many objects are seen."""
  seconds = [detectors.detect(video[k : k + FPS]) for k in range(0, len(video), FPS)]
  scores = [detectors.score(found, truth) for found in seconds]
  single = [detectors.detect(frame[None]) for frame in video]
  count_T = np.array([round(found.parts) if found.present else 0 for found in single])
  asked_3 = np.asarray(vocabulary.BACKGROUNDS[truth["background"]], float)
  return scores, count_T, np.linalg.norm(detectors.border_colors(video) - asked_3, axis=1)


def joints(video, begins):
  """[(step, brightness)] where windows meet, steps in units of the video's median."""
  unit = float(np.median(seams.steps(video)))
  return [(seams.jump(video, at, unit), seams.brightness_step(video, at)) for at in begins]


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  began = time.perf_counter()
  with arguments.refusing():
    out, size = arguments.folder(OUT.value), transforms.parse_size(SIZE.value)
    world = WorldConfig(motions=MOTION.value, split="test", seed=11, radius=(0.18, 0.26))
    pairs = prompts(world, VIDEOS.value, size=size, frames=17)
    model = model_lib.load(MODEL.value)
  quarters = [{"scores": [], "born": 0, "lost": 0, "away": []} for _ in range(4)]
  figures = {"model": MODEL.value, "videos": VIDEOS.value, "seconds": SECONDS.value}
  shown, memory, met = [], {}, []
  for i, (prompt, truth) in enumerate(pairs):
    video, begins, first, most = made(model, prompt, size, i)
    met += joints(video, begins)
    if not memory:
      memory = {"live_bytes_first_4_s": first, "live_bytes": most}
      memory["programs"] = model.sampler.programs
    writing.write_video(out / f"long_{i}.mp4", video, FPS)
    shown.append(video[:: 4 * FPS][:16])
    for part, found in enumerate(np.array_split(np.arange(len(video)), 4)):
      scores, count_T, away_T = judged(video[found], truth)
      quarters[part]["scores"] += scores
      quarters[part]["born"] += int(np.maximum(np.diff(count_T), 0).sum())
      quarters[part]["lost"] += int(np.maximum(-np.diff(count_T), 0).sum())
      quarters[part]["away"].append(away_T)
    length = (i + 1) * SECONDS.value / 4
    figures["quarters"] = [
      release.shares(quarter["scores"], READ)
      | {
        "born_per_second": quarter["born"] / length, "lost_per_second": quarter["lost"] / length,
        "background_away": float(np.median(np.concatenate(quarter["away"]))),
      }
      for quarter in quarters
    ]  # fmt: skip
    jump, bright = np.array(met).T
    figures["seams"] = {
      "seams": len(met), "jump": float(np.median(jump)), "brightness": float(np.median(bright)),
      "jump_0.5_to_1.5": float(((jump >= 0.5) & (jump <= 1.5)).mean()),
      "brightness_within_0.01": float((bright <= 0.01).mean()),
    }  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["memory"] = memory | {"process_peak_mib": round(peak), "all": model.sampler.programs}
    figures["run_seconds"] = round(time.perf_counter() - began, 1)
    (out / "long.json").write_text(json.dumps(figures, indent=2) + "\n")
    spent = figures["run_seconds"]
    left = spent / (i + 1) * (len(pairs) - i - 1)
    print(f"video {i + 1} of {len(pairs)}, {spent:.0f} s, {left:.0f} s left", file=sys.stderr)
    reports.contact_sheet(
      shown, [prompt for prompt, _ in pairs[: i + 1]], out / "long.png", frames=16, columns=1
    )
  print(json.dumps(figures))


if __name__ == "__main__":
  app.run(main)
