"""Trains the shipped SentencePiece vocabulary on captions of the procedural world.

Run from the repository's root: python experiments/tokenizer/train.py [--out=FILE]
"""

import argparse
import collections
import io
import pathlib
import re

import sentencepiece

from sora_jax.data.world import captions, vocabulary
from sora_jax.data.world.config import WorldConfig
from sora_jax.data.world.dataset import World

VOCAB_SIZE = 512
CLIPS = 3000
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-"
LIKELY_WORDS = """
  two three four in on to of with while then until pans zooms cut cuts to camera around floor
  collide collides collided bounce other each hits behind passes leaves returns bar box painter
  paints trail eater eats bites game player grid goal towards move moves its
"""
MORE_WORDS = """
  above across after again against along around as at away back ball before behind below beside
  bites bite blank block board bounce bounces box boxes brush by camera cell cells center changes
  cleared coin collide collides comes corner covered cut cuts dark day disappears drawn draws each
  eaten eater eats edge empty end ends every falls fast first fixed floor follows four frame from
  full game goes goal grid ground hatched hides hit hits in inside into is it its large larger last
  leaves light line lines long lower mark marks maze meets middle missing more move moving nearest
  night now object objects of off on once one onto opens orbit orbits other others out outlined pan
  pans paint painted painter paints partly pass passes path paused photo picture piece pieces place
  plain plays player policy pushes ramp reaches reappears reenters remain remains returns roll rolls
  room rotates same scene second shot shots shows shrinks side slides slow slowly small smaller
  spins start starts stay stays steadily stays still stops stroke strokes swap takes textured that
  then thin third three through thrown tile tiles top toward towards track trail turns two under
  until upper video view visible walks wall walls where which while wide with zoom zooms bottom
  quickly medium sized lies bar pillar enters hidden grows clip cube pyramid whose wraps
"""


def corpus() -> list[str]:
  """Captions of level 1 in every style, and words that captions of other levels are made of."""
  world = World(WorldConfig(styles=vocabulary.STYLES, image_fraction=0.1, num_clips=CLIPS))
  lines = []
  for index in range(CLIPS):
    truth = world.scene(index).truth
    lines += [captions.short(truth), captions.long(truth)]
  return lines + 2 * MORE_WORDS.split() + 6 * LIKELY_WORDS.split()


def seeds(lines: list[str]) -> str:
  """Candidate pieces and their counts: every word of the corpus, and every character.

  SentencePiece's own candidates are substrings that two different words share, which cuts a small
  grammar's words to bits; ours are words, so that one word of the grammar is one token.
  """
  counts = collections.Counter(CHARACTERS)
  for line in lines:
    for word in re.findall(r"[^\W\d_]+|[^\w\s]|\d", line.lower()):
      counts["\u2581" + word if word.isalpha() else word] += 1
      counts[word] += 1
      counts.update(word)
  counts["\u2581"] = len(lines)
  return "".join(f"{piece}\t{count}\n" for piece, count in sorted(counts.items()))


def train(lines: list[str], seeds_file: str) -> bytes:
  """A unigram model: case-folded, any string by byte fallback, ids 0 1 2 = pad eos unk."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type="unigram",
    vocab_size=VOCAB_SIZE,
    hard_vocab_limit=False,
    byte_fallback=True,
    character_coverage=1.0,
    required_chars=CHARACTERS,
    seed_sentencepieces_file=seeds_file,
    split_digits=True,
    normalization_rule_name="nmt_nfkc_cf",
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    num_threads=1,
    minloglevel=2,
  )
  return model.getvalue()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", default="sora_jax/weights/tiny.spm.model")
  args = parser.parse_args()
  lines = corpus()
  candidates = pathlib.Path("tiny.seeds.tsv")  # the model file records this name
  candidates.write_text(seeds(lines), encoding="utf-8")
  try:
    pathlib.Path(args.out).write_bytes(train(lines, str(candidates)))
  finally:
    candidates.unlink()


if __name__ == "__main__":
  main()
