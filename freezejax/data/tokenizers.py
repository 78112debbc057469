"""Text to tokens and back, plain bytes or any SentencePiece model, and the UTF-8 bytes that each token stands for.

Bytes are counted by the rule of the public Parameter Golf evaluation (openai/parameter-golf, `train_gpt.py`), so a
figure computed here may stand beside a figure of its leaderboard. Sums are kept in float64 and int64.
"""

import hashlib
import io
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import sentencepiece

from freezejax.atomic import atomic_file
from freezejax.errors import UserError

SPACE = "\u2581"  # SentencePiece writes every space as this character

# Lines that a vocabulary is learned from: about 100 MB of prose; more of it changes few merges.
MAX_TRAINING_LINES = 2_000_000


class ByteTable(NamedTuple):
    """What each of the V tokens of a vocabulary contributes to the byte count."""

    base_V: np.ndarray  # int64, UTF-8 bytes of the token without its leading space; 0 for a control token
    leading_space_V: np.ndarray  # bool, whether the token starts with a space
    boundary_V: np.ndarray  # bool, control, unknown or unused: no text, and a space that follows it is no text either


class Tokenizer(Protocol):
    """What the rest of the data layer asks of a tokenizer."""

    name: str  # what a person would call it
    vocab_size: int  # every token id is below it
    bos_id: int | None  # the id put before each document, if the vocabulary has one
    fingerprint: str  # equal for two tokenizers that encode alike

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 token ids [n], no special tokens added."""

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Token ids to text."""

    def byte_table(self) -> ByteTable:
        """The byte accounting of the vocabulary."""

    def save(self, folder: Path, name: str) -> None:
        """Writes it into a folder, in a file of this name and its own suffix; bytes need none."""


class ByteTokenizer:
    """Every UTF-8 byte is a token: vocabulary 256, no special tokens, one byte each.

    >>> ByteTokenizer().encode("hé")
    array([104, 195, 169], dtype=int32)
    """

    name = "bytes"
    vocab_size = 256
    bos_id: int | None = None
    fingerprint = "bytes"

    def encode(self, text: str) -> np.ndarray:
        """The UTF-8 bytes of the text, int32 [n]."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the bytes; U+FFFD where they are cut inside a character."""
        return np.asarray(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def byte_table(self) -> ByteTable:
        """One byte per token, no boundaries."""
        return ByteTable(np.ones(256, np.int64), np.zeros(256, bool), np.zeros(256, bool))

    def save(self, folder: Path, name: str) -> None:
        """Nothing."""


class SentencePieceTokenizer:
    """A SentencePiece `.model` file (BPE or unigram), unchanged; its name is the file's."""

    def __init__(self, path: str | os.PathLike[str]):
        """Loads the model; a `UserError` says that there is none."""
        self.path = Path(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            model = self.path.read_bytes()
            self._processor.LoadFromSerializedProto(model)
            self._pieces = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        except OSError as error:
            fault = f"cannot read the tokenizer: {error.strerror}; give bytes, bpe:SIZE or a .model"
            raise UserError(f"{self.path}: {fault}") from None
        except RuntimeError:
            raise UserError(f"{self.path}: not a SentencePiece model") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: a damaged SentencePiece model: a piece is no UTF-8 text") from None
        self.name = self.path.stem
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int | None = self._processor.bos_id() if self._processor.bos_id() >= 0 else None
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [n]; the model's own normalization applies (nmt_nfkc folds line ends to spaces)."""
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the pieces; control tokens have none."""
        return self._processor.decode(np.asarray(ids).tolist())

    def byte_table(self) -> ByteTable:
        """The Parameter Golf rule: control, unknown and unused 0; a byte piece 1; else UTF-8 length."""
        sp, ids = self._processor, range(self.vocab_size)
        boundary_V = np.array([sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i) for i in ids])
        byte_V = np.array([sp.is_byte(i) for i in ids])
        pieces = self._pieces
        text_V = ~boundary_V & ~byte_V
        leading_space_V = np.array([piece.startswith(SPACE) for piece in pieces]) & text_V
        # Inside a piece the mark stands for a one-byte space too. The challenge's vocabularies have none
        # there; vocabularies with runs of spaces would otherwise count three bytes for each.
        lengths_V = [len(piece.removeprefix(SPACE).replace(SPACE, " ").encode("utf-8")) for piece in pieces]
        base_V = np.where(text_V, np.array(lengths_V, np.int64), byte_V.astype(np.int64))
        return ByteTable(base_V, leading_space_V, boundary_V)

    def save(self, folder: Path, name: str) -> None:
        """Copies the model to `{name}.model`."""
        shutil.copyfile(self.path, folder / f"{name}.model")


def byte_counts(table: ByteTable, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The bytes of every target: `base[target] + (leading_space[target] & ~boundary[input])`.

    Inputs are the tokens before the targets; both are int of one shape, which the int64 counts have too.

    >>> table = ByteTable(np.array([0, 5]), np.array([False, True]), np.array([True, False]))
    >>> byte_counts(table, np.array([0, 1]), np.array([1, 1]))  # token 0 is a document start
    array([5, 6])
    """
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    space = table.leading_space_V[targets] & ~table.boundary_V[inputs]
    return table.base_V[targets].astype(np.int64) + space.astype(np.int64)


def bits_per_byte(sum_nats: float, n_bytes: int) -> float:
    """A loss in nats, summed over targets, in bits per byte: `n_bytes` is the sum of their `byte_counts`.

    Raises:
        UserError: there are no bytes.

    >>> bits_per_byte(math.log(2.0) * 8, 4)
    2.0
    """
    if n_bytes <= 0:
        raise UserError(f"n_bytes={n_bytes}: bits per byte needs at least one byte of text")
    return float(sum_nats) / math.log(2.0) / int(n_bytes)


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> SentencePieceTokenizer:
    """Learns a SentencePiece BPE with the settings of the Parameter Golf tokenizers and writes it to `path`.

    The same text, read line by line, gives the same file, which replaces what is there when it is complete. Ids 4 to
    259 are the byte pieces.

    Raises:
        UserError: the text cannot give a vocabulary of that size.
    """
    path = Path(path)
    lines = (line for text in texts for line in text.splitlines() if line.strip())
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.islice(lines, MAX_TRAINING_LINES),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            character_coverage=0.999,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            max_sentence_length=2**20,  # in bytes; longer lines are dropped silently
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split("] ")[-1].split()) or "it holds no text"
        if (sizes := re.search(r"required_chars. \d+ vs (\d+)", reason)) is not None:
            reason = f"its characters and the 256 bytes need at least {sizes[1]} tokens"
        raise UserError(f"bpe:{vocab_size}: cannot learn this vocabulary from the text: {reason}") from None
    with atomic_file(path) as file:
        file.write(model.getvalue())
    return SentencePieceTokenizer(path)
