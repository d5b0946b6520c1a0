"""Tokenizers: ends, round trips of any string, pickling, bad files."""

import pathlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import tokenizers

PROMPT = "a red circle moves right over a black background"
NAMES = ("bytes", "tiny")


@pytest.mark.parametrize("name", NAMES)
def test_text_ends_in_eos_and_the_empty_text_is_eos_alone(name):
  tokenizer = tokenizers.load(name)
  ids = tokenizer.tokenize(PROMPT)
  assert tokenizer.tokenize("") == [tokenizers.EOS_ID]
  assert ids[-1] == tokenizers.EOS_ID and ids.count(tokenizers.EOS_ID) == 1
  assert tokenizer.decode(ids) == PROMPT
  assert tokenizer.decode([tokenizers.PAD_ID, *ids, tokenizers.PAD_ID]) == PROMPT


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_string_has_ids_in_range_and_none_is_unknown(name, text):
  tokenizer = tokenizers.load(name)
  ids = tokenizer.tokenize(text)
  assert all(tokenizers.UNK_ID < i < tokenizer.vocab_size for i in ids[:-1])
  tokenizer.decode(ids)


@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_bytes_round_trip_exactly(text):
  tokenizer = tokenizers.ByteTokenizer()
  assert tokenizer.decode(tokenizer.tokenize(text)) == text


def test_byte_ids_are_those_of_byt5():
  assert tokenizers.ByteTokenizer().tokenize("Aé") == [68, 198, 172, 1]


def test_lone_surrogates_do_not_crash():
  for name in NAMES:
    assert tokenizers.load(name).tokenize("a\ud800")[-1] == tokenizers.EOS_ID


def test_a_word_of_the_world_is_one_token_in_any_case():
  tokenizer = tokenizers.load("tiny")
  assert len(tokenizer.tokenize(PROMPT)) == len(PROMPT.split()) + 1
  assert tokenizer.tokenize("A Red  CIRCLE ") == tokenizer.tokenize("a red circle")
  assert tokenizer.vocab_size <= 512
  assert tokenizer.decode(tokenizer.tokenize("naïve 漢字 x7")) == "naïve 漢字 x7"


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_pickle(name):
  tokenizer = tokenizers.load(name)
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.tokenize(PROMPT) == tokenizer.tokenize(PROMPT)
  assert again.vocab_size == tokenizer.vocab_size


def test_a_copied_model_file_is_the_same_tokenizer(tmp_path):
  tokenizer = tokenizers.load("tiny")
  path = tmp_path / "tokenizer.model"
  path.write_bytes(tokenizer.model_bytes)
  assert tokenizers.load(path).tokenize(PROMPT) == tokenizer.tokenize(PROMPT)


def test_bad_names_files_and_arguments_are_explained(tmp_path):
  with pytest.raises(ValueError, match="no tokenizer 'tyni'; known: bytes, tiny"):
    tokenizers.load("tyni")
  with pytest.raises(FileNotFoundError, match="gone.model"):
    tokenizers.load(tmp_path / "gone.model")
  bad = tmp_path / "bad.model"
  for content in (b"", b"not a model", tokenizers.load("tiny").model_bytes[:1000]):
    bad.write_bytes(content)
    with pytest.raises(ValueError, match="bad.model is no SentencePiece model"):
      tokenizers.load(bad)
  with pytest.raises(ValueError, match=r"token id 259 is outside 0\.\.258"):
    tokenizers.load("bytes").decode([259])


def test_foreign_special_ids_are_refused(tmp_path):
  import sentencepiece

  path = pathlib.Path(tmp_path / "foreign")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([PROMPT] * 3),
    model_prefix=str(path),
    vocab_size=24,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match="pad, eos, unk ids .* --pad_id=0"):
    tokenizers.load(f"{path}.model")
