"""Files whose container hides what they show: photographs stored as tiles, films without one."""

import struct

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data.clips import MediaError, decode


def box(kind, *parts):
  data = b"".join(parts)
  return struct.pack(">I", 8 + len(data)) + kind + data


def full_box(kind, version, flags, *parts):
  return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def hevc_still(path, side):
  """(hvcC box, sample) of one red picture."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx265", rate=1)
    stream.width = stream.height = side
    stream.pix_fmt, stream.options = "yuv420p", {"x265-params": "log-level=none"}
    stream.codec_context.codec_tag = "hvc1"
    image = Image.new("RGB", (side, side), (220, 40, 30))
    container.mux(stream.encode(av.VideoFrame.from_image(image).reformat(format="yuv420p")))
    container.mux(stream.encode())
  data = path.read_bytes()
  start = data.index(b"hvcC") - 4
  with av.open(str(path)) as container:
    sample = next(bytes(packet) for packet in container.demux(video=0) if packet.size)
  return data[start : start + struct.unpack_from(">I", data, start)[0]], sample


def tiled_heic(tmp_path, side=64):
  """A HEIC of 2x1 equal tiles.  Source: ISO/IEC 23008-12, 6.6.2.3."""
  decoder, sample = hevc_still(tmp_path / "still.mp4", side)
  pack = struct.pack
  entries = [full_box(b"infe", 2, 1, pack(">HH", k, 0), b"hvc1\0") for k in (1, 2)]
  entries.append(full_box(b"infe", 2, 0, pack(">HH", 3, 0), b"grid\0"))
  sizes = [full_box(b"ispe", 0, 0, pack(">II", width, side)) for width in (side, 2 * side)]
  uses = b"".join(pack(">HBBB", k, 2, 0x81, 2) for k in (1, 2)) + pack(">HBB", 3, 1, 3)
  properties = box(b"ipco", decoder, *sizes), full_box(b"ipma", 0, 0, pack(">I", 3), uses)
  grid = pack(">BBBBHH", 0, 0, 0, 1, 2 * side, side)
  kind = box(b"ftyp", b"heic", bytes(4), b"mif1heic")

  def meta(offset):
    places = [pack(">HHHHII", k, 0, 0, 1, offset, len(sample)) for k in (1, 2)]
    places.append(pack(">HHHHII", 3, 1, 0, 1, 0, len(grid)))  # of the idat box
    return full_box(
      b"meta", 0, 0,
      full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
      full_box(b"pitm", 0, 0, pack(">H", 3)),
      full_box(b"iloc", 1, 0, b"\x44\0", pack(">H", 3), *places),
      full_box(b"iinf", 0, 0, pack(">H", 3), *entries),
      full_box(b"iref", 0, 0, box(b"dimg", pack(">HHHH", 3, 2, 1, 2))),
      box(b"iprp", *properties),
      box(b"idat", grid),
    )  # fmt: skip

  path = tmp_path / "a.heic"
  path.write_bytes(kind + meta(len(kind) + len(meta(0)) + 8) + box(b"mdat", sample))
  return path


def test_a_photograph_stored_as_tiles_is_refused(tmp_path):
  path = tiled_heic(tmp_path)
  with av.open(str(path)) as container:
    assert len(container.streams.video) == 2  # so it is read as a grid of tiles
  with pytest.raises(MediaError, match="^a tiled HEIC; convert it to JPEG or PNG$"):
    decode(path)


def raw_jpegs(path, frames):
  with av.open(str(path), "w", format="mjpeg") as container:
    stream = container.add_stream("mjpeg", rate=25)
    stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
    for k in range(frames):
      frame_HWC = np.full((24, 32, 3), 20 * k, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
    container.mux(stream.encode())
  return path


@pytest.mark.parametrize("name", ["a.mjpeg", "a.MJPG"])
def test_a_film_of_jpegs_one_behind_another(tmp_path, name):
  got = decode(raw_jpegs(tmp_path / name, 10))
  assert got.video_THWC.shape == (10, 24, 32, 3)
  assert got.fps == 25
  np.testing.assert_allclose(got.video_THWC.mean((1, 2, 3)), 20 * np.arange(10), atol=2)
  picture = raw_jpegs(tmp_path / "a.jpg", 2)  # any other name: the picture that it begins with
  assert decode(picture).video_THWC.shape == (1, 24, 32, 3)


def test_other_files_of_that_name_are_what_their_bytes_say(tmp_path):
  Image.new("RGB", (8, 6)).save(tmp_path / "a.mjpeg", format="PNG")
  got = decode(tmp_path / "a.mjpeg")
  assert got.video_THWC.shape == (1, 6, 8, 3) and got.fps is None
