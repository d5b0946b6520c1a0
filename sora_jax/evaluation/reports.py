"""Pictures and pages of a run: contact sheets, curves, one HTML file that needs no network.

`html_report` takes sections made of the parts below (`text`, `table`, `image`, `gallery`), each of
which gives a piece of HTML with all media inside it; so `index.html` can be moved alone.
"""

import base64
import html
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from sora_jax.data import transforms
from sora_jax.data.records import write_json
from sora_jax.data.writing import write_video

_PAPER, _INK, _GREY = (250, 250, 248), (24, 24, 27), (125, 125, 130)
_GAP = 6
_CSS = """
:root { color-scheme: light dark;
  --ink: #18181b; --paper: #fafaf8; --line: #d4d4d8; --dim: #71717a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e7; --paper: #18181b; --line: #3f3f46; --dim: #a1a1aa } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line) }
img { max-width: 100%; height: auto }
.gallery { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start }
figure { margin: 0 } figcaption { color: var(--dim); font-size: .82rem; margin-top: .3rem }
.gallery figcaption { max-width: 260px; white-space: pre-line }
.pixels { image-rendering: pixelated; max-width: 100% }
"""


def contact_sheet(
  videos: Sequence[np.ndarray],
  labels: Sequence[str],
  path: str | os.PathLike,
  *,
  frames: int = 6,
  frame_height: int = 96,
  columns: int = 1,
) -> pathlib.Path:
  """Writes a PNG with a labelled strip of frames for each video.

  Args:
    videos: uint8 [T, H, W, 3], of any sizes and lengths; a picture gives a strip of one.
    labels: a text each, wrapped to the strip; line breaks are kept.
    frames: frames of a strip at most, evenly spaced, the first and the last among them.
    frame_height: about how high a frame is shown; small ones grow by whole factors, unblurred.
    columns: strips beside each other.
  Returns: `path`.  Raises: ValueError if there is no video, or not a label each.
  """
  if not videos or len(videos) != len(labels):
    raise ValueError(f"{len(videos)} videos and {len(labels)} labels; expected as many, at least 1")
  if min(frames, frame_height, columns) < 1:
    raise ValueError(
      f"frames={frames}, frame_height={frame_height}, columns={columns}: all above 0"
    )
  cards = [
    _card(_strip(video, frames, frame_height), label) for video, label in zip(videos, labels)
  ]
  rows = [cards[k : k + columns] for k in range(0, len(cards), columns)]
  widths = [
    max(row[k].width for row in rows if k < len(row)) for k in range(min(columns, len(cards)))
  ]
  heights = [max(card.height for card in row) for row in rows]
  gap = 3 * _GAP
  size = (sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * (len(rows) + 1))
  sheet = Image.new("RGB", size, _PAPER)
  top = gap
  for row, height in zip(rows, heights):
    left = gap
    for card, width in zip(row, widths):
      sheet.paste(card, (left, top))
      left += width + gap
    top += height + gap
  write_video(_png(path), np.asarray(sheet)[None], None)
  return pathlib.Path(path)


def curves(
  rows: Sequence[Mapping],
  path: str | os.PathLike,
  names: Sequence[str] = ("loss", "grad_norm", "tokens_per_sec"),
  *,
  smoothing: float = 0.9,
) -> pathlib.Path:
  """Draws metrics over steps as a PNG, a panel for each name that occurs in the rows.

  Args:
    rows: lines of `metrics.jsonl`; each holds `step`, and whatever was measured at it.
    smoothing: of the dark line, an exponential average; the raw values are drawn pale. 0: none.
  Returns: `path`.  Raises: ValueError if no name occurs.
  """
  if not 0 <= smoothing < 1:
    raise ValueError(f"smoothing={smoothing}; expected 0 or more, below 1")
  series = {name: _points(rows, name) for name in names}
  series = {name: points for name, points in series.items() if len(points[0])}
  if not series:
    known = sorted({key for row in rows for key in row})
    raise ValueError(f"none of {', '.join(names)} in the rows; they hold: {', '.join(known)}")
  figure = Figure(figsize=(4.6 * len(series), 3.2), layout="constrained")
  for k, (name, (steps, values)) in enumerate(series.items()):
    axes = figure.add_subplot(1, len(series), k + 1)
    axes.plot(steps, values, color="#93b4e8", linewidth=1)
    axes.plot(steps, _smooth(values, smoothing), color="#1d4ed8", linewidth=1.8)
    axes.set_title(name)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if min(values) > 0 and max(values) > 50 * min(values):
      axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  pixels = np.asarray(canvas.buffer_rgba())[None, ..., :3]
  write_video(_png(path), np.ascontiguousarray(pixels), None)
  return pathlib.Path(path)


def html_report(
  folder: str | os.PathLike,
  title: str,
  sections: Sequence[tuple[str, Sequence[str]]],
  figures: Mapping | None = None,
) -> pathlib.Path:
  """Writes `index.html`, which opens without a network, and `report.json` beside it.

  Args:
    sections: (heading, parts); the parts are HTML from `text`, `table`, `image` and `gallery`.
    figures: JSON-able; all of it goes to `report.json`, numpy scalars and arrays as lists, what is
      not finite as null.
  Returns: the path of `index.html`.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  body = "\n".join(
    f"<section><h2>{html.escape(heading)}</h2>\n{''.join(parts)}</section>"
    for heading, parts in sections
  )
  page = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{_CSS}</style></head>\n"
    f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
  )
  write_json(folder / "report.json", _plain(figures or {}))
  path = folder / "index.html"
  temporary = folder / f".index.{os.getpid()}.tmp"
  temporary.write_text(page, encoding="utf-8")
  os.replace(temporary, path)
  return path


def text(paragraph: str) -> str:
  """A paragraph."""
  return f"<p>{html.escape(paragraph)}</p>\n"


def table(rows: Sequence[Mapping]) -> str:
  """A table with a column for each key, in the order in which keys first occur."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  head = "".join(f"<th>{html.escape(str(key))}</th>" for key in columns)
  lines = "".join(
    "<tr>" + "".join(f"<td>{html.escape(_cell(row.get(key)))}</td>" for key in columns) + "</tr>\n"
    for row in rows
  )
  return f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table>\n"


def image(path: str | os.PathLike, caption: str = "") -> str:
  """A PNG, embedded."""
  data = pathlib.Path(path).read_bytes()
  note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
  alt = html.escape(caption or pathlib.Path(path).stem, quote=True)
  return f'<figure><img alt="{alt}" src="{_uri("image/png", data)}">{note}</figure>\n'


def gallery(
  videos: Sequence[np.ndarray],
  labels: Sequence[str],
  fps: Sequence[float | int | None],
  *,
  height: int = 160,
) -> str:
  """Videos (H.264, looping) and pictures side by side, embedded; small ones keep sharp pixels.

  Args: videos: uint8 [T, H, W, 3].  fps: of each, None for pictures.  height: on the page, in
  pixels.  Raises: ValueError unless there is one label and one rate for each video.
  """
  if not len(videos) == len(labels) == len(fps):
    raise ValueError(f"{len(videos)} videos, {len(labels)} labels, {len(fps)} rates")
  parts = []
  for video, label, rate in zip(videos, labels, fps):
    shown = f'class="pixels" height="{height}" width="{_width_at(video, height)}"'
    if len(video) == 1:
      source = _uri("image/png", _encoded(video, ".png", None))
      media = f'<img {shown} alt="{html.escape(label, quote=True)}" src="{source}">'
    else:
      even = transforms.pad_size(video, 2)  # 4:2:0, the one form that all browsers play
      source = _uri("video/mp4", _encoded(even, ".mp4", rate))
      media = f'<video {shown} autoplay loop muted playsinline controls src="{source}"></video>'
    parts.append(f"<figure>{media}<figcaption>{html.escape(label)}</figcaption></figure>\n")
  return f'<div class="gallery">\n{"".join(parts)}</div>\n'


def _strip(video_THWC: np.ndarray, frames: int, frame_height: int) -> np.ndarray:
  """Frames side by side, uint8 [H, W, 3], on paper."""
  T, H, W, _ = video_THWC.shape
  chosen = np.unique(np.rint(np.linspace(0, T - 1, min(frames, T))).astype(int))
  shown = video_THWC[chosen]
  factor = max(1, round(frame_height / H))
  if H > frame_height:
    shown = transforms.resize(shown, (max(1, round(W * frame_height / H)), frame_height))
  shown = shown.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else shown
  gap = np.full((shown.shape[1], _GAP, 3), _PAPER, np.uint8)
  pieces = [piece for frame_HWC in shown for piece in (frame_HWC, gap)]
  return np.concatenate(pieces[:-1], axis=1)


def _card(strip_HWC: np.ndarray, label: str) -> Image.Image:
  """A strip with its label above it, grey from the second line of the label on."""
  font = ImageFont.load_default(size=14)
  width = max(strip_HWC.shape[1], 220)
  lines = [
    (line, _GREY if k else _INK)
    for k, part in enumerate(label.split("\n"))
    for line in _wrap(part, font, width)
  ]
  line_height = 18
  top = line_height * len(lines) + _GAP
  card = Image.new("RGB", (width, top + strip_HWC.shape[0]), _PAPER)
  draw = ImageDraw.Draw(card)
  for k, (line, color) in enumerate(lines):
    draw.text((0, k * line_height), line, fill=color, font=font)
  card.paste(Image.fromarray(strip_HWC), (0, top))
  return card


def _wrap(line: str, font, width: int) -> list[str]:
  lines, current = [], ""
  for word in line.split():
    wider = f"{current} {word}".strip()
    if current and font.getlength(wider) > width:
      lines.append(current)
      wider = word
    current = wider
  return [*lines, current]


def _points(rows: Sequence[Mapping], name: str) -> tuple[list, list]:
  found = [(row["step"], row[name]) for row in rows if _is_number(row.get(name)) and "step" in row]
  return [step for step, _ in found], [float(value) for _, value in found]


def _is_number(value) -> bool:
  return (
    isinstance(value, int | float | np.number)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _smooth(values: Sequence[float], smoothing: float) -> list[float]:
  """Exponential average, corrected for its start."""
  total, weight, smooth = 0.0, 0.0, []
  for value in values:
    total = smoothing * total + (1 - smoothing) * value
    weight = smoothing * weight + (1 - smoothing)
    smooth.append(total / weight)
  return smooth


def _width_at(video: np.ndarray, height: int) -> int:
  return max(1, round(video.shape[2] * height / video.shape[1]))


def _encoded(video: np.ndarray, extension: str, fps: float | int | None) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"media{extension}"
    write_video(path, video, fps)
    return path.read_bytes()


def _uri(kind: str, data: bytes) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path)
  if path.suffix.lower() != ".png":
    raise ValueError(f"{path}: the name of a picture must end in .png")
  return path


def _cell(value) -> str:
  if value is None:
    return ""
  if isinstance(value, float | np.floating):
    return f"{value:.4g}"
  return str(value)


def _plain(value):
  """A JSON-able copy; what is not finite becomes None."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if hasattr(value, "__array__"):
    return _plain(np.asarray(value))
  return value
