"""The tensorflow-datasets builder gives the same clips as the world itself."""

import numpy as np
import pytest

from sora_jax.data.world import World, WorldConfig

pytest.importorskip("tensorflow_datasets", reason="needs the `tfds` extra")


@pytest.mark.filterwarnings("ignore")
def test_the_builder_gives_the_world_s_clips(tmp_path):
  from sora_jax.data.world import tfds_builder

  make = dict(levels=(1, 2), sizes=((32, 24), (24, 32)), frames=(3, 5), image_fraction=0.2)
  make["fps"] = (12.0, 23.976)  # no float32 is the latter
  worlds = (
    WorldConfig(num_clips=12, **make),
    WorldConfig(num_clips=5, split="heldout", **make),
  )
  builder = tfds_builder.SoraWorld(
    config=tfds_builder.SoraWorldConfig(name="pair", worlds=worlds),
    data_dir=str(tmp_path),
    file_format="array_record",
  )
  builder.download_and_prepare()
  for config in worlds:
    source, world = builder.as_data_source(config.split), World(config)
    assert len(source) == len(world)
    for i in range(len(world)):
      got, want = tfds_builder.to_clip(source[i]), world[i]
      np.testing.assert_array_equal(got.video_THWC, want.video_THWC)
      assert (got.id, got.fps, got.captions) == (want.id, want.fps, want.captions)
      assert got.truth == want.truth


@pytest.mark.filterwarnings("ignore")
def test_two_worlds_of_one_split_are_refused(tmp_path):
  from sora_jax.data.world import tfds_builder

  config = tfds_builder.SoraWorldConfig(name="twice", worlds=(WorldConfig(), WorldConfig(seed=1)))
  builder = tfds_builder.SoraWorld(config=config, data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="split of its own"):
    builder.download_and_prepare()
