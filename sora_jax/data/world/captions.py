"""Writes prompts and descriptive captions from a clip's truth, by the grammar in docs/world.md."""

import math

_COMMON_ENDS = {"outline": "outlined ", "hatched": "hatched "}


def article(words: str) -> str:
  """The words with "a" or "an" before them."""
  return ("an " if words[0] in "aeiou" else "a ") + words


def name_object(record: dict, style: str = "plain") -> str:
  """`a red circle`, `an outlined red circle`."""
  return article(f"{_COMMON_ENDS.get(style, '')}{record['color']} {record['shape']}")


def place(truth: dict) -> str:
  """`over a black background`, with `at night` in that style."""
  night = " at night" if truth["style"] == "night" else ""
  return f"over {article(truth['background'])} background{night}"


def listing(names: list[str]) -> str:
  """`a`, `a and b`, `a, b and c`."""
  return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _still(truth, names):
  return listing(names)


def _constant(truth, names):
  return f"{names[0]} moves {truth['objects'][0]['direction']}"


def _bounce(truth, names):
  return f"{names[0]} moves {truth['objects'][0]['direction']} and bounces off the walls"


def _gravity(truth, names):
  direction = truth["objects"][0]["direction"]
  return (
    f"{names[0]} falls" if direction == "down" else f"{names[0]} is thrown {direction} and falls"
  )


def _swing(truth, names):
  return f"{names[0]} swings {truth['objects'][0]['direction']} and back"


def _collide(truth, names):
  return f"{listing(names)} collide"


def _occlude(truth, names):
  first, bar, *others = truth["objects"]
  phrase = f"{names[0]} moves {first['direction']} behind {article(bar['color'])} bar"
  if others:
    phrase += f" while {names[2]} moves {others[0]['direction']} in front of it"
  return phrase


def _leave(truth, names):
  direction = truth["objects"][0]["direction"]
  return f"{names[0]} moves {direction}, leaves the frame and comes back past {listing(names[1:])}"


def _pan(truth, names):
  return f"the camera pans {truth['camera']['direction']} past {listing(names)}"


def _zoom(truth, names):
  way = {"in": "in on", "out": "out from"}[truth["camera"]["direction"]]
  return f"the camera zooms {way} {names[0]}"


def _cut(truth, names):
  first, second = truth["shots"]
  return (
    f"{names[0]} moves {first['direction']} {place(truth)}, then a cut to the same "
    f"{truth['objects'][0]['shape']} that moves {second['direction']}"
  )


def _morph(truth, names):
  first, second = truth["shots"]
  into = f"into {names[1]} that moves" if names[1:] else "and moves"
  return (
    f"{names[0]} moves {first['direction']} {place(truth)}, then turns {into} {second['direction']}"
  )


def _orbit(truth, names):
  way = truth["camera"]["direction"]
  return f"the camera orbits {way} around {listing(names)} on a checkered floor"


def _paint(truth, names):
  direction, trail = truth["objects"][0]["direction"], truth["trail"]
  line = f"{article(trail['color'])} line"
  return f"{names[0]} moves {direction}, then {trail['turn']}, and paints {line}"


def _eat(truth, names):
  return f"{names[0]} moves {truth['objects'][0]['direction']} and bites pieces out of {names[1]}"


def _game(truth, names):
  if truth["game"]["policy"] == "patrol":
    return f"in the grid game, {names[0]} walks clockwise along the edge"
  coin = name_object(truth["objects"][1], truth["style"]).split(" ", 1)[1]
  return f"in the grid game, {names[0]} walks to the nearest {coin}"


_SHORT = {
  "still": _still, "constant": _constant, "bounce": _bounce, "gravity": _gravity,
  "swing": _swing, "collide": _collide, "occlude": _occlude, "leave": _leave,
  "pan": _pan, "zoom": _zoom, "cut": _cut, "morph": _morph, "orbit": _orbit,
  "paint": _paint, "eat": _eat, "game": _game,
}  # fmt: skip


def short(truth: dict) -> str:
  """The prompt: one clause, `a red circle moves right over a black background`."""
  names = [name_object(record, truth["style"]) for record in truth["objects"]]
  last = truth | {"background": truth["shots"][-1]["background"]} if "shots" in truth else truth
  return f"{_SHORT[truth['motion']](truth, names)} {place(last)}"


def texts(truth: dict) -> dict[str, str]:
  """The captions of a clip by kind, as records keep them."""
  found = {"short": short(truth), "long": long(truth)}
  lines = [f"{frame} {text}" for frame, text in shots(truth)]
  return found | ({"shots": "\n".join(lines)} if lines else {})


def shots(truth: dict) -> list[tuple[int, str]]:
  """A prompt for each shot, and the frame from which it holds; none of a clip without shots.

  A morph's second prompt takes over in the middle of the change.
  """
  if "shots" not in truth:
    return []
  event, names = truth["events"][0], [name_object(r, truth["style"]) for r in truth["objects"]]
  second = event["frame"] if "frame" in event else (event["after"] + event["until"] + 1) // 2
  return [
    (frame, f"{name} moves {shot['direction']} {place(truth | {'background': shot['background']})}")
    for frame, name, shot in zip((0, second), (names[0], names[-1]), truth["shots"])
  ]


def region(position: list[float], truth: dict) -> str:
  """Which ninth of the frame a point lies in, in words."""
  unit = min(truth["size"])
  thirds = [min(max(int(3 * p * unit / side), 0), 2) for p, side in zip(position, truth["size"])]
  column, row = ("left", "", "right")[thirds[0]], ("top", "", "bottom")[thirds[1]]
  return " ".join(word for word in (row, column) if word) or "center"


def size_word(radius: float) -> str:
  """Size of an object by its radius in short sides."""
  return "small" if radius < 0.12 else "large" if radius > 0.18 else "medium-sized"


def speed_word(velocities: list[list[float]]) -> str:
  """Mean speed in short sides per second, in words."""
  speed = sum(math.hypot(*velocity) for velocity in velocities) / len(velocities)
  return "slowly" if speed < 0.3 else "quickly" if speed > 0.7 else "steadily"


def at_rest(record: dict, truth: dict) -> bool:
  """Whether an object keeps its place in the world, whatever the camera does."""
  moves = any(abs(v) > 1e-6 for velocity in record["velocity"] for v in velocity)
  return truth["motion"] == "still" or "world_position" in record or not moves


def long(truth: dict) -> str:
  """The descriptive caption: the prompt as a sentence, then what each object and the camera do."""
  first = short(truth)
  sentences = [first[0].upper() + first[1:] + "."]
  coins = [record for record in truth["objects"] if record["role"] == "coin"]
  for record in truth["objects"]:
    if record["role"] != "coin":
      sentences += _describe(record, truth)
  if coins:
    sentences.append(f"There are {_COUNTS[len(coins)]} coins.")
  return " ".join([*sentences, _CAMERA[truth["camera"]["kind"]](truth)])


def _describe(record: dict, truth: dict) -> list[str]:
  name = f"The {record['color']} {record['shape']}"
  start, end = region(record["position"][0], truth), region(record["position"][-1], truth)
  if record["role"] == "bar":
    return [f"{name} stands at the {start}."]
  size = size_word(record["radius"])
  if at_rest(record, truth):
    return [f"{name} is {size} and stays in place."]
  return [
    f"{name} is {size} and starts at the {start}.",
    f"It moves {speed_word(record['velocity'])} and ends at the {end}.",
  ]


_COUNTS = {2: "two", 3: "three", 4: "four"}
_CAMERA = {
  "still": lambda truth: (
    "The camera cuts once." if truth["motion"] == "cut" else "The camera is still."
  ),
  "pan": lambda truth: f"The camera pans {truth['camera']['direction']}.",
  "zoom": lambda truth: f"The camera zooms {truth['camera']['direction']}.",
  "orbit": lambda truth: f"The camera orbits {truth['camera']['direction']}.",
}
