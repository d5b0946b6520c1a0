"""Level 3: one object that gradually turns into another in another scene, or turns and goes on."""

import numpy as np

from sora_jax.data.world import level1, renderer, vocabulary
from sora_jax.data.world.scene import Actor, Brief, Scene, clip_truth, object_truth

SAME = 0.3  # share of clips in which the object and its scene stay what they are
END = (0.15, 0.4)  # share of a clip before the change, and after it


def compose(brief: Brief) -> Scene:
  """Draws the state of a clip and closes over how to paint it."""
  rng, frames = brief.rng, brief.frames
  color, shape, direction = brief.triple()
  second = _second(brief, color, shape, direction)
  same = second[:2] == (color, shape)
  backdrops = (brief.background, brief.background)
  if not same:
    others = [b for b in brief.config.backgrounds if b != brief.background]
    backdrops = (brief.background, brief.pick(others or [brief.background]))
  radii = (brief.radius(), brief.rng.uniform(*brief.config.radius))
  if same:
    radii = radii[:1] * 2
  before, after = (max(1, round(frames * rng.uniform(*END))) for _ in range(2))
  first, last = before - 1, frames - after  # the last frame of the one, the first of the other
  share_T = smoothstep((np.arange(frames) - first) / (last - first))
  path = _path(brief, (shape, second[1]), max(radii), (direction, second[2]), (first, last))
  radius_T = radii[0] + (radii[1] - radii[0]) * share_T
  kinds = [(color, shape, direction), second][: 1 if same else 2]
  actors = [
    Actor(kind[0], kind[1], radius, *path, kind[2], scale_T=radius_T / radius)
    for kind, radius in zip(kinds, radii)
  ]

  def draw(size):
    scenes = [
      renderer.render([actor.sprite(brief.style)], frames, size, backdrop, brief.style)
      for actor, backdrop in zip(actors, backdrops)
    ]
    if len(scenes) == 1:
      return scenes[0]
    share_T111 = share_T[:, None, None, None]
    return np.round(scenes[0] * (1 - share_T111) + scenes[1] * share_T111).astype(np.uint8)

  seen = [np.ones(frames)] if same else [1 - share_T, share_T]
  objects = [
    object_truth(k, actor, brief.extent, seen[k], [k] * frames) for k, actor in enumerate(actors)
  ]
  starts = zip((0, last), backdrops, (direction, second[2]))
  more = {
    "shots": [{"start": n, "background": b, "direction": d} for n, b, d in starts],
    "events": [{"kind": "morph", "after": first, "until": last}],
  }
  return Scene(clip_truth(brief, objects, **more), draw)


def smoothstep(share):
  """3 s^2 - 2 s^3 of a share that is held in [0, 1]: level at both ends."""
  share = np.clip(share, 0, 1)
  return share * share * (3 - 2 * share)


def _second(brief: Brief, color: str, shape: str, direction: str):
  """What comes after: another object, or the same on another way; never held out."""
  if brief.rng.uniform() < SAME:
    ways = [way for way in brief.config.directions if not vocabulary.is_held_out(color, shape, way)]
    return color, shape, brief.pick(ways or [direction])
  others = brief.others(brief.config.directions) or brief.others(tuple(vocabulary.DIRECTIONS))
  kept = [t for t in others if t[0] != color and t[1] != shape]
  return brief.pick(kept or [t for t in others if t[:2] != (color, shape)] or others)


def _path(brief: Brief, shapes, radius: float, directions, turn):
  """Two straight ways and a cubic Hermite curve from the end of one to the start of the other.

  Args: turn: the frames (first, last) between which the curve runs.
  Returns: position and velocity [T, 2], continuous in both, whole in the frame at every frame.
  """
  first, last = turn
  rooms = np.asarray([brief.room(shape, radius) for shape in shapes])
  low_2, high_2 = rooms[:, :2].max(0), rooms[:, 2:].min(0)
  box = (*low_2, *high_2)
  legs = [level1.straight(brief, box, way) for way in directions]
  (start_2, velocity_2), (end_2, second_2) = legs
  times_T = brief.times_T
  begin_2 = start_2 + velocity_2 * times_T[first]
  seconds = times_T[last] - times_T[first]
  s = np.clip((times_T - times_T[first]) / seconds, 0, 1)[:, None]
  curve_T2 = (
    (2 * s**3 - 3 * s**2 + 1) * begin_2 + (s**3 - 2 * s**2 + s) * seconds * velocity_2
    + (3 * s**2 - 2 * s**3) * end_2 + (s**3 - s**2) * seconds * second_2
  )  # fmt: skip
  pull_T2 = (
    6 * (s**2 - s) * (begin_2 - end_2) / seconds
    + (3 * s**2 - 4 * s + 1) * velocity_2 + (3 * s**2 - 2 * s) * second_2
  )  # fmt: skip
  outside_T2 = np.minimum(times_T - times_T[first], 0)[:, None] * velocity_2
  outside_T2 = outside_T2 + np.maximum(times_T - times_T[last], 0)[:, None] * second_2
  position_T2 = curve_T2 + outside_T2
  shrink = float(min(1.0, ((high_2 - low_2) / np.ptp(position_T2, axis=0).clip(1e-9)).min()))
  position_T2 = position_T2 * shrink
  position_T2 += np.maximum(low_2 - position_T2.min(0), 0)
  position_T2 -= np.maximum(position_T2.max(0) - high_2, 0)
  return position_T2, pull_T2 * shrink
