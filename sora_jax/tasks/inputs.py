"""What a run reads by path, known by content: when it goes on, all must be as it was."""

import hashlib
from typing import Any

from sora_jax.data import records, tokenizers
from sora_jax.tasks.clips import Subset


def of_clips(source: Any) -> dict[str, str]:
  """{"data.folder": hash} of the clips that `prepare` made, of which `source` may hold the latents.

  Empty for a world, which its config tells: rendered on another machine, pixels may be rounded
  otherwise. Empty, too, for sets of older versions, and for what is no set of shards.
  """
  shards = source.source if isinstance(source, Subset) else source
  if not isinstance(shards, records.ShardSource):
    return {}
  clips = records.ShardSource(shards.folder)
  known = clips.content and "world" not in clips.config
  return {"data.folder": clips.content} if known else {}


def of_tokenizer(name: str) -> dict[str, str]:
  """{"text.tokenizer": hash} of a SentencePiece model; empty for bytes."""
  model = getattr(tokenizers.load(name), "model_bytes", None)
  return {} if model is None else {"text.tokenizer": hashlib.sha256(model).hexdigest()}
