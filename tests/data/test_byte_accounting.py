"""Bits per byte: the check values of the Parameter Golf data, and the rule on text of any kind."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import data
from freezejax.errors import UserError

SHARED = Path(os.environ.get("FREEZEJAX_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SAMPLE = SHARED / "data" / "fineweb_sample"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    from pydoc_data.topics import topics

    return data.train_bpe(topics.values(), 600, tmp_path_factory.mktemp("bpe") / "bpe600.model")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no {SAMPLE}")
@pytest.mark.parametrize(
    ("vocabulary", "seq_len", "n_targets", "n_bytes"),
    [
        ("sp1024", 1024, 64_512, 157_637),
        ("sp1024", 512, 65_024, 158_771),
        ("sp1024", 256, 65_280, 159_317),
        ("sp4096", 1024, 48_128, 158_788),
    ],
)
def test_official_counts(tmp_path, vocabulary, seq_len, n_targets, n_bytes):
    """Measured with the challenge's own evaluation; a change here means that its rule is broken."""
    corpus = data.load(str(SAMPLE / vocabulary), cache_dir=str(tmp_path))
    table = corpus.tokenizer.byte_table()
    targets = total = 0
    for batch in data.eval_batches(corpus.val, batch_size=5, seq_len=seq_len):
        scored = batch["weights"] > 0
        targets += int(scored.sum())
        total += int(data.byte_counts(table, batch["inputs"], batch["targets"])[scored].sum())
    assert (targets, total) == (n_targets, n_bytes)


def _counted(tokenizer, table, text):
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)])
    return int(data.byte_counts(table, ids[:-1], ids[1:]).sum()), len(tokenizer.decode(ids).encode("utf-8"))


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=40))
def test_counted_bytes_are_the_bytes_of_the_text(bpe, text):
    counted, real = _counted(bpe, bpe.byte_table(), text)
    assert counted == real


def test_counting_the_space_twice_is_seen(bpe):
    """The classic bug of the challenge: the space stays in the piece's length and is added again."""
    text, table = "the value of an expression is the object itself", bpe.byte_table()
    counted, real = _counted(bpe, table, text)
    assert counted == real == len(text)
    double = table._replace(base_V=table.base_V + table.leading_space_V)
    assert _counted(bpe, double, text)[0] == real + text.count(" ")


def test_a_space_after_a_document_start_is_no_text():
    table = data.ByteTable(np.array([0, 3]), np.array([False, True]), np.array([True, False]))
    counts = data.byte_counts(table, np.array([[0, 1]]), np.array([[1, 1]]))
    assert counts.dtype == np.int64
    assert counts.tolist() == [[3, 4]]
    careless = table._replace(boundary_V=np.array([False, False]))
    assert data.byte_counts(careless, np.array([[0, 1]]), np.array([[1, 1]])).tolist() == [[4, 4]]


def test_bytes_are_one_each():
    tokenizer = data.ByteTokenizer()
    ids = tokenizer.encode("naïve \u2581 text\n")
    counts = data.byte_counts(tokenizer.byte_table(), ids[:-1], ids[1:])
    assert counts.sum() == len(ids) - 1


def test_bits_per_byte_is_the_published_formula():
    mean_nats, tokens, n_bytes = 2.07, 62_021_632, 151_080_000
    published = mean_nats / math.log(2.0) * (tokens / n_bytes)
    assert data.bits_per_byte(mean_nats * tokens, n_bytes) == pytest.approx(published, rel=1e-14)
    with pytest.raises(UserError, match="at least one byte"):
        data.bits_per_byte(1.0, 0)
