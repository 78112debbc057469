"""Text corpora of TensorFlow Datasets, read from a folder where they were prepared; nothing is downloaded.

Builders are made from their classes. A look-up by name in the TFDS registry would try the network.
"""

import hashlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import grain
import tensorflow_datasets as tfds

from freezejax.data.builder import texts_of
from freezejax.errors import UserError

# name -> the feature that holds the text
CORPORA = {"tiny_shakespeare": "text", "pg19": "book_text"}


class TfdsCorpus(NamedTuple):
    """The two splits that training uses, as Grain datasets of texts (str), and what identifies them."""

    splits: Mapping[str, grain.MapDataset]
    fingerprint: str


def open_tfds(name: str, cache_dir: str | Path) -> TfdsCorpus:
    """Opens the `train` and `validation` splits of a prepared corpus.

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
        sources = {split: builder.as_data_source(split=split) for split in ("train", "validation")}
    # What TFDS raises for a split, version or file that is not there, and (a RuntimeError) for a corpus that was
    # prepared in a format without random access, such as TFRecord.
    except (KeyError, ValueError, OSError, RuntimeError, AssertionError):
        raise UserError(
            f"tfds:{name}: not prepared in {' or '.join(data_dirs)}; with network and TensorFlow run "
            f"import tensorflow_datasets as tfds; tfds.data_source({name!r}, data_dir={data_dirs[-1]!r})"
        ) from None
    splits = {split: texts_of(source, CORPORA[name]) for split, source in sources.items()}
    return TfdsCorpus(splits, _fingerprint(builder))


def _fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """Of names, sizes and TFDS's own description: prepared files never change, and pg19 has 11 GB."""
    digest = hashlib.sha256(builder.info.full_name.encode())
    for path in sorted(Path(builder.data_dir).glob("*")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return digest.hexdigest()
