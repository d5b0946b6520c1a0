"""What each motion promises, from its truth and its pixels."""

import math

import numpy as np
import pytest

from sora_jax.data import table
from sora_jax.data.world import World, WorldConfig, grammar, level4, orbit, vocabulary
from sora_jax.data.world.scene import MOTION_DIRECTIONS

COUNT = 16


def clips(motion: str, count: int = COUNT, **changes) -> list:
  defaults = dict(sizes=((64, 48), (48, 48), (36, 64)), frames=17, fps=(8, 16), num_clips=count)
  level = vocabulary.LEVEL_OF[motion]
  world = World(WorldConfig(levels=(level,), motions=(motion,), **defaults | changes))
  return [world[i] for i in range(count)]


def track(record: dict) -> np.ndarray:
  return np.array(record["position"])


def test_every_bounce_clip_bounces():
  for frames in (5, 9, 33):
    for clip in clips("bounce", frames=frames):
      velocity = np.array(clip.truth["objects"][0]["velocity"])
      assert (np.sign(velocity) != np.sign(velocity[0])).any(), clip.truth


@pytest.mark.parametrize("motion", ["constant", "bounce", "cut", "morph"])
def test_slow_objects_keep_what_their_motion_promises(motion):
  def speeds(found):
    return [np.linalg.norm(clip.truth["objects"][0]["velocity"][0]) for clip in found]

  usual, slow = (clips(motion, 48, sizes=((48, 48),), slowest=least) for least in (1.0, 0.1))
  assert min(speeds(slow)) < 0.4 * min(speeds(usual))
  assert 0.4 < np.median(speeds(slow)) / np.median(speeds(usual)) < 0.7
  for clip in slow:
    record = clip.truth["objects"][0]
    velocity = np.array(record["velocity"])
    named = vocabulary.DIRECTIONS[record["direction"]]
    assert velocity[0] @ named == pytest.approx(np.linalg.norm(velocity[0]), abs=1e-4)
    whole = min(record["visibility"]) > 0.999
    assert whole or motion == "morph", "what turns into another goes"
    turned = (np.sign(velocity) != np.sign(velocity[0])).any()
    assert turned if motion == "bounce" else motion != "constant" or not turned


def test_a_fraction_of_clips_is_slower_than_usual():
  def speeds(slowest, fraction):
    world = dict(sizes=((48, 48),), fps=(8,), radius=(0.2, 0.2), directions=("right",))
    found = clips("constant", 200, slowest=slowest, slow_fraction=fraction, **world)
    return np.array([clip.truth["objects"][0]["velocity"][0][0] for clip in found])

  usual = speeds(1.0, 0.5)
  np.testing.assert_array_equal(speeds(0.1, 0.0), usual)
  # Of 0.6 to 1 of the longest way, at 0.1 to 1 of that, half are below the slowest usual speed.
  slower = {share: np.mean(speeds(0.1, share) < usual.min()) for share in (0.4, 1.0)}
  assert 0.3 < slower[0.4] / slower[1.0] < 0.5
  assert slower[1.0] > 0.5


def test_every_swing_turns_and_begins_in_its_direction():
  for frames in (5, 9, 33):
    for clip in clips("swing", frames=frames):
      record = clip.truth["objects"][0]
      along = np.array(record["velocity"]) @ vocabulary.DIRECTIONS[record["direction"]]
      assert along[0] > 0 > along.min(), clip.truth
      assert abs(along).max() < 1.21


def test_the_first_two_objects_collide_and_change_their_ways():
  for clip in clips("collide", 40):
    truth = clip.truth
    pairs = [event["objects"] for event in truth["events"] if event["time"] < 16 / truth["fps"]]
    assert [0, 1] in pairs
    assert 2 <= len(truth["objects"]) <= 4
    for record in truth["objects"]:
      start = np.array(record["velocity"][0])
      named = np.array(vocabulary.DIRECTIONS[record["direction"]])
      assert start @ named == pytest.approx(np.linalg.norm(start), abs=1e-4)


def test_an_occluded_object_is_hidden_and_comes_out_again():
  for frames in (9, 17, 33):
    for clip in clips("occlude", frames=frames):
      mover, bar, *others = clip.truth["objects"]
      seen = np.array(mover["visibility"])
      assert (seen < 0.01).sum() >= 3, seen
      assert seen[0] > 0.9 and seen[-1] > 0.9
      assert max(mover["depth"]) > max(bar["depth"])
      for record in others:
        assert min(record["visibility"]) > 0.97 and max(record["depth"]) < min(bar["depth"])


def test_who_leaves_the_frame_comes_back_by_the_same_side():
  for clip in clips("leave"):
    mover, *others = clip.truth["objects"]
    seen = np.array(mover["visibility"])
    assert seen[0] > 0.97 and seen[-1] > 0.97 and (seen == 0).any()
    gone = np.flatnonzero(seen == 0)
    for box in (mover["box"][k] for k in gone):  # at most the point of a tip is still in the frame
      assert box is None or min(box[2] - box[0], box[3] - box[1]) < 0.03
    before, after = mover["position"][gone[0] - 1], mover["position"][gone[-1] + 1]
    axis = 0 if vocabulary.DIRECTIONS[mover["direction"]][0] else 1
    assert abs(before[axis] - after[axis]) < 0.3
    for record in others:
      assert min(record["visibility"]) > 0.9 and not np.any(record["velocity"])


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("motion", vocabulary.LEVEL_OF)
def test_further_objects_need_no_directions_of_the_config(motion, split):
  """Red circles that move right are held out, so one that moves left lacks its counterpart."""
  allowed = MOTION_DIRECTIONS[motion]
  if split == "heldout" and not allowed:
    pytest.skip("nothing of this motion is held out")
  configs = [{"directions": direction} for direction in allowed or vocabulary.DIRECTIONS]
  if "left" in allowed:
    side = "left" if split == "train" else "right"
    configs.append({"directions": side, "colors": "red", "shapes": "circle"})
  if not allowed:
    configs.append({"directions": "right", "colors": "red", "shapes": "circle"})
  for config in configs:
    for clip in clips(motion, 8, sizes=((24, 24),), frames=9, split=split, **config):
      main, *others = (r for r in clip.truth["objects"] if r["role"] != "bar")
      assert main["direction"] in (None, config["directions"])
      for record in others:
        known = None not in (record["direction"], main["direction"])
        triple = [record[key] for key in ("color", "shape", "direction")]
        assert not known or not vocabulary.is_held_out(*triple), triple
        assert record["color"] in config.get("colors", vocabulary.COLORS)


def test_a_pan_shifts_layers_by_their_distance():
  for clip in clips("pan"):
    truth = clip.truth
    pose = np.array(truth["camera"]["pose"])
    sign = vocabulary.DIRECTIONS[truth["camera"]["direction"]][0]
    assert (np.diff(pose[:, 0]) * sign > 0).all()
    main = truth["objects"][0]
    np.testing.assert_allclose(np.diff(track(main)[:, 0]), -np.diff(pose[:, 0]), atol=1e-5)
    assert {item["distance"] for item in truth["scenery"]} == {3.0, 0.6}
    assert min(main["visibility"]) > 0.5


def test_hills_move_less_than_objects_and_posts_more():
  """Measured on pixels: the best shift of the rows of hills and of posts between two frames."""
  shifts = []
  for clip in clips("pan", 12, sizes=((96, 54),), frames=9, backgrounds=("navy",), fps=8):
    video = clip.video_THWC.astype(float)
    pose = np.array(clip.truth["camera"]["pose"])[:, 0] * 54
    bottom = video[:, 53, :, :].sum(-1)
    posts = bottom > bottom.min() + 0.75 * np.ptp(bottom)
    moved = pose[1] - pose[0]
    candidates = np.arange(-20, 21)
    overlap = [(posts[0] & np.roll(posts[1], s)).sum() for s in candidates]
    shifts.append(candidates[int(np.argmax(overlap))] / moved)
  assert np.median(shifts) == pytest.approx(1 / 0.6, rel=0.2), shifts


def test_a_zoom_scales_the_object_by_the_camera_s_zoom():
  for clip in clips("zoom"):
    record, pose = clip.truth["objects"][0], np.array(clip.truth["camera"]["pose"])
    width = np.array([box[2] - box[0] for box in record["box"]])
    np.testing.assert_allclose(width / width[0], pose[:, 2] / pose[0, 2], rtol=1e-4)
    assert (pose[-1, 2] > pose[0, 2]) == (clip.truth["camera"]["direction"] == "in")
    numeric = np.gradient(track(record), 1 / clip.fps, axis=0)[1:-1]
    np.testing.assert_allclose(numeric, np.array(record["velocity"])[1:-1], atol=0.02)


def test_a_cut_is_hard_and_keeps_colour_and_shape():
  for clip in clips("cut"):
    truth = clip.truth
    cut = truth["events"][0]["frame"]
    first, second = truth["shots"]
    assert 0 < cut < 17 and first["background"] != second["background"]
    for frame, shot in ((cut - 1, first), (cut, second)):
      assert tuple(clip.video_THWC[frame, 0, 0]) == vocabulary.BACKGROUNDS[shot["background"]]
    assert first["direction"] != second["direction"]


@pytest.mark.parametrize("motion", ["cut", "morph"])
def test_each_shot_has_a_caption_from_its_frame_on(motion):
  for clip in clips(motion, styles=("plain", "night", "hatched")):
    parts = table.shots(clip)
    event = clip.truth["events"][0]
    assert [frame for frame, _ in parts][0] == 0 and len(parts) == 2
    at = parts[1][0]
    assert event.get("frame", event.get("after", 0)) <= at <= event.get("frame", event.get("until"))
    for (_, text), shot, record in zip(parts, clip.truth["shots"], clip.truth["objects"] * 2):
      said = grammar.parse(text)
      assert said["motion"] == "constant" and said["style"] == clip.truth["style"]
      assert said["background"] == shot["background"]
      assert said["objects"][0]["direction"] == shot["direction"]
      assert said["objects"][0]["color"] == record["color"]
  assert "shots" not in clips("pan", 1)[0].captions


def test_a_morph_goes_gradually_from_one_object_and_scene_to_another():
  same = 0
  for clip in clips("morph", 24, backgrounds=("black", "cream"), frames=(9, 17, 2)):
    truth, corner = clip.truth, clip.video_THWC[:, 0, 0, 0].astype(int)
    first, last = truth["events"][0]["after"], truth["events"][0]["until"]
    assert 0 <= first < last < truth["frames"]
    before, after = truth["shots"]
    start, end = (vocabulary.BACKGROUNDS[shot["background"]][0] for shot in (before, after))
    assert (corner[: first + 1] == start).all() and (corner[last:] == end).all()
    way = np.diff(corner) * np.sign(end - start)
    assert (way >= 0).all(), corner
    for record in truth["objects"]:
      box = np.array(record["box"])
      assert box.min() > 0 and (box.max(0)[2:] < np.array(clip.size) / min(clip.size)).all()
      velocity = np.array(record["velocity"])
      for frame, shot in ((0, before), (-1, after)):
        ways = vocabulary.nearest_direction(velocity[frame])
        assert ways == shot["direction"]
      if truth["frames"] > 2:
        steps = np.diff(track(record), axis=0) * clip.fps
        mean = (velocity[1:] + velocity[:-1]) / 2
        assert np.abs(steps - mean).max() < 0.5, "the velocity is the derivative"
    if len(truth["objects"]) == 1:
      same += 1
      assert before["background"] == after["background"]
      continue
    one, other = truth["objects"]
    assert one["color"] != other["color"] and one["shape"] != other["shape"]
    np.testing.assert_allclose(np.add(one["visibility"], other["visibility"]), 1, atol=1e-6)
    for record, frame in ((one, 0), (other, -1)):
      x, y = (np.array(record["position"][frame]) * min(clip.size)).astype(int)
      assert tuple(clip.video_THWC[frame, y, x]) == vocabulary.COLORS[record["color"]]
  assert 1 <= same <= 15


def test_orbit_truth_is_a_pinhole_projection():
  for clip in clips("orbit", 6):
    truth = clip.truth
    unit_extent = np.array(clip.size) / min(clip.size)
    pose = np.array(truth["camera"]["pose"]).reshape(17, 4, 3)
    eye, axes = pose[:, 0], pose[:, 1:]
    np.testing.assert_allclose(
      axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (17, 1, 1)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(axes), -1.0, atol=1e-5)  # right, up, *forward*
    turn = np.unwrap(np.arctan2(eye[:, 0], eye[:, 2]))
    sign = vocabulary.DIRECTIONS[truth["camera"]["direction"]][0]
    assert (np.diff(turn) * sign > 0).all()
    for record in truth["objects"]:
      seen = np.einsum("tij,tj->ti", axes, np.array(record["world_position"]) - eye)
      flat = orbit.FOCAL * seen[:, :2] / seen[:, 2:]
      np.testing.assert_allclose(unit_extent / 2 + flat * [1, -1], record["position"], atol=1e-4)
      numeric = np.gradient(track(record), 1 / clip.fps, axis=0)[1:-1]
      np.testing.assert_allclose(numeric, np.array(record["velocity"])[1:-1], atol=0.1)


def test_boxes_are_drawn_where_the_truth_says():
  for clip in clips("orbit", 8, backgrounds=("black",), colors=("red", "blue"), sizes=((96, 96),)):
    for record in clip.truth["objects"]:
      channel = {"red": 0, "blue": 2}[record["color"]]
      others = clip.video_THWC.astype(int).sum(-1) - clip.video_THWC[..., channel]
      mine = clip.video_THWC[..., channel].astype(int) > 60 + 0.55 * others
      for frame in range(17):
        if record["visibility"][frame] > 0.95 and record["box"][frame]:
          box = np.array(record["box"][frame]) * 96
          rows, columns = np.nonzero(mine[frame])
          drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
          np.testing.assert_allclose(drawn, box, atol=2.5)


def test_paint_stays_where_it_was_put():
  for clip in clips("paint"):
    truth = clip.truth
    paint = np.array(vocabulary.COLORS[truth["trail"]["color"]], float)
    away = np.linalg.norm(clip.video_THWC - paint, axis=-1)
    painted = away < 12
    for frame in range(8, 16):
      lost = painted[frame] & ~painted[frame + 1]
      x, y = np.array(truth["objects"][0]["position"][frame + 1]) * min(clip.size)
      rows, columns = np.nonzero(lost)
      reach = 1.2 * truth["objects"][0]["radius"] * min(clip.size) + 1
      assert all(math.hypot(c + 0.5 - x, r + 0.5 - y) < reach for r, c in zip(rows, columns))
    assert painted[-1].sum() > painted[8].sum() > 0
    assert np.diff(truth["trail"]["length"]).min() > 0


def test_bites_stay_missing():
  for clip in clips("eat"):
    food = clip.truth["objects"][1]
    left = np.array(food["left"])
    assert left[0] == 1.0 and (np.diff(left) <= 1e-6).all() and 0.2 < left[-1] < 0.95
    assert len(clip.truth["events"]) >= 3
    for event in clip.truth["events"]:
      x, y = (int(v * min(clip.size)) for v in event["disc"][:2])
      if 0 <= y < clip.size[1] and 0 <= x < clip.size[0]:
        food_rgb = np.array(vocabulary.COLORS[food["color"]])
        assert (
          np.abs(clip.video_THWC[event["frame"] :, y, x] - food_rgb.astype(int)).max(-1).min() > 5
        )


def test_the_player_follows_the_stated_policy():
  seen = set()
  for clip in clips("game", 40, frames=33, fps=8):
    game = clip.truth["game"]
    seen.add(game["policy"])
    cells = game["cells"]
    moves = np.abs(np.diff(np.array(cells), axis=0)).sum(1)
    assert moves.max() <= 1
    player = clip.truth["objects"][0]
    cell = np.array(clip.size) / min(clip.size) / [game["columns"], game["rows"]]
    for frame in range(0, 33, 2):  # one move per two frames
      expected = (np.array(cells[frame // 2]) + 0.5) * cell
      np.testing.assert_allclose(player["position"][frame], expected, atol=1e-5)
    coins = clip.truth["objects"][1:]
    vanished = [sum(c["visibility"][k] == 0 for c in coins) for k in range(33)]
    assert vanished == game["score"]
    if game["policy"] == "patrol":
      assert (
        all(x in (0, game["columns"] - 1) or y in (0, game["rows"] - 1) for x, y in cells)
        and (moves == 1).all()
      )
  assert seen == {"nearest", "patrol"}


def test_nearest_goes_sideways_first_and_then_rests():
  places, taken = level4.play("nearest", (0, 0), [(2, 1), (3, 3)], (4, 4), 8)
  assert places == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (3, 3), (3, 3), (3, 3)]
  assert taken == {(2, 1): 3, (3, 3): 6}


def test_patrol_goes_round_clockwise():
  places, _ = level4.play("patrol", (0, 0), [], (3, 2), 6)
  assert places == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1), (0, 0)]
