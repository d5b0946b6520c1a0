"""Trains the shipped SentencePiece vocabulary on captions of the procedural world.

Run from the repository's root: python experiments/tokenizer/train.py [--out=FILE]
"""

import argparse
import collections
import io
import pathlib
import re
import tempfile

import sentencepiece

ATTRIBUTES = {
  "color": "red green blue yellow purple orange cyan white".split(),
  "shape": "circle square triangle star".split(),
  "background": "black gray navy cream".split(),
  "style": "plain outline hatched night".split(),
  "direction": [
    *"left right up down".split(),
    *[f"{v} and to the {h}" for v in ("up", "down") for h in ("left", "right")],
    *[f"{v}-{h}" for v in ("up", "down") for h in ("left", "right")],
  ],
}
VOCAB_SIZE = 512


def captions() -> list[str]:
  """One line for each combination of words that the grammar can say."""
  lines = []
  for color in ATTRIBUTES["color"]:
    for shape in ATTRIBUTES["shape"]:
      for direction in ATTRIBUTES["direction"]:
        for background in ATTRIBUTES["background"]:
          lines.append(f"a {color} {shape} moves {direction} over a {background} background")
  return lines


def seeds(lines: list[str]) -> str:
  """Candidate pieces and their counts: every word of the corpus, and every character.

  SentencePiece's own candidates are substrings that two different words share, which cuts a small
  grammar's words to bits; ours are words, so that one word of the grammar is one token.
  """
  counts = collections.Counter()
  for line in lines:
    for word in re.findall(r"[^\W\d_]+|[^\w\s]|\d", line.lower()):
      counts["\u2581" + word if word.isalpha() else word] += 1
      counts.update(word)
  counts["\u2581"] = len(lines)
  counts.update("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-")
  return "".join(f"{piece}\t{count}\n" for piece, count in counts.most_common())


def train(lines: list[str]) -> bytes:
  """A unigram model: case-folded, any string by byte fallback, ids 0 1 2 = pad eos unk."""
  model = io.BytesIO()
  with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as file:
    file.write(seeds(lines))
    file.flush()
    _train(lines, model, file.name)
  return model.getvalue()


def _train(lines: list[str], model: io.BytesIO, seeds_file: str) -> None:
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    model_type="unigram",
    vocab_size=VOCAB_SIZE,
    hard_vocab_limit=False,
    byte_fallback=True,
    character_coverage=1.0,
    split_digits=True,
    normalization_rule_name="nmt_nfkc_cf",
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    num_threads=1,
    seed_sentencepieces_file=seeds_file,
    required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-",
    minloglevel=2,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", default="sora_jax/weights/tiny.spm.model")
  args = parser.parse_args()
  pathlib.Path(args.out).write_bytes(train(captions()))


if __name__ == "__main__":
  main()
