"""Motion in closed form: positions and velocities at any times, without a time step.

Positions and velocities are [T, 2] (x right, y down, short sides, seconds); a box is (left, top,
right, bottom) of where an object's *centre* may be.
"""

import math

import numpy as np

GRAVITY = 2.0  # short sides per second squared, downwards, the same in every clip
RESTITUTION = 0.8  # share of the vertical speed that a floor gives back under gravity


def constant(start_2, velocity_2, times_T) -> tuple[np.ndarray, np.ndarray]:
  """Uniform motion: p = p0 + v t."""
  velocity_T2 = np.broadcast_to(np.asarray(velocity_2, float), (len(times_T), 2))
  return np.asarray(start_2, float) + times_T[:, None] * velocity_T2, velocity_T2.copy()


def fold(start, velocity, times_T, low, high) -> tuple[np.ndarray, np.ndarray]:
  """One coordinate that is mirrored at two walls: a triangle wave of period 2 (high - low).

  Returns: position [T] and velocity [T], of the same speed throughout.
  """
  span = high - low
  if span <= 0:
    raise ValueError(f"no room between walls at {low} and {high}")
  phase_T = (start - low + velocity * times_T) % (2 * span)
  position_T = low + np.where(phase_T < span, phase_T, 2 * span - phase_T)
  return position_T, np.where(phase_T < span, velocity, -velocity)


def bounce(start_2, velocity_2, times_T, box) -> tuple[np.ndarray, np.ndarray]:
  """Uniform motion that reflects at the four walls of a box, without loss."""
  x_T, vx_T = fold(start_2[0], velocity_2[0], times_T, box[0], box[2])
  y_T, vy_T = fold(start_2[1], velocity_2[1], times_T, box[1], box[3])
  return np.stack([x_T, y_T], 1), np.stack([vx_T, vy_T], 1)


def swing(center_2, reach_2, period, phase, times_T) -> tuple[np.ndarray, np.ndarray]:
  """Harmonic motion about a centre: p = c + r sin(2 pi t / period + phase).

  Args: reach_2: r, from the centre to where it turns.  period: seconds.  phase: radians.
  """
  angle_T1 = (2 * math.pi * times_T / period + phase)[:, None]
  reach_2 = np.asarray(reach_2, float)
  velocity_T2 = reach_2 * (2 * math.pi / period) * np.cos(angle_T1)
  return np.asarray(center_2, float) + reach_2 * np.sin(angle_T1), velocity_T2


def throw(start_2, velocity_2, times_T, box) -> tuple[np.ndarray, np.ndarray]:
  """Free fall y = y0 + vy t + GRAVITY t^2 / 2 that bounces on the floor and off the side walls.

  Each bounce on the floor keeps RESTITUTION of the vertical speed; slow ones come to rest.
  """
  x_T, vx_T = fold(start_2[0], velocity_2[0], times_T, box[0], box[2])
  floor, y, vy, begin = box[3], float(start_2[1]), float(velocity_2[1]), 0.0
  y_T, vy_T = np.empty(len(times_T)), np.empty(len(times_T))
  while True:
    flight = (-vy + math.sqrt(vy * vy + 2 * GRAVITY * max(floor - y, 0.0))) / GRAVITY
    inside_T = times_T >= begin
    since_T = times_T[inside_T] - begin
    y_T[inside_T] = y + vy * since_T + 0.5 * GRAVITY * since_T**2
    vy_T[inside_T] = vy + GRAVITY * since_T
    begin += flight
    if begin > times_T[-1]:
      break
    vy, y = -RESTITUTION * (vy + GRAVITY * flight), floor
    if -vy < 0.05:
      rest_T = times_T >= begin
      y_T[rest_T], vy_T[rest_T] = floor, 0.0
      break
  return np.stack([x_T, y_T], 1), np.stack([vx_T, vy_T], 1)


def collide(starts_N2, velocities_N2, radii_N, times_T, boxes):
  """Discs of mass radius^2 in boxes that meet elastically, from event to event without a time step.

  In a collision of masses m, M along the unit normal n, the velocities change by -2 M / (m + M) and
  +2 m / (m + M) times the approach (v - V).n along n: momentum and energy are kept.

  Args: boxes: for each disc the walls (left, top, right, bottom) of its centre.
  Returns: positions and velocities [N, T, 2] and the collisions [(time, i, j)], i < j.
  """
  positions, velocities = np.array(starts_N2, float), np.array(velocities_N2, float)
  radii, boxes = np.asarray(radii_N, float), np.asarray(boxes, float)
  masses, count = radii**2, len(radii)
  path_NT2, speed_NT2 = np.empty((2, count, len(times_T), 2))
  now, frame, hits = 0.0, 0, []
  while frame < len(times_T):
    wait, event = _next_event(positions, velocities, radii, boxes)
    while frame < len(times_T) and times_T[frame] <= now + wait:
      path_NT2[:, frame] = positions + (times_T[frame] - now) * velocities
      speed_NT2[:, frame] = velocities
      frame += 1
    if not math.isfinite(wait):
      continue
    positions += wait * velocities
    now += wait
    if event[0] == "wall":
      velocities[event[1], event[2]] *= -1
      continue
    i, j = event[1:]
    normal_2 = (positions[j] - positions[i]) / np.linalg.norm(positions[j] - positions[i])
    approach = (velocities[i] - velocities[j]) @ normal_2
    share = 2 * approach / (masses[i] + masses[j])
    velocities[i] -= share * masses[j] * normal_2
    velocities[j] += share * masses[i] * normal_2
    hits.append((now, i, j))
  return path_NT2, speed_NT2, hits


def _next_event(positions, velocities, radii, boxes):
  """Seconds until the next wall or pair is met, and which: ("wall", i, axis), ("pair", i, j)."""
  wait, event = math.inf, ("none",)
  for i in range(len(radii)):
    for axis in (0, 1):
      speed = velocities[i, axis]
      if speed:
        wall = boxes[i, axis + 2] if speed > 0 else boxes[i, axis]
        until = max((wall - positions[i, axis]) / speed, 0.0)
        if until < wait:
          wait, event = until, ("wall", i, axis)
    for j in range(i + 1, len(radii)):
      until = _until_contact(
        positions[j] - positions[i], velocities[j] - velocities[i], radii[i] + radii[j]
      )
      if until < wait:
        wait, event = until, ("pair", i, j)
  return wait, event


def _until_contact(offset_2, velocity_2, distance: float) -> float:
  """Seconds until two approaching discs touch; infinite if they part or miss."""
  closing = float(offset_2 @ velocity_2)
  if closing >= 0:
    return math.inf
  squared = float(velocity_2 @ velocity_2)
  gap = float(offset_2 @ offset_2) - distance**2
  discriminant = closing**2 - squared * gap
  if discriminant <= 0:
    return math.inf
  return max((-closing - math.sqrt(discriminant)) / squared, 0.0)
