"""Level 1: one object, whole in the frame throughout; still, constant, bounce, gravity, swing."""

import math

import numpy as np

from sora_jax.data.world import renderer, simulator
from sora_jax.data.world.scene import Actor, Brief, Scene, clip_truth, object_truth
from sora_jax.data.world.vocabulary import DIRECTIONS

SPEED = (0.4, 1.0)  # short sides per second, where the frame leaves room for it
SWING = 1.2  # most of a swing's speed, short sides per second


def compose(brief: Brief) -> Scene:
  """Draws the state of a level-1 clip and closes over how to paint it."""
  if brief.motion == "still":
    color, shape, direction = brief.pick(brief.config.colors), brief.pick(brief.config.shapes), None
  else:
    color, shape, direction = brief.triple()
  radius = brief.radius()
  box = brief.room(shape, radius)
  position_T2, velocity_T2 = _PATHS[brief.motion](brief, box, direction)
  actor = Actor(color, shape, radius, position_T2, velocity_T2, direction)

  def draw(size):
    layers = [actor.sprite(brief.style)]
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  ones = np.ones(brief.frames)
  record = object_truth(0, actor, brief.extent, ones, [0] * brief.frames)
  return Scene(clip_truth(brief, [record]), draw)


def anywhere(brief: Brief, box) -> np.ndarray:
  return np.asarray([brief.rng.uniform(box[0], box[2]), brief.rng.uniform(box[1], box[3])])


def ways(box, direction: str) -> tuple[np.ndarray, np.ndarray, float]:
  """A direction's unit vector, the width and height of a box, and its longest path that way."""
  unit_2 = np.asarray(DIRECTIONS[direction])
  room_2 = np.asarray([box[2] - box[0], box[3] - box[1]])
  return unit_2, room_2, min(r / abs(u) for r, u in zip(room_2, unit_2) if u)


def straight(brief: Brief, box, direction: str):
  """Start and velocity of a straight path inside a box: as fast as SPEED and the room allow, or
  slower where the config says so."""
  unit_2, room_2, longest = ways(box, direction)
  high = min(SPEED[1] * brief.duration, 0.98 * longest)
  low = min(SPEED[0] * brief.duration, 0.6 * high)
  path_2 = unit_2 * brief.rng.uniform(low, high) * brief.pace()
  low_2 = np.asarray(box[:2]) - np.minimum(path_2, 0)
  start_2 = low_2 + brief.rng.uniform(size=2) * (room_2 - np.abs(path_2))
  return start_2, path_2 / brief.duration


def _still(brief: Brief, box, direction):
  del direction
  return np.tile(anywhere(brief, box), (brief.frames, 1)), np.zeros((brief.frames, 2))


def _constant(brief: Brief, box, direction):
  return simulator.constant(*straight(brief, box, direction), brief.times_T)


def _bounce(brief: Brief, box, direction):
  """Starts so that the first wall is met between 30 % and 70 % of the clip."""
  unit_2 = np.asarray(DIRECTIONS[direction])
  path = max(0.3, brief.rng.uniform(0.6, 1.1) * brief.duration) * brief.pace()
  before = brief.rng.uniform(0.3, 0.7) * path
  start_2 = anywhere(brief, box)
  axes = [axis for axis in (0, 1) if unit_2[axis]]
  first = brief.pick(axes)
  for axis in axes:
    low, high = box[axis], box[axis + 2]
    way = before * abs(unit_2[axis])
    if axis != first:
      way *= brief.rng.uniform(1.0, 1.5)
    way = min(way, 0.95 * (high - low))
    start_2[axis] = high - way if unit_2[axis] > 0 else low + way
  return simulator.bounce(start_2, unit_2 * path / brief.duration, brief.times_T, box)


def _gravity(brief: Brief, box, direction):
  """Starts low enough that an upward throw stays in the frame; "down" is dropped at rest."""
  unit_2 = np.asarray(DIRECTIONS[direction])
  speed = 0.0 if direction == "down" else brief.rng.uniform(0.6, 1.2)
  rise = max(-unit_2[1] * speed, 0) ** 2 / (2 * simulator.GRAVITY)
  height = box[3] - box[1]
  if rise > 0.9 * height:
    speed *= math.sqrt(0.9 * height / rise)
    rise = 0.9 * height
  start_2 = anywhere(brief, box)
  share = brief.rng.uniform(0.0, 0.4) if unit_2[1] >= 0 else brief.rng.uniform(0.2, 0.8)
  start_2[1] = box[1] + rise + share * (height - rise)
  if unit_2[0]:
    way = brief.rng.uniform(0.0, 0.3) * (box[2] - box[0])
    start_2[0] = box[0] + way if unit_2[0] > 0 else box[2] - way
  return simulator.throw(start_2, unit_2 * speed, brief.times_T, box)


def _swing(brief: Brief, box, direction):
  """To and fro about a point, 8 frames or more a round; its first velocity has the direction."""
  unit_2, room_2, longest = ways(box, direction)
  period = max(8 / brief.fps, brief.rng.uniform(0.6, 1.2) * brief.duration)
  reach = min(0.49 * longest, SWING * period / (2 * math.pi)) * brief.rng.uniform(0.6, 1.0)
  margin_2 = reach * np.abs(unit_2)
  center_2 = np.asarray(box[:2]) + margin_2 + brief.rng.uniform(size=2) * (room_2 - 2 * margin_2)
  phase = math.pi * brief.rng.uniform(-0.4, 0.4)
  return simulator.swing(center_2, reach * unit_2, period, phase, brief.times_T)


_PATHS = {
  "still": _still, "constant": _constant, "bounce": _bounce, "gravity": _gravity, "swing": _swing,
}  # fmt: skip
