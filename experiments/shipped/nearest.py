"""Which training clip is a sample nearest to?

The clips are those of the training worlds themselves, of the sample's size and length. A sample
that copies one lies much nearer to it than an unseen clip of the same prompt lies to its own
neighbour.
"""

import collections
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


def holding(worlds, size, frames):
  """The training worlds that have clips of a size and length.

  If none has, the same worlds at that size and length.
  """
  return [w for w in worlds if size in w.sizes and frames in w.frames] or [
    dataclasses.replace(w, sizes=(size,), frames=(frames,), image_fraction=0.0) for w in worlds
  ]


def training_clips(worlds, size, frames, most):
  """(number of the world, clip): up to `most` clips of training worlds that have a size and length,
  as many of each world as of any other up to one."""
  worlds = holding(worlds, size, frames)
  for k, world in enumerate(worlds):
    share = most // len(worlds) + (k < most % len(worlds))
    for clip in clips_of(world, size, frames, share):
      yield k, clip


def clips_of(world, size, frames, most):
  """Up to `most` clips of a world that have a size and length."""
  if most < 1:
    return
  clips, found = World(world), 0
  for index in range(len(clips)):
    truth = clips.scene(index).truth
    if tuple(truth["size"]) == size and truth["frames"] == frames:
      yield clips[index]
      found += 1
      if found == most:
        return


def unseen(world, wish):
  """A clip of a wish's prompt and shape that no training has seen."""
  asked = wish.truth["objects"][0]
  clip = World(
    dataclasses.replace(
      world, levels=(1,), motions=("constant",), sizes=(wish.size,), frames=(wish.frames,),
      fps=(wish.fps,), colors=asked["color"], shapes=asked["shape"],
      directions=asked["direction"], backgrounds=wish.truth["background"],
      styles=wish.truth["style"], image_fraction=0.0, split="test", seed=3000, num_clips=1,
    )
  )[0]  # fmt: skip
  assert clip.captions["short"] == wish.prompt, (clip.captions["short"], wish.prompt)
  return clip


def show(cards, worlds, most, path):
  """Finds the neighbours of (wish, video, ...) and draws them below the samples.

  Args: worlds: of training, the newest first, whose like the unseen clips are.  most: clips of a
    size and length that are looked at, of all worlds together.
  Returns: for each, its distance, that of an unseen clip of the same prompt and shape, and of how
    many worlds and clips these are the nearest.
  """
  rows = [
    (Neighbour(video), Neighbour(unseen(worlds[0], wish).video_THWC)) for wish, video, *_ in cards
  ]
  progress = harness.Progress("neighbours", len(cards), every=5)
  groups = {}
  for i, (wish, *_) in enumerate(cards):
    groups.setdefault((wish.size, wish.frames), []).append(i)
  searched = {}
  for (size, frames), members in groups.items():
    of = searched[size, frames] = collections.Counter()
    for k, clip in training_clips(worlds, size, frames, most):
      of[k] += 1
      for i in members:
        for neighbour in rows[i]:
          neighbour.offer(clip)
    progress(len(members))
  videos, labels = [], []
  for (wish, video, *_), (own, _) in zip(cards, rows):
    videos.append(harness.above([video, own.clip.video_THWC]))
    of = searched[wish.size, wish.frames]
    labels.append(
      f"{wish.prompt}\nbelow, {own.distance:.1f} of 255 away: {own.clip.captions['short']} "
      f"(nearest of {of.total()} clips of {len(of)} worlds)"
    )
  reports.contact_sheet(videos, labels, path, columns=2)
  return [
    {
      "prompt": wish.prompt,
      "size": harness.size_name(wish.size),
      "nearest": own.clip.captions["short"],
      "distance": round(own.distance, 2),
      "distance_of_unseen_clip": round(other.distance, 2),
      "worlds": len(searched[wish.size, wish.frames]),
      "clips": searched[wish.size, wish.frames].total(),
    }
    for (wish, *_), (own, other) in zip(cards, rows)
  ]
