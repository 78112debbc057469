"""Whole texts held out: a study that is scored on books it was not trained on."""

import json

import numpy as np
import pytest

from experiments.configs.progressive import get_config
from experiments.engine import study
from experiments.engine.workdir import CONFIG, read_config
from freezejax.data import shards
from tests.data.conftest import TEXTS
from tests.data.test_corpus import load


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_whole_texts_are_held_out_where_others_are_named_for_validation(books, cache, tmp_path, tokenizer):
    other = tmp_path / "other"
    other.mkdir()
    (other / "three.txt").write_text("".join(f"Sentence {i} of none of these.\n" for i in range(50)))
    cut, whole = load(books, cache, tokenizer=tokenizer), load(books, cache, tokenizer=tokenizer, val_path=str(other))
    start = [] if whole.tokenizer.bos_id is None else [whole.tokenizer.bos_id]
    held = (other / "three.txt").read_text()
    for tokens, texts in ((whole.train, TEXTS.values()), (whole.val, [held])):
        wanted = [part for text in texts for part in (start, whole.tokenizer.encode(text.rstrip("\n") + "\n"))]
        np.testing.assert_array_equal(tokens, np.concatenate(wanted))  # not a word is cut off
    assert whole.source == f"{books}, validated on {other}"
    again = load(books, cache, tokenizer=tokenizer, val_fraction=0.3, val_path=str(other / "three.txt"))
    assert again.fingerprint == whole.fingerprint  # no fraction is cut
    before = whole.fingerprint
    (other / "three.txt").write_text("Another sentence.\n" * 50)
    prints = {cut.fingerprint, before, load(books, cache, tokenizer=tokenizer, val_path=str(other)).fingerprint}
    (books / "one.txt").write_text("Yet another one.\n" * 50)
    prints.add(load(books, cache, tokenizer=tokenizer, val_path=str(other)).fingerprint)
    assert len(prints) == 4  # it covers both sides


def test_what_is_no_text_to_hold_out_is_refused(books, cache, tmp_path, check_refused):
    shards_at = tmp_path / "shards"
    shards_at.mkdir()
    shards.write_shard(shards_at / "fineweb_train_000000.bin", np.arange(9))
    (tmp_path / "copy.txt").write_text(TEXTS["two.txt"])
    given = [
        (books, books, r"one\.txt is trained on, too, as one\.txt"),
        (books, tmp_path / "copy.txt", r"val_path=.*copy\.txt: copy\.txt is trained on, too, as two\.txt"),
        (books, shards_at, "val_path=.*shards: expected text"),
        (books, "tfds:pg19", "val_path=tfds:pg19: expected text"),
        (shards_at, books, "holds shards, which bring their own validation"),
        ("tfds:tiny_shakespeare", books, "tfds:tiny_shakespeare brings its own validation"),
        (books, "/nowhere", "/nowhere: not a folder"),
    ]
    for path, val_path, message in given:
        check_refused(lambda path=path, val_path=val_path: load(path, cache, val_path=str(val_path)), message)
    assert not cache.exists()


def test_the_fingerprints_of_before_are_those_of_now(books, cache):
    """Results are told apart by them: a change means that every study of old is of another text."""
    assert load(books, cache).fingerprint == "a5f769e58828033cb27530dd2bb8c141cf0bd1a7ed1cce67540534647c81ab84"
    assert {folder.name for folder in cache.iterdir()} == {"tokens-656d307c5cf99d2ca720"}


def test_a_study_takes_them_by_one_field_that_older_folders_need_not_have(books, tmp_path, monkeypatch):
    monkeypatch.setenv("FREEZEJAX_CACHE", str(tmp_path / "cache"))
    other, config = tmp_path / "other.txt", get_config("tiny")
    other.write_text("A sentence of a book apart.\n" * 40)
    config.data.path = str(books)
    cut = study.load_corpus(config)
    config.data.val_path = str(other)
    corpus = study.load_corpus(config)
    assert corpus.tokenizer.decode(corpus.val) == other.read_text()
    assert len(corpus.train) > len(cut.train)
    old = json.loads(config.to_json())
    del old["data"]["val_path"]
    (tmp_path / CONFIG).write_text(json.dumps({"config": old, "data_fingerprint": cut.fingerprint}))
    before = read_config(tmp_path)
    assert before["config"]["data"]["val_path"] == ""
    study._check_same_study(before, {**before, "config": {**before["config"], "added": ""}}, tmp_path)
    with pytest.raises(study.UserError, match="holds a study with config/data/val_path='', not "):
        study._check_same_study(before, {**before, "config": json.loads(config.to_json())}, tmp_path)
