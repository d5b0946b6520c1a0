"""Captions: the parser reads back what the truth says, and refuses what the grammar does not."""

import re

import pytest

from sora_jax.data.world import World, WorldConfig, captions, vocabulary
from sora_jax.data.world.grammar import attributes, parse

ALL = dict(levels=tuple(vocabulary.MOTIONS), sizes=((48, 27), (32, 32), (27, 48)), frames=(5, 9))


def truths(motion: str, count: int = 24) -> list[dict]:
  still = motion == "still"
  config = WorldConfig(
    **ALL,
    motions=() if still else (motion,),
    styles=vocabulary.STYLES,
    image_fraction=1.0 if still else 0.0,
    num_clips=count,
  ) if still else WorldConfig(
    **ALL | {"levels": (vocabulary.LEVEL_OF[motion],)},
    motions=(motion,),
    styles=vocabulary.STYLES,
    num_clips=count,
  )  # fmt: skip
  return [World(config).scene(i).truth for i in range(count)]


@pytest.mark.parametrize("motion", ["still", *vocabulary.LEVEL_OF])
def test_a_caption_reads_back_as_its_truth(motion):
  for truth in truths(motion):
    short, long = captions.short(truth), captions.long(truth)
    assert parse(short) == attributes(truth), short
    found = parse(long)
    assert {key: found[key] for key in parse(short)} == attributes(truth), long
    check_details(found, truth)


def check_details(found: dict, truth: dict):
  records = [record for record in truth["objects"] if record["role"] != "coin"]
  assert found["coins"] == len(truth["objects"]) - len(records)
  assert len(found["details"]) == len(records)
  for detail, record in zip(found["details"], records):
    assert (detail["color"], detail["shape"]) == (record["color"], record["shape"])
    for word, frame in (("start", 0), ("end", -1)):
      if word in detail:
        x, y = (
          min(max(p * min(truth["size"]) / side, 0), 1)
          for p, side in zip(record["position"][frame], truth["size"])
        )
        assert ("left" in detail[word]) == (x < 1 / 3) and ("right" in detail[word]) == (x >= 2 / 3)
        assert ("top" in detail[word]) == (y < 1 / 3) and ("bottom" in detail[word]) == (y >= 2 / 3)
    if "size" in detail:
      small, large = record["radius"] < 0.12, record["radius"] > 0.18
      assert detail["size"] == ("small" if small else "large" if large else "medium-sized")


def test_the_short_form_of_one_object():
  truth = truths("constant", 1)[0] | {"style": "plain", "background": "black"}
  truth["objects"][0] |= {"color": "red", "shape": "circle", "direction": "right"}
  assert captions.short(truth) == "a red circle moves right over a black background"
  assert captions.short(truth | {"motion": "still"}) == "a red circle over a black background"
  outlined = captions.short(truth | {"style": "outline"})
  assert outlined == "an outlined red circle moves right over a black background"
  night = captions.short(truth | {"style": "night"})
  assert night == "a red circle moves right over a black background at night"


@pytest.mark.parametrize(
  ("caption", "wanted"),
  [
    ("a pink circle over a black background", "a color"),
    ("an red circle over a black background", "'a'"),
    ("a red circle moves rightish over a black background", "a direction"),
    ("a red circle moves right over a black background twice", "the end"),
    ("a red circle moves right", "'over'"),
    ("a red circle moves right over a black background, then a cut to the same star that moves up "
     "over a navy background", "the shape of the first shot"),
    ("an outlined red circle over a black background at night", "more than one style"),
    ("", "'a'"),
  ],
)  # fmt: skip
def test_what_the_grammar_does_not_allow_is_refused(caption, wanted):
  with pytest.raises(ValueError, match=re.escape(wanted)):
    parse(caption)
