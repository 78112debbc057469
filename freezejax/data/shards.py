"""Token shards in the format of the FineWeb exports of Parameter Golf, memory-mapped.

A shard is a header of 256 little-endian int32 (1,024 bytes: magic 20240520, version 1, token count n, then
zeros) and n little-endian uint16 tokens: exactly 1024 + 2n bytes. A folder holds
`fineweb_train_000000.bin`, `fineweb_train_000001.bin`, ... and the same for `val`.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from freezejax.data.atomic import atomic_file
from freezejax.errors import UserError

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
MAX_VOCABULARY = 2**16  # tokens are uint16
SHARD_TOKENS = 100_000_000  # of a full training shard


class ConcatenatedTokens:
    """Several token arrays seen as one, none of them read until sliced.

    Has what readers of tokens use: `len`, `size`, `shape`, `dtype`, `[i]`, `[start:stop]`, `numpy.asarray`.
    A slice inside one part is a view of its memory map; a slice across parts is a copy of the slice alone.

    >>> tokens = ConcatenatedTokens([np.arange(3, dtype=np.uint16), np.arange(3, 5, dtype=np.uint16)])
    >>> tokens[2:4], len(tokens)
    (array([2, 3], dtype=uint16), 5)
    """

    dtype = np.dtype(np.uint16)
    ndim = 1

    def __init__(self, parts: Sequence[np.ndarray]):
        """Joins uint16 arrays [n_i], in this order."""
        self.parts = tuple(parts)
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
        self.size = self._starts[-1]
        self.shape = (self.size,)

    def __len__(self) -> int:
        """Number of tokens."""
        return self.size

    def __getitem__(self, index: int | slice) -> np.ndarray:
        """One token, or the tokens of a slice."""
        if not isinstance(index, slice):
            at = range(self.size)[index]
            return self[at : at + 1][0]
        start, stop, step = index.indices(self.size)
        if step != 1:
            return np.asarray(self)[index]
        touched = range(bisect.bisect_right(self._starts, start) - 1, bisect.bisect_left(self._starts, stop))
        pieces = [
            self.parts[k][max(0, start - self._starts[k]) : stop - self._starts[k]]
            for k in (touched if stop > start else ())
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint16), *pieces])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All tokens, read into memory."""
        return np.concatenate([np.empty(0, np.uint16), *self.parts]).astype(dtype or self.dtype, copy=False)


Tokens = np.ndarray | ConcatenatedTokens


def read_shard(path: str | Path, *, vocab_size: int = MAX_VOCABULARY) -> np.ndarray:
    """Memory-maps one shard after checking its header, its size and every token.

    Args:
        path: the `.bin` file.
        vocab_size: every token must be below it.

    Returns:
        uint16 [n], read-only, memory-mapped.

    Raises:
        UserError: missing, truncated, another format or version, or a token outside the vocabulary.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", count=HEADER_BYTES // 4)
    except OSError as error:
        raise UserError(f"{path}: cannot read the shard: {error.strerror}") from None
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are fewer than a shard's header of {HEADER_BYTES}")
    magic, version, n_tokens = (int(x) for x in header[:3])
    if magic != MAGIC:
        raise UserError(f"{path}: magic number {magic} instead of {MAGIC}: not a FineWeb token shard")
    if version != VERSION:
        raise UserError(f"{path}: shard version {version}; only version {VERSION} is known")
    if header[3:].any():
        raise UserError(f"{path}: its header is not zero after the first three numbers: damaged or another format")
    if n_tokens < 0 or size != HEADER_BYTES + 2 * n_tokens:
        raise UserError(
            f"{path}: {size} bytes, but its header promises {n_tokens} tokens = {HEADER_BYTES + 2 * n_tokens}"
        )
    if n_tokens == 0:  # an empty region cannot be mapped
        return np.empty(0, np.uint16)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(n_tokens,))
    if vocab_size < MAX_VOCABULARY and int(tokens.max()) >= vocab_size:
        at = int(np.argmax(tokens >= vocab_size))
        raise UserError(f"{path}: token {tokens[at]} (number {at}) is not in the vocabulary of {vocab_size}")
    return tokens


def read_split(folder: str | Path, split: str, *, vocab_size: int = MAX_VOCABULARY) -> Tokens:
    """All shards `fineweb_{split}_*.bin` of a folder in the order of their names, memory-mapped.

    Raises:
        UserError: there is none, they hold no token, or one of them is damaged.
    """
    paths = shard_paths(folder, split)
    if not paths:
        raise UserError(f"{folder}: no fineweb_{split}_*.bin in this folder")
    parts = [read_shard(path, vocab_size=vocab_size) for path in paths]
    if not any(map(len, parts)):
        raise UserError(f"{folder}: its fineweb_{split}_*.bin hold no tokens")
    return parts[0] if len(parts) == 1 else ConcatenatedTokens(parts)


def shard_paths(folder: str | Path, split: str) -> list[Path]:
    """The shard files of a split, in the order of their names."""
    return sorted(Path(folder).glob(f"fineweb_{split}_*.bin"))


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Writes one shard; the file appears under its name only when it is complete.

    Args:
        path: the `.bin` file, replaced if it exists.
        tokens: integers [n] below 65,536.

    Raises:
        UserError: a token does not fit uint16.
    """
    path, tokens = Path(path), np.asarray(tokens)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < MAX_VOCABULARY:
        raise UserError(f"{path}: tokens lie in [{tokens.min()}, {tokens.max()}], a shard holds 0 to 65535")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, tokens.size
    with atomic_file(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, "<u2").data)


def write_split(
    folder: str | Path, split: str, documents: Iterable[np.ndarray], *, shard_tokens: int = SHARD_TOKENS
) -> None:
    """Writes tokenized documents one after another as shards of `shard_tokens`, the last one shorter.

    Args:
        folder: gets `fineweb_{split}_000000.bin` and so on; always at least one.
        split: "train" or "val".
        documents: integer arrays [n]; only one shard's worth is held in memory.
        shard_tokens: tokens of a full shard.
    """
    for number, tokens in enumerate(_regrouped(documents, shard_tokens)):
        write_shard(Path(folder) / f"fineweb_{split}_{number:06d}.bin", tokens)


def _regrouped(documents: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same tokens in arrays of `size`; the last one is shorter, and the only one may be empty."""
    held, n_held, n_yielded = [np.empty(0, np.uint16)], 0, 0
    for document in documents:
        held.append(document)
        n_held += len(document)
        while n_held >= size:
            tokens = np.concatenate(held)
            yield tokens[:size]
            held, n_held, n_yielded = [tokens[size:]], n_held - size, n_yielded + 1
    if n_held or not n_yielded:
        yield np.concatenate(held)
