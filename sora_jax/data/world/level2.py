"""Level 2: two to four objects that collide, pass behind a bar, or leave and come back."""

import numpy as np

from sora_jax.data.world import outline, simulator
from sora_jax.data.world.scene import Actor, Bar, Brief, Scene, flat_scene
from sora_jax.data.world.vocabulary import DIRECTIONS

TRIES = 40


def compose(brief: Brief) -> Scene:
  """Draws the state of a level-2 clip and closes over how to paint it."""
  return {"collide": _collide, "occlude": _occlude, "leave": _leave}[brief.motion](brief)


def _collide(brief: Brief) -> Scene:
  """Two objects meet in the middle part of the clip; up to two more fly about."""
  count = int(brief.rng.choice([2, 3, 4], p=[0.5, 0.3, 0.2]))
  first = brief.triple()
  kinds = [first]
  for _ in range(count - 1):
    taken = [kind[0] for kind in kinds]
    kinds.append(brief.other([d for d in DIRECTIONS if d != first[2]], taken))
  radii = [brief.radius(0.8)] + [brief.rng.uniform(*brief.config.radius) * 0.7 for _ in kinds[1:]]
  boxes = [brief.room(kind[1], radius, 0.0) for kind, radius in zip(kinds, radii)]
  for crowd in (count, 2):  # in a frame too crowded for a sure hit, the first two are alone
    aimed = _aim(brief, kinds[:crowd], radii[:crowd], boxes[:crowd])
    if aimed is not None:
      break
  path_NT2, speed_NT2, hits = aimed
  actors = [
    Actor(color, shape, radius, path_T2, speed_T2, direction)
    for (color, shape, direction), radius, path_T2, speed_T2 in zip(
      kinds, radii, path_NT2, speed_NT2
    )
  ]
  events = [{"kind": "collision", "time": round(time, 6), "objects": [i, j]} for time, i, j in hits]
  return flat_scene(brief, actors, list(range(len(actors))), events=events)


def _aim(brief: Brief, kinds, radii, boxes):
  """Motion in the named directions in which the first two meet within the clip.

  Returns: what `simulator.collide` does; None if nothing fits, which two objects alone always do.
  """
  rng, count = brief.rng, len(kinds)
  units = np.asarray([DIRECTIONS[kind[2]] for kind in kinds])
  lows, highs = np.asarray(boxes)[:, :2], np.asarray(boxes)[:, 2:]
  for _ in range(TRIES if count > 2 else 100 * TRIES):
    velocities = units * rng.uniform(0.4, 0.9, count)[:, None]
    starts = rng.uniform(lows, highs)
    starts[:2] = _meeting(brief, velocities, radii)
    gaps = [
      np.linalg.norm(starts[i] - starts[j]) - 1.15 * (radii[i] + radii[j])
      for i in range(2, count)  # the aimed pair is apart by construction, perhaps by little
      for j in range(i)
    ]
    if (starts < lows).any() or (starts > highs).any() or any(gap < 0 for gap in gaps):
      continue
    found = simulator.collide(starts, velocities, radii, brief.times_T, boxes)
    if any((i, j) == (0, 1) and time < 0.9 * brief.duration for time, i, j in found[2]):
      return found
  return None


def _meeting(brief: Brief, velocities, radii) -> np.ndarray:
  """Starts [2, 2] from which the first two touch near the frame's middle, not always head on."""
  rng = brief.rng
  fastest = np.linalg.norm(velocities[:2], axis=1).max()
  meet = min(rng.uniform(0.3, 0.6) * brief.duration, rng.uniform(0.15, 0.3) / fastest)
  approach = velocities[0] - velocities[1]
  turn = rng.uniform(-0.7, 0.7)
  cos, sin = np.cos(turn), np.sin(turn)
  normal = np.asarray([[cos, -sin], [sin, cos]]) @ approach / np.linalg.norm(approach)
  touch = np.asarray(brief.extent) / 2 + rng.uniform(-0.15, 0.15, 2)
  ends = touch + np.asarray([[-radii[0]], [radii[1]]]) * normal
  return ends - meet * velocities[:2]


def _occlude(brief: Brief) -> Scene:
  """The object passes wholly behind a bar; half the time another passes in front of it."""
  rng = brief.rng
  color, shape, direction = brief.triple()
  radius = brief.radius(0.48)
  unit_2 = np.asarray(DIRECTIONS[direction])
  axis = 0 if unit_2[0] else 1
  box, extent = brief.room(shape, radius), brief.extent
  back = {"right": "left", "left": "right", "up": "down", "down": "up"}[direction]
  two = rng.uniform() < 0.5 and bool(brief.others([back]))
  lane = rng.uniform(0.3, 0.4) if two else rng.uniform(0.3, 0.7)  # share of the other axis
  first = _cross(brief, box, unit_2, axis, lane)
  path = first[0][:, axis]
  stride = abs(first[1][0][axis]) / brief.fps
  before, after = (radius * outline.EXTENT[shape][k] for k in (axis, axis + 2))
  low, high = path.min() + after, path.max() - before  # free on both sides when it is whole
  width = min(before + after + max(3.2 * stride, 0.05) + 0.02, high - low)
  middle = np.clip(extent[axis] / 2 + rng.uniform(-0.04, 0.04), low + width / 2, high - width / 2)
  bar_4 = np.asarray([0.0, 0.0, *extent])
  bar_4[axis], bar_4[axis + 2] = middle - width / 2, middle + width / 2
  bar = Bar(brief.color([color]), bar_4, brief.frames)
  actors = [Actor(color, shape, radius, *first, direction), bar]
  near_first = [1, 0]
  if two:
    kind = brief.other([back], [color, bar.color])
    size = rng.uniform(*brief.config.radius) * 0.5
    path = _cross(brief, brief.room(kind[1], size), -unit_2, axis, rng.uniform(0.65, 0.8))
    actors.append(Actor(kind[0], kind[1], size, *path, kind[2]))
    near_first = [2, 1, 0]
  return flat_scene(brief, actors, near_first)


def _cross(brief: Brief, box, unit_2, axis: int, lane: float):
  """Uniform motion from one side of the frame to the other in a lane of the other axis."""
  low, high = np.asarray(box[:2]), np.asarray(box[2:])
  path = high[axis] - low[axis]
  start_2 = low + lane * (high - low)
  start_2[axis] = low[axis] if unit_2[axis] > 0 else high[axis]
  return simulator.constant(start_2, unit_2 * path / brief.duration, brief.times_T)


def _leave(brief: Brief) -> Scene:
  """The object leaves the frame, turns where nobody sees it, and comes back by the same side."""
  rng = brief.rng
  color, shape, direction = brief.triple()
  radius = brief.radius(0.7)
  unit_2 = np.asarray(DIRECTIONS[direction])
  axis = 0 if unit_2[0] else 1
  box = np.asarray(brief.room(shape, radius))
  kinds = [brief.other(list(DIRECTIONS), [color])]
  if rng.uniform() < 0.4:
    kinds.append(brief.other(list(DIRECTIONS), [color, kinds[0][0]]))
  lane = rng.uniform(0.0, 0.25) if rng.uniform() < 0.5 else rng.uniform(0.75, 1.0)
  start_2 = box[:2] + lane * (box[2:] - box[:2])
  hidden = 2.4 * radius + 0.1  # how far beyond its last whole view it turns
  inside = min(rng.uniform(0.2, 0.4), box[axis + 2] - box[axis])
  way = inside + hidden
  start_2[axis] = box[axis + 2] - inside if unit_2[axis] > 0 else box[axis] + inside
  walls = box.copy()
  walls[axis + 2 if unit_2[axis] > 0 else axis] += unit_2[axis] * hidden
  speed = way / (rng.uniform(0.45, 0.55) * brief.duration)
  path = simulator.bounce(start_2, unit_2 * speed, brief.times_T, walls)
  actors = [Actor(color, shape, radius, *path, direction)]
  for k, kind in enumerate(kinds):
    actors.append(_bystander(brief, kind, 1 - axis, lane < 0.5, (k + 0.5) / len(kinds)))
  return flat_scene(brief, actors, list(range(len(actors))))


def _bystander(brief: Brief, kind, across: int, far: bool, along: float) -> Actor:
  """An object at rest, on the other side of the frame than the lane of the one that moves."""
  radius = brief.rng.uniform(*brief.config.radius) * 0.7
  low, high = np.split(np.asarray(brief.room(kind[1], radius)), 2)
  spot_2 = low + (along + brief.rng.uniform(-0.1, 0.1)) * (high - low)
  share = brief.rng.uniform(0.8, 1.0)
  spot_2[across] = low[across] + (share if far else 1 - share) * (high[across] - low[across])
  still_T2 = np.zeros((brief.frames, 2))
  return Actor(kind[0], kind[1], radius, still_T2 + spot_2, still_T2, None)
