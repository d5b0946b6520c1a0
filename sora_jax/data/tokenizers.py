"""Text to token ids: bytes, or a SentencePiece vocabulary. Both end in the end-of-text token.

Ids 0, 1 and 2 are padding, end of text and unknown, as in T5 (arXiv 1910.10683) and ByT5
(arXiv 2105.13626). Tokenizers are picklable, so worker processes can hold one.
"""

import importlib.resources
import os
import pathlib
from typing import Protocol, runtime_checkable

import sentencepiece

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
_FIRST_BYTE_ID = 3


@runtime_checkable
class Tokenizer(Protocol):
  """What the pipeline and the sampler ask of a tokenizer."""

  vocab_size: int

  def tokenize(self, text: str) -> list[int]:
    """Ids of a text, ending in EOS_ID; "" is [EOS_ID]."""

  def decode(self, ids: list[int]) -> str:
    """Text of ids; padding, end of text and unknown give nothing."""


class ByteTokenizer:
  """One token for each UTF-8 byte: id = byte + 3 (ByT5, section 3.1)."""

  vocab_size = 256 + _FIRST_BYTE_ID

  def tokenize(self, text: str) -> list[int]:
    """Ids of a text, ending in EOS_ID. Raises: TypeError if `text` is no string."""
    _check_text(text)
    data = text.encode("utf-8", errors="surrogatepass")
    return [byte + _FIRST_BYTE_ID for byte in data] + [EOS_ID]

  def decode(self, ids: list[int]) -> str:
    """Text of ids; bytes that are no UTF-8 become the replacement character."""
    _check_ids(ids, self.vocab_size)
    data = bytes(i - _FIRST_BYTE_ID for i in ids if i >= _FIRST_BYTE_ID)
    return data.decode("utf-8", errors="replace")


class SentencePieceTokenizer:
  """A SentencePiece model file (arXiv 1808.06226), with EOS_ID added at the end.

  Args: path: a `.model` file whose pad, eos and unk ids are 0, 1 and 2.
  Raises: FileNotFoundError; ValueError for a file that is no such model.
  """

  def __init__(self, path: str | os.PathLike):
    path = pathlib.Path(path)
    if not path.is_file():
      raise FileNotFoundError(f"no SentencePiece model {path}")
    self._open(path.read_bytes(), str(path))

  def _open(self, model: bytes, source: str) -> None:
    self._model, self._source = model, source
    try:
      if not model:
        raise RuntimeError("it is empty")
      self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(f"{source} is no SentencePiece model ({error}); copy it again") from error
    special = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
    if special != (PAD_ID, EOS_ID, UNK_ID):
      raise ValueError(
        f"{source} has pad, eos, unk ids {special}; needed: {(PAD_ID, EOS_ID, UNK_ID)}. "
        "Train it with --pad_id=0 --eos_id=1 --unk_id=2"
      )
    self.vocab_size = self._pieces.get_piece_size()

  def __getstate__(self) -> tuple[bytes, str]:
    return self._model, self._source

  def __setstate__(self, state: tuple[bytes, str]) -> None:
    self._open(*state)

  @property
  def model_bytes(self) -> bytes:
    """The model file's content, to be copied beside weights that were trained with it."""
    return self._model

  def tokenize(self, text: str) -> list[int]:
    """Ids of a text, ending in EOS_ID. Raises: TypeError if `text` is no string."""
    _check_text(text)
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return [*self._pieces.encode(text), EOS_ID]

  def decode(self, ids: list[int]) -> str:
    """Text of ids, as the model normalises it."""
    _check_ids(ids, self.vocab_size)
    return self._pieces.decode([int(i) for i in ids if i > UNK_ID])


def load(name: str | os.PathLike) -> Tokenizer:
  """The tokenizer of a name: "bytes", "tiny" (shipped, for the procedural world), or a file.

  Raises: ValueError for an unknown name; FileNotFoundError for a missing file.
  """
  if name == "bytes":
    return ByteTokenizer()
  root = pathlib.Path(str(importlib.resources.files("sora_jax.weights")))
  shipped = {p.name.removesuffix(".spm.model"): p for p in root.glob("*.spm.model")}
  if name in shipped:
    return SentencePieceTokenizer(shipped[name])
  if pathlib.Path(name).suffix == ".model":
    return SentencePieceTokenizer(name)
  raise ValueError(
    f"no tokenizer {str(name)!r}; known: bytes, {', '.join(sorted(shipped))}, "
    "or the path of a SentencePiece .model file"
  )


def _check_text(text: str) -> None:
  if not isinstance(text, str):
    raise TypeError(f"a prompt must be a string, got {type(text).__name__}")


def _check_ids(ids: list[int], vocab_size: int) -> None:
  for i in ids:
    if not 0 <= i < vocab_size:
      raise ValueError(f"token id {i} is outside 0..{vocab_size - 1}")
