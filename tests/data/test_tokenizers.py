"""Tokenizers: exact round trips, the challenge's settings, clear errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from freezejax import data
from freezejax.errors import UserError


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_bytes_round_trip(text):
    tokenizer = data.ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("bpe") / "mine.model"
    data.train_bpe(topics.values(), 500, path)
    return path


def test_bpe_has_the_settings_of_the_challenge(model):
    sp = SentencePieceProcessor(model_file=str(model))
    assert (sp.pad_id(), sp.bos_id(), sp.eos_id(), sp.unk_id()) == (0, 1, 2, 3)
    assert sp.vocab_size() == 500
    assert [sp.id_to_piece(i) for i in (4, 259)] == ["<0x00>", "<0xFF>"]
    assert all(sp.is_byte(i) for i in range(4, 260))
    assert sp.encode("2026", out_type=str) == list("2026")  # digits split
    assert not sp.encode("word", out_type=str)[0].startswith("\u2581")  # no dummy prefix
    assert sp.decode(sp.encode("\u2126 ﬁ \N{SNOWMAN}")) == "\u03a9 fi \N{SNOWMAN}"  # NFKC, byte fallback


def test_learning_is_repeatable(model, tmp_path):
    from pydoc_data.topics import topics

    again = data.train_bpe(topics.values(), 500, tmp_path / "again.model")
    other = data.train_bpe(topics.values(), 501, tmp_path / "other.model")
    assert again.fingerprint == data.SentencePieceTokenizer(model).fingerprint != other.fingerprint


def test_name_and_special_tokens(model):
    tokenizer = data.SentencePieceTokenizer(model)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.bos_id) == ("mine", 500, 1)
    assert tokenizer.decode([1, *tokenizer.encode("with statement"), 2]) == "with statement"
    table = tokenizer.byte_table()
    assert table.base_V.dtype == np.int64
    assert table.boundary_V.tolist() == [True] * 4 + [False] * 496
    assert set(table.base_V[:4]) == {0}
    assert set(table.base_V[4:260]) == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a SentencePiece model"),
        (b"garbage" * 9, "not a SentencePiece model"),
    ],
)
def test_bad_models(tmp_path, content, message):
    path = tmp_path / "x.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        data.SentencePieceTokenizer(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [(["a b c\n"] * 9, 30_000, "too high"), (["a b c\n"], 10, "need at least"), ([], 500, "no text")],
)
def test_impossible_vocabularies(tmp_path, texts, size, message):
    with pytest.raises(UserError, match=message) as error:
        data.train_bpe(texts, size, tmp_path / "x.model")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
