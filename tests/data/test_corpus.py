"""Corpora: every source, the cache, and one clear line for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from freezejax import data
from freezejax.atomic import cached_folder
from freezejax.data import corpus as corpus_module
from freezejax.data import shards
from freezejax.errors import UserError
from tests.data.conftest import TEXTS


def load(path, cache, **options):
    return data.load(str(path), cache_dir=str(cache), **options)


def test_folder_of_text_as_bytes_loses_nothing(books, cache):
    corpus = load(books, cache)
    decode = corpus.tokenizer.decode
    train, val = decode(corpus.train), decode(corpus.val)
    for content in (text.rstrip("\n") for text in TEXTS.values()):
        cut = next(i for i in range(len(content)) if content[i:] in val)
        assert content[:cut] in train
        assert 0.05 < 1 - cut / len(content) < 0.15
    assert len(train) + len(val) == sum(map(len, TEXTS.values())) - 1  # one's second final line end
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == corpus.val.dtype == np.uint16
    assert (corpus.source, corpus.tokenizer.name) == (str(books), "bytes")
    assert len(corpus.fingerprint) == 64


def test_embedded(cache):
    corpus = load("", cache)
    assert 0.08 < len(corpus.val) / len(corpus.train) < 0.14
    assert "statement" in corpus.tokenizer.decode(corpus.train[:20_000])
    assert "embedded" in corpus.source


def test_bpe_starts_each_document_with_bos(books, cache):
    corpus = load(books, cache, tokenizer="bpe:300")
    assert (corpus.tokenizer.name, corpus.tokenizer.vocab_size) == ("bpe300", 300)
    for tokens in (corpus.train, corpus.val):
        assert tokens[0] == 1
        assert int((np.asarray(tokens) == 1).sum()) == 2
        assert tokens.max() < 300
    assert corpus.tokenizer.decode(corpus.train[:20]).startswith("This is sent")


def test_model_file(books, cache, tmp_path):
    learned = data.train_bpe(TEXTS.values(), 310, tmp_path / "mine.model")
    corpus = load(books, cache, tokenizer=str(tmp_path / "mine.model"))
    assert corpus.tokenizer.name == "mine"
    assert corpus.tokenizer.fingerprint == learned.fingerprint
    (tmp_path / "mine.model").rename(tmp_path / "moved.model")
    renamed = load(books, cache, tokenizer=str(tmp_path / "moved.model"))
    assert renamed.tokenizer.name == "moved"
    assert renamed.fingerprint == corpus.fingerprint


def test_shards_with_their_model(books, cache, tmp_path):
    """A cache folder of a learned vocabulary is itself a folder of shards; a second shard joins the first."""
    first = load(books, cache, tokenizer="bpe:300")
    (folder,) = cache.iterdir()
    corpus = load(folder, tmp_path / "unused")
    assert corpus.fingerprint == first.fingerprint
    shards.write_shard(folder / "fineweb_train_000001.bin", np.array([1, 299, 5]))
    longer = load(folder, tmp_path / "unused")
    np.testing.assert_array_equal(longer.train[len(first.train) - 1 :], [first.train[-1], 1, 299, 5])
    assert longer.fingerprint != first.fingerprint
    batch = next(data.train_iterator(longer.train, batch_size=2, seq_len=8, seed=0))
    assert batch["inputs"].shape == (2, 8)
    assert not (tmp_path / "unused").exists()


def test_text_is_a_tfds_dataset_in_array_record(books, cache):
    load(books, cache)
    (folder,) = cache.iterdir()
    builder = tfds.builder_from_directory(folder / "plain_text" / "1.0.0")
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    examples = builder.as_data_source(split="train")
    assert [example["name"] for example in examples] == [b"one.txt", b"two.txt"]
    assert "tensorflow" not in sys.modules


def test_cache_is_reused(books, cache, monkeypatch):
    first = load(books, cache)
    monkeypatch.setattr(corpus_module, "_tokenize", lambda *_: pytest.fail("tokenized again"))
    again = load(books, cache)
    assert again.fingerprint == first.fingerprint
    with pytest.raises(pytest.fail.Exception):  # the patch does catch a miss
        load(books, cache, val_fraction=0.2)


def test_a_changed_input_makes_a_new_cache(books, cache, monkeypatch):
    prints = [load(books, cache).fingerprint]
    (books / "two.txt").write_text(TEXTS["two.txt"].replace("Line 3 ", "Line x "), encoding="utf-8")
    prints.append(load(books, cache).fingerprint)
    prints.append(load(books, cache, val_fraction=0.3).fingerprint)
    prints.append(load(books, cache, tokenizer="bpe:300").fingerprint)
    prints.append(load(books, cache, tokenizer="bpe:301").fingerprint)
    assert len(set(prints)) == 5
    assert len(list(cache.iterdir())) == 5


def test_one_text_of_a_folder_is_a_corpus_of_one_document(books, cache):
    one, both = load(books / "one.txt", cache), load(books, cache)
    assert len(one.train) + len(one.val) < len(both.train) + len(both.val)
    assert one.tokenizer.decode(one.train[:20]) == TEXTS["one.txt"][:20]
    (books / "SHA256SUMS").write_text(f"{'0' * 64}  two.txt\n")
    assert load(books / "one.txt", cache).fingerprint == one.fingerprint
    with pytest.raises(UserError, match=r"two\.txt: does not match its SHA-256"):
        load(books / "two.txt", cache)


def test_shards_to_score_alone(books, cache):
    load(books, cache, tokenizer="bpe:300")
    (folder,) = cache.iterdir()
    whole = load(folder, cache)
    (folder / "fineweb_train_000000.bin").unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"no fineweb_train_\*\.bin"):
        load(folder, cache)
    shard = folder / "fineweb_val_000000.bin"
    with pytest.raises(UserError, match="not a folder"):
        load(shard, cache)
    for place in (folder, shard):
        corpus = load(place, cache, to_train=False)
        np.testing.assert_array_equal(corpus.val, whole.val)
        assert len(corpus.train) == 0
        assert corpus.tokenizer.fingerprint == whole.tokenizer.fingerprint
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="promises"):
        load(shard, cache, to_train=False)


def test_a_full_disk_in_the_cache_is_one_line_and_leaves_nothing(books, cache, monkeypatch):
    def no_space(*_, **__):  # as ArrayRecord's writer in C++ says it, and as Python does
        raise errors.pop()

    errors = [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on device; writing")]
    monkeypatch.setattr(shards, "write_split", no_space)
    for _ in range(2):
        with pytest.raises(UserError, match=f"cache_dir={cache}: No space left on device; free some"):
            load(books, cache)
        assert list(cache.iterdir()) == []
    errors.append(RuntimeError("another one"))
    with pytest.raises(RuntimeError, match="another one"):
        load(books, cache)


def test_a_damaged_cache_is_seen(books, cache):
    load(books, cache)
    (shard,) = cache.glob("*/fineweb_train_000000.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"fineweb_train_000000\.bin: does not match its SHA-256"):
        load(books, cache)


def test_an_interrupted_build_leaves_nothing(books, cache, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "write_split", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(books, cache)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    assert len(load(books, cache).train) > 1000


def test_the_first_of_two_builders_wins(tmp_path):
    """The second one finishes while the first one's folder is already there."""
    folder = tmp_path / "x"

    def slow(fresh):
        cached_folder(folder, lambda faster: (faster / "who").write_text("fast"))
        (fresh / "who").write_text("slow")

    assert (cached_folder(folder, slow) / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


def test_two_processes_at_once(books, cache):
    code = "import sys, freezejax.data as d; print(d.load(sys.argv[1], cache_dir=sys.argv[2]).fingerprint)"
    command = [sys.executable, "-c", code, str(books), str(cache)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs == [load(books, cache).fingerprint] * 2
    assert len(list(cache.iterdir())) == 1  # one folder, no scratch


def _make(case, folder):
    """Folders that are wrong in one way each."""
    folder.mkdir()
    if case == "shards without model":
        shards.write_shard(folder / "fineweb_train_000000.bin", np.arange(9))
    elif case == "two models":
        _make("shards without model", folder / "sub")
        (folder / "sub" / "fineweb_train_000000.bin").rename(folder / "fineweb_train_000000.bin")
        for name in "ab":
            (folder / f"{name}.model").write_bytes(b"")
    elif case == "bin of another name":
        (folder / "tokens.bin").write_bytes(b"")
        data.train_bpe(TEXTS.values(), 300, folder / "x.model")
    elif case == "empty text":
        (folder / "a.txt").write_text("\n\n")
    elif case == "latin-1":
        (folder / "a.txt").write_bytes(b"caf\xe9")
    elif case == "one letter":
        (folder / "a.txt").write_text("a")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty folder", r"holds neither text in \*\.txt nor shards"),
        ("shards without model", r"no \.model beside the shards"),
        ("two models", r"several tokenizers \(a\.model, b\.model\)"),
        ("bin of another name", r"no fineweb_train_\*\.bin"),
        ("empty text", "holds neither text"),
        ("latin-1", r"a\.txt: not UTF-8"),
        ("one letter", "val_fraction=0.1: no validation text is left"),
    ],
)
def test_bad_folders(tmp_path, cache, case, message):
    with pytest.raises(UserError, match=message) as error:
        load(_make(case, tmp_path / "folder"), cache)
    assert "\n" not in str(error.value)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/does/not/exist"}, "/does/not/exist: not a folder"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"tokenizer": "bpe:many"}, "tokenizer=bpe:many: bpe:SIZE"),
        ({"tokenizer": "bpe:2147483648"}, "a whole number below 2147483648"),
        ({"tokenizer": "bpe:60000"}, "bpe:60000: cannot learn"),
        ({"tokenizer": "gpt2"}, "gpt2: cannot read the tokenizer"),
    ],
)
def test_bad_options(cache, options, message):
    with pytest.raises(UserError, match=message) as error:
        data.load(**{"cache_dir": str(cache)} | options)
    assert "\n" not in str(error.value)


def test_shards_do_not_learn_a_vocabulary(tmp_path, cache):
    folder = _make("shards without model", tmp_path / "folder")
    with pytest.raises(UserError, match="holds tokens already"):
        load(folder, cache, tokenizer="bpe:300")
    with pytest.raises(UserError, match=r"no fineweb_val_\*\.bin"):
        load(folder, cache, tokenizer="bytes")
    shards.write_shard(folder / "fineweb_val_000000.bin", np.array([256]))
    with pytest.raises(UserError, match="not in the vocabulary of 256"):
        load(folder, cache, tokenizer="bytes")


@pytest.mark.parametrize("narrow", [300, 299])
def test_a_vocabulary_beyond_uint16_has_shards_of_uint32(narrow, books, cache, tmp_path, monkeypatch):
    """As if 299 tokens were all that uint16 can hold."""
    data.train_bpe(TEXTS.values(), 300, tmp_path / "mine.model")
    wide = load(books, cache / "as it is", tokenizer=str(tmp_path / "mine.model"))
    monkeypatch.setattr(shards, "NARROW_VOCABULARY", narrow)
    found = load(books, cache, tokenizer=str(tmp_path / "mine.model"))
    assert found.train.dtype == found.val.dtype == (np.uint16 if narrow == 300 else np.uint32)
    np.testing.assert_array_equal(np.asarray(found.train), np.asarray(wide.train))
    assert (found.fingerprint == wide.fingerprint) == (narrow == 300)


def test_a_cache_that_cannot_be_written(books, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        load(books, tmp_path / "file")
