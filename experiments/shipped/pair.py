"""Makes one model of two: one whose transformer denoises, and one that does so at high noise.

  python experiments/shipped/pair.py --low=sora_jax/weights/tiny --high=runs/walls --above=0.5 \
    --to=runs/paired

A leg of training with config.diffusion.time_low writes such a model by itself. This is for a
transformer that became one for high noise before it was known to be one. Of --high its second
transformer is taken if it has one, else its only one; it will read text as --low does. Each network
keeps the story of its legs. Prints one JSON object as its last line. Sources: eDiff-I (Balaji et
al. 2022, arXiv 2211.01324); Wan 2.2.
"""

import json
import pathlib

from absl import app, flags

from sora_jax.evaluation import arguments
from sora_jax.weights import folder as folder_lib
from sora_jax.weights import store

LOW = flags.DEFINE_string("low", None, "Model folder or work directory of all but one network.")
HIGH = flags.DEFINE_string("high", None, "The same, of the transformer for high noise.")
ABOVE = flags.DEFINE_float("above", 0.5, "Time, before the shift, above which it denoises.")
TO = flags.DEFINE_string("to", None, "Model folder to write.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  if not 0 < ABOVE.value < 1:
    raise SystemExit(f"pair: --above={ABOVE.value:g}; give a time between 0 and 1")
  with arguments.refusing():
    place = folder_lib.find(LOW.value)
    low, other = folder_lib.read(place), folder_lib.read(folder_lib.find(HIGH.value))
  high = other.get(store.HIGH, other["dit"])
  config = {"network": high.config["network"], "above": ABOVE.value}
  both = low | {store.HIGH: folder_lib.Network(high.tree, config, high.story)}
  try:
    folder_lib.boundary(both)
  except ValueError as error:
    raise SystemExit(f"pair: --high={HIGH.value} beside --low={LOW.value}: {error}") from error
  means = low["dit"].config["diffusion"]
  if differ := folder_lib.differences(means, high.config.get("diffusion", means)):
    raise SystemExit(
      f"pair: --high={HIGH.value} differs from --low={LOW.value} in diffusion.{differ[0]}; "
      "train it with that of the first"
    )
  tokenizer = place / folder_lib.TOKENIZER_NAME
  folder_lib.write(
    TO.value, both, tokenizer.read_bytes() if tokenizer.is_file() else None, high.story
  )  # fmt: skip
  print(json.dumps({"to": str(pathlib.Path(TO.value)), "above": ABOVE.value}))


if __name__ == "__main__":
  flags.mark_flags_as_required(["low", "high", "to"])
  app.run(main)
