"""The world dataset: determinism, splits, held-out combinations, sizes, shards, errors."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from sora_jax.data import records
from sora_jax.data.world import World, WorldConfig, build, prompts, vocabulary

SIZES = ((48, 27), (40, 30), (32, 32), (30, 40), (27, 48))


def everything(**changes) -> WorldConfig:
  """A world of all levels, motions, styles and shapes of frame."""
  defaults = dict(
    levels=tuple(vocabulary.MOTIONS),
    sizes=SIZES,
    frames=(5, 9),
    fps=(8, 16, 24),
    styles=vocabulary.STYLES,
    image_fraction=0.1,
    num_clips=64,
  )
  return WorldConfig(**defaults | changes)


def test_a_clip_is_a_function_of_seed_split_and_index():
  world, again = World(everything()), pickle.loads(pickle.dumps(World(everything())))
  for i in (0, 63, 7, 31, 7):
    a, b = world[i], again[i]
    assert (a.id, a.captions, a.truth, a.fps) == (b.id, b.captions, b.truth, b.fps)
    np.testing.assert_array_equal(a.video_THWC, b.video_THWC)
  other = World(everything(seed=1))
  assert any(world[i].truth != other[i].truth for i in range(3))
  assert World(everything(num_clips=2))[1].truth == world[1].truth, "must not depend on the length"


def test_sizes_frames_and_rates_are_what_was_asked():
  clips = [World(everything(num_clips=200))[i] for i in range(200)]
  assert {c.size for c in clips} == set(SIZES)
  assert {c.num_frames for c in clips} == {1, 5, 9}
  for clip in clips:
    assert (clip.fps is None) == (clip.num_frames == 1)
    assert clip.fps in (None, 8, 16, 24)
    assert json.loads(json.dumps(clip.truth)) == clip.truth
    for record in clip.truth["objects"]:
      for key in ("position", "velocity", "visibility", "box", "depth"):
        assert len(record[key]) == clip.num_frames, (clip.truth["motion"], key)
    assert len(clip.truth["camera"]["pose"]) == clip.num_frames
  assert {c.truth["motion"] for c in clips} == {"still", *vocabulary.LEVEL_OF}


def test_splits_share_no_clip():
  radii = {
    split: {
      World(everything(split=split)).scene(i).truth["objects"][0]["radius"] for i in range(64)
    }
    for split in vocabulary.SPLITS
  }
  for k, split in enumerate(vocabulary.SPLITS):
    assert {round(r * 2**18) % 4 for r in radii[split]} == {k}, "the size must name the split"


def held_out(truth: dict) -> list[bool]:
  """For each object with a direction, its own or a panning camera's, whether it is held out."""
  pan = truth["camera"]["direction"] if truth["motion"] == "pan" else None
  return [
    vocabulary.is_held_out(r["color"], r["shape"], r["direction"] or pan)
    for r in truth["objects"][: 1 if pan else None]
    if r["direction"] or pan
  ]


def test_held_out_combinations_occur_in_their_split_alone():
  for split in ("train", "validation", "test"):
    world = World(everything(split=split, num_clips=300))
    assert not any(any(held_out(world.scene(i).truth)) for i in range(300)), split
  world = World(everything(split="heldout", num_clips=300))
  assert all(held_out(world.scene(i).truth)[0] for i in range(300))


def test_held_out_leaves_every_pair_of_attributes_in_training():
  config = WorldConfig()
  kept, out = config.triples(False), config.triples(True)
  assert (len(kept), len(out)) == (240, 16)
  for drop in range(3):
    pairs = {t[:drop] + t[drop + 1 :] for t in kept}
    assert pairs >= {t[:drop] + t[drop + 1 :] for t in out}
  for column in range(3):
    assert len({t[column] for t in out}) == (8, 4, 8)[column]


def test_prompts_are_held_out_and_fit_their_truth():
  found = prompts(WorldConfig(split="train"), 20, size=(40, 24), frames=17, split="heldout")
  assert len(found) == 20 and len({p for p, _ in found}) > 5
  for prompt, truth in found:
    assert truth["size"] == [40, 24] and truth["frames"] == 17
    assert truth["objects"][0]["color"] in prompt and all(held_out(truth))


@pytest.mark.parametrize("processes", [0, 2])
def test_build_writes_the_world_in_order(tmp_path, processes):
  config = WorldConfig(sizes=((16, 16),), frames=3, num_clips=200)
  calls = []
  build(config, tmp_path / "set", processes, lambda done, total: calls.append((done, total)))
  source = records.ShardSource(tmp_path / "set")
  world = World(config)
  assert len(source) == 200 and calls[-1] == (200, 200)
  assert WorldConfig(**source.config["world"]) == config
  for i in (0, 127, 128, 199):
    assert source[i].truth == world[i].truth and source[i].captions == world[i].captions
    np.testing.assert_array_equal(source[i].video_THWC, world[i].video_THWC)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"colors": ("redd",)}, "did you mean 'red'"),
    ({"motions": ("collide",)}, "belongs to level 2"),
    ({"levels": (5,)}, "allowed are 1, 2, 3, 4"),
    ({"sizes": ((4, 32),)}, "4x32"),
    ({"sizes": ()}, "sizes is empty; give at least one"),
    ({"frames": (66,)}, r"frames: got \(66,\); must be whole numbers from 1 to 65"),
    ({"frames": ()}, r"frames: got \(\); must be whole numbers from 1 to 65"),
    ({"seed": -1}, "seed: got -1; must be a whole number from 0"),
    ({"fps": (30,)}, "8 to 24"),
    ({"image_fraction": 2.0}, "image_fraction"),
    ({"split": "tset"}, "tset"),
    ({"num_clips": 0}, "num_clips"),
    ({"radius": (0.2, 0.6)}, "radius"),
    ({"slowest": 0.0}, r"slowest: got 0.0; must be in \[0.1, 1\]"),
    ({"slowest": 1.5}, "slowest"),
    ({"slow_fraction": 1.5}, r"slow_fraction: got 1.5; must be in \[0, 1\]"),
    ({"styles": ()}, "styles is empty"),
    ({"split": "heldout", "colors": ("red",), "directions": ("up",)}, "heldout"),
  ],
)
def test_a_wrong_config_is_refused_with_the_remedy(changes, message):
  with pytest.raises(ValueError, match=message):
    WorldConfig(**changes)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("sizes", (32, 32), r"sizes: got \(32, 32\); must be \(width, height\) pairs"),
    ("sizes", ((32.5, 32),), r"sizes: got \(\(32.5, 32\),\); must be .* whole pixels"),
    ("frames", (9.5,), "frames: got 9.5; must be whole numbers from 1 to 65"),
    ("seed", 0.5, "seed: got 0.5; must be a whole number from 0"),
    ("num_clips", 1.5, "num_clips: got 1.5; must be a whole number from 1"),
  ],
)
def test_a_wrong_type_is_refused_like_a_wrong_value(name, value, message):
  config = WorldConfig()
  object.__setattr__(config, name, value)  # the type checks of a test run refuse it in __init__
  with pytest.raises(ValueError, match=message):
    config.__post_init__()


def test_a_motion_that_no_direction_fits_is_refused():
  config = WorldConfig(motions=("gravity",), directions=("down-left",))
  with pytest.raises(ValueError, match="gravity"):
    World(config)


def test_an_index_outside_is_refused():
  with pytest.raises(IndexError, match="clip 4"):
    World(dataclasses.replace(WorldConfig(), num_clips=4))[4]
