"""Level 4: acts that change the world: a painter, an eater, and the grid game with its policies."""

import numpy as np

from sora_jax.data.world import renderer, simulator, vocabulary
from sora_jax.data.world.scene import (
  Actor,
  Brief,
  Scene,
  clip_truth,
  flat_scene,
  object_truth,
)
from sora_jax.data.world.vocabulary import DIRECTIONS

CELLS = 4  # of the grid game, along the short side
STEP = 0.25  # seconds per move of the grid game
POLICIES = ("nearest", "patrol")


def compose(brief: Brief) -> Scene:
  """Draws the state of a level-4 clip and closes over how to paint it."""
  return {"paint": _paint, "eat": _eat, "game": _game}[brief.motion](brief)


def _paint(brief: Brief) -> Scene:
  """A painter goes one way, turns by a right angle, and leaves a line that stays."""
  rng = brief.rng
  color, shape, direction = brief.triple()
  radius = brief.radius(0.7)
  low_2, high_2 = np.split(np.asarray(brief.room(shape, radius)), 2)
  first_2 = np.asarray(DIRECTIONS[direction])
  start_2, corner_2 = _leg(rng, low_2, high_2, first_2)
  ways = [
    d
    for d in DIRECTIONS
    if abs(np.dot(DIRECTIONS[d], first_2)) < 0.1 and not vocabulary.is_held_out(color, shape, d)
  ]
  lengths = [_free(corner_2, np.asarray(DIRECTIONS[d]), low_2, high_2) for d in ways]
  second = ways[int(np.argmax(lengths))]
  end_2 = corner_2 + max(lengths) * rng.uniform(0.6, 0.95) * np.asarray(DIRECTIONS[second])
  legs = [np.linalg.norm(corner_2 - start_2), np.linalg.norm(end_2 - corner_2)]
  speed = sum(legs) / brief.duration
  turn = legs[0] / speed
  before, after = (
    simulator.constant(origin_2, speed * np.asarray(DIRECTIONS[d]), times_T)
    for origin_2, d, times_T in (
      (start_2, direction, brief.times_T),
      (corner_2, second, brief.times_T - turn),
    )
  )
  late_T1 = brief.times_T[:, None] > turn
  position_T2, velocity_T2 = (np.where(late_T1, b, a) for a, b in zip(before, after))
  actor = Actor(color, shape, radius, position_T2, velocity_T2, direction)
  paint = brief.color([color])
  trail = renderer.Trail(
    vocabulary.COLORS[paint], _stretches(position_T2, late_T1[:, 0], corner_2), 0.9 * radius
  )
  record = object_truth(0, actor, brief.extent, np.ones(brief.frames), [0] * brief.frames)
  length_T = np.minimum(brief.times_T * speed, sum(legs))
  about = {
    "color": paint,
    "width": trail.width,
    "corner": np.round(corner_2, 6).tolist(),
    "turn": second,
    "length": np.round(length_T, 6).tolist(),
  }

  def draw(size):
    layers = [trail, actor.sprite(brief.style)]
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  return Scene(clip_truth(brief, [record], trail=about), draw)


def _leg(rng, low_2, high_2, unit_2):
  """Start and end of a stretch of a direction inside a room."""
  longest = min((high_2 - low_2)[axis] / abs(unit_2[axis]) for axis in (0, 1) if unit_2[axis])
  path_2 = unit_2 * rng.uniform(0.5, 0.9) * longest
  base_2 = low_2 - np.minimum(path_2, 0)
  start_2 = base_2 + rng.uniform(size=2) * (high_2 - low_2 - np.abs(path_2))
  return start_2, start_2 + path_2


def _free(start_2, unit_2, low_2, high_2) -> float:
  """How far one can go from a point in a direction before leaving a room."""
  walls_2 = np.where(unit_2 > 0, high_2, low_2)
  return min((walls_2 - start_2)[axis] / unit_2[axis] for axis in (0, 1) if abs(unit_2[axis]) > 0)


def _stretches(position_T2, late_T, corner_2) -> tuple:
  """The path as pieces, each with the frame from which it is painted; the corner included."""
  pieces = [(0, *position_T2[0], *position_T2[0])]
  for frame in range(1, len(position_T2)):
    ends = [position_T2[frame - 1], position_T2[frame]]
    if late_T[frame] and not late_T[frame - 1]:
      ends.insert(1, corner_2)
    pieces += [(frame, *a, *b) for a, b in zip(ends, ends[1:])]
  return tuple(pieces)


def _eat(brief: Brief) -> Scene:
  """An eater runs through a large object and bites discs out of it, which stay missing."""
  rng = brief.rng
  color, shape, direction = brief.triple()
  radius = brief.radius(0.55)
  unit_2 = np.asarray(DIRECTIONS[direction])
  axis = 0 if unit_2[0] else 1
  kind = brief.other(list(DIRECTIONS), [color])
  size = rng.uniform(0.24, 0.3)
  box, room = brief.room(shape, radius), brief.room(kind[1], size)
  middle_2 = np.asarray(brief.extent) / 2
  food_2 = np.clip(middle_2 + rng.uniform(-0.06, 0.06, 2), room[:2], room[2:])
  lane = food_2[1 - axis] + rng.choice([-1, 1]) * rng.uniform(0.3, 0.7) * size
  start_2 = np.full(2, float(np.clip(lane, box[1 - axis], box[3 - axis])))
  ends = (box[axis], box[axis + 2])
  start_2[axis] = ends[0] if unit_2[axis] > 0 else ends[1]
  speed = 0.98 * (ends[1] - ends[0]) / brief.duration
  path = simulator.constant(start_2, unit_2 * speed, brief.times_T)
  bites = _bites(brief, path[0], axis, food_2, size, radius)
  food_T2 = np.tile(food_2, (brief.frames, 1))
  food = Actor(kind[0], kind[1], size, food_T2, np.zeros_like(food_T2), None, "food")
  eater = Actor(color, shape, radius, *path, direction, "eater")
  layers = [food.sprite("plain", True, bites), eater.sprite("plain", True)]
  seen = renderer.visibility(layers, brief.frames, brief.extent)[::-1]
  left = renderer.visibility(layers[:1], brief.frames, brief.extent)[0]
  objects = [
    object_truth(k, actor, brief.extent, seen[k], [k] * brief.frames)
    for k, actor in enumerate((eater, food))
  ]
  objects[1]["left"] = np.round(left, 6).tolist()
  events = [
    {"kind": "bite", "frame": frame, "disc": np.round(disc, 6).tolist()} for frame, *disc in bites
  ]

  def draw(size):
    layers = [food.sprite(brief.style, False, bites), eater.sprite(brief.style)]
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  return Scene(clip_truth(brief, objects, events=events), draw)


def _bites(brief: Brief, path_T2, axis: int, food_2, size: float, radius: float) -> tuple:
  """Discs at regular places along the path, bitten when the eater's centre gets there."""
  places = np.arange(food_2[axis] - size, food_2[axis] + size + 1e-9, 0.8 * radius)
  forward = path_T2[-1, axis] > path_T2[0, axis]
  bites = []
  for place in places:
    passed_T = path_T2[:, axis] >= place if forward else path_T2[:, axis] <= place
    if passed_T.any():
      spot_2 = path_T2[0].copy()
      spot_2[axis] = place
      bites.append((int(passed_T.argmax()), *spot_2.tolist(), 0.9 * radius))
  return tuple(sorted(bites))


def _game(brief: Brief) -> Scene:
  """The grid game: a player moves cell by cell under a stated policy; coins vanish when reached."""
  rng = brief.rng
  color, shape = brief.pick(brief.config.colors), brief.pick(brief.config.shapes)
  columns, rows = (max(round(CELLS * side), CELLS) for side in brief.extent)
  cell = min(brief.extent[0] / columns, brief.extent[1] / rows)
  radius = cell * 0.4 * brief.radius() / brief.config.radius[1]
  radius = (int(radius * 2**16) * 4 + vocabulary.SPLITS.index(brief.config.split)) / 2**18
  policy = brief.pick(POLICIES)
  steps = int(np.ceil(brief.times_T[-1] / STEP)) + 1
  kind = brief.other(list(DIRECTIONS), [color])
  cells = [(int(x), int(y)) for x in range(columns) for y in range(rows)]
  picks = [cells[int(i)] for i in rng.permutation(len(cells))[: int(rng.integers(3, 6))]]
  start, coins = picks[0], picks[1:] if policy == "nearest" else []
  if policy == "patrol":
    start = (start[0], 0)
  places, taken = play(policy, start, coins, (columns, rows), steps)
  middle = np.asarray([brief.extent[0] / columns, brief.extent[1] / rows])
  position_T2, velocity_T2 = _walk((np.asarray(places) + 0.5) * middle, brief.times_T)
  player = Actor(color, shape, radius, position_T2, velocity_T2, None, "player")
  actors = [player]
  for coin in coins:
    gone = taken.get(coin, np.inf) * STEP
    spot_T2 = np.tile((np.asarray(coin) + 0.5) * middle, (brief.frames, 1))
    present_T = brief.times_T < gone - 1e-9
    actors.append(
      Actor(
        kind[0], kind[1], 0.26 * cell, spot_T2, np.zeros_like(spot_T2), None, "coin",
        present_T=present_T,
      )
    )  # fmt: skip
  moments = [taken[coin] * STEP for coin in coins if coin in taken]
  about = {
    "name": "grid game",
    "policy": policy,
    "columns": columns,
    "rows": rows,
    "cells": [list(place) for place in places],
    "score": [sum(m <= t + 1e-9 for m in moments) for t in brief.times_T.tolist()],
  }
  scene = flat_scene(brief, actors, list(range(len(actors))), game=about)
  lines = _lines(brief, columns, rows)
  layers = lines + [actor.sprite(brief.style) for actor in actors[::-1]]

  def draw(size):
    return renderer.render(layers, brief.frames, size, brief.background, brief.style)

  return Scene(scene.truth, draw)


def play(policy: str, start, coins, board, steps: int):
  """The cells that the player is in after 0, 1, ... moves, and the move that took each coin.

  "nearest": towards the coin the fewest moves away (the leftmost, then topmost of equals), first
  sideways, then up or down; it stays when no coin is left. "patrol": clockwise along the edge.
  """
  place, places, taken = tuple(start), [tuple(start)], {}
  for move in range(1, steps + 1):
    if policy == "patrol":
      place = _clockwise(place, board)
    else:
      rest = [coin for coin in coins if coin not in taken]
      if rest:
        goal = min(rest, key=lambda c: (abs(c[0] - place[0]) + abs(c[1] - place[1]), c))
        axis = 0 if goal[0] != place[0] else 1
        step = 1 if goal[axis] > place[axis] else -1
        place = (place[0] + step, place[1]) if axis == 0 else (place[0], place[1] + step)
    places.append(place)
    if place in coins and place not in taken:
      taken[place] = move
  return places, taken


def _clockwise(place, board):
  """The next cell along the edge of the board."""
  (x, y), (columns, rows) = place, board
  if y == 0 and x < columns - 1:
    return x + 1, y
  if x == columns - 1 and y < rows - 1:
    return x, y + 1
  if y == rows - 1 and x > 0:
    return x - 1, y
  return x, y - 1


def _walk(points_K2, times_T):
  """Uniform motion from point to point, one every STEP seconds."""
  move_T = np.minimum((times_T / STEP + 1e-9).astype(int), len(points_K2) - 2)
  pace_T2 = (points_K2[move_T + 1] - points_K2[move_T]) / STEP
  return points_K2[move_T] + (times_T - move_T * STEP)[:, None] * pace_T2, pace_T2


def _lines(brief: Brief, columns: int, rows: int) -> list:
  """Thin lines between the cells, a little lighter or darker than the background."""
  ground = np.asarray(renderer.backdrop(brief.background, brief.style))
  rgb = tuple((ground + (40 if ground.mean() < 100 else -36)).tolist())
  width, height = brief.extent
  thin = 0.008
  boxes = [(x * width / columns - thin, 0, x * width / columns + thin, height)
           for x in range(1, columns)]  # fmt: skip
  boxes += [(0, y * height / rows - thin, width, y * height / rows + thin) for y in range(1, rows)]
  return [renderer.Rectangle(rgb, np.tile(np.asarray(box), (brief.frames, 1))) for box in boxes]
