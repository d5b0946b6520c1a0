"""Reports: sheets and curves that show what they are given, and a page that needs nothing else."""

import base64
import html.parser
import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.data.clips import decode
from sora_jax.evaluation import reports


def moving_square(T, H, W, color):
  video = np.zeros((T, H, W, 3), np.uint8)
  for t in range(T):
    x = (W - 8) * t // max(T - 1, 1)
    video[t, H // 2 - 4 : H // 2 + 4, x : x + 8] = color
  return video


VIDEOS = [
  moving_square(17, 64, 96, (255, 0, 0)),
  moving_square(9, 96, 54, (0, 255, 0)),
  moving_square(1, 33, 47, (0, 80, 255)),
]
LABELS = [
  "a red square moves right",
  "a green square\nin portrait, with <tags> & more",
  "a picture",
]


def test_a_contact_sheet_shows_every_video(tmp_path):
  path = reports.contact_sheet(VIDEOS, LABELS, tmp_path / "new" / "sheet.png", frames=5)
  pixels = np.asarray(Image.open(path)).reshape(-1, 3)
  for color, area in (((255, 0, 0), 64 * 5 * 4), ((0, 255, 0), 64 * 5), ((0, 80, 255), 64 * 9)):
    assert (pixels == color).all(-1).sum() == area  # grown by whole factors, nothing blurred
  wide = reports.contact_sheet(VIDEOS, LABELS, tmp_path / "wide.png", frames=5, columns=3)
  assert Image.open(wide).width > Image.open(path).width
  assert Image.open(wide).height < Image.open(path).height


def test_a_contact_sheet_shrinks_large_frames(tmp_path):
  video = moving_square(3, 400, 600, (255, 255, 0))
  path = reports.contact_sheet([video], ["large"], tmp_path / "sheet.png", frames=3)
  width, height = Image.open(path).size
  assert 3 * 144 <= width < 3 * 144 + 80
  assert 96 <= height < 96 + 90


def test_sheets_refuse_what_they_cannot_show(tmp_path):
  for videos, labels in (([], []), (VIDEOS, LABELS[:1])):
    with pytest.raises(ValueError, match="labels"):
      reports.contact_sheet(videos, labels, tmp_path / "a.png")
  with pytest.raises(ValueError, match=r"\.png"):
    reports.contact_sheet(VIDEOS, LABELS, tmp_path / "a.jpg")
  with pytest.raises(ValueError, match="frames=0"):
    reports.contact_sheet(VIDEOS, LABELS, tmp_path / "a.png", frames=0)


def rows(count=40):
  noise = np.random.default_rng(0).normal(size=count)
  return [
    {"step": k, "loss": 1 / (k + 1) + 0.01 * float(noise[k]), "note": "x", "val/psnr": None}
    for k in range(count)
  ]


def test_curves_are_drawn(tmp_path):
  path = reports.curves(rows(), tmp_path / "curves.png", ("loss", "grad_norm", "val/psnr"))
  one = Image.open(path)
  assert np.asarray(one).std() > 5
  more = [row | {"grad_norm": np.float32(2.0)} for row in rows()]
  two = Image.open(reports.curves(more, tmp_path / "two.png"))
  assert two.width == pytest.approx(2 * one.width, abs=2)
  with pytest.raises(ValueError, match="they hold: loss, note, step, val/psnr"):
    reports.curves(rows(), tmp_path / "none.png", ("los",))
  with pytest.raises(ValueError, match="smoothing"):
    reports.curves(rows(), tmp_path / "none.png", smoothing=1.0)


def test_values_that_are_not_finite_are_left_out(tmp_path):
  broken = [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": None}, {"step": 2}]
  with pytest.raises(ValueError, match="none of loss"):
    reports.curves(broken, tmp_path / "a.png", ("loss",))


class Checker(html.parser.HTMLParser):
  """Collects sources, and tags that are opened and not closed."""

  VOID = {"meta", "img", "br", "link"}

  def __init__(self):
    super().__init__()
    self.sources, self.open_tags = [], []

  def handle_starttag(self, tag, attrs):
    self.sources += [value for key, value in attrs if key in ("src", "href")]
    if tag not in self.VOID:
      self.open_tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open_tags.pop() == tag


def make_report(folder):
  sheet = reports.contact_sheet(VIDEOS, LABELS, folder / "sheet.png")
  curves = reports.curves(rows(), folder / "curves.png")
  figures = {
    "loss": np.float32(0.5),
    "bad": float("inf"),
    "accuracy": {"color": np.array([0.25, 1.0])},
  }
  sections = [
    ("Samples", [reports.text("8 < 9 & so on"), reports.gallery(VIDEOS, LABELS, [8, 12.0, None])]),
    ("Sheet & curves", [reports.image(sheet, "all samples"), reports.image(curves)]),
    ("Figures", [reports.table([{"what": "loss", "value": 0.123456}, {"what": "none", "n": 3}])]),
  ]
  return reports.html_report(folder / "report", "A <run>", sections, figures)


def test_the_page_needs_nothing_else(tmp_path):
  path = make_report(tmp_path)
  assert sorted(p.name for p in path.parent.iterdir()) == ["index.html", "report.json"]
  page = path.read_text()
  checker = Checker()
  checker.feed(page)
  assert not checker.open_tags
  assert len(checker.sources) == 5
  assert all(source.startswith("data:") for source in checker.sources)
  assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
  for escaped in ("A &lt;run&gt;", "&lt;tags&gt; &amp; more", "8 &lt; 9", "0.1235"):
    assert escaped in page
  assert json.loads((path.parent / "report.json").read_text()) == {
    "loss": 0.5,
    "bad": None,
    "accuracy": {"color": [0.25, 1.0]},
  }


def test_embedded_videos_play_everywhere(tmp_path):
  odd = moving_square(5, 33, 47, (255, 0, 0))
  page = reports.gallery([odd], ["odd"], [8])
  (data,) = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page)
  (tmp_path / "a.mp4").write_bytes(base64.b64decode(data))
  with av.open(str(tmp_path / "a.mp4")) as container:
    context = container.streams.video[0].codec_context
    assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
  got = decode(tmp_path / "a.mp4")
  assert got.video_THWC.shape == (5, 34, 48, 3)
  assert got.fps == 8
  with pytest.raises(ValueError, match="2 rates"):
    reports.gallery([odd], ["odd"], [8, 8])
