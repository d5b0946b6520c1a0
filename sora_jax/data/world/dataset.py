"""The world as a dataset: `World(config)[i]` is a clip, a pure function of (seed, split, i)."""

import dataclasses

import numpy as np

from sora_jax.data.records import Clip
from sora_jax.data.world import captions, level1, level2, level3, level4, vocabulary
from sora_jax.data.world.config import WorldConfig
from sora_jax.data.world.scene import MOTION_DIRECTIONS, Brief, Scene

_COMPOSE = {1: level1.compose, 2: level2.compose, 3: level3.compose, 4: level4.compose}


class World:
  """Random access to the clips of one split; nothing is stored, nothing depends on order.

  Every clip has its own random stream, keyed by (seed, split, index). Splits share no clip: the
  last bits of the main object's size name the split, and held-out (colour, shape, direction)
  triples occur in split "heldout" alone.
  """

  def __init__(self, config: WorldConfig):
    self.config = config
    held_out = config.split == "heldout"
    directions = {direction for _, _, direction in config.triples(held_out)}
    self._motions = tuple(
      motion
      for motion in config.all_motions()
      if directions & {*MOTION_DIRECTIONS[motion]} or not (held_out or MOTION_DIRECTIONS[motion])
    )
    lost = {*config.all_motions()} - {*self._motions}
    if not self._motions or (lost and not held_out):
      raise ValueError(
        f"motions {sorted(lost)} cannot take any of the directions {sorted(directions)}; "
        "allow more directions or other motions"
      )

  def __len__(self) -> int:
    return self.config.num_clips

  def scene(self, index: int) -> Scene:
    """The state of clip `index`, not yet drawn."""
    index = int(index)
    if not 0 <= index < len(self):
      raise IndexError(f"clip {index} of a world of {len(self)} clips")
    config = self.config
    stream = (config.seed, vocabulary.SPLITS.index(config.split), index)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
    brief = self._brief(rng)
    level = 1 if brief.motion == "still" else vocabulary.LEVEL_OF[brief.motion]
    return _COMPOSE[level](brief)

  def _brief(self, rng: np.random.Generator) -> Brief:
    config = self.config
    held_out = config.split == "heldout"
    still = rng.uniform() < config.image_fraction and not held_out
    draw = {
      name: options[int(rng.integers(len(options)))]
      for name, options in (
        ("motion", self._motions),
        ("size", config.sizes),
        ("frames", [n for n in config.frames if n > 1 or not held_out]),
        ("fps", config.fps),
        ("background", config.backgrounds),
        ("style", config.styles),
      )
    }
    if still or draw["frames"] == 1:
      draw |= {"motion": "still", "frames": 1}
    return Brief(rng=rng, config=config, **draw)

  def __getitem__(self, index: int) -> Clip:
    scene = self.scene(index)
    truth = scene.truth
    return Clip(
      id=f"world-{self.config.seed}-{self.config.split}-{int(index)}",
      video_THWC=scene.draw(tuple(truth["size"])),
      fps=truth["fps"],
      captions=captions.texts(truth),
      truth=truth,
      latent_thwZ=None,
      latent_source=None,
    )


def prompts(
  config: WorldConfig,
  count: int,
  size: tuple[int, int] | None = None,
  frames: int | None = None,
  split: str | None = None,
) -> list[tuple[str, dict]]:
  """Evaluation prompts with the truth of a clip that fits each.

  Args: size: (width, height) of all, else the config's.  frames: frame count of all, else the
  config's.  split: e.g. "test" or "heldout", else the config's.
  """
  changes = {"num_clips": count, "image_fraction": 0.0}
  if size is not None:
    changes["sizes"] = (size,)
  if frames is not None:
    changes["frames"] = (frames,)
  if split is not None:
    changes["split"] = split
  world = World(dataclasses.replace(config, **changes))
  truths = [world.scene(i).truth for i in range(count)]
  return [(captions.short(truth), truth) for truth in truths]
