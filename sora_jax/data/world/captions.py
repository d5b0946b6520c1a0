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


_SHORT = {"still": _still, "constant": _constant, "bounce": _bounce, "gravity": _gravity}


def short(truth: dict) -> str:
  """The prompt: one clause, `a red circle moves right over a black background`."""
  names = [name_object(record, truth["style"]) for record in truth["objects"]]
  return f"{_SHORT[truth['motion']](truth, names)} {place(truth)}"


def region(position: list[float], truth: dict) -> str:
  """Which ninth of the frame a point lies in, in words."""
  unit = min(truth["size"])
  thirds = [min(max(int(3 * p * unit / side), 0), 2) for p, side in zip(position, truth["size"])]
  column, row = ("left", "", "right")[thirds[0]], ("top", "", "bottom")[thirds[1]]
  return " ".join(word for word in (row, column) if word) or "center"


def size_word(radius: float) -> str:
  return "small" if radius < 0.12 else "large" if radius > 0.18 else "medium-sized"


def speed_word(velocity: list[float]) -> str:
  speed = math.hypot(*velocity)
  return "slowly" if speed < 0.3 else "quickly" if speed > 0.7 else "steadily"


def long(truth: dict) -> str:
  """The descriptive caption: the prompt as a sentence, then one or two sentences per object."""
  first = short(truth)
  sentences = [first[0].upper() + first[1:] + "."]
  for record in truth["objects"]:
    sentences += _describe(record, truth)
  return " ".join(sentences)


def _describe(record: dict, truth: dict) -> list[str]:
  name = f"the {record['color']} {record['shape']}".capitalize()
  start, end = region(record["position"][0], truth), region(record["position"][-1], truth)
  if truth["motion"] == "still":
    return [f"{name} is {size_word(record['radius'])} and lies at the {start}."]
  return [
    f"{name} is {size_word(record['radius'])} and starts at the {start}.",
    f"It moves {speed_word(record['velocity'][0])} and ends at the {end}.",
  ]
