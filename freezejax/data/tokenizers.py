"""Text to tokens and back: plain bytes, and any SentencePiece model."""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from freezejax.data.atomic import atomic_file
from freezejax.data.byte_accounting import ByteTable
from freezejax.errors import UserError

SPACE = "\u2581"  # SentencePiece writes every space as this character

# Lines that a vocabulary is learned from: about 100 MB of prose; more of it changes few merges.
MAX_TRAINING_LINES = 2_000_000


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


class SentencePieceTokenizer:
    """A SentencePiece `.model` file (BPE or unigram), unchanged; its name is the file's."""

    def __init__(self, path: str | os.PathLike[str]):
        """Loads the model.

        Raises:
            UserError: the file is missing or is no SentencePiece model.
        """
        self.path = Path(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            model = self.path.read_bytes()
            self._processor.LoadFromSerializedProto(model)
        except OSError as error:
            fault = f"cannot read the tokenizer: {error.strerror}; give bytes, bpe:SIZE or a .model"
            raise UserError(f"{self.path}: {fault}") from None
        except RuntimeError:
            raise UserError(f"{self.path}: not a SentencePiece model") from None
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
        pieces = [sp.id_to_piece(i) for i in ids]
        text_V = ~boundary_V & ~byte_V
        leading_space_V = np.array([piece.startswith(SPACE) for piece in pieces]) & text_V
        # Inside a piece the mark stands for a one-byte space too. The challenge's vocabularies have none
        # there; vocabularies with runs of spaces would otherwise count three bytes for each.
        lengths_V = [len(piece.removeprefix(SPACE).replace(SPACE, " ").encode("utf-8")) for piece in pieces]
        base_V = np.where(text_V, np.array(lengths_V, np.int64), byte_V.astype(np.int64))
        return ByteTable(base_V, leading_space_V, boundary_V)


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> SentencePieceTokenizer:
    """Learns a SentencePiece BPE with the settings of the Parameter Golf tokenizers and writes it to `path`.

    Those are: byte fallback, digits split, nmt_nfkc, no dummy prefix, pad/bos/eos/unk = 0/1/2/3, byte
    pieces from id 4, character coverage 0.999. The same text gives the same file.

    Args:
        texts: documents; learned from line by line.
        vocab_size: exact size of the vocabulary.
        path: where the `.model` goes; replaced atomically.

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
