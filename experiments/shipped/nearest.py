"""Which training clip is a sample nearest to?

The clips are those of the training world itself, of the sample's size and length. A sample that
copies one lies much nearer to it than an unseen clip of the same prompt lies to its own neighbour.
"""

import dataclasses

import harness
import numpy as np

from sora_jax.data.world import World
from sora_jax.evaluation import reports


class Neighbour:
  """The nearest clip seen so far, by root mean square difference of pixels, of 255."""

  def __init__(self, video_THWC):
    self.video = video_THWC.astype(np.float32)
    self.distance, self.clip = np.inf, None

  def offer(self, clip):
    """Looks at one more clip of the same shape."""
    distance = float(np.sqrt(np.mean((self.video - clip.video_THWC) ** 2)))
    if distance < self.distance:
      self.distance, self.clip = distance, clip


def training_clips(world, size, frames, most):
  """Up to `most` clips of a training world that have a size and length.

  If it has none, those of the same world at that size and length.
  """
  if size not in world.sizes or frames not in world.frames:
    world = dataclasses.replace(world, sizes=(size,), frames=(frames,), image_fraction=0.0)
  clips, found = World(world), 0
  for index in range(len(clips)):
    truth = clips.scene(index).truth
    if tuple(truth["size"]) == size and truth["frames"] == frames:
      yield clips[index]
      found += 1
      if found == most:
        return


def show(cards, world, most, path):
  """Finds the neighbours of (wish, video, ...) and draws them below the samples.

  Returns: for each, its distance, and that of an unseen clip of the same prompt and shape.
  """
  rows, seen_clips = [], []
  for wish, video, *_ in cards:
    unseen = dataclasses.replace(
      world, levels=(1,), motions=("constant",), sizes=(wish.size,), frames=(wish.frames,),
      fps=(wish.fps,), colors=wish.truth["objects"][0]["color"],
      shapes=wish.truth["objects"][0]["shape"], backgrounds=wish.truth["background"],
      styles=wish.truth["style"], image_fraction=0.0, split="test", seed=3000, num_clips=1,
    )  # fmt: skip
    seen_clips.append(World(unseen)[0])
    rows.append((Neighbour(video), Neighbour(seen_clips[-1].video_THWC)))
  progress = harness.Progress("neighbours", len(cards), every=5)
  groups = {}
  for i, (wish, *_) in enumerate(cards):
    groups.setdefault((wish.size, wish.frames), []).append(i)
  for (size, frames), members in groups.items():
    for clip in training_clips(world, size, frames, most):
      for i in members:
        for neighbour in rows[i]:
          neighbour.offer(clip)
    progress(len(members))
  videos, labels = [], []
  for (wish, video, *_), (own, _) in zip(cards, rows):
    videos.append(harness.above([video, own.clip.video_THWC]))
    labels.append(
      f"{wish.prompt}\nbelow, {own.distance:.1f} of 255 away: {own.clip.captions['short']}"
    )
  reports.contact_sheet(videos, labels, path, columns=2)
  return [
    {
      "prompt": wish.prompt,
      "size": harness.size_name(wish.size),
      "nearest": own.clip.captions["short"],
      "distance": round(own.distance, 2),
      "distance_of_unseen_clip": round(other.distance, 2),
    }
    for (wish, *_), (own, other) in zip(cards, rows)
  ]
