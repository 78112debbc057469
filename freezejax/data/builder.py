"""Text as TensorFlow Datasets in ArrayRecord files, read through Grain; needs neither TensorFlow nor a network.

Importing this file imports tensorflow_datasets (about 0.4 s), so only preparing text does it. Builders are made from
their classes: a look-up by name in the TFDS registry would try the network.
"""

import contextlib
import hashlib
import importlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import tensorflow_datasets as tfds

from freezejax.data.text import Document, split_document
from freezejax.errors import UserError

Splits = Mapping[str, grain.MapDataset]  # "train" and "validation": texts (str)

CORPORA = {"tiny_shakespeare": "text", "pg19": "book_text"}  # name -> the feature that holds the text


class PlainText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Documents in a `train` and a `validation` split; features `name` and `text`.

    Read a prepared one with `PlainText({}, data_dir=...).as_data_source(split="train")`.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for a list of URLs beside this file, TFDS 4.9.10 would import
    # importlib_resources, which it does not install on Python 3.12.
    url_infos = None

    def __init__(self, splits: Mapping[str, list[Document]], **kwargs: Any):
        """Takes the documents of each split; the rest is TFDS's."""
        self._documents = splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        # Documents stay in their order: that of the windows is shuffled anyway, and readers may look.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._documents}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        return ((number, document._asdict()) for number, document in enumerate(self._documents[split]))


def prepare_text(documents: list[Document], val_fraction: float, data_dir: Path) -> Splits:
    """Writes the documents as ArrayRecord below `data_dir` and opens them; each split must have something left."""
    parts = [(name, split_document(text, val_fraction)) for name, text in documents]
    splits = {
        split: [Document(name, halves[side]) for name, halves in parts if halves[side].strip()]
        for side, split in enumerate(("train", "validation"))
    }
    for split, left in splits.items():
        if not left:
            raise UserError(f"val_fraction={val_fraction}: no {split} text is left of {len(documents)} documents")
    return prepare_texts(splits, data_dir)


def prepare_texts(splits: Mapping[str, list[Document]], data_dir: Path) -> Splits:
    """Writes the documents of each split as ArrayRecord below `data_dir` and opens them."""
    builder = PlainText(splits, data_dir=str(data_dir))
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # for seconds of work TFDS's announcements are noise
        builder.download_and_prepare()
    return _texts(builder, "text")


def open_tfds(name: str, cache_dir: str | Path) -> tuple[Splits, str]:
    """The splits of a corpus that TFDS has prepared, and a fingerprint of it.

    It is looked for in `cache_dir`, then in TFDS_DATA_DIR. Where it is not, the `UserError` says how to prepare it.
    """
    if name not in CORPORA:
        raise UserError(f"tfds:{name}: unknown corpus; known are {', '.join(f'tfds:{k}' for k in sorted(CORPORA))}")
    module = importlib.import_module(f"tensorflow_datasets.datasets.{name}.{name}_dataset_builder")
    data_dirs = [str(cache_dir), *filter(None, [os.environ.get("TFDS_DATA_DIR")])]
    builders = [module.Builder(data_dir=data_dir, file_format="array_record") for data_dir in data_dirs]
    builder = next((b for b in builders if os.path.isdir(b.data_dir)), builders[0])
    try:
        return _texts(builder, CORPORA[name]), _fingerprint(builder)
    # What TFDS raises for a split, version or file that is not there, and (a RuntimeError) for a corpus that was
    # prepared in a format without random access, such as TFRecord.
    except (KeyError, ValueError, OSError, RuntimeError, AssertionError):
        raise UserError(
            f"tfds:{name}: not prepared in {' or '.join(data_dirs)}; with network and TensorFlow run "
            f"import tensorflow_datasets as tfds; tfds.data_source({name!r}, data_dir={data_dirs[-1]!r})"
        ) from None


def _texts(builder: tfds.core.DatasetBuilder, field: str) -> Splits:
    def text(example: Mapping[str, bytes | str]) -> str:
        value = example[field]
        return value if isinstance(value, str) else value.decode("utf-8")

    sources = {split: builder.as_data_source(split=split) for split in ("train", "validation")}
    return {split: grain.MapDataset.source(source).map(text) for split, source in sources.items()}


def _fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Of names, sizes and TFDS's own description: prepared files never change, and pg19 has 11 GB."""
    digest = hashlib.sha256(builder.info.full_name.encode())
    for path in sorted(Path(builder.data_dir).glob("*")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()
