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
    """Any documents, each cut into a `train` and a `validation` part; features `name` and `text`.

    Read a prepared one with `PlainText([], 0.1, data_dir=...).as_data_source(split="train")`.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Looking for a list of URLs beside this file, TFDS 4.9.10 would import
    # importlib_resources, which it does not install on Python 3.12.
    url_infos = None

    def __init__(self, documents: list[Document], val_fraction: float, **kwargs: Any):
        """Takes the documents and the fraction of each that is for validation; the rest is TFDS's."""
        self._parts = [(doc.name, split_document(doc.text, val_fraction)) for doc in documents]
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        # Documents stay in their order: that of the windows is shuffled anyway, and readers may look.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(0), "validation": self._generate_examples(1)}

    def _generate_examples(self, side: int) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (name, parts) in enumerate(self._parts):
            if parts[side].strip():
                yield number, {"name": name, "text": parts[side]}


def prepare_text(documents: list[Document], val_fraction: float, data_dir: Path) -> Splits:
    """Writes the documents as ArrayRecord below `data_dir` and opens them.

    Raises:
        UserError: the text is too short to leave something in both splits.
    """
    builder = PlainText(documents, val_fraction, data_dir=str(data_dir))
    for split, examples in builder._split_generators(None).items():
        if not any(examples):
            raise UserError(f"val_fraction={val_fraction}: no {split} text is left of {len(documents)} documents")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # for seconds of work TFDS's announcements are noise
        builder.download_and_prepare()
    return _texts(builder, "text")


def open_tfds(name: str, cache_dir: str | Path) -> tuple[Splits, str]:
    """The splits of a corpus that TFDS has prepared, and a fingerprint of it.

    Args:
        name: one of `CORPORA`.
        cache_dir: TFDS data directory; if the corpus is not there, TFDS_DATA_DIR is tried.

    Raises:
        UserError: unknown name, or not prepared as ArrayRecord; says how to prepare it.
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
