"""Corpora by path: whatever the source, two memory-mapped token arrays and the tokenizer that made them.

Text goes the same way whatever its source: a TFDS dataset in ArrayRecord, read through Grain, tokenized,
written as FineWeb shards into `cache_dir`. The next run finds the shards and touches no text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from freezejax.atomic import cached_folder
from freezejax.data import checksums, shards, text
from freezejax.data.iterators import elements
from freezejax.data.tokenizers import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_bpe
from freezejax.errors import UserError

if TYPE_CHECKING:
    from freezejax.data.builder import Splits

CODE = "code"  # the path of what `text.embedded_code` gives
_BETWEEN = "\0validation\0"  # in a digest; no name of a text is like it
CACHE_FORMAT = 1  # counted up when the same input would give other tokens


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens to train on, tokens to validate on, and what is needed to account for them.

    Tokens are uint16, of a vocabulary above 65,536 uint32, and memory-mapped.
    """

    train: shards.Tokens  # [N]
    val: shards.Tokens  # [M]
    tokenizer: Tokenizer  # made the tokens
    fingerprint: str  # sha256 hex over the tokens of both splits and the tokenizer
    source: str  # what a person would call it


def load(
    path: str = "",
    *,
    tokenizer: str = "",
    val_fraction: float = 0.1,
    val_path: str = "",
    cache_dir: str,
    to_train: bool = True,
) -> Corpus:
    """Loads a corpus, preparing it first if it is text that `cache_dir` does not hold yet.

    Args:
        path: "" for the embedded corpus (the Python language reference); "code" for modules of Python's library; a
            `.txt` file or a folder of them; a folder of FineWeb shards `fineweb_{train,val}_*.bin`; or
            "tfds:NAME" (`builder.CORPORA`).
        tokenizer: "" for the folder's own `.model` with shards and for bytes with text; "bytes"; the path of
            a SentencePiece `.model`; "bpe:SIZE" to learn a vocabulary from the training text.
        val_fraction: the last part of each document, kept for validation. Shards and TFDS corpora come
            with their own split and ignore it.
        val_path: other text, to validate on in place of that part: whole documents that nothing is trained on. "code",
            a `.txt` file or a folder of them; with shards and TFDS corpora it is refused.
        cache_dir: gets one folder per (text, tokenizer, split); safe to share between processes.
        to_train: False takes what can only be scored, too: a folder of validation shards, or one shard of any name.
            Shards to train on are then not read, and `train` is empty.

    Raises:
        UserError: one line on what is missing, damaged or does not fit together; what a `SHA256SUMS` beside the
            shards or texts lists is checked against it (`checksums.verify`).

    >>> import tempfile
    >>> corpus = load(cache_dir=tempfile.mkdtemp())
    >>> corpus.tokenizer.name, corpus.train.dtype, len(corpus.train) > 8 * len(corpus.val) > 9_000
    ('bytes', dtype('uint16'), True)
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction}: must lie in (0, 1)")
    if place := _checked_place(path, (".txt",) if to_train else (".txt", ".bin")):
        folder = place.parent if place.is_file() else place
        if any(file.suffix == ".bin" for file in ([place] if place.is_file() else place.iterdir())):
            if val_path:
                raise UserError(f"val_path={val_path}: {path} holds shards, which bring their own validation")
            return _read(place, _shard_tokenizer(folder, tokenizer), source=path, to_train=to_train)
    text_key, open_text = _text_source(path, val_fraction, val_path, Path(cache_dir))
    tokenizer_key, make_tokenizer = _tokenizer_recipe(tokenizer)
    key = hashlib.sha256(f"{CACHE_FORMAT} {text_key} {tokenizer_key}".encode()).hexdigest()
    folder = Path(cache_dir) / f"tokens-{key[:20]}"
    cached_folder(folder, lambda fresh: _tokenize(open_text, make_tokenizer, fresh))
    checksums.verify(folder, f"delete {folder}, it is made again")
    source = {"": "Python language reference (embedded)", CODE: "Python's library (source code)"}.get(path, path)
    source += f", validated on {val_path}" if val_path else ""
    return _read(folder, tokenizer_beside(folder) or ByteTokenizer(), source=source)


# Gives text before tokenization; may write in the folder.
_OpenText = Callable[[Path], "Splits"]
# Leaves the model of a tokenizer in a folder, learned from texts if need be; bytes have none.
_MakeTokenizer = Callable[[Path, Iterable[str]], Any]


def _checked_place(path: str, suffixes: tuple[str, ...]) -> Path | None:
    """The folder or file at a path, its checksums verified; None of a corpus that is no file's."""
    if not path or path == CODE or path.startswith("tfds:"):
        return None
    place = Path(path)
    if not (place.is_dir() or (place.is_file() and place.suffix in suffixes)):
        one = "a .txt file, a shard" if ".bin" in suffixes else "a .txt file"
        raise UserError(f"{path}: not a folder; give a folder, {one}, tfds:NAME, code, or nothing for embedded text")
    folder, only = (place.parent, place.name) if place.is_file() else (place, "")
    checksums.verify(folder, "get it again, or list it anew with sha256sum", only=only)
    return place


def _text_source(path: str, val_fraction: float, val_path: str, cache_dir: Path) -> tuple[str, _OpenText]:
    """What tells the text from others, and how it is opened."""
    if path.startswith("tfds:"):
        from freezejax.data import builder  # imports TFDS, 0.4 s

        if val_path:
            raise UserError(f"val_path={val_path}: {path} brings its own validation")
        splits, fingerprint = builder.open_tfds(path.removeprefix("tfds:"), cache_dir)
        return fingerprint, lambda folder: splits
    documents, held_out = _documents(path), _held_out(val_path) if val_path else []
    texts = {document.text: document.name for document in documents}
    for document in held_out:
        if document.text in texts:
            raise UserError(f"val_path={val_path}: {document.name} is trained on, too, as {texts[document.text]}")
    digest = hashlib.sha256(repr(val_fraction).encode() if not val_path else b"whole documents")
    for part in itertools.chain(*documents, [_BETWEEN] * bool(val_path), *held_out):
        digest.update(hashlib.sha256(part.encode()).digest())

    def prepare(folder: Path) -> Splits:
        from freezejax.data import builder  # imports TFDS, 0.4 s

        if val_path:
            return builder.prepare_texts({"train": documents, "validation": held_out}, folder)
        return builder.prepare_text(documents, val_fraction, folder)

    return digest.hexdigest(), prepare


def _held_out(path: str) -> list[text.Document]:
    place = _checked_place(path, (".txt",))
    if path.startswith("tfds:") or (place is not None and place.is_dir() and any(place.glob("*.bin"))):
        raise UserError(f"val_path={path}: expected text: a .txt file, a folder of them, or code")
    return _documents(path)


def _documents(path: str) -> list[text.Document]:
    read = {"": text.embedded_documents, CODE: text.embedded_code}.get(path, lambda: text.documents_at(path))
    if documents := list(read()):
        return documents
    raise UserError(f"{path}: holds neither text in *.txt nor shards fineweb_{{train,val}}_*.bin")


def _tokenizer_recipe(spec: str) -> tuple[str, _MakeTokenizer]:
    """What tells the tokenizer from others, and how it is made."""
    if spec in ("", "bytes"):
        return "bytes", lambda folder, texts: None
    if spec.startswith("bpe:"):
        size = int(spec.removeprefix("bpe:")) if spec.removeprefix("bpe:").isdecimal() else 0
        if not 0 < size < shards.MAX_VOCABULARY:
            raise UserError(f"tokenizer={spec}: bpe:SIZE takes a whole number below {shards.MAX_VOCABULARY}")
        return spec, lambda folder, texts: train_bpe(texts, size, folder / f"bpe{size}.model")
    found = tokenizer_at(spec)
    # The name counts too: a copy of the same model under another name is reported under that name.
    key = f"{found.name} {found.fingerprint}"
    return key, lambda folder, texts: found.save(folder, found.name)


def _tokenize(open_text: _OpenText, make_tokenizer: _MakeTokenizer, folder: Path) -> None:
    """Writes the token shards of both splits, the tokenizer's model and their checksums into an empty folder."""
    splits = open_text(folder)
    make_tokenizer(folder, elements(splits["train"]))
    tokenizer = tokenizer_beside(folder) or ByteTokenizer()
    start = np.array([] if tokenizer.bos_id is None else [tokenizer.bos_id], np.int32)
    dtype = shards.token_dtype(tokenizer.vocab_size)

    def encode(document: str) -> np.ndarray:
        return np.concatenate([start, tokenizer.encode(document)]).astype(dtype)

    for tfds_name, name in (("train", "train"), ("validation", "val")):
        documents = elements(splits[tfds_name].map(encode))
        shards.write_split(folder, name, documents, vocab_size=tokenizer.vocab_size)
    checksums.write(folder)


def tokenizer_at(spec: str | Path) -> Tokenizer:
    """The tokenizer of a file: a SentencePiece `.model`, a tokenizer.json or the folder that has one, or a .gguf."""
    path = Path(spec)
    if path.suffix in (".json", ".gguf") or path.is_dir():
        from freezejax.data.json_tokenizers import JsonTokenizer

        return JsonTokenizer(path)
    return SentencePieceTokenizer(path)


def tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The one tokenizer of a folder of shards, if there is one."""
    models = sorted([*folder.glob("*.model"), *folder.glob("*tokenizer.json")])
    if len(models) > 1:
        names = ", ".join(path.name for path in models)
        raise UserError(f"{folder}: several tokenizers ({names}); name one with tokenizer=FILE.model")
    return tokenizer_at(models[0]) if models else None


def _shard_tokenizer(folder: Path, spec: str) -> Tokenizer:
    """The tokenizer that a user's shards were made with: nothing can be learned or made anew here."""
    if spec == "bytes":
        return ByteTokenizer()
    if spec.startswith("bpe:"):
        raise UserError(f"tokenizer={spec}: {folder} holds tokens already; give the .model that made them")
    tokenizer = tokenizer_at(spec) if spec else tokenizer_beside(folder)
    if tokenizer is None:
        raise UserError(f"{folder}: no .model beside the shards; name their tokenizer with tokenizer=FILE.model")
    return tokenizer


def _read(place: Path, tokenizer: Tokenizer, *, source: str, to_train: bool = True) -> Corpus:
    """Memory-maps the shards of a folder, or one shard, whose tokens are then those to validate on."""
    vocab_size = tokenizer.vocab_size
    train: shards.Tokens = np.empty(0, np.uint16)
    if place.is_file():
        val: shards.Tokens = shards.read_shard(place, vocab_size=vocab_size)
    else:
        train = shards.read_split(place, "train", vocab_size=vocab_size) if to_train else train
        val = shards.read_split(place, "val", vocab_size=vocab_size)
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for tokens in (train, val):
        digest.update(f" {len(tokens)} ".encode())
        for start in range(0, len(tokens), 2**24):
            digest.update(np.ascontiguousarray(tokens[start : start + 2**24]).data)
    return Corpus(train, val, tokenizer, digest.hexdigest(), source)
