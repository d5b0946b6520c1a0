"""Makes videos and images from text, images and videos with a trained model.

  python -m sora_jax.generate [text | image] --out=red.mp4 \\
    --prompt="a red circle moves right over a black background"
  python -m sora_jax.generate animate --image=A [--at=FRAME]
  python -m sora_jax.generate extend --video=A --forward=N --backward=M
  python -m sora_jax.generate loop [--video=A] --frames=N
  python -m sora_jax.generate connect --start=A --end=B --frames=N [--strength=S]
  python -m sora_jax.generate edit --video=A [--strength=S]
  python -m sora_jax.generate inpaint --video=A --mask=M
  python -m sora_jax.generate outpaint --video=A --size=WxH
  python -m sora_jax.generate interpolate --video=A --factor=K
  python -m sora_jax.generate long --frames=N (--prompt=... | --script=FILE)

The shipped model, tiny, knows the words and sentences of docs/world.md alone.

All take --prompt, --size, --frames, --fps, --seed, --steps, --guidance, --out; those that are told
known frames (all but text, image and edit) take --image_guidance and --context_noise, too.
From text, several --prompt, --size, --frames or --seed make several videos, sampled packed
together; --draft makes a small one fast, and --from=draft.mp4 makes it again at full size, with the
same model. The other verbs take several --seed. What they are given comes back bit by bit (in a
.mkv; .mp4 is lossy). Where the result is as long as the clip makes it (extend, edit, inpaint,
outpaint, interpolate), --frames=N takes the first N frames of that clip; with --from, of the draft.

long makes one video of any length, in windows that know each other's frames; a script has a line
`SECONDS: PROMPT` for each prompt. Its file can be played while it grows; interrupted, the same
command goes on with it, from what is kept in OUT.partial.
"""

import functools
import math
import pathlib
import sys
import time

from absl import app, flags, logging

from sora_jax.data import writing
from sora_jax.data.transforms import parse_size
from sora_jax.prompting import drafts, tasks, unfinished
from sora_jax.prompting import given as given_lib
from sora_jax.prompting import long as long_lib
from sora_jax.prompting.given import parse_interval

PROMPT = flags.DEFINE_multi_string("prompt", None, "What to make. Repeat for several videos.")
SIZE = flags.DEFINE_multi_string(
  "size", None, "WIDTHxHEIGHT in pixels; by default 96x64 from text, else that of what is given, "
  "smaller if it is too large; of a draft, in full."
)  # fmt: skip
FRAMES = flags.DEFINE_multi_integer(
  "frames", None, "Of the result, or of a clip to take; see above."
)
SEED = flags.DEFINE_multi_integer("seed", None, "Names the noise; 0 by default.")
FPS = flags.DEFINE_float("fps", None, "Frames per second; by default the clip's, or the model's.")
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
IMAGE_GUIDANCE = flags.DEFINE_float(
  "image_guidance", 1.0, "Strength of known frames, 1 = off; not for text, image and edit."
)
CONTEXT_NOISE = flags.DEFINE_float(
  "context_noise", 0.0, "Time to which what is known is noised, as in training, 0 = off; not for "
  "text, image and edit."
)  # fmt: skip

MEDIA = {
  "animate": ("image",), "extend": ("video",), "loop": ("video",), "connect": ("start", "end"),
  "edit": ("video",), "inpaint": ("video", "mask"), "outpaint": ("video",),
  "interpolate": ("video",),
}  # fmt: skip
"""Verbs beside text and image, and the files that each needs."""
COVERS = ("animate", "extend", "loop", "connect", "edit", "interpolate")
"""Verbs whose files are scaled to cover --size, which may be done as they are decoded."""


def main(argv: list[str]) -> None:
  """Runs the command; an error is one line that names the flag, its value and the remedy."""
  try:
    run(argv[1:])
  except KeyboardInterrupt:
    left = unfinished.left(OUT.value) if argv[1:] == ["long"] and OUT.value else None
    print(f"generate: interrupted; {left or 'run again, it begins anew'}", file=sys.stderr)
    sys.exit(130)  # what shells take for an end by Ctrl-C
  except (ValueError, OSError) as error:
    sys.exit(f"generate: {error}")
  except (MemoryError, RuntimeError) as error:  # of the host, of the device
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
    asked = [f"--{flag.name}={value}" for flag in (SIZE, FRAMES) for value in flag.value or ()]
    why = str(error).partition("\n")[0]
    sys.exit(
      f"generate: {' '.join(asked) or 'what is asked for'} takes more memory than there is"
      f"{why and f' ({why})'}; ask for a smaller --size or fewer --frames"
    )


def run(verbs: list[str]) -> list[pathlib.Path]:
  """Makes what the flags ask for.  Returns: the files written."""
  verb = verbs[0] if verbs else "text"
  if len(verbs) > 1 or verb not in TAKES:
    raise ValueError(f"unknown words {' '.join(verbs)!r}; one verb of {', '.join(TAKES)}, or none")
  check_flags(verb)
  check_values(verb)
  if verb == "long":
    return make_long()
  return from_text(verb) if verb not in MEDIA else from_media(verb)


def check_flags(verb: str) -> None:
  """Raises a ValueError for flags that the verb needs and lacks, or does not take."""
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
  if verb not in MEDIA and STRENGTH.value is not None and not FROM.value:
    raise ValueError(
      f"--strength={STRENGTH.value} does nothing without --from; it says how freely a draft is "
      "followed"
    )
  if PROMPT.value and SCRIPT.value:
    raise ValueError("--prompt and --script are both given; a script holds the prompts")
  if verb not in ("text", "image"):
    for flag in (PROMPT, SIZE, FRAMES, *((SEED,) if verb == "long" else ())):
      if flag.value and len(flag.value) > 1:
        raise ValueError(f"--{flag.name} is given {len(flag.value)} times; {verb} makes one video")
  if OUT.value is None:
    raise ValueError("--out is missing; name the file to write, for example --out=red.mp4")
  if writing.check_extension(OUT.value) not in (".mp4", ".mkv") and verb == "long":
    raise ValueError(f"--out={OUT.value}; long writes as it makes: write .mp4 or .mkv")


def check_values(verb: str) -> None:
  """Raises a ValueError for a number that no model takes."""
  for flag, allowed, text in (
    (STRENGTH, lambda t: 0 <= t <= 1 and (t or not FROM.value), "it must lie between 0 and 1 "
     "(--from: above 0)"),
    (STEPS, lambda n: n >= 1, "a sample needs at least 1 solver step"),
    (GUIDANCE, math.isfinite, "it must be a number, 1 = off"),
    (IMAGE_GUIDANCE, math.isfinite, "it must be a number, 1 = off"),
    (CONTEXT_NOISE, lambda t: 0 <= t < 1, "it must lie in [0, 1), 0 = off"),
    (FPS, lambda rate: 0.001 <= rate <= 1000, "it must be at least 0.001, at most 1000"),
    (FRAMES, lambda n: n >= 1, "it must be at least 1"),
    (SEED, lambda n: n >= 0, "it must be at least 0"),
    (WINDOW, lambda n: n > tasks.GUARD, f"it must be above {tasks.GUARD}, as in training"),
    (LEAST_FPS, lambda rate: 0 <= rate < math.inf, "it must be a rate, or 0 for any"),
  ):  # fmt: skip
    for value in flag.value if isinstance(flag.value, list) else [flag.value]:
      if value is not None and not allowed(value):
        raise ValueError(f"--{flag.name}={value}; {text}")
  parse_interval(INTERVAL.value)
  if verb == "image" and set(FRAMES.value or [1]) != {1}:
    raise ValueError(f"--frames={max(FRAMES.value)} is not for image, which makes one; use text")
  if verb == "loop" and not VIDEO.value and min(FRAMES.value or [math.inf]) <= tasks.GUARD:
    raise ValueError(
      f"--frames={FRAMES.value[0]}; a loop made from text has at least {tasks.GUARD + 1}"
    )


def from_media(verb: str) -> list[pathlib.Path]:
  """Runs a verb that is given files.  Returns: the files written."""
  began = time.monotonic()
  given = read_given(verb)
  seeds = SEED.value or [0]
  paths = given_lib.out_paths(OUT.value, len(seeds))
  from sora_jax import model as model_lib

  say(f"loading {MODEL.value}")
  model = model_lib.load(MODEL.value)
  fps = given.pop("fps") or model.defaults["fps"]
  videos = getattr(model, verb)(
    **given, fps=fps, seed=seeds, guidance=GUIDANCE.value, image_guidance=IMAGE_GUIDANCE.value,
    context_noise=CONTEXT_NOISE.value, positions=POSITIONS.value, **sampler_flags(), progress=say,
  )  # fmt: skip
  for path, video in zip(paths, videos):
    writing.write_video(path, video, faster(verb, fps))
    say(f"wrote {path}: {len(video)} frames of {video.shape[2]}x{video.shape[1]}")
  say(f"done in {time.monotonic() - began:.1f} s")
  return paths


def read_given(verb: str) -> dict:
  """Arguments of a verb of `Model`, its files decoded.  Raises: ValueError naming a flag."""
  named = {name: path for name in MEDIA[verb] if (path := flags.FLAGS[name].value)}
  takes = verb not in DEFAULT_FRAMES
  most = max(2, FRAMES.value[0]) if takes and FRAMES.value else None  # 2 tell it from a picture
  size = parse_size(SIZE.value[0]) if SIZE.value else None
  sized = verb in COVERS
  read = functools.partial(
    given_lib.clip, most=2 if verb == "animate" else most, size=size if sized else None,
    takes=takes, sized=sized,
  )  # fmt: skip
  files = {name: given_lib.opened(name, path, read) for name, path in named.items()}
  given = {name: None for name in MEDIA[verb]} | {n: f.video_THWC for n, f in files.items()}
  if verb == "animate" and len(given["image"]) > 1:
    raise ValueError(f"--image={IMAGE.value} has several frames; animate takes one picture")
  for name, video in given.items() if most else ():
    if name != "mask" or len(video) > 1:  # one picture serves all
      given[name] = given_lib.first(video, FRAMES.value[0], verb, named[name])
  given["prompt"] = PROMPT.value[0] if PROMPT.value else ""
  given["fps"] = FPS.value
  if FPS.value is None:
    given["fps"] = given_lib.rate({n: f for n, f in files.items() if n != "mask"}, named)
  if size:
    given["size"] = size
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
  frames = frames_made(verb, given)
  rate = given["fps"] and faster(verb, given["fps"])
  sizes = [given["size"]] if given.get("size") else ()
  given_lib.check_out(OUT.value, verb, frames, rate, sizes)
  if SCRIPT.value:
    given["fps"] = given["fps"] or given_lib.model_fps(MODEL.value)
    rate = faster(verb, given["fps"])
    given["prompt"] = given_lib.script(SCRIPT.value, rate, frames).frames(rate, frames)
  return given


def frames_made(verb: str, given: dict) -> int:
  """Frames of the result, from the arguments of the verb."""
  if verb in DEFAULT_FRAMES:
    return given["frames"]
  length = len(given["video"])
  made = {"extend": length + FORWARD.value + BACKWARD.value,
          "interpolate": (length - 1) * FACTOR.value + 1}  # fmt: skip
  return made.get(verb, length)


def faster(verb: str, fps: float | int) -> float | int:
  """Frames per second of the result."""
  return fps * FACTOR.value if verb == "interpolate" else fps


_KNOWN = ("script", "image_guidance", "context_noise")
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
  given_lib.out_paths(OUT.value, 1)
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
  if not FRAMES.value:
    raise ValueError("--frames is missing; say how many to make, for example --frames=480")
  if not (PROMPT.value or SCRIPT.value):
    raise ValueError(
      "--prompt and --script are missing; long takes one: --prompt for one text, --script for a "
      "file of lines SECONDS: PROMPT"
    )
  prompt = PROMPT.value[0] if PROMPT.value else None
  if SCRIPT.value:
    rate = FPS.value or given_lib.model_fps(MODEL.value)
    prompt = given_lib.script(SCRIPT.value, rate, FRAMES.value[0]).parts
  return {
    "prompt": prompt, "size": parse_size(SIZE.value[0] if SIZE.value else "96x64"),
    "frames": FRAMES.value[0], "fps": FPS.value, "seed": SEED.value[0] if SEED.value else 0,
  }  # fmt: skip


def from_text(verb: str) -> list[pathlib.Path]:
  """Makes videos and pictures from text.  Returns: the files written."""
  began = time.monotonic()
  arguments = read_flags(verb)
  paths = given_lib.out_paths(
    OUT.value, max(len(v) for v in arguments.values() if isinstance(v, list))
  )
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
  if DRAFT.value and FROM.value:
    raise ValueError("--draft and --from exclude each other: --from makes a draft at full size")
  one = verb == "image" or writing.check_extension(OUT.value) == ".png"
  most = max(FRAMES.value) if FRAMES.value else 1 if one else None
  read = functools.partial(drafts.read, frames=most)
  video, notes = given_lib.opened("from", FROM.value, read) if FROM.value else (None, {})
  texts = PROMPT.value or notes.get("prompt")
  if not texts:
    raise ValueError(
      "--prompt is missing; say what to make, for example "
      '--prompt="a red circle moves right over a black background"'
    )
  noted = notes.get("size", ["96x64"])
  given = {
    "prompt": list(texts),
    "size": [parse_size(text) for text in SIZE.value or noted],
    "frames": FRAMES.value or [1 if one else 17 if video is None else len(video)],
    "seed": SEED.value or notes.get("seed") or [0],
  }
  if video is not None:
    drafts.check_sizes(video, given["size"], parse_size(noted[0]))
    drafts.check_frames(video, given["frames"], FROM.value)
  fps = notes.get("fps") if FPS.value is None else FPS.value
  given_lib.check_out(OUT.value, verb, max(given["frames"]), fps, given["size"])
  return given_lib.spread(given) | {"fps": fps, "draft_video": video}


def sampler_flags() -> dict:
  """How to sample, by argument of `Model`; None = the model's own."""
  return {
    "steps": STEPS.value, "solver": SOLVER.value, "grid": GRID.value,
    "guidance_interval": parse_interval(INTERVAL.value),
  }  # fmt: skip


def say(line: str) -> None:
  """Progress, on the log that absl writes to standard error."""
  logging.info("%s", line)


if __name__ == "__main__":
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  app.run(main)
