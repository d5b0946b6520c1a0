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
