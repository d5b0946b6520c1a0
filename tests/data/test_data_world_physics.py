"""The simulator against analytic trajectories and conservation laws; the renderer against areas."""

import math

import numpy as np
import pytest

from sora_jax.data.world import World, WorldConfig, outline, renderer, simulator, vocabulary

TIMES = np.linspace(0, 4, 193)
BOX = (0.2, 0.15, 1.5, 0.85)


def test_constant_motion_is_a_line():
  position, velocity = simulator.constant((0.3, 0.4), (0.5, -0.25), TIMES)
  np.testing.assert_allclose(position[:, 0], 0.3 + 0.5 * TIMES)
  np.testing.assert_allclose(position[:, 1], 0.4 - 0.25 * TIMES)
  np.testing.assert_array_equal(velocity, np.tile([0.5, -0.25], (len(TIMES), 1)))


def stepped(start, velocity, gravity, restitution, box, times, substeps=4000):
  """The same motion by brute force: tiny steps, each wall reflecting what went beyond it."""
  p, v, out = np.array(start, float), np.array(velocity, float), []
  for before, now in zip(np.concatenate([[times[0]], times[:-1]]), times):
    dt = (now - before) / substeps
    for _ in range(substeps if dt else 0):
      p, v = p + dt * v + [0, dt * dt * gravity / 2], v + [0, dt * gravity]
      for axis in (0, 1):
        keep = restitution if axis == 1 and gravity else 1.0
        if p[axis] > box[axis + 2] and v[axis] > 0:
          p[axis] = 2 * box[axis + 2] - p[axis]
          v[axis] *= -keep
        if p[axis] < box[axis] and v[axis] < 0:
          p[axis], v[axis] = 2 * box[axis] - p[axis], -v[axis]
    out.append(p.copy())
  return np.array(out)


def test_bounces_reflect_and_keep_the_speed():
  position, velocity = simulator.bounce((0.4, 0.5), (1.1, -0.7), TIMES, BOX)
  assert (position >= np.array(BOX[:2]) - 1e-12).all()
  assert (position <= np.array(BOX[2:]) + 1e-12).all()
  np.testing.assert_allclose(np.abs(velocity), np.tile([1.1, 0.7], (len(TIMES), 1)))
  brute = stepped((0.4, 0.5), (1.1, -0.7), 0.0, 1.0, BOX, TIMES[:60:6], 2000)
  np.testing.assert_allclose(position[:60:6], brute, atol=1e-9)
  x, _ = simulator.fold(0.4, 1.1, np.array([0.0, 2 * 1.3 / 1.1]), BOX[0], BOX[2])
  np.testing.assert_allclose(x[1], x[0], err_msg="a full round takes 2 width / speed")


def test_a_swing_is_harmonic_and_comes_back_after_a_period():
  position, velocity = simulator.swing((0.5, 0.4), (0.2, -0.1), 1.6, 0.3, TIMES)
  square = (2 * math.pi / 1.6) ** 2
  dt = TIMES[1] - TIMES[0]
  change = np.diff(velocity, axis=0) / dt
  middle = (position[1:] + position[:-1]) / 2
  np.testing.assert_allclose(change, -square * (middle - [0.5, 0.4]), atol=square * dt**2)
  again, speed = simulator.swing((0.5, 0.4), (0.2, -0.1), 1.6, 0.3, TIMES + 1.6)
  np.testing.assert_allclose(again, position, atol=1e-12)
  np.testing.assert_allclose(speed, velocity, atol=1e-12)
  np.testing.assert_allclose(
    position[0], np.array([0.5, 0.4]) + math.sin(0.3) * np.array([0.2, -0.1])
  )


def test_a_throw_is_a_parabola_until_the_floor_and_loses_speed_there():
  position, velocity = simulator.throw((0.4, 0.4), (0.3, -0.6), TIMES, BOX)
  landing = (0.6 + math.sqrt(0.36 + 4 * 0.45)) / 2.0  # y0 - .6 t + t^2 = floor
  air = TIMES < landing
  np.testing.assert_allclose(position[air, 1], 0.4 - 0.6 * TIMES[air] + TIMES[air] ** 2)
  np.testing.assert_allclose(velocity[air, 1], -0.6 + 2.0 * TIMES[air])
  assert (position[:, 1] <= BOX[3] + 1e-12).all()
  arrival = -0.6 + 2.0 * landing
  second = TIMES[~air][0]
  np.testing.assert_allclose(
    velocity[~air][0, 1], -simulator.RESTITUTION * arrival + 2.0 * (second - landing)
  )
  brute = stepped((0.4, 0.4), (0.3, -0.6), 2.0, simulator.RESTITUTION, BOX, TIMES[:97:12], 8000)
  np.testing.assert_allclose(position[:97:12], brute, atol=2e-3)


def test_a_ball_that_has_lost_its_speed_rests_on_the_floor():
  position, velocity = simulator.throw((0.4, 0.7), (0.0, 0.0), np.linspace(0, 60, 61), BOX)
  np.testing.assert_allclose(position[-1], [0.4, BOX[3]])
  np.testing.assert_array_equal(velocity[-1], 0)


def test_a_head_on_collision_gives_the_textbook_speeds():
  """Masses 4 and 1 (radii 2:1) at speeds 1 and -1: after it 0.2 and 2.2."""
  far = (-9.0, -9.0, 9.0, 9.0)
  path, speed, hits = simulator.collide(
    [[0, 0], [1, 0]], [[1, 0], [-1, 0]], [0.2, 0.1], np.array([0.0, 0.3, 0.6]), [far, far]
  )
  assert [(i, j) for _, i, j in hits] == [(0, 1)]
  np.testing.assert_allclose(hits[0][0], 0.35)
  np.testing.assert_allclose(speed[:, 2], [[0.2, 0], [2.2, 0]], atol=1e-12)
  np.testing.assert_allclose(path[0, 2], [0.35 + 0.2 * 0.25, 0])


def test_collisions_keep_energy_always_and_momentum_between_walls():
  rng = np.random.default_rng(0)
  radii = np.array([0.1, 0.07, 0.12, 0.09])
  starts = np.array([[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8]])
  boxes = np.array([[r, r, 1 - r, 1 - r] for r in radii])
  velocities = rng.normal(size=(4, 2))
  path, speed, hits = simulator.collide(starts, velocities, radii, TIMES, boxes)
  masses = radii[:, None] ** 2
  energy = (masses[:, None] * speed**2).sum((0, 2)) / 2
  np.testing.assert_allclose(energy, energy[0], rtol=1e-12)
  assert len(hits) > 5
  for i in range(4):
    for j in range(i):
      gap = np.linalg.norm(path[i] - path[j], axis=1) - radii[i] - radii[j]
      assert gap.min() > -1e-9, "objects may touch, not overlap"
  nowhere = np.tile([-99.0, -99.0, 99.0, 99.0], (4, 1))
  velocities = (0.5 - starts) + 0.1 * rng.normal(size=(4, 2))
  _, speed, hits = simulator.collide(starts, velocities, radii, TIMES, nowhere)
  momentum = (masses[:, None] * speed).sum(0)
  assert hits
  np.testing.assert_allclose(momentum, np.tile(momentum[0], (len(TIMES), 1)), atol=1e-14)


@pytest.mark.parametrize("shape", vocabulary.SHAPES)
@pytest.mark.parametrize("radius", [4.3, 7.0, 21.7])
def test_painted_area_is_the_shape_s_area(shape, radius):
  """Within 2 %, at sub-pixel offsets; a star's thin tips are allowed 5 % below 6 pixels."""
  centers = np.array([[32.0, 32.0], [32.3, 31.6], [31.75, 32.45]]) / 64
  sprite = renderer.Sprite(shape, (255, 255, 255), centers, np.full(3, radius / 64))
  video = renderer.render([sprite], 3, (64, 64), "black", "plain")
  area = video[..., 0].sum((1, 2)) / 255
  tolerance = 0.05 if shape == "star" and radius < 6 else 0.02
  np.testing.assert_allclose(area, outline.AREA[shape] * radius**2, rtol=tolerance)


def test_circle_edges_are_exact_at_sub_pixel_precision():
  center = np.array([[0.5 + 0.2 / 64, 0.5 - 0.37 / 64]])
  sprite = renderer.Sprite("circle", (255, 255, 255), center, np.array([9.3 / 64]))
  light = renderer.render([sprite], 1, (64, 64), "black", "plain")[0, ..., 0] / 255
  grid = np.arange(64) + 0.5
  np.testing.assert_allclose((light.sum(0) @ grid) / light.sum(), 32.2, atol=0.01)
  np.testing.assert_allclose((light.sum(1) @ grid) / light.sum(), 31.63, atol=0.01)


@pytest.mark.parametrize("motion", [*vocabulary.LEVEL_OF])
def test_a_clip_is_the_same_scene_at_any_resolution(motion):
  level = vocabulary.LEVEL_OF[motion]
  make = dict(levels=(level,), motions=(motion,), frames=5, num_clips=4)
  small, large = (World(WorldConfig(sizes=((w, h),), **make)) for w, h in ((48, 32), (192, 128)))
  for i in range(4):
    a, b = small[i], large[i]
    assert a.truth | {"size": None} == b.truth | {"size": None}
    mean = b.video_THWC.reshape(5, 32, 4, 48, 4, 3).astype(float).mean((2, 4))
    error = np.abs(mean - a.video_THWC)
    limit = 9.0 if motion == "orbit" else 2.0
    assert error.mean() < limit, (motion, error.mean())


@pytest.mark.parametrize("motion", ["constant", "bounce", "gravity", "swing"])
def test_a_lone_object_stays_whole_in_the_frame_and_matches_its_truth(motion):
  sizes = ((64, 36), (48, 36), (40, 40), (36, 48), (36, 64))
  world = World(WorldConfig(motions=(motion,), sizes=sizes, frames=(9, 33), num_clips=40))
  for i in range(40):
    clip = world[i]
    truth, unit = clip.truth, min(clip.size)
    record = truth["objects"][0]
    back = np.array(vocabulary.BACKGROUNDS[truth["background"]])
    paint = np.array(vocabulary.COLORS[record["color"]])
    span = (paint - back).astype(float)
    alpha = (clip.video_THWC - back.astype(float)) @ span / (span @ span)
    mass = alpha.sum((1, 2))
    whole = outline.AREA[record["shape"]] * (record["radius"] * unit) ** 2
    np.testing.assert_allclose(mass, whole, rtol=0.05, err_msg="a part is outside the frame")
    x = (alpha.sum(1) @ (np.arange(clip.size[0]) + 0.5)) / mass
    y = (alpha.sum(2) @ (np.arange(clip.size[1]) + 0.5)) / mass
    seen = np.stack([x, y], 1) / unit
    np.testing.assert_allclose(seen, record["position"], atol=0.25 / unit)
    steps = np.diff(np.array(record["position"]), axis=0) * clip.fps
    if motion == "constant":
      np.testing.assert_allclose(steps, record["velocity"][1:], atol=1e-4)
      way = steps.mean(0) @ np.array(vocabulary.DIRECTIONS[record["direction"]])
      np.testing.assert_allclose(way, np.linalg.norm(steps.mean(0)), rtol=1e-4)
      assert np.linalg.norm(steps.mean(0)) * (len(seen) - 1) / clip.fps > 0.15
