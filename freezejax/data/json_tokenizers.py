"""Tokenizers of pretrained models through the package `tokenizers`: a tokenizer.json, or what a .gguf file holds."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from freezejax.atomic import write_atomically
from freezejax.data.tokenizers import SPACE, ByteTable
from freezejax.errors import UserError
from freezejax.gguf_file import Gguf, open_gguf
from freezejax.paths import check_known

FILE = "tokenizer.json"
_MAX_IDS = 4  # per token: vocabularies may have holes, a damaged one has an id of billions
_CONTROL, _USER = 3, 4  # GGUF's types of tokens that are no text, and of whole words added to a vocabulary


class JsonTokenizer:
    """A tokenizer.json, the folder of a model that has one, or a .gguf file with a byte-level BPE inside.

    Its name is the folder's, or the file's. No special tokens are added; `bos_id` is the one that the tokenizer puts
    before a text by itself, if it does.

    Raises:
      UserError: there is none, or one that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]):  # noqa: D107
        self.path = Path(path)
        if self.path.suffix == ".gguf":
            self.name, self._tokenizer = self.path.stem, _of_gguf(open_gguf(self.path))
        else:
            file = self.path / FILE if self.path.is_dir() else self.path
            self.name, self._tokenizer = _name(file), _of_file(file)
        content = self._tokenizer.to_str()
        self._added = {token for token, kept in self._tokenizer.get_added_tokens_decoder().items() if kept.special}
        self._byte_level = '"ByteLevel"' in json.dumps(json.loads(content).get("decoder"))
        self.vocab_size = self._ids()
        alone = self._tokenizer.encode("").ids
        self.bos_id: int | None = alone[0] if alone else None
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def _ids(self) -> int:
        """How many ids there are, those that no token has among them."""
        of_tokens = self._tokenizer.get_vocab(with_added_tokens=True)
        count = 1 + max(of_tokens.values(), default=-1)
        if not 0 < count <= _MAX_IDS * len(of_tokens):
            raise UserError(f"{self.path}: damaged: {len(of_tokens):,} tokens with ids up to {count - 1:,}")
        return count

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [n]."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the tokens; special ones have none."""
        return str(self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True))

    def byte_table(self) -> ByteTable:
        """UTF-8 bytes of every token, a leading space of a byte-level vocabulary among them; special tokens 0."""
        tokens = [self._tokenizer.id_to_token(i) or "" for i in range(self.vocab_size)]
        boundary_V = np.array([i in self._added or not token for i, token in enumerate(tokens)])
        if self._byte_level:
            known = _bytes_of_characters()
            lengths = [len(token) if set(token) <= known else len(token.encode()) for token in tokens]
            return ByteTable(np.where(boundary_V, 0, np.array(lengths)), np.zeros(len(tokens), bool), boundary_V)
        byte_V = np.array([re.fullmatch(r"<0x[0-9A-F]{2}>", token) is not None for token in tokens])
        leading_V = np.array([token.startswith(SPACE) for token in tokens]) & ~boundary_V
        lengths = [len(token.removeprefix(SPACE).replace(SPACE, " ").encode()) for token in tokens]
        base_V = np.where(boundary_V, 0, np.where(byte_V, 1, np.array(lengths)))
        return ByteTable(base_V, leading_V, boundary_V)

    def save(self, folder: Path, name: str) -> None:
        """Writes `{name}.tokenizer.json` into a folder."""
        write_atomically(folder / f"{name}.{FILE}", self._tokenizer.to_str(pretty=True))


def _name(file: Path) -> str:
    stem = file.name.removesuffix(".json").removesuffix(".tokenizer")
    return file.absolute().parent.name if stem == "tokenizer" else stem


def _of_file(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise UserError(f"{file}: there is no such tokenizer")
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{file}: not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None


_GPT2 = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
_LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# How text is cut before pairs are merged, by GGUF's names.
_CUTS: Mapping[str, Any] = {
    "gpt-2": _GPT2,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2()]),
    "llama-bpe": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _GPT2(use_regex=False)]
    ),
}


def _of_gguf(file: Gguf) -> tokenizers.Tokenizer:
    kind, cut = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise UserError(f"{file.path}: its tokenizer is of kind {kind!r}; only byte-level BPE, 'gpt2', is read")
    check_known(cut, _CUTS, f"{file.path}: tokenizer.ggml.pre={cut!r} is not known")
    tokens, types = file.field("tokenizer.ggml.tokens"), file.field("tokenizer.ggml.token_type", [])
    merges = [tuple(pair.split(" ", 1)) for pair in file.field("tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer, made.decoder = _CUTS[cut](), decoders.ByteLevel()
    for token, number in zip(tokens, types, strict=False):
        if number in (_CONTROL, _USER):
            made.add_tokens([AddedToken(token, special=number == _CONTROL, normalized=False)])
    return made


@functools.cache
def _bytes_of_characters() -> set[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    return set(pre_tokenizers.ByteLevel.alphabet())
