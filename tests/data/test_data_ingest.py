"""Finding media through links, and what the report says of limits."""

import numpy as np
from PIL import Image

from sora_jax.data import clips, ingest
from sora_jax.data.ingest import IngestConfig, find_media


def picture(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
  return path


def names(root, skip=None):
  media, others = find_media(root, skip)
  return [[path.relative_to(root).as_posix() for path in paths] for paths in (media, others)]


def test_links_to_folders_are_followed(tmp_path):
  root = tmp_path / "in"
  picture(root / "a.png")
  picture(tmp_path / "elsewhere" / "deep" / "b.png")
  (tmp_path / "elsewhere" / "notes.md").write_text("no media")
  (root / "link").symlink_to(tmp_path / "elsewhere")
  (root / ".hidden").symlink_to(tmp_path / "elsewhere")
  assert names(root) == [["a.png", "link/deep/b.png"], ["link/notes.md"]]
  report = ingest.ingest(root, tmp_path / "out", IngestConfig())
  assert [line["file"] for line in report["kept"]] == ["a.png", "link/deep/b.png"]
  assert report["ignored"] == ["link/notes.md"]


def test_links_that_lead_back_end(tmp_path):
  root = tmp_path / "in"
  picture(root / "a.png")
  picture(tmp_path / "elsewhere" / "b.png")
  (root / "link").symlink_to(tmp_path / "elsewhere")
  (root / "self").symlink_to(root)
  (tmp_path / "elsewhere" / "back").symlink_to(root)
  (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
  assert names(root) == [["a.png", "link/b.png"], []]


def test_a_folder_of_several_names_is_searched_under_its_own(tmp_path):
  root, out = tmp_path / "in", tmp_path / "in" / "out"
  picture(root / "z" / "deep" / "a.png")
  picture(out / "b.png")
  (root / "a").symlink_to(root / "z" / "deep")
  (root / "b").symlink_to(out)
  assert names(root, out.resolve()) == [["z/deep/a.png"], []]
  assert names(out, out.resolve()) == [["b.png"], []]  # input and output may be one folder


def test_a_lack_of_memory_names_the_flag(tmp_path, monkeypatch):
  def lack(*_, **__):
    raise MemoryError

  monkeypatch.setattr(clips, "Reader", lack)
  config = IngestConfig(max_memory=int(0.001 * 2**30))
  reason = ingest.decode_file("a.mp4", "a.mp4", {}, str(tmp_path), config)["reason"]
  assert reason.startswith("needs more than max_memory=1073741 bytes, --max_memory_gb=0.001 (")
