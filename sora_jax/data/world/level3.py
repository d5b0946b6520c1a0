"""Level 3: a camera that pans or zooms over layers, hard cuts; also see morph.py, orbit.py."""

import dataclasses

import numpy as np

from sora_jax.data.world import level1, morph, orbit, renderer, simulator, vocabulary
from sora_jax.data.world.scene import Actor, Brief, Scene, clip_truth, object_truth

FAR, NEAR = 3.0, 0.6  # distances of the hills and the posts; objects are at 1


def compose(brief: Brief) -> Scene:
  """Draws the state of a level-3 clip and closes over how to paint it."""
  makers = {
    "pan": _pan, "zoom": _zoom, "cut": _cut, "morph": morph.compose, "orbit": orbit.compose,
  }  # fmt: skip
  return makers[brief.motion](brief)


def project(point_2, distance: float, pose_T3: np.ndarray, extent):
  """Where a point of the layer at a distance is seen, and how large.

  screen = middle + zoom (point - camera / distance): the camera's path moves far layers less.

  Args: pose_T3: camera (x, y, zoom).  Returns: positions [T, 2] on screen, scale [T].
  """
  middle_2 = np.asarray(extent) / 2
  offset_T2 = np.asarray(point_2) - middle_2 - (pose_T3[:, :2] - middle_2) / distance
  return middle_2 + pose_T3[:, 2:] * offset_T2, pose_T3[:, 2]


def _pan(brief: Brief) -> Scene:
  rng, extent = brief.rng, brief.extent
  color, shape, direction = brief.triple()
  radius = brief.radius(0.8)
  box = brief.room(shape, radius)
  sign = vocabulary.DIRECTIONS[direction][0]
  sweep = min(rng.uniform(0.5, 1.0) * brief.duration, 0.9 * (box[2] - box[0]))
  sweep = max(sweep, 0.5 * (box[2] - box[0]))
  begin = extent[0] / 2 - sign * sweep / 2
  speed_2 = np.asarray([sign * sweep / brief.duration, 0.0])
  path_T2, _ = simulator.constant((begin, extent[1] / 2), speed_2, brief.times_T)
  pose_T3 = np.concatenate([path_T2, np.ones((brief.frames, 1))], 1)
  spot_2 = np.asarray([extent[0] / 2, rng.uniform(max(box[1], 0.4 * extent[1]), box[3])])
  spots = [(color, shape, radius, spot_2)]
  if rng.uniform() < 0.5:
    spots.append(_second(brief, color, spot_2, sign))
  return _staged(brief, spots, pose_T3, -speed_2, {"kind": "pan", "direction": direction})


def _second(brief: Brief, color: str, spot_2, sign: float):
  """Another object at rest, away from the first, which the camera comes to see or leaves."""
  kind = brief.other(list(vocabulary.DIRECTIONS), [color])
  radius = brief.rng.uniform(*brief.config.radius) * 0.7
  away = sign * brief.rng.choice([-1, 1]) * brief.rng.uniform(0.5, 0.7)
  return kind[0], kind[1], radius, spot_2 + np.asarray([away, brief.rng.uniform(-0.1, 0.1)])


def _zoom(brief: Brief) -> Scene:
  rng, extent = brief.rng, brief.extent
  color, shape = brief.pick(brief.config.colors), brief.pick(brief.config.shapes)
  radius = brief.radius(0.8)
  way = brief.pick(("in", "out"))
  small, large = rng.uniform(0.6, 0.75), rng.uniform(1.3, 1.6)
  zoom_T = small * (large / small) ** (brief.times_T / brief.duration)
  if way == "out":
    zoom_T = small * large / zoom_T
  middle_2 = np.asarray(extent) / 2
  pose_T3 = np.concatenate([np.tile(middle_2, (brief.frames, 1)), zoom_T[:, None]], 1)
  spots = [(color, shape, radius, middle_2 + rng.uniform(-0.08, 0.08, 2))]
  rate = np.log(large / small) / brief.duration * (1 if way == "in" else -1)
  return _staged(brief, spots, pose_T3, rate, {"kind": "zoom", "direction": way})


def _staged(brief: Brief, spots, pose_T3, flow, camera: dict) -> Scene:
  """Objects at rest between hills and posts, seen by a moving camera.

  Args: flow: velocity of the image of the objects' layer [2] (pan), or rate of expansion (zoom).
  """
  middle_2, actors = np.asarray(brief.extent) / 2, []
  for color, shape, radius, spot_2 in spots:
    screen_T2, scale_T = project(spot_2, 1.0, pose_T3, brief.extent)
    if np.ndim(flow):
      velocity_T2 = np.tile(flow, (brief.frames, 1))
    else:
      velocity_T2 = flow * (screen_T2 - middle_2)
    actors.append(Actor(color, shape, radius, screen_T2, velocity_T2, None, scale_T=scale_T))
  behind, before, scenery = _scenery(brief, pose_T3)
  order = list(range(len(actors)))[::-1]
  layers = [actors[k].sprite("plain", tracked=True) for k in order] + before
  seen = renderer.visibility(layers, brief.frames, brief.extent)[::-1]
  objects = [
    object_truth(k, actor, brief.extent, seen[k], [k] * brief.frames)
    | {"world_position": np.round(spots[k][3], 6).tolist()}
    for k, actor in enumerate(actors)
  ]

  def draw(size):
    sprites = [actors[k].sprite(brief.style) for k in order]
    layers = behind + sprites + before
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  camera |= {"pose": np.round(pose_T3, 6).tolist()}
  return Scene(clip_truth(brief, objects, camera=camera, scenery=scenery), draw)


def _scenery(brief: Brief, pose_T3):
  """Hills far behind the objects and posts before them: layers, and their truth."""
  rng, (width, height) = brief.rng, brief.extent
  ground = np.asarray(renderer.backdrop(brief.background, brief.style))
  light = ground.mean() < 100
  hill_rgb = tuple((ground + (34 if light else -30)).tolist())
  post_rgb = tuple((ground * 0.5 + (72 if light else 10)).tolist())
  behind, before, truth = [], [], []
  for k in range(-2, round(3 * width) + 2):
    radius = rng.uniform(0.22, 0.36)
    spot_2 = ((k + rng.uniform(0.2, 0.8)) / 2, height * 0.98)
    center_T2, scale_T = project(spot_2, FAR, pose_T3, brief.extent)
    behind.append(renderer.Sprite("circle", hill_rgb, center_T2, radius * scale_T))
    truth.append({"kind": "hill", "distance": FAR, "position": list(spot_2), "radius": radius})
  for k in range(-3, round(3 * width) + 3):
    left = (k + rng.uniform(0.0, 0.3)) * 0.8
    low_T2, _ = project((left, 0.82 * height), NEAR, pose_T3, brief.extent)
    high_T2, _ = project((left + 0.07, 3 * height), NEAR, pose_T3, brief.extent)
    before.append(renderer.Rectangle(post_rgb, np.concatenate([low_T2, high_T2], 1)))
    truth.append({"kind": "post", "distance": NEAR, "position": [left, 0.82 * height]})
  return behind, before, truth


def _cut(brief: Brief) -> Scene:
  """Two shots of one object: another place, size and direction after the cut."""
  rng = brief.rng
  color, shape, direction = brief.triple()
  second = brief.pick(
    [
      d
      for d in brief.config.directions
      if d != direction and not vocabulary.is_held_out(color, shape, d)
    ]
    or [direction]
  )
  cut = int(rng.integers(brief.frames // 3, 2 * brief.frames // 3 + 1)) if brief.frames > 2 else 1
  others = [b for b in brief.config.backgrounds if b != brief.background]
  backdrops = (brief.background, brief.pick(others or [brief.background]))
  radii = (brief.radius(), brief.rng.uniform(*brief.config.radius))
  shots, paths = [], []
  for frames, way, backdrop, radius in zip(
    (cut, brief.frames - cut), (direction, second), backdrops, radii
  ):
    shot = dataclasses.replace(brief, frames=frames, background=backdrop)
    box = shot.room(shape, radius)
    path = simulator.constant(*level1.straight(shot, box, way), shot.times_T)
    paths.append(path)
    shots.append((shot, Actor(color, shape, radius, *path, way)))

  def draw(size):
    parts = [
      renderer.render([actor.sprite(shot.style)], shot.frames, size, shot.background, shot.style)
      for shot, actor in shots
    ]
    return np.concatenate(parts)

  position_T2, velocity_T2 = (np.concatenate(part) for part in zip(*paths))
  scale_T = np.repeat([1.0, radii[1] / radii[0]], (cut, brief.frames - cut))
  whole = Actor(color, shape, radii[0], position_T2, velocity_T2, direction, scale_T=scale_T)
  record = object_truth(0, whole, brief.extent, np.ones(brief.frames), [0] * brief.frames)
  starts = zip((0, cut), backdrops, (direction, second))
  more = {
    "shots": [{"start": n, "background": b, "direction": d} for n, b, d in starts],
    "events": [{"kind": "cut", "frame": cut}],
  }
  return Scene(clip_truth(brief, [record], **more), draw)
