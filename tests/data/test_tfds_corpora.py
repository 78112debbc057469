"""TFDS corpora: read where they are prepared, explained where they are not; no network either way."""

import pytest
import tensorflow_datasets as tfds

from freezejax import data
from freezejax.errors import UserError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n" * 40


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the real builder would leave behind after its download."""

    name = "tiny_shakespeare"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        parts = {"train": TEXT, "validation": TEXT[:500], "test": TEXT[:300]}
        return {split: iter([(split, {"text": part})]) for split, part in parts.items()}

    def _generate_examples(self):
        raise AssertionError("the split generators hold the examples")


def prepare(folder):
    Prepared(data_dir=str(folder), file_format="array_record").download_and_prepare()


def test_prepared_in_the_cache_folder(tmp_path):
    prepare(tmp_path)
    corpus = data.load("tfds:tiny_shakespeare", cache_dir=str(tmp_path))
    assert corpus.source == "tfds:tiny_shakespeare"
    assert corpus.tokenizer.decode(corpus.train) == TEXT
    assert corpus.tokenizer.decode(corpus.val) == TEXT[:500]
    again = data.load("tfds:tiny_shakespeare", cache_dir=str(tmp_path))
    assert again.fingerprint == corpus.fingerprint


def test_prepared_in_the_tfds_folder_of_the_machine(tmp_path, monkeypatch):
    prepare(tmp_path / "shared")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    corpus = data.load("tfds:tiny_shakespeare", tokenizer="bpe:290", cache_dir=str(tmp_path / "cache"))
    assert corpus.tokenizer.decode(corpus.train[:30]).startswith("First Citizen: Before we")


@pytest.mark.parametrize("name", ["tiny_shakespeare", "pg19"])
def test_mocked(tmp_path, name):
    with tfds.testing.mock_data(num_examples=3):
        corpus = data.load(f"tfds:{name}", cache_dir=str(tmp_path))
    assert len(corpus.train) > 3
    assert corpus.tokenizer.name == "bytes"


@pytest.mark.parametrize("name", ["tiny_shakespeare", "pg19"])
def test_not_prepared(tmp_path, monkeypatch, name):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=f"tfds:{name}: not prepared in {tmp_path}; .*tfds.data_source") as error:
        data.load(f"tfds:{name}", cache_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_unknown(tmp_path):
    with pytest.raises(UserError, match="tfds:mnist: unknown corpus; known are tfds:pg19, tfds:tiny_shakespeare"):
        data.load("tfds:mnist", cache_dir=str(tmp_path))
