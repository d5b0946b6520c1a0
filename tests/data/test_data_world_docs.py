"""docs/world.md is true: its EBNF, run as a recogniser, accepts all captions; colours match."""

import pathlib
import re

import pytest

from sora_jax.data.world import World, WorldConfig, captions, vocabulary

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "world.md").read_text()
TOKENS = r"[a-z-]+|[^a-z\s-]"


def rules() -> dict[str, list]:
  """The EBNF block as nodes: ("alt"|"seq", nodes), ("opt"|"rep", node), ("word"|"rule", text)."""
  text = re.search(r"```ebnf\n(.*?)```", PAGE, re.S).group(1)
  tokens = re.findall(r'"[^"]*"|[a-z]+|[=|;\[\]{}()]', text)
  found, at = {}, 0
  while at < len(tokens):
    name = tokens[at]
    assert tokens[at + 1] == "=", tokens[at : at + 3]
    found[name], at = alternatives(tokens, at + 2)
    assert tokens[at] == ";", (name, tokens[at])
    at += 1
  return found


def alternatives(tokens: list[str], at: int):
  options, sequence = [], []
  while tokens[at] not in ("]", "}", ")", ";"):
    token = tokens[at]
    at += 1
    if token == "|":
      options.append(("seq", sequence))
      sequence = []
    elif token in "[{(":
      inner, at = alternatives(tokens, at)
      kind = {"[": "opt", "{": "rep", "(": "alt"}[token]
      sequence.append(inner if kind == "alt" else (kind, inner))
      at += 1
    elif token.startswith('"'):
      sequence += [("word", word) for word in re.findall(TOKENS, token[1:-1])]
    else:
      sequence.append(("rule", token))
  return ("alt", [*options, ("seq", sequence)]), at


def ends(grammar, node, words: list[str], at: int) -> set[int]:
  """Every place where a node that starts at `at` can end."""
  kind, what = node
  if kind == "word":
    return {at + 1} if words[at : at + 1] == [what] else set()
  if kind == "rule":
    return ends(grammar, grammar[what], words, at)
  if kind == "alt":
    return set().union(*(ends(grammar, option, words, at) for option in what))
  if kind == "opt":
    return {at} | ends(grammar, what, words, at)
  if kind == "rep":
    found, fresh = {at}, {at}
    while fresh:
      fresh = set().union(*(ends(grammar, what, words, place) for place in fresh)) - found
      found |= fresh
    return found
  places = {at}
  for part in what:
    places = set().union(set(), *(ends(grammar, part, words, place) for place in places))
  return places


def accepts(grammar, caption: str) -> bool:
  words = re.findall(TOKENS, caption.lower())
  return len(words) in ends(grammar, ("rule", "caption"), words, 0)


@pytest.mark.parametrize("motion", vocabulary.LEVEL_OF)
def test_the_documented_grammar_accepts_every_caption(motion):
  grammar = rules()
  config = WorldConfig(
    levels=(vocabulary.LEVEL_OF[motion],),
    motions=(motion,),
    styles=vocabulary.STYLES,
    image_fraction=0.1,
    num_clips=24,
  )
  for i in range(24):
    truth = World(config).scene(i).truth
    for caption in (captions.short(truth), captions.long(truth)):
      assert accepts(grammar, caption), caption
      assert not accepts(grammar, caption.replace("background", "ground")), caption


def test_the_documented_words_are_the_vocabulary():
  for name, rgb in {**vocabulary.COLORS, **vocabulary.BACKGROUNDS}.items():
    assert f"| {name} | {rgb[0]}, {rgb[1]}, {rgb[2]} |" in PAGE
  for motion, level in vocabulary.LEVEL_OF.items():
    assert f"| {level} | {motion} |" in PAGE
