"""Reads captions back: a recursive-descent parser of the grammar in docs/world.md.

`parse(caption)` and `attributes(truth)` give the same record for a clip's own caption.
"""

import re

from sora_jax.data.world import vocabulary

_STYLE_WORDS = {"outlined": "outline", "hatched": "hatched"}
_REGIONS = ("top left", "top right", "bottom left", "bottom right", "top", "bottom", "left")
_REGIONS += ("right", "center")
_COUNTS = {"two": 2, "three": 3, "four": 4}


class _Reader:
  """The words of a caption and a place among them."""

  def __init__(self, caption: str):
    self.caption, self.at = caption, 0
    self.words = re.findall(r"[a-z-]+|[^a-z\s-]", caption.lower())

  def accept(self, phrase: str) -> bool:
    """Takes a phrase if it comes next."""
    words = re.findall(r"[a-z-]+|[^a-z\s-]", phrase)
    if self.words[self.at : self.at + len(words)] != words:
      return False
    self.at += len(words)
    return True

  def expect(self, phrase: str) -> None:
    if not self.accept(phrase):
      self.fail(repr(phrase))

  def one_of(self, phrases, what: str) -> str:
    for phrase in phrases:
      if self.accept(phrase):
        return phrase
    return self.fail(f"{what}: one of {', '.join(phrases)}")

  def fail(self, wanted: str):
    rest = " ".join(self.words[self.at : self.at + 3]) or "the end"
    raise ValueError(f"caption {self.caption!r}: got {rest!r} where {wanted} was allowed")

  def article(self) -> None:
    """`a` or `an`, whichever the next word asks for."""
    following = self.words[self.at + 1 : self.at + 2]
    self.expect("an" if following and following[0][0] in "aeiou" else "a")

  def kind(self) -> dict:
    """`[outlined|hatched] COLOR SHAPE`."""
    style = next((_STYLE_WORDS[w] for w in _STYLE_WORDS if self.accept(w)), None)
    color = self.one_of(vocabulary.COLORS, "a color")
    return {"color": color, "shape": self.shape(), "direction": None, "style": style}

  def shape(self) -> str:
    return self.one_of((*vocabulary.SHAPES, "box"), "a shape")

  def thing(self) -> dict:
    self.article()
    return self.kind()

  def things(self) -> list[dict]:
    found = [self.thing()]
    while self.words[self.at : self.at + 1] == [","]:
      self.at += 1
      found.append(self.thing())
    if self.words[self.at : self.at + 2] in (["and", "a"], ["and", "an"]):
      self.at += 1
      found.append(self.thing())
    return found

  def direction(self) -> str:
    return self.one_of(sorted(vocabulary.DIRECTIONS, key=len, reverse=True), "a direction")

  def place(self) -> dict:
    """`over a BACKGROUND background [at night]`."""
    self.expect("over")
    self.article()
    background = self.one_of(vocabulary.BACKGROUNDS, "a background")
    self.expect("background")
    return {"background": background, "night": self.accept("at night")}


def parse(caption: str) -> dict:
  """The attributes that a short or long caption states.

  Returns: `motion`, `objects` (color, shape, direction or None), `style`, `background`, `night` and
  what the motion adds (see `attributes`); a long caption adds `details`, one record per object that
  it describes, `coins` and `camera`.  Raises: ValueError where the caption leaves the grammar.
  """
  reader = _Reader(caption)
  found = _prompt(reader)
  styles = {thing.pop("style") for thing in found["objects"]} - {None}
  if len(styles) > 1 or (styles and found["night"]):
    raise ValueError(f"caption {caption!r}: more than one style")
  found["style"] = "night" if found["night"] else next(iter(styles), "plain")
  if reader.accept("."):
    found |= _details(reader)
  if reader.at != len(reader.words):
    reader.fail("the end")
  return found


def _prompt(reader: _Reader) -> dict:
  if reader.accept("in the grid game,"):
    found = _game(reader)
  elif reader.accept("the camera"):
    found = _camera(reader)
  else:
    found = _action(reader)
  return found | reader.place()


def _game(reader: _Reader) -> dict:
  player = reader.thing()
  reader.expect("walks")
  if reader.accept("clockwise along the edge"):
    return {"motion": "game", "objects": [player], "policy": "patrol"}
  reader.expect("to the nearest")
  return {"motion": "game", "objects": [player, reader.kind()], "policy": "nearest"}


def _camera(reader: _Reader) -> dict:
  verb = reader.one_of(("pans", "zooms in on", "zooms out from", "orbits"), "a camera's verb")
  if verb.startswith("zooms"):
    way = verb.split()[1]
    return {"motion": "zoom", "objects": [reader.thing()], "camera_direction": way}
  way = reader.one_of(("right", "left"), "a camera's direction")
  reader.expect("past" if verb == "pans" else "around")
  objects = reader.things()
  if verb == "orbits":
    reader.expect("on a checkered floor")
  motion = {"pans": "pan", "orbits": "orbit"}[verb]
  return {"motion": motion, "objects": objects, "camera_direction": way}


def _action(reader: _Reader) -> dict:
  objects = reader.things()
  first = objects[0]
  if reader.accept("collide"):
    return {"motion": "collide", "objects": objects}
  if len(objects) == 1 and reader.accept("falls"):
    return {"motion": "gravity", "objects": [first | {"direction": "down"}]}
  if len(objects) == 1 and reader.accept("is thrown"):
    first["direction"] = reader.direction()
    reader.expect("and falls")
    return {"motion": "gravity", "objects": objects}
  if len(objects) == 1 and reader.accept("swings"):
    first["direction"] = reader.direction()
    reader.expect("and back")
    return {"motion": "swing", "objects": objects}
  if len(objects) == 1 and reader.accept("moves"):
    first["direction"] = reader.direction()
    return _move(reader, objects)
  return {"motion": "still", "objects": objects}


def _move(reader: _Reader, objects: list[dict]) -> dict:
  if reader.accept("and bounces off the walls"):
    return {"motion": "bounce", "objects": objects}
  if reader.accept("and bites pieces out of"):
    return {"motion": "eat", "objects": [*objects, reader.thing()]}
  if reader.accept(", leaves the frame and comes back past"):
    return {"motion": "leave", "objects": [*objects, *reader.things()]}
  if reader.accept("behind"):
    return _behind(reader, objects)
  if reader.accept(", then"):
    turn = reader.direction()
    reader.expect(", and paints")
    reader.article()
    color = reader.one_of(vocabulary.COLORS, "a color")
    reader.expect("line")
    return {"motion": "paint", "objects": objects, "turn": turn, "line": color}
  here = reader.at
  first_place = reader.place()
  before = {"first_background": first_place["background"]}
  if reader.accept(", then turns"):
    if reader.accept("into"):
      objects.append(reader.thing())
      reader.expect("that moves")
      objects[1]["direction"] = way = reader.direction()
    else:
      reader.expect("and moves")
      way = reader.direction()
    return {"motion": "morph", "objects": objects, "second": {"direction": way} | before}
  if not reader.accept(", then a cut to the same"):
    reader.at = here
    return {"motion": "constant", "objects": objects}
  if reader.shape() != objects[0]["shape"]:
    reader.fail("the shape of the first shot")
  reader.expect("that moves")
  second = {"direction": reader.direction()} | before
  return {"motion": "cut", "objects": objects, "second": second}


def _behind(reader: _Reader, objects: list[dict]) -> dict:
  reader.article()
  color = reader.one_of(vocabulary.COLORS, "a color")
  reader.expect("bar")
  if reader.accept("while"):
    other = reader.thing()
    reader.expect("moves")
    other["direction"] = reader.direction()
    reader.expect("in front of it")
    objects = [*objects, other]
  return {"motion": "occlude", "objects": objects, "bar": color}


def _details(reader: _Reader) -> dict:
  """The sentences after the first of a long caption."""
  details, coins = [], 0
  while reader.accept("the") and not reader.accept("camera"):
    color = reader.one_of(vocabulary.COLORS, "a color")
    detail = {"color": color, "shape": reader.one_of((*vocabulary.SHAPES, "box", "bar"), "a shape")}
    if reader.accept("stands at the"):
      detail["start"] = reader.one_of(_REGIONS, "a region")
    else:
      reader.expect("is")
      detail["size"] = reader.one_of(("small", "medium-sized", "large"), "a size")
      reader.expect("and")
      if not reader.accept("stays in place"):
        detail |= _course(reader)
    reader.expect(".")
    details.append(detail)
    if reader.accept("there are"):
      coins = _COUNTS[reader.one_of(_COUNTS, "a count")]
      reader.expect("coins.")
  camera = reader.one_of(
    ("is still", "cuts once", "pans right", "pans left", "zooms in", "zooms out",
     "orbits right", "orbits left"), "what the camera does",
  )  # fmt: skip
  reader.expect(".")
  return {"details": details, "coins": coins, "camera": camera}


def _course(reader: _Reader) -> dict:
  reader.expect("starts at the")
  start = reader.one_of(_REGIONS, "a region")
  reader.expect(". it moves")
  speed = reader.one_of(("slowly", "steadily", "quickly"), "a speed")
  reader.expect("and ends at the")
  return {"start": start, "speed": speed, "end": reader.one_of(_REGIONS, "a region")}


def attributes(truth: dict) -> dict:
  """What the prompt of a clip must state, straight from its truth: equals `parse(prompt)`.

  Keys beyond the common ones: `camera_direction` (pan, zoom, orbit), `bar` (occlude), `turn` and
  `line` (paint), `second` (cut, morph), `policy` (game).
  """
  motion, records = truth["motion"], truth["objects"]
  if motion == "game":
    records = records[: 1 if truth["game"]["policy"] == "patrol" else 2]
  said = ("color", "shape", "direction")
  objects = [{key: r[key] for key in said} for r in records if r["role"] != "bar"]
  if motion == "collide":
    objects = [thing | {"direction": None} for thing in objects]
  found = {
    "motion": motion,
    "objects": objects,
    "style": truth["style"],
    "background": truth["background"],
    "night": truth["style"] == "night",
  }
  if truth["camera"]["kind"] != "still":
    found["camera_direction"] = truth["camera"]["direction"]
  if motion == "occlude":
    found["bar"] = records[1]["color"]
  if motion == "paint":
    found |= {"turn": truth["trail"]["turn"], "line": truth["trail"]["color"]}
  if motion == "game":
    found["policy"] = truth["game"]["policy"]
  if motion in ("cut", "morph"):
    first, second = truth["shots"]
    found["second"] = {
      "direction": second["direction"],
      "first_background": first["background"],
    }
    found["background"] = second["background"]
  return found
