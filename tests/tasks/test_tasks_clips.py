"""Clips and latents: disjoint splits, worlds that match, latents aligned with their clips."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sora_jax.data import records, shard_writer
from sora_jax.data.prompt_mix import PromptMix
from sora_jax.data.records import Clip
from sora_jax.data.world import WorldConfig
from sora_jax.tasks import clips, latents
from sora_jax.tasks.clips import ClipsConfig

WORLD = WorldConfig(num_clips=6, sizes=((16, 16), (24, 16)), frames=(5,), image_fraction=0.3)


def named_shards(folder, ids):
  with shard_writer.ShardWriter(folder) as writer:
    for clip_id in ids:
      writer.write(Clip(id=clip_id, video_THWC=np.zeros((1, 4, 4, 3), np.uint8), fps=None))


def shards(folder, count=7, prefix="clips"):
  with shard_writer.ShardWriter(folder, prefix=prefix) as writer:
    for i in range(count):
      video = np.full((1 + i % 3, 14, 16 if i % 2 else 24, 3), i, np.uint8)
      writer.write(Clip(id=f"c{i}", video_THWC=video, fps=8.0, captions={"short": f"clip {i}"}))
  return records.ShardSource(folder, prefix)


def encode(video_BTHWC):
  """A stand-in for the VAE: 4x4x4 cells, the clip's first pixel in every channel."""
  B, T, H, W, _ = video_BTHWC.shape
  first = video_BTHWC[:, 0, 0, 0, 0].reshape(B, 1, 1, 1, 1)
  return np.broadcast_to(first, (B, 1 + (T - 1) // 4, H // 4, W // 4, 2))


def config(**changes):
  return latents.LatentConfig(
    **({"source": "ab" * 32, "frames": 4, "size": 8, "batch": 2} | changes)
  )


@pytest.mark.parametrize(("count", "validation"), [(2, 1), (10, 3), (100, 10), (5, 50)])
def test_split_is_disjoint_and_complete(count, validation):
  train, held = clips.split([f"film {i}" for i in range(count)], validation)
  assert sorted(train + held) == list(range(count))
  assert 1 <= len(held) <= max(1, count // 2) and len(held) <= validation and train


def test_clips_of_one_film_stay_together():
  films = [f"film {i // 3}" for i in range(60)] + ["picture"]
  train, held = clips.split(films, 9)
  assert not {films[i] for i in train} & {films[i] for i in held}
  assert sorted(train + held) == list(range(61)) and 6 <= len(held) <= 9


@pytest.mark.parametrize(
  ("counts", "validation", "kept"),
  [
    ((9, 1), 1, 1), ((1, 9), 1, 1), ((100, 500), 32, 100), ((10, 10, 900), 50, 10), ((5, 5), 1, 5),
    ((1,) * 20 + (400,), 32, 10),
  ],
)  # fmt: skip
def test_films_too_long_to_be_kept_apart_are_trained_on(counts, validation, kept):
  films = [f"film {film}" for film, count in enumerate(counts) for _ in range(count)]
  train, held = clips.split(films, validation)
  assert not {films[i] for i in train} & {films[i] for i in held}
  assert sorted(train + held) == list(range(len(films)))
  assert (len(train), len(held)) == (len(films) - kept, kept)


def test_a_single_film_is_split_by_clips_and_a_single_clip_not(caplog):
  with caplog.at_level("WARNING", "absl"):
    train, held = clips.split(["a"] * 9, 3)
  assert (len(train), len(held)) == (6, 3)
  assert "all 9 clips are cut from one film, a:" in caplog.text
  with pytest.raises(ValueError, match="1 clips"):
    clips.split(["a"], 1)


def test_world_is_rendered_once_and_checked(tmp_path):
  job = ClipsConfig("world", tmp_path, 4, WORLD, 1)
  first = clips.open_sources(job)
  assert (len(first.train), len(first.validation)) == (6, 4)
  before = (tmp_path / "train" / "clips.index.json").stat().st_mtime_ns
  again = clips.open_sources(job)
  assert (tmp_path / "train" / "clips.index.json").stat().st_mtime_ns == before
  np.testing.assert_array_equal(again.train[3].video_THWC, first.train[3].video_THWC)
  other = ClipsConfig("world", tmp_path, 4, WorldConfig(num_clips=6, seed=1), 1)
  with pytest.raises(ValueError, match="another world .*sizes, .*seed"):
    clips.open_sources(other)


def test_clips_of_a_folder_are_split(tmp_path):
  shards(tmp_path)
  found = clips.open_sources(ClipsConfig("clips", tmp_path, 2))
  ids = [c.id for c in found.train], [c.id for c in found.validation]
  assert len(ids[0]) == 5 and not set(ids[0]) & set(ids[1])


def test_films_are_told_apart_by_all_but_the_last_number(tmp_path):
  names = [f"take #{take}.mp4" for take in (1, 2)]
  named_shards(tmp_path, [n + end for n in names for end in ("", "#1", "#2", "#10")])
  found = clips.open_sources(ClipsConfig("clips", tmp_path, 4))
  films = [{clip.id[: len(names[0])] for clip in part} for part in found]
  assert films == [{names[0]}, {names[1]}]


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
  with pytest.raises(ValueError, match="sora_jax.prepare"):
    ClipsConfig("clips", tmp_path, 2)


def test_latents_are_aligned_and_made_once(tmp_path):
  source = shards(tmp_path)
  found = latents.cache(source, config(), encode)
  assert found.prefix == "latents-abababab-by8" and len(found) == len(source)
  for pixels, latent in zip(source, found):
    assert latent.id == pixels.id and latent.captions == pixels.captions
    assert latent.video_THWC is None and latent.pixel_shape == pixels.pixel_shape
    t, h, w, Z = latent.latent_thwZ.shape
    T, H, W = pixels.pixel_shape
    assert (t, h, w, Z) == (1 + -(-(T - 1) // 4), 4, -(-W // 8) * 2, 2)
    value = pixels.video_THWC[0, 0, 0, 0] / 127.5 - 1
    np.testing.assert_allclose(latent.latent_thwZ, value, atol=1e-6)

  def fail(video):
    raise AssertionError("encoded twice")

  latents.cache(source, config(), fail)


def test_square_crop_makes_a_set_of_its_own(tmp_path):
  source = shards(tmp_path)
  found = latents.cache(source, config(crop="square"), encode)
  assert found.prefix == "latents-abababab-by8-square"
  assert {clip.latent_thwZ.shape[1:3] for clip in found} == {(4, 4)}


def mean_of_cells(video_BTHWC):
  """A linear stand-in for the VAE: means over 4 x 4 pixels of each frame, one channel a frame."""
  B, T, H, W, _ = video_BTHWC.shape
  mean = np.asarray(video_BTHWC).reshape(B, T, H // 4, 4, W // 4, 4, 3).mean((3, 5, 6))
  mean = np.concatenate([np.repeat(mean[:, :1], 3, axis=1), mean], axis=1)
  return mean.reshape(B, -1, 4, H // 4, W // 4).transpose(0, 1, 3, 4, 2)


def test_canvases_are_what_is_known_encoded_at_its_place(tmp_path):
  source = shards(tmp_path)
  prompts = PromptMix(variants=3)
  plain = latents.cache(source, config(), mean_of_cells)
  found = latents.cache(source, config(cell=4, prompts=prompts), mean_of_cells)
  assert found.prefix.startswith("latents-abababab-by8-prompts-")
  kinds = set()
  for latent, without in zip(found, plain):
    np.testing.assert_array_equal(latent.latent_thwZ, without.latent_thwZ)
    assert len(latent.canvases) == 3 and not without.canvases
    for canvas in latent.canvases:
      kinds.add(canvas.kind)
      assert canvas.known_thwF.any()
      want = np.where(canvas.known_thwF > 0, latent.latent_thwZ, 0)  # here a channel is a frame
      np.testing.assert_allclose(canvas.latent_thwZ, want, atol=1e-3)
  assert len(kinds) > 2
  same = config(cell=4, prompts=PromptMix(variants=3, dropout=0.5))  # not read before a visit
  again = latents.cache(source, same, encode)
  assert again.prefix == found.prefix
  others = config(cell=4, prompts=PromptMix(variants=2)), config(prompts=PromptMix(tail=0.1))
  assert len({found.prefix, *(other.prefix for other in others)}) == 3


def test_latents_of_other_clips_are_made_anew(tmp_path):
  source = shards(tmp_path)
  old = latents.cache(source, config(), encode)[0].latent_thwZ
  changed = [
    dataclasses.replace(clip, captions={"short": "new"}, video_THWC=255 - clip.video_THWC)
    for clip in source
  ]
  for some in (changed, changed[:3]):
    with shard_writer.ShardWriter(tmp_path, overwrite=True) as writer:
      for clip in some:
        writer.write(clip)
    found = latents.cache(records.ShardSource(tmp_path), config(), encode)
    assert len(found) == len(some) and {clip.captions["short"] for clip in found} == {"new"}
    assert (found[0].latent_thwZ != old).all()


def test_runs_of_other_sizes_share_a_folder(tmp_path, caplog):
  source = shards(tmp_path)
  found = latents.cache(source, config(), encode)
  before = [clip.latent_thwZ for clip in found]
  found._readers.clear()
  with caplog.at_level("INFO", "absl"):
    sizes = latents.cache(source, config(size=16), encode)
  assert "encoded 7 of 7" in caplog.text and "have changed" not in caplog.text
  assert all(clip.latent_thwZ.shape[1] % 4 == 0 for clip in sizes)
  for clip, latent_thwZ in zip(found, before, strict=True):
    np.testing.assert_array_equal(clip.latent_thwZ, latent_thwZ)


def test_latents_made_in_another_way_are_made_anew_and_told_from_other_clips(tmp_path, caplog):
  source = shards(tmp_path)
  latents.cache(source, config(), encode)
  with caplog.at_level("INFO", "absl"):
    latents.cache(source, config(frames=2), encode)
  assert f"the latents were made in another way in {tmp_path}: encoding them again" in caplog.text


@pytest.mark.parametrize(
  ("batch", "kept", "message"),
  [
    (-1, 1, "^data.encode_batch is -1; expected at least 1"),
    (0, 1, "^data.encode_batch is 0; expected at least 1"),
    (2, 1, "encode returned 1 latents for 2 clips"),
  ],
)
def test_no_clip_is_kept_without_its_latent(tmp_path, batch, kept, message):
  source = shards(tmp_path)
  with pytest.raises(ValueError, match=message):
    latents.cache(source, config(batch=batch), lambda video_BTHWC: encode(video_BTHWC)[:kept])
  assert not list(tmp_path.glob("*latents*"))
  assert all(clip.latent_thwZ is not None for clip in latents.cache(source, config(), encode))


def test_shapes_of_few_clips_are_not_filled_up_to_whole_batches(tmp_path):
  with shard_writer.ShardWriter(tmp_path) as writer:
    for i in range(11):  # 5, 3, 2 and 1 of a shape
      width = (8, 16, 24, 32)[(0, 1, 2, 0, 0, 0, 0, 1, 1, 3, 2)[i]]
      video = np.full((1, 8, width, 3), i, np.uint8)
      writer.write(Clip(id=f"c{i}", video_THWC=video, captions={}))
  source, shapes = records.ShardSource(tmp_path), []

  def counting(video_BTHWC):
    shapes.append((len(video_BTHWC), video_BTHWC.shape[3]))
    return encode(video_BTHWC)

  found = latents.cache(source, config(batch=4), counting)
  assert sorted(shapes) == [(1, 8), (1, 32), (2, 24), (4, 8), (4, 16)]
  for i, clip in enumerate(found):
    np.testing.assert_allclose(clip.latent_thwZ, i / 127.5 - 1, atol=1e-6)
  shapes.clear()
  latents.in_batches([(1, 8, 8, 3)] * 33, lambda _: np.zeros((1, 8, 8, 3)), 32, counting)
  assert shapes == [(32, 8), (8, 8)]


def test_clips_are_held_by_their_bytes_and_without_a_padded_copy_of_each(tmp_path, monkeypatch):
  source = shards(tmp_path)
  want = [clip.latent_thwZ for clip in latents.cache(source, config(), encode)]
  held, alive, most = [], [0], [0]
  padded = latents.padded

  class Padded(np.ndarray):
    def __del__(self):
      alive[0] -= self.base is None or not isinstance(self.base, Padded)

  def counting(video_THWC, made):
    alive[0] += 1
    most[0] = max(most[0], alive[0])
    return np.array(padded(video_THWC, made)).view(Padded)

  whole = latents.encoded
  monkeypatch.setattr(latents, "padded", counting)
  monkeypatch.setattr(latents, "encoded", lambda part, *_: held.append(part) or whole(part, *_))
  monkeypatch.setattr(latents, "CHUNK_BYTES", 3000)
  found = latents.cache(source, config(source="cd" * 32), encode)
  sizes = [[clip.video_THWC.nbytes for clip in part] for part in held]
  assert sum(map(len, sizes)) == 7 and len(sizes) > 2
  assert all(sum(part[:-1]) < 3000 for part in sizes)
  assert most[0] < 3
  for clip, latent_thwZ in zip(found, want, strict=True):
    np.testing.assert_array_equal(clip.latent_thwZ, latent_thwZ)


def cut(path):
  path.write_bytes(path.read_bytes()[:100])


def forget(path):
  (index,) = path.parent.glob("latents-*.index.json")
  index.write_text(index.read_text()[:100])


@pytest.mark.parametrize("damage", [cut, Path.unlink, forget])
def test_latents_that_cannot_be_read_are_made_anew(tmp_path, caplog, damage):
  source = shards(tmp_path)
  found = latents.cache(source, config(), encode)
  before = [clip.latent_thwZ for clip in found]
  damage(tmp_path / found.index["shards"][0]["file"])
  with caplog.at_level("INFO", "absl"):
    again = latents.cache(source, config(), encode)
  assert "latents that cannot be used (" in caplog.text and "encoding them again" in caplog.text
  for clip, latent_thwZ in zip(again, before, strict=True):
    np.testing.assert_array_equal(clip.latent_thwZ, latent_thwZ)


def test_latents_that_another_run_has_made_meanwhile_are_taken(tmp_path):
  source = shards(tmp_path)
  others = []

  def slow(video_BTHWC):
    if not others:
      others.append(latents.cache(source, config(batch=4), lambda x: encode(x) + 1e-3))
    return encode(video_BTHWC)

  found = latents.cache(source, config(), slow)
  assert found.content == others[0].content
  for clip, other in zip(found, others[0], strict=True):
    np.testing.assert_array_equal(clip.latent_thwZ, other.latent_thwZ)
  assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_world_says_how_to_have_it_rendered_again(tmp_path, damage):
  job = ClipsConfig("world", tmp_path, 1, dataclasses.replace(WORLD, num_clips=1), 1)
  want = clips.open_sources(job).train[0].video_THWC
  (shard,) = (tmp_path / "train").glob("*.array_record")
  damage(shard)
  index = tmp_path / "train" / "clips.index.json"
  with pytest.raises((FileNotFoundError, ValueError), match=f"delete {index} and run the command"):
    clips.open_sources(job)
  index.unlink()
  np.testing.assert_array_equal(clips.open_sources(job).train[0].video_THWC, want)


def test_clips_above_a_token_budget_are_shrunk_in_their_own_aspect(tmp_path):
  source = shards(tmp_path)
  most = 4
  found = latents.cache(source, config(tokens=most), encode)
  assert found.prefix == "latents-abababab-by8-fit4"
  shrunk = 0
  for pixels, latent in zip(source, found):
    t, h, w, _ = latent.latent_thwZ.shape
    whole = latents.padded(pixels.video_THWC, config()).shape
    fits = (1 + (whole[0] - 1) // 4) * (whole[1] // 8) * (whole[2] // 8) <= most
    if fits or t > most:
      assert latent.pixel_shape == pixels.pixel_shape
      continue
    shrunk += 1
    assert t * (h // 2) * (w // 2) <= most
    assert latent.truth["shrunk"] == list(latent.pixel_shape[2:0:-1])
  assert shrunk
