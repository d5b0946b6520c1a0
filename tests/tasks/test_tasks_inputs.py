"""What a run reads by path is known by its content."""

import numpy as np
import pytest

from sora_jax.data import records, shard_writer
from sora_jax.data.world import WorldConfig, build
from sora_jax.tasks import inputs, latents
from sora_jax.tasks.clips import Subset


def prepared(folder, value):
  """Clips as `prepare` makes them, whose latents are in the same folder."""
  with shard_writer.ShardWriter(folder, config={"short_side": 8}, overwrite=True) as writer:
    video = np.full((5, 8, 8, 3), value, np.uint8)
    writer.write(records.Clip(id="a", video_THWC=video, fps=8.0))
  return records.ShardSource(folder)


def cached(shards, rounding=0.0):
  config = latents.LatentConfig(source="ab" * 32, frames=4, size=8)
  return latents.cache(shards, config, lambda x: np.full((len(x), 2, 1, 1, 2), rounding))


def test_clips_made_anew_are_others_and_latents_with_other_rounding_are_not(tmp_path):
  first = prepared(tmp_path / "a", 1)
  found = inputs.of_clips(first)
  assert found == {"data.folder": first.content} and len(first.content) == 64
  assert inputs.of_clips(Subset(cached(first), [0])) == found
  again = prepared(tmp_path / "b", 1)
  assert inputs.of_clips(Subset(cached(again, rounding=1e-6), [0])) == found
  assert inputs.of_clips(prepared(tmp_path / "a", 2)) != found


def test_a_world_is_known_by_its_config_and_other_sources_are_not_known(tmp_path):
  world = WorldConfig(num_clips=1, sizes=((16, 16),), frames=(5,))
  build(world, tmp_path, 1)
  assert inputs.of_clips(records.ShardSource(tmp_path)) == {}
  assert inputs.of_clips(cached(records.ShardSource(tmp_path))) == {}
  assert inputs.of_clips([]) == {} == inputs.of_clips(Subset([], []))


def test_a_set_written_before_content_was_kept_is_not_known(tmp_path):
  shards = prepared(tmp_path, 1)
  del shards.index["content"]
  records.write_json(records.index_path(tmp_path, "clips"), shards.index)
  assert inputs.of_clips(records.ShardSource(tmp_path)) == {}


@pytest.mark.parametrize(("name", "known"), [("bytes", False), ("tiny", True)])
def test_a_vocabulary_is_known_by_its_file(name, known):
  assert bool(inputs.of_tokenizer(name)) == known
