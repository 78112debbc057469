"""Token shards in the format of the FineWeb exports of Parameter Golf, memory-mapped.

A shard is a header of 256 little-endian int32 (1,024 bytes: magic 20240520, version 1, token count n, then
zeros) and n little-endian uint16 tokens: exactly 1024 + 2n bytes. Vocabularies above 65,536 have shards of
uint32, magic 20240801 and version 7, as llm.c writes them for Llama 3: exactly 1024 + 4n bytes. A folder holds
`fineweb_train_000000.bin`, `fineweb_train_000001.bin`, ... and the same for `val`; a split is of one width.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from freezejax.atomic import atomic_file
from freezejax.errors import UserError

# dtype of the tokens: (magic number, version)
FORMATS: dict[np.dtype, tuple[int, int]] = {np.dtype("<u2"): (20240520, 1), np.dtype("<u4"): (20240801, 7)}
HEADER_BYTES = 1024
NARROW_VOCABULARY = 2**16  # the largest whose tokens are uint16
MAX_VOCABULARY = 2**31  # models take int32
SHARD_TOKENS = 100_000_000  # of a full training shard


class ConcatenatedTokens:
    """Several token arrays seen as one, none of them read until sliced.

    A slice inside one part is a view of its memory map; a slice across parts is a copy of the slice alone.

    >>> tokens = ConcatenatedTokens([np.arange(3, dtype=np.uint16), np.arange(3, 5, dtype=np.uint16)])
    >>> tokens[2:4], len(tokens)
    (array([2, 3], dtype=uint16), 5)
    """

    ndim = 1

    def __init__(self, parts: Sequence[np.ndarray]):
        """Joins arrays [n_i], at least one and all of one dtype, in this order."""
        self.parts, self.dtype = tuple(parts), parts[0].dtype
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
        pieces = [self.parts[k][max(0, start - self._starts[k]) : stop - self._starts[k]] for k in touched]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """All tokens, read into memory."""
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)


Tokens = np.ndarray | ConcatenatedTokens


def token_dtype(vocab_size: int) -> np.dtype:
    """Of the shards of a vocabulary: uint16 as long as it can hold every token, else uint32."""
    return np.dtype("<u2" if vocab_size <= NARROW_VOCABULARY else "<u4")


def read_shard(path: str | Path, *, vocab_size: int = MAX_VOCABULARY) -> np.ndarray:
    """One shard, memory-mapped and read-only: uint16 or uint32 [n], as its format says.

    Raises:
        UserError: missing, truncated, another format or version, or a token not below `vocab_size`.
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
    formats = {known: (dtype, number) for dtype, (known, number) in FORMATS.items()}
    if magic not in formats:
        raise UserError(f"{path}: magic number {magic} instead of {' or '.join(map(str, formats))}: no token shard")
    dtype, known_version = formats[magic]
    if version != known_version:
        raise UserError(f"{path}: shard version {version}; of {dtype} only version {known_version} is known")
    if header[3:].any():
        raise UserError(f"{path}: its header is not zero after the first three numbers: damaged or another format")
    promised = HEADER_BYTES + dtype.itemsize * n_tokens
    if n_tokens < 0 or size != promised:
        raise UserError(f"{path}: {size} bytes, but its header promises {n_tokens} tokens = {promised}")
    if n_tokens == 0:  # an empty region cannot be mapped
        return np.empty(0, dtype)
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(n_tokens,))
    if vocab_size < 256**dtype.itemsize and int(tokens.max()) >= vocab_size:
        at = int(np.argmax(tokens >= vocab_size))
        raise UserError(f"{path}: token {tokens[at]} (number {at}) is not in the vocabulary of {vocab_size}")
    return tokens


def read_split(folder: str | Path, split: str, *, vocab_size: int = MAX_VOCABULARY) -> Tokens:
    """All shards `fineweb_{split}_*.bin` of a folder in the order of their names, memory-mapped.

    Raises:
        UserError: there is none, they hold no token, one of them is damaged, or they are of two widths.
    """
    paths = sorted(Path(folder).glob(f"fineweb_{split}_*.bin"))
    if not paths:
        raise UserError(f"{folder}: no fineweb_{split}_*.bin in this folder")
    parts = [read_shard(path, vocab_size=vocab_size) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.dtype != parts[0].dtype:
            first = f"{parts[0].dtype} in {paths[0].name}"
            raise UserError(f"{path}: tokens of {part.dtype} beside {first}: shards of two vocabularies")
    if not any(map(len, parts)):
        raise UserError(f"{folder}: its fineweb_{split}_*.bin hold no tokens")
    return parts[0] if len(parts) == 1 else ConcatenatedTokens(parts)


def write_shard(path: str | Path, tokens: np.ndarray, *, vocab_size: int = NARROW_VOCABULARY) -> None:
    """Writes one shard of integers [n], whole or not at all, over what is there; for its dtype see `token_dtype`.

    Raises:
        UserError: a token is not in the vocabulary.
    """
    path, tokens = Path(path), np.asarray(tokens)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        found = f"tokens lie in [{tokens.min()}, {tokens.max()}]"
        raise UserError(f"{path}: {found}, a vocabulary of {vocab_size} holds 0 to {vocab_size - 1}")
    dtype = token_dtype(vocab_size)
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = *FORMATS[dtype], tokens.size
    with atomic_file(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, dtype).data)


def write_split(
    folder: str | Path,
    split: str,
    documents: Iterable[np.ndarray],
    *,
    vocab_size: int = NARROW_VOCABULARY,
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Writes tokenized documents, integers [n], one after another as `fineweb_{split}_000000.bin` and so on.

    Every shard, at least one, has `shard_tokens` tokens, the last one fewer; only one shard's worth is held in memory.
    """
    paths = (Path(folder) / f"fineweb_{split}_{number:06d}.bin" for number in itertools.count())
    held, n_held, n_written = [np.empty(0, np.uint16)], 0, 0
    for document in documents:
        held.append(document)
        n_held += len(document)
        while n_held >= shard_tokens:
            tokens = np.concatenate(held)
            write_shard(next(paths), tokens[:shard_tokens], vocab_size=vocab_size)
            held, n_held, n_written = [tokens[shard_tokens:]], n_held - shard_tokens, n_written + 1
    if n_held or not n_written:
        write_shard(next(paths), np.concatenate(held), vocab_size=vocab_size)
