"""Makes videos and images from text, images and videos with a trained model.

  python -m sora_jax.generate [text | image] --prompt="a red circle moves right" --out=red.mp4
  python -m sora_jax.generate animate --image=A [--at=FRAME]
  python -m sora_jax.generate extend --video=A --forward=N --backward=M
  python -m sora_jax.generate loop [--video=A] --frames=N
  python -m sora_jax.generate connect --start=A --end=B --frames=N [--strength=S]
  python -m sora_jax.generate edit --video=A [--strength=S]
  python -m sora_jax.generate inpaint --video=A --mask=M
  python -m sora_jax.generate outpaint --video=A --size=WxH
  python -m sora_jax.generate interpolate --video=A --factor=K
  python -m sora_jax.generate long --frames=N (--prompt=... | --script=FILE)

All take --prompt, --size, --frames, --fps, --seed, --steps, --guidance, --image_guidance, --out.
From text, several --prompt, --size, --frames or --seed make several videos, sampled packed
together; --draft makes a small one fast, and --from=draft.mp4 makes it again at full size, with the
same model. The other verbs take several --seed. What they are given comes back bit by bit (in a
.mkv; .mp4 is lossy). Where the result is as long as the clip makes it (extend, edit, inpaint,
outpaint, interpolate), --frames=N takes the first N frames of that clip.

long makes one video of any length, in windows that know each other's frames; a script has a line
`SECONDS: PROMPT` for each prompt. Its file can be played while it grows; interrupted, the same
command goes on with it, from what is kept in OUT.partial.
"""

import math
import pathlib
import sys
import time

from absl import app, flags, logging

from sora_jax.data import clips, writing
from sora_jax.prompting import drafts, tasks, unfinished
from sora_jax.prompting import long as long_lib

PROMPT = flags.DEFINE_multi_string("prompt", None, "What to make. Repeat for several videos.")
SIZE = flags.DEFINE_multi_string("size", None, "WIDTHxHEIGHT in pixels; 96x64 by default.")
FRAMES = flags.DEFINE_multi_integer(
  "frames", None, "Of the result, or of a clip to take; see above."
)
SEED = flags.DEFINE_multi_integer("seed", None, "Names the noise; 0 by default.")
FPS = flags.DEFINE_float("fps", None, "Frames per second; by default the model's.")
STEPS = flags.DEFINE_integer("steps", None, "Solver steps; by default the model's.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Strength of the text, 1 = off; the model's.")
SOLVER = flags.DEFINE_string("solver", None, "Name of a solver; by default the model's.")
GRID = flags.DEFINE_string("grid", None, "Name of a grid of times; by default the model's.")
INTERVAL = flags.DEFINE_list(
  "guidance_interval", None, "LOW,HIGH within 0 and 1: times at which guidance acts; the model's."
)
OUT = flags.DEFINE_string("out", None, "File to write: .mp4, .mkv (lossless), .gif or .png.")
MODEL = flags.DEFINE_string("model", "tiny", "Shipped name, model folder or work directory.")
DRAFT = flags.DEFINE_boolean("draft", False, "Half the size, half the steps.")
FROM = flags.DEFINE_string("from", None, "A draft whose content is made at full size.")
STRENGTH = flags.DEFINE_float(
  "strength", None, "How freely what is given is followed, 1 = not; by default the verb's."
)
IMAGE = flags.DEFINE_string("image", None, "animate: a picture.")
AT = flags.DEFINE_integer("at", 0, "animate: the frame that the picture is.")
VIDEO = flags.DEFINE_string("video", None, "A clip: any video, animation or picture.")
FORWARD = flags.DEFINE_integer("forward", 0, "extend: frames to add after the clip.")
BACKWARD = flags.DEFINE_integer("backward", 0, "extend: frames to add before it.")
STAGES = flags.DEFINE_integer(
  "stages", None, "extend: in how many turns, from the clip on, 1 = all at once; the model's."
)
START = flags.DEFINE_string("start", None, "connect: the clip or picture that comes first.")
END = flags.DEFINE_string("end", None, "connect: the one that comes last.")
MASK = flags.DEFINE_string("mask", None, "inpaint: a picture or video, white where to make anew.")
FACTOR = flags.DEFINE_integer("factor", 2, "interpolate: how many times the frame rate.")
SCRIPT = flags.DEFINE_string("script", None, "A text file of lines SECONDS: PROMPT, for --prompt.")
POSITIONS = flags.DEFINE_enum(
  "positions", "none", ["none", "interpolate", "ntk"], "Where clips exceed those of training."
)
WINDOW = flags.DEFINE_integer("window", long_lib.WINDOW, "long: frames of a window, as trained.")
LEAST_FPS = flags.DEFINE_float(
  "least_fps", long_lib.LEAST_FPS, "long: least frame rate of key frames, as trained; 0 = any."
)
IMAGE_GUIDANCE = flags.DEFINE_float("image_guidance", 1.0, "Strength of known frames, 1 = off.")
CONTEXT_NOISE = flags.DEFINE_float(
  "context_noise", 0.0, "Time to which what is known is noised, as in training; 0 = off."
)

MEDIA = {
  "animate": ("image",), "extend": ("video",), "loop": ("video",), "connect": ("start", "end"),
  "edit": ("video",), "inpaint": ("video", "mask"), "outpaint": ("video",),
  "interpolate": ("video",),
}  # fmt: skip
"""Verbs beside text and image, and the files that each needs."""


def main(argv: list[str]) -> None:
  """Runs the command; an error is one line that names the flag, its value and the remedy."""
  try:
    run(argv[1:])
  except (ValueError, OSError) as error:
    sys.exit(f"generate: {error}")


def run(verbs: list[str]) -> list[pathlib.Path]:
  """Makes what the flags ask for.  Returns: the files written."""
  verb = verbs[0] if verbs else "text"
  if len(verbs) > 1 or verb not in TAKES:
    raise ValueError(f"unknown words {' '.join(verbs)!r}; one verb of {', '.join(TAKES)}, or none")
  check_flags(verb)
  if verb == "long":
    return make_long()
  return from_text(verb) if verb not in MEDIA else from_media(verb)


def check_flags(verb: str) -> None:
  """Raises a ValueError for flags that the verb needs and lacks, or does not take; bad numbers."""
  takes = TAKES.get(verb, ()) + MEDIA.get(verb, ())
  for name in sorted({name for names in (*TAKES.values(), *MEDIA.values()) for name in names}):
    if flags.FLAGS[name].present and name not in takes:
      users = [other for other in (*TAKES, *MEDIA) if name in TAKES[other] + MEDIA.get(other, ())]
      raise ValueError(
        f"--{name}={flags.FLAGS[name].value} is not for {verb}; it belongs to "
        f"{', '.join(dict.fromkeys(users))}"
      )
  for name in MEDIA.get(verb, ()):
    if not flags.FLAGS[name].value and not (verb == "loop" and (PROMPT.value or SCRIPT.value)):
      text = ", or --prompt alone" if verb == "loop" else ""
      raise ValueError(f"--{name} is missing; {verb} needs a file there{text}")
  strength = 1.0 if STRENGTH.value is None else STRENGTH.value
  if not 0 <= strength <= 1 or (FROM.value and not strength):
    raise ValueError(f"--strength={STRENGTH.value}; it must lie between 0 and 1 (--from: above 0)")
  if STEPS.value is not None and STEPS.value < 1:
    raise ValueError(f"--steps={STEPS.value}; a sample needs at least 1 solver step")
  for flag in (GUIDANCE, IMAGE_GUIDANCE):
    if flag.value is not None and not math.isfinite(flag.value):
      raise ValueError(f"--{flag.name}={flag.value}; it must be a number, 1 = off")
  parse_interval()
  if not 0 <= CONTEXT_NOISE.value < 1:
    raise ValueError(f"--context_noise={CONTEXT_NOISE.value}; it must lie in [0, 1), 0 = off")
  if FPS.value is not None and not 0 < FPS.value <= 1000:
    raise ValueError(f"--fps={FPS.value}; it must be above 0, at most 1000")
  for name, flag in (("frames", FRAMES), ("seed", SEED)):
    for value in flag.value or ():
      if value < (name == "frames"):
        raise ValueError(f"--{name}={value}; it must be at least {int(name == 'frames')}")
  if WINDOW.value <= tasks.GUARD:
    raise ValueError(f"--window={WINDOW.value}; it must be above {tasks.GUARD}, as in training")
  if not 0 <= LEAST_FPS.value < math.inf:
    raise ValueError(f"--least_fps={LEAST_FPS.value}; it must be a rate, or 0 for any")
  if verb == "image" and set(FRAMES.value or [1]) != {1}:
    raise ValueError(f"--frames={max(FRAMES.value)} is not for image, which makes one; use text")


def from_media(verb: str) -> list[pathlib.Path]:
  """Runs a verb that is given files.  Returns: the files written."""
  began = time.monotonic()
  given = read_given(verb)
  seeds = SEED.value or [0]
  paths = out_paths(OUT.value, len(seeds))
  from sora_jax import model as model_lib

  say(f"loading {MODEL.value}")
  model = model_lib.load(MODEL.value)
  fps = given.pop("fps") or model.defaults["fps"]
  if SCRIPT.value:
    rate = fps * FACTOR.value if verb == "interpolate" else fps
    given["prompt"] = opened("script", long_lib.read_script).frames(rate)
  videos = getattr(model, verb)(
    **given, fps=fps, seed=seeds, guidance=GUIDANCE.value, image_guidance=IMAGE_GUIDANCE.value,
    context_noise=CONTEXT_NOISE.value, positions=POSITIONS.value, **sampler_flags(), progress=say,
  )  # fmt: skip
  rate = fps * FACTOR.value if verb == "interpolate" else fps
  for path, video in zip(paths, videos):
    writing.write_video(path, video, rate)
    say(f"wrote {path}: {len(video)} frames of {video.shape[2]}x{video.shape[1]}")
  say(f"done in {time.monotonic() - began:.1f} s")
  return paths


def read_given(verb: str) -> dict:
  """Arguments of a verb of `Model`, its files decoded.  Raises: ValueError naming a flag."""
  if OUT.value is None:
    raise ValueError("--out is missing; name the file to write, for example --out=red.mp4")
  if writing.check_extension(OUT.value) == ".png":
    raise ValueError(f"--out={OUT.value}; {verb} makes a video: write .mp4, .mkv or .gif")
  for flag in (PROMPT, SIZE, FRAMES):
    if flag.value and len(flag.value) > 1:
      raise ValueError(f"--{flag.name} is given {len(flag.value)} times; {verb} makes one video")
  if PROMPT.value and SCRIPT.value:
    raise ValueError("--prompt and --script are both given; a script holds the prompts")
  named = {name: flags.FLAGS[name].value for name in MEDIA[verb]}
  files = {name: opened(name, clips.decode) for name, path in named.items() if path}
  rates = [found.fps for name, found in files.items() if found.fps and name != "mask"]
  given = {name: files[name].video_THWC if name in files else None for name in named}
  if FRAMES.value and verb not in DEFAULT_FRAMES:
    given = {name: first(video, verb, named[name]) for name, video in given.items()}
  given["prompt"] = PROMPT.value[0] if PROMPT.value else ""
  given["fps"] = next(iter(rates), None) if FPS.value is None else FPS.value
  if SIZE.value:
    given["size"] = parse_size(SIZE.value[0])
  elif verb == "outpaint":
    raise ValueError("--size is missing; outpaint needs the size to reach, as WIDTHxHEIGHT")
  if verb == "inpaint":
    given["mask"] = given["mask"].mean(-1) > 127
  for name, verbs in VALUES.items():
    if verb in verbs and flags.FLAGS[name].value is not None:
      given[name] = flags.FLAGS[name].value
  if verb in DEFAULT_FRAMES:
    length = sum(len(found.video_THWC) for found in files.values())
    given["frames"] = FRAMES.value[0] if FRAMES.value else DEFAULT_FRAMES[verb](length)
  return given


def opened(name: str, read):
  """What `read` makes of a flag's file.  Raises: ValueError naming the flag, file and remedy."""
  path = flags.FLAGS[name].value
  try:
    return read(path)
  except OSError as error:
    why = error.strerror or error
    raise ValueError(f"--{name}={path}: {why}; name a file that can be read") from error
  except ValueError as error:
    raise ValueError(f"--{name}={path}: {error}") from error


def first(video_THWC, verb: str, path: str):
  """The first --frames of a clip; a picture as it is.  Raises: ValueError if it is shorter."""
  frames, length = FRAMES.value[0], len(video_THWC)
  if 1 < length < frames:
    raise ValueError(
      f"--frames={frames}; of {verb} it says how many to take of the clip, and {path} has {length}"
    )
  return video_THWC[:frames]


_KNOWN = ("script", "context_noise")
TAKES = {
  "text": ("draft", "from", "strength"), "image": ("draft", "from", "strength"),
  "animate": ("at", *_KNOWN), "extend": ("forward", "backward", "stages", *_KNOWN), "loop": _KNOWN,
  "connect": ("strength", *_KNOWN), "edit": ("strength", "script"), "inpaint": _KNOWN,
  "outpaint": _KNOWN, "interpolate": ("factor", *_KNOWN),
  "long": ("window", "least_fps", *_KNOWN),
}  # fmt: skip
"""Flags that some verbs take and others do not, beside files."""
VALUES = {
  "at": ("animate",), "forward": ("extend",), "backward": ("extend",), "factor": ("interpolate",),
  "strength": ("connect", "edit"), "stages": ("extend",),
}  # fmt: skip
"""Numbers by flag, and the verbs that take them."""
DEFAULT_FRAMES = {
  "animate": lambda length: 17, "loop": lambda length: 2 * length or 16,
  "connect": lambda length: length + 15,
}  # fmt: skip
"""Frames of the result if --frames is not given, from the frames of the input."""


def make_long() -> list[pathlib.Path]:
  """Makes a long video, or goes on with one.  Returns: the file written."""
  began = time.monotonic()
  given = read_long()
  from sora_jax import model as model_lib
  from sora_jax.weights import folder

  how = {
    "guidance": GUIDANCE.value, "image_guidance": IMAGE_GUIDANCE.value, **sampler_flags(),
    "positions": POSITIONS.value, "window": WINDOW.value, "least_fps": LEAST_FPS.value,
    "context_noise": CONTEXT_NOISE.value,
  }  # fmt: skip
  weights = unfinished.fingerprint(folder.find(MODEL.value).glob("*.safetensors"))
  store = unfinished.Unfinished(OUT.value, {**given, **how, "model": weights})
  say(f"loading {MODEL.value}")
  model = model_lib.load(MODEL.value)
  given["fps"] = given["fps"] or model.defaults["fps"]
  chunks = model.long(**given, **how, kept=store, progress=say)
  if store.ready:
    say(f"going on with {store.folder}: {store.ready} windows are made")
  store.write(chunks, given["fps"])
  say(f"wrote {store.out}: {given['frames']} frames of {given['size'][0]}x{given['size'][1]}")
  say(f"done in {time.monotonic() - began:.1f} s")
  return [store.out]


def read_long() -> dict:
  """Arguments of `Model.long`, before anything heavy is imported.  Raises: ValueError."""
  if OUT.value is None:
    raise ValueError("--out is missing; name the file to write, for example --out=red.mp4")
  if writing.check_extension(OUT.value) not in (".mp4", ".mkv"):
    raise ValueError(f"--out={OUT.value}; long writes as it makes: write .mp4 or .mkv")
  for flag in (PROMPT, SIZE, FRAMES, SEED):
    if flag.value and len(flag.value) > 1:
      raise ValueError(f"--{flag.name} is given {len(flag.value)} times; long makes one video")
  if not FRAMES.value:
    raise ValueError("--frames is missing; say how many to make, for example --frames=480")
  if bool(PROMPT.value) == bool(SCRIPT.value):
    raise ValueError(
      f"--prompt and --script are {'both given' if PROMPT.value else 'missing'}; long takes one: "
      "--prompt for one text, --script for a file of lines SECONDS: PROMPT"
    )
  return {
    "prompt": opened("script", long_lib.read_script).parts if SCRIPT.value else PROMPT.value[0],
    "size": parse_size(SIZE.value[0] if SIZE.value else "96x64"), "frames": FRAMES.value[0],
    "fps": FPS.value, "seed": SEED.value[0] if SEED.value else 0,
  }  # fmt: skip


def from_text(verb: str) -> list[pathlib.Path]:
  """Makes videos and pictures from text.  Returns: the files written."""
  began = time.monotonic()
  arguments = read_flags(verb)
  paths = out_paths(OUT.value, max(len(v) for v in arguments.values() if isinstance(v, list)))
  from sora_jax import model as model_lib  # after the flags are known to be right

  say(f"loading {MODEL.value}")
  model = model_lib.load(MODEL.value)
  fps = arguments.pop("fps") or model.defaults["fps"]
  draft = arguments.pop("draft_video")
  if draft is not None:
    arguments["from_draft"] = [draft] * len(paths)
  videos = model.generate(
    **arguments, fps=fps, guidance=GUIDANCE.value, draft=DRAFT.value, positions=POSITIONS.value,
    **sampler_flags(), progress=say,
    **({} if STRENGTH.value is None else {"strength": STRENGTH.value}),
  )  # fmt: skip
  for path, video in zip(paths, videos):
    writing.write_video(path, video, fps)
    say(f"wrote {path}: {len(video)} frames of {video.shape[2]}x{video.shape[1]}")
  for path in paths:
    drafts.notes_path(path).unlink(missing_ok=True)  # of a draft that bore this name
  if DRAFT.value:
    drafts.remember(paths, arguments, fps)
  say(f"done in {time.monotonic() - began:.1f} s")
  return paths


def read_flags(verb: str) -> dict:
  """Arguments of `Model.generate` as lists of one length, before anything heavy is imported.

  Raises: ValueError naming a flag.
  """
  if OUT.value is None:
    raise ValueError("--out is missing; name the file to write, for example --out=red.mp4")
  extension = writing.check_extension(OUT.value)
  if DRAFT.value and FROM.value:
    raise ValueError("--draft and --from exclude each other: --from makes a draft at full size")
  video, notes = (None, {}) if FROM.value is None else opened("from", drafts.read)
  prompts = PROMPT.value or notes.get("prompt")
  if not prompts:
    raise ValueError('--prompt is missing; say what to make, for example --prompt="a red circle"')
  given = {
    "prompt": list(prompts),
    "size": [parse_size(text) for text in SIZE.value or notes.get("size") or ["96x64"]],
    "frames": FRAMES.value or [1 if verb == "image" else default_frames(extension, video)],
    "seed": SEED.value or notes.get("seed") or [0],
  }
  if extension == ".png" and set(given["frames"]) != {1}:
    raise ValueError(
      f"--frames={max(given['frames'])} with --out={OUT.value}; a .png holds one frame: "
      "drop --frames, or write .mp4, .mkv or .gif"
    )
  fps = notes.get("fps") if FPS.value is None else FPS.value
  return spread(given) | {"fps": fps, "draft_video": video}


def spread(given: dict[str, list]) -> dict[str, list]:
  """Repeats single values to the length of the longest.  Raises: ValueError if counts differ."""
  number = max(len(values) for values in given.values())
  for name, values in given.items():
    if len(values) not in (1, number):
      raise ValueError(
        f"--{name} is given {len(values)} times, another flag {number} times; give each once, or "
        "once per video"
      )
  return {name: values * (number // len(values)) for name, values in given.items()}


def parse_size(text: str) -> tuple[int, int]:
  """(width, height) of "96x64".  Raises: ValueError."""
  parts = text.lower().split("x")
  if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) for part in parts):
    raise ValueError(f"--size={text}; write WIDTHxHEIGHT in pixels, for example --size=96x64")
  return int(parts[0]), int(parts[1])


def parse_interval() -> tuple[float, float] | None:
  """--guidance_interval as numbers, None if it is not given.  Raises: ValueError."""
  if INTERVAL.value is None:
    return None
  try:
    low, high = (float(text) for text in INTERVAL.value)
    if not 0 <= low <= high <= 1:
      raise ValueError
  except ValueError:
    raise ValueError(
      f"--guidance_interval={','.join(INTERVAL.value)}; write two times LOW,HIGH within 0 and 1,"
      " for example --guidance_interval=0.3,1"
    ) from None
  return low, high


def sampler_flags() -> dict:
  """How to sample, by argument of `Model`; None = the model's own."""
  return {
    "steps": STEPS.value, "solver": SOLVER.value, "grid": GRID.value,
    "guidance_interval": parse_interval(),
  }  # fmt: skip


def default_frames(extension: str, draft) -> int:
  """One for a picture, as many as the draft has, else 17."""
  if extension == ".png":
    return 1
  return 17 if draft is None else len(draft)


def out_paths(out: str, number: int) -> list[pathlib.Path]:
  """`red.mp4`, or `red-0.mp4`, `red-1.mp4`, ... for several."""
  path = pathlib.Path(out)
  if number == 1:
    return [path]
  return [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(number)]


def say(line: str) -> None:
  """Progress, on the log that absl writes to standard error."""
  logging.info("%s", line)


if __name__ == "__main__":
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  app.run(main)
