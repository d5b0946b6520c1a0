"""Reading and writing media: what comes back is what a player would show, or one line of reason."""

import fractions
import json
import pickle
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data import clips, hdr, pictures, transforms
from sora_jax.data.clips import MediaError, decode, write_video

RED, GREEN = (220, 40, 30), (30, 180, 60)


def noise(T=3, H=10, W=14):
  return np.random.default_rng(1).integers(0, 256, (T, H, W, 3), dtype=np.uint8)


def flag(T=6, H=48, W=64):
  """Red left half, green right half, white top left corner; brightness grows with time."""
  video = np.zeros((T, H, W, 3), np.uint8)
  video[:, :, : W // 2], video[:, :, W // 2 :] = RED, GREEN
  video[:, : H // 4, : W // 4] = 255
  return video


def mux(path, frames, *, codec="libx264", pix_fmt="yuv420p", pts=None, prepare=None, **options):
  """Encodes PyAV frames; `pts` in thousandths of a second, `prepare(stream)` sets it up."""
  with av.open(str(path), "w", options={k: str(v) for k, v in options.items()}) as container:
    stream = container.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
    if codec == "libx264":
      stream.options = {"crf": "5", "bf": "0"}
    if pts is not None:
      stream.codec_context.time_base = fractions.Fraction(1, 1000)
    if prepare is not None:
      prepare(stream)
    for k, frame in enumerate(frames):
      frame.pts = k if pts is None else pts[k]
      if pts is not None:
        frame.time_base = fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def as_frames(video_THWC, pix_fmt="rgb24"):
  return [
    av.VideoFrame.from_ndarray(x, format="rgb24").reformat(format=pix_fmt) for x in video_THWC
  ]


def assert_near(pixels, color, tolerance=6):
  assert np.abs(pixels.reshape(-1, 3).mean(0) - np.array(color)).max() <= tolerance


@pytest.mark.parametrize("size", [(14, 10), (13, 9), (1, 1)])
def test_mkv_is_lossless(tmp_path, size):
  video = noise(W=size[0], H=size[1])
  write_video(tmp_path / "a.mkv", video, 12.5)
  got = decode(tmp_path / "a.mkv")
  np.testing.assert_array_equal(got.video_THWC, video)
  assert got.fps == pytest.approx(12.5)


@pytest.mark.parametrize(("size", "pix_fmt"), [((64, 48), "yuv420p"), ((63, 47), "yuv444p")])
def test_mp4_has_the_size_and_colours_asked(tmp_path, size, pix_fmt):
  video = flag(W=size[0], H=size[1])
  write_video(tmp_path / "new" / "a.mp4", video, 24)
  got = decode(tmp_path / "new" / "a.mp4")
  assert got.video_THWC.shape == video.shape
  assert got.size == size
  assert got.fps == 24
  assert np.abs(got.video_THWC.astype(int) - video)[:, :, 36:].max() <= 6
  assert_near(got.video_THWC[:, 20:, 4:28], RED, 4)
  with av.open(str(tmp_path / "new" / "a.mp4")) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", pix_fmt)
    assert stream.codec_context.colorspace == 1  # BT.709, so that players need not guess


def test_ntsc_rates_survive(tmp_path):
  write_video(tmp_path / "a.mp4", flag(), 30000 / 1001)
  assert decode(tmp_path / "a.mp4").fps == pytest.approx(30000 / 1001, rel=1e-6)


def test_one_frame_makes_an_mp4(tmp_path):
  write_video(tmp_path / "a.mp4", flag(T=1), 24)
  assert len(decode(tmp_path / "a.mp4").video_THWC) == 1


@pytest.mark.parametrize(
  ("name", "video", "fps", "message"),
  [
    ("a.avi", noise(), 24, r"\.mp4"),
    ("a", noise(), 24, "without an extension"),
    ("a.png", noise(), 24, "3 frames"),
    ("a.mp4", noise().astype(np.float32), 24, "uint8"),
    ("a.mp4", noise()[0], 24, r"\[T, H, W, 3\]"),
    ("a.mp4", noise()[:0], 24, "0, 10"),
    ("a.mp4", noise(), 0, "fps 0"),
    ("a.mp4", noise(), 1e-4, "fps 0.0001; expected a rate of at least 0.001"),
    ("a.gif", noise(), 0, "fps 0; expected a rate"),
    ("a.gif", noise(), -5.0, "fps -5.0; expected a rate"),
    ("a.gif", noise(), float("nan"), "fps nan; expected a rate"),
  ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, video, fps, message):
  with pytest.raises(ValueError, match=message):
    write_video(tmp_path / name, video, fps)
  assert not list(tmp_path.iterdir())


def test_a_file_has_its_name_only_when_whole(tmp_path):
  (tmp_path / "a.mp4").write_text("old")
  with pytest.raises(RuntimeError), clips.VideoWriter(tmp_path / "a.mp4", 24) as writer:
    for frame in flag(T=80):  # more than the encoder looks ahead
      writer.write(frame)
    assert len(list(tmp_path.iterdir())) == 2
    raise RuntimeError
  assert (tmp_path / "a.mp4").read_text() == "old"
  with pytest.raises(ValueError, match="no frame"), clips.VideoWriter(tmp_path / "b.mp4", 24):
    pass
  with pytest.raises(ValueError, match="a frame of"):
    with clips.VideoWriter(tmp_path / "b.mp4", 24) as writer:
      writer.write(flag()[0])
      writer.write(flag()[0, :20])
  assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(("degrees", "turns"), [(-90, -1), (90, 1), (180, 2)])
def test_rotation_is_followed(tmp_path, degrees, turns):
  def rotate(stream):
    stream.set_display_rotation(degrees)

  path = mux(tmp_path / "a.mp4", as_frames(flag()), prepare=rotate)
  got = decode(path)
  want = np.rot90(flag(), turns, axes=(1, 2))
  assert got.video_THWC.shape == want.shape
  assert got.size == (want.shape[2], want.shape[1])
  assert np.abs(got.video_THWC.astype(int) - want).mean() < 8
  small = decode(path, short_side=24)
  assert small.size == got.size
  assert small.video_THWC.shape[1:3] == tuple(n // 2 for n in want.shape[1:3])


def test_pixels_become_square(tmp_path):
  def stretch(stream):
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(4, 3)

  path = mux(tmp_path / "a.mp4", as_frames(flag()), prepare=stretch)
  got = decode(path)
  assert got.video_THWC.shape[1:3] == (48, 85)
  assert got.size == (64, 48)
  assert_near(got.video_THWC[:, 20:, 4:38], RED, 6)
  assert decode(path, short_side=24).video_THWC.shape[1:3] == (24, 43)
  with pytest.raises(MediaError, match="85x48 is more than max_pixels=4000"):
    decode(path, max_pixels=4000)


def test_variable_rates_give_their_average(tmp_path):
  pts = [0, 40, 80, 200, 240, 280]
  path = mux(tmp_path / "a.mkv", as_frames(flag(6), "yuv420p"), pts=pts)
  got = decode(path)
  assert len(got.video_THWC) == 6
  assert got.fps == pytest.approx(6 / 0.32, rel=0.06)
  with clips.Reader(path) as reader:
    times = [time for time, _ in reader.frames()]
  np.testing.assert_allclose(times, np.array(pts) / 1000, atol=1e-3)


def test_ten_bits_and_full_range(tmp_path):
  formats = {"yuv420p10le": "ffv1", "yuv444p16le": "ffv1", "yuvj420p": "libx264", "gray": "ffv1"}
  for pix_fmt, codec in formats.items():
    path = mux(tmp_path / "a.mkv", as_frames(flag(), pix_fmt), codec=codec, pix_fmt=pix_fmt)
    got = decode(path).video_THWC
    assert_near(got[:, :10, :14], (255, 255, 255), 2)
    if pix_fmt != "gray":
      assert_near(got[:, 20:, 4:28], RED, 4)


@pytest.mark.parametrize(
  ("name", "codec", "pix_fmt"),
  [("a.webm", "libvpx-vp9", "yuva420p"), ("a.mov", "qtrle", "argb"), ("a.mkv", "ffv1", "bgra")],
)
def test_alpha_is_composited(tmp_path, name, codec, pix_fmt):
  rgba = np.full((4, 48, 64, 4), 255, np.uint8)
  rgba[..., :3] = RED
  rgba[:, :, 32:, 3] = 0
  frames = [av.VideoFrame.from_ndarray(x, format="rgba").reformat(format=pix_fmt) for x in rgba]
  got = decode(mux(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt)).video_THWC
  assert len(got) == 4
  assert_near(got[:, 4:-4, 4:28], RED, 10)
  assert_near(got[:, 4:-4, 36:], (0, 0, 0))


def test_tags_that_are_not_utf8(tmp_path):
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    container.metadata["title"] = "QQQQQQQQ"
    stream = container.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for frame in as_frames(flag()):
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  data = (tmp_path / "a.mp4").read_bytes()
  (tmp_path / "a.mp4").write_bytes(data.replace(b"QQQQQQQQ", b"\xff\xfe\xe9\x80Q\xc3QQ"))
  with pytest.raises(UnicodeDecodeError):
    av.open(str(tmp_path / "a.mp4"))
  assert len(decode(tmp_path / "a.mp4").video_THWC) == 6


def moving_file(path, T=60):
  write_video(path, noise(T=T, H=48, W=64), 25)
  return path


def test_a_cut_file_is_refused_or_salvaged(tmp_path):
  path = moving_file(tmp_path / "a.mp4")
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(MediaError, match=r"^\d\d of 60 frames decode, then: \S") as caught:
    decode(path)
  assert "\n" not in str(caught.value)
  got = decode(path, salvage=True)
  assert str(caught.value) == got.damage
  assert got.damage.startswith(f"{len(got.video_THWC)} of 60")


def test_a_damaged_file_is_refused(tmp_path):
  path = moving_file(tmp_path / "a.mp4")
  data = bytearray(path.read_bytes())
  middle = slice(len(data) * 2 // 5, len(data) * 3 // 5)
  data[middle] = np.random.default_rng(0).bytes(middle.stop - middle.start)
  path.write_bytes(data)
  with pytest.raises(MediaError, match=r"\d+ of 60 frames decode, then"):
    decode(path)


@pytest.mark.parametrize(
  ("content", "message"),
  [(b"", "empty"), (b"hello world, this is no video at all\n" * 9, "not a readable video")],
)
def test_files_that_are_no_media(tmp_path, content, message):
  (tmp_path / "a.mp4").write_bytes(content)
  with pytest.raises(MediaError, match=message) as caught:
    decode(tmp_path / "a.mp4")
  assert str(tmp_path) not in str(caught.value)
  with pytest.raises(FileNotFoundError):
    decode(tmp_path / "none.mp4")


def test_sound_alone_is_no_video(tmp_path):
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    stream = container.add_stream("aac", rate=44100)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
    frame.sample_rate = 44100
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  with pytest.raises(MediaError, match="no video stream .*audio"):
    decode(tmp_path / "a.mp4")


def test_frames_that_are_too_large_are_refused_first(tmp_path):
  write_video(tmp_path / "a.mp4", flag(), 24)
  write_video(tmp_path / "a.png", flag(T=1), None)
  for name in ("a.mp4", "a.png"):
    assert decode(tmp_path / name, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(MediaError, match="64x48 is more than max_pixels=3071"):
      decode(tmp_path / name, max_pixels=64 * 48 - 1)


def test_a_png_header_that_claims_too_much(tmp_path):
  header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
  data = b"\x89PNG\r\n\x1a\n"
  for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(bytes(99)), b"IEND"):
    data += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
  (tmp_path / "a.png").write_bytes(data)
  with pytest.raises(MediaError, match="max_pixels"):
    decode(tmp_path / "a.png")


def test_frames_held_are_bounded(tmp_path):
  path = moving_file(tmp_path / "a.mp4")
  assert len(decode(path, max_frames=7).video_THWC) == 7
  with pytest.raises(clips.TooLargeError, match="max_bytes") as caught:
    decode(path, max_bytes=10 * 48 * 64 * 3)
  assert caught.value.frames == pickle.loads(pickle.dumps(caught.value)).frames == 10
  small = decode(path, short_side=12, max_bytes=60 * 12 * 16 * 3)
  assert small.video_THWC.shape == (60, 12, 16, 3)


def test_frames_are_only_made_smaller_as_they_are_decoded(tmp_path):
  path = moving_file(tmp_path / "a.mp4")
  whole = decode(path).video_THWC
  assert whole.shape[1:3] == (48, 64)
  small = decode(path, cover=(20, 30), max_bytes=60 * 20 * 30 * 3).video_THWC
  np.testing.assert_array_equal(small, transforms.cover(whole, (20, 30)))
  np.testing.assert_array_equal(decode(path, cover=(65, 48)).video_THWC, whole)


@pytest.mark.parametrize(
  ("size", "short", "aspect", "expected"),
  [
    ((1920, 1080), 64, 1.0, (114, 64)),
    ((1080, 1920), 64, 1.0, (64, 114)),
    ((50, 40), 64, 1.0, (50, 40)),
    ((352, 288), 64, 12 / 11, (85, 64)),
    ((352, 288), None, 12 / 11, (384, 288)),
    ((352, 288), None, 1.0, (352, 288)),
    ((4000, 1), 64, 1.0, (4000, 1)),
  ],
)
def test_fit_short(size, short, aspect, expected):
  assert clips.fit_short(*size, short, aspect) == expected


def test_photographs_are_turned_by_exif(tmp_path):
  image = Image.fromarray(flag(T=1)[0])
  exif = image.getexif()
  exif[0x0112] = 6
  image.save(tmp_path / "a.mp4", format="JPEG", exif=exif, quality=95)  # the name lies
  got = decode(tmp_path / "a.mp4")
  assert got.size == (48, 64)
  assert got.fps is None
  want = np.rot90(flag(T=1), -1, axes=(1, 2))
  assert np.abs(got.video_THWC.astype(int) - want).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16"])
def test_every_mode_of_picture(tmp_path, mode):
  if mode == "I;16":
    image = Image.fromarray(np.full((8, 8), 51400, np.uint16))
  else:
    image = Image.new("L", (8, 8), 200).convert("RGBA" if mode == "LA" else "RGB").convert(mode)
  path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
  image.save(path)
  want = 255 if mode == "1" else 200
  got = decode(path).video_THWC
  assert got.shape == (1, 8, 8, 3)
  if mode == "1":
    assert set(np.unique(got)) <= {0, 255}
  else:
    assert_near(got, (want,) * 3, 4)


def test_transparent_pictures_lie_on_black(tmp_path):
  rgba = np.full((8, 8, 4), 255, np.uint8)
  rgba[:, 4:, 3] = 0
  Image.fromarray(rgba).save(tmp_path / "a.png")
  got = decode(tmp_path / "a.png").video_THWC[0]
  assert (got[:, :4] == 255).all() and (got[:, 4:] == 0).all()


def test_a_cut_photograph_is_refused_even_when_salvaging(tmp_path):
  Image.fromarray(noise(T=1, H=200, W=200)[0]).save(tmp_path / "a.jpg")
  data = (tmp_path / "a.jpg").read_bytes()
  (tmp_path / "a.jpg").write_bytes(data[: len(data) // 3])
  with pytest.raises(MediaError, match="truncated"):
    decode(tmp_path / "a.jpg", salvage=True)


def test_sniffing():
  assert pictures.is_picture(b"\xff\xd8\xff\xe0" + bytes(28))
  assert not pictures.is_picture(b"\0\0\0\x20ftypisom" + bytes(20))
  assert not pictures.is_picture(b"BM is how a text may begin")


@pytest.mark.parametrize("transfer", [hdr.PQ, hdr.HLG])
def test_hdr_greys_stay_grey_and_in_order(transfer):
  ramp = np.linspace(0, 65535, 256).astype(np.uint16)
  shown = hdr.to_screen(np.repeat(ramp[None, :, None], 3, axis=-1), transfer)[0].astype(int)
  assert np.ptp(shown, axis=-1).max() <= 1
  assert (np.diff(shown[:, 1]) >= 0).all()
  assert shown[0].max() == 0 and shown[-1].min() == 255
  with pytest.raises(ValueError, match="uint16"):
    hdr.to_screen(np.zeros((1, 1, 3), np.uint8), transfer)


def test_hdr_white_and_grey_by_the_standard():
  # BT.2408, table 1: diffuse white (203 nits) is 58 % PQ and 75 % HLG; 18 % grey (26 nits) is 38 %
  codes = {hdr.PQ: (0.58, 0.38), hdr.HLG: (0.75, 0.38)}
  for transfer, (white, grey) in codes.items():
    code = np.full((1, 2, 3), 1, np.float64) * np.array([white, grey])[None, :, None]
    shown = hdr.to_screen(np.rint(code * 65535).astype(np.uint16), transfer)[0, :, 1].astype(int)
    assert shown[0] == pytest.approx(247, abs=4)  # 1.0 rolled off to 0.93
    assert shown[1] == pytest.approx(100, abs=3)  # 26 / 203 in sRGB


AWKWARD = (  # what generated files cannot stand for; tests/test_prepare.py reads all 24
  "butterfly_rotmeta.mp4",
  "cherries.mp4",
  "desk_pan_h263_vfr.3gp",
  "keyboard_3frames_hevc_rot90.mp4",
  "man_greenscreen_alpha.webm",
  "rooftop_phone_hevc10_rot_vfr.mp4",
  "tanners_ridge_exif6.jpg",
)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_real_media(real_media, name):
  listed = (real_media / "dev" / "clips.jsonl").read_text()
  rows = [json.loads(line) for line in listed.splitlines()]
  row = next(row for row in rows if row["file"] == name)
  got = decode(real_media / "dev" / name, short_side=32)
  assert len(got.video_THWC) == row["num_frames"]
  assert got.size == (row["width"], row["height"])
  if name == "rooftop_phone_hevc10_rot_vfr.mp4":
    # the row's rate counts the packets before the edit list, which no player shows
    assert got.fps == pytest.approx(59 / 1.968, rel=2e-3)
  elif row["fps"] is None:
    assert got.fps is None
  else:
    assert got.fps == pytest.approx(row["fps"], rel=2e-3)
