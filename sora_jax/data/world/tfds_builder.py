"""The world as a tensorflow-datasets builder; the one file of this room that needs TensorFlow.

builder = SoraWorld(config=SoraWorldConfig(name="small", worlds=(WorldConfig(num_clips=100),)),
                    data_dir="data/tfds", file_format="array_record")
builder.download_and_prepare()
clip = to_clip(builder.as_data_source("train")[0])
"""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.data.records import Clip
from sora_jax.data.world.config import WorldConfig
from sora_jax.data.world.dataset import World


@dataclasses.dataclass(eq=False)
class SoraWorldConfig(tfds.core.BuilderConfig):
  """Which worlds make the dataset: one per split, at most one of each."""

  worlds: tuple[WorldConfig, ...] = (WorldConfig(),)


class SoraWorld(tfds.core.GeneratorBasedBuilder):
  """Clips of `World` with captions and truth, in the order of the indices within each shard."""

  VERSION = tfds.core.Version("2.0.0")
  BUILDER_CONFIGS = [SoraWorldConfig(name="default", description="1024 clips of level 1")]

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description="A procedural world with exact ground truth per frame; see docs/world.md.",
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "video": tfds.features.Tensor(
            shape=(None, None, None, 3), dtype=np.uint8, encoding="zlib"
          ),
          # 0 for pictures; as bytes, for an example's own numbers are float32
          "fps": tfds.features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
          "short": tfds.features.Text(),
          "long": tfds.features.Text(),
          "shots": tfds.features.Text(),
          "truth": tfds.features.Text(),  # JSON
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict:
    del dl_manager  # nothing is downloaded
    worlds = self.builder_config.worlds
    splits = [world.split for world in worlds]
    if len(set(splits)) != len(splits):
      raise ValueError(f"splits {splits}: every world of a dataset needs a split of its own")
    return {world.split: self._generate_examples(world) for world in worlds}

  def _generate_examples(self, config: WorldConfig) -> Iterator[tuple[int, dict]]:
    world = World(config)
    for i in range(len(world)):
      clip = world[i]
      yield (
        i,
        {
          "id": clip.id,
          "video": clip.video_THWC,
          "fps": clip.fps or 0.0,
          "short": clip.captions["short"],
          "long": clip.captions["long"],
          "shots": clip.captions.get("shots", ""),
          "truth": json.dumps(clip.truth),
        },
      )


def to_clip(example: dict) -> Clip:
  """The `Clip` of one example as `as_data_source` gives it."""
  kinds = ("short", "long", "shots")
  text = {key: bytes(example[key]).decode() for key in ("id", *kinds, "truth")}
  return Clip(
    id=text["id"],
    video_THWC=example["video"],
    fps=float(example["fps"]) or None,
    captions={kind: text[kind] for kind in kinds if text[kind]},
    truth=json.loads(text["truth"]),
  )
