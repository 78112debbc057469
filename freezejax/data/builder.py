"""Plain text as a TensorFlow Datasets dataset in ArrayRecord files; needs neither TensorFlow nor a network.

Importing this file imports tensorflow_datasets (about 0.4 s), so only preparing text does it.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import tensorflow_datasets as tfds

from freezejax.data.text import Document, split_document
from freezejax.errors import UserError


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
        features = {"name": tfds.features.Text(), "text": tfds.features.Text()}
        # Documents stay in their order: that of the windows is shuffled anyway, and readers may look.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples(0), "validation": self._generate_examples(1)}

    def _generate_examples(self, side: int) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (name, parts) in enumerate(self._parts):
            if parts[side].strip():
                yield number, {"name": name, "text": parts[side]}


def prepare_text(documents: list[Document], val_fraction: float, data_dir: Path) -> Mapping[str, grain.MapDataset]:
    """Writes the documents as ArrayRecord below `data_dir` and opens them.

    Returns:
        "train" and "validation": Grain datasets of texts (str).

    Raises:
        UserError: the text is too short to leave something in both splits.
    """
    builder = PlainText(documents, val_fraction, data_dir=str(data_dir))
    for split, side in (("train", 0), ("validation", 1)):
        if not any(builder._generate_examples(side)):
            raise UserError(f"val_fraction={val_fraction}: no {split} text is left of {len(documents)} documents")
    with quiet():
        builder.download_and_prepare()
    return {split: texts_of(builder.as_data_source(split=split), "text") for split in ("train", "validation")}


def texts_of(source: Any, field: str) -> grain.MapDataset:
    """A TFDS data source as a Grain dataset of the str in one text feature."""

    def text(example: Mapping[str, bytes | str]) -> str:
        value = example[field]
        return value if isinstance(value, str) else value.decode("utf-8")

    return grain.MapDataset.source(source).map(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TFDS announces its work on stdout and draws progress bars; for seconds of work that is noise."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
