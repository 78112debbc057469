"""The bytes of an `.fjax` file, format 2. (Format 1 named maps and adapters in two lists of their own.)

    preamble   58  magic 8, version u16, bytes of the file u64, of the header u32, of its text u32, SHA-256 of all else
    header         raw-deflated JSON, see `header.Header`
    seed        8  the base seed's two uint32 words; absent where nothing is seeded
    table     7 n  encoding u8, bytes u32, quality i16 in 1/100 dB; first for scales and small, then per tensor
    scales         float16 of every quantized row, tensor after tensor, shuffled
    small          float16 of every tensor that is small, shuffled
    codes          one blob per tensor that is not
    padding        zeros up to a thousandth of the weights, so that a small file cannot ask for much memory

Everything is little-endian. The magic has the line ends and the high bit that a text-mode transfer damages.
"""

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from freezejax.artifact import header as headers
from freezejax.artifact.codecs import Rows
from freezejax.artifact.encode import (
    ENCODINGS,
    PACKED,
    Blob,
    Quantized,
    decode_codes,
    decode_half,
    dequantize,
    encode_codes,
    encode_half,
)
from freezejax.artifact.header import Header
from freezejax.artifact.tensors import SEED_WORDS, Tensor
from freezejax.errors import UserError

MAGIC = b"\x89FJX\r\n\x1a\n"
VERSION = 2
MAX_EXPANSION = 1000  # weights per byte of file
PREAMBLE = struct.Struct("<8sHQII32s")
SEED_BYTES = 4 * SEED_WORDS
ENTRY = np.dtype([("encoding", "u1"), ("bytes", "<u4"), ("quality", "<i2")])
_MAX_MESSAGE = 400
_QUALITY = np.iinfo(np.int16)


class Parts(NamedTuple):
    """A file taken apart, nothing decoded yet; `blobs` has one entry per tensor, empty for small ones."""

    header: Header
    seed: tuple[int, int] | None
    scales: Blob
    small: Blob
    blobs: list[Blob]
    sqnr_db: list[float]
    sizes: dict[str, int]  # bytes of every part of the file, which they add up to


def table_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the table: an entry for each tensor, and for the two sections that they share."""
    return ENTRY.itemsize * (2 + len(tensors))


def to_bytes(header: Header, seed: tuple[int, int] | None, leaves: Sequence[Quantized]) -> bytes:
    """The whole file; a `UserError` where a tensor takes 4 GiB or more."""
    sections = _sections(leaves, header.compressor)
    if max(len(blob.data) for blob in sections) >= 2**32:
        raise UserError("a tensor takes 4 GiB or more: an artifact holds smaller ones")
    quality = np.rint(np.clip([0, 0, *(100 * leaf.sqnr_db for leaf in leaves)], _QUALITY.min, _QUALITY.max))
    entries = [(blob.encoding, len(blob.data), found) for blob, found in zip(sections, quality, strict=True)]
    table = np.array(entries, ENTRY)
    text, text_size = headers.to_bytes(header)
    words = b"" if seed is None else np.array(seed, "<u4").tobytes()
    body = b"".join([text, words, table.tobytes(), *(blob.data for blob in sections)])
    weights = sum(leaf.tensor.size for leaf in leaves)
    body += bytes(max(0, -(-weights // MAX_EXPANSION) - PREAMBLE.size - len(body)))
    return seal(VERSION, len(text), text_size, body)


def _sections(leaves: Sequence[Quantized], compressor: str) -> list[Blob]:
    """Scales, small tensors, then the codes of each tensor, which small ones do not have."""
    scales = [leaf.rows.scales for leaf in leaves]
    small = [leaf.rows.codes for leaf in leaves if leaf.tensor.small]
    shared = [np.concatenate([np.empty(0, np.float16), *arrays]) for arrays in (scales, small)]
    codes = [
        Blob(PACKED, b"") if leaf.tensor.small else encode_codes(leaf.tensor, leaf.rows.codes, compressor)
        for leaf in leaves
    ]
    return [*(encode_half(half, compressor) for half in shared), *codes]


def seal(version: int, header_bytes: int, text_size: int, body: bytes) -> bytes:
    """Preamble and body, with the digest of both."""
    size = PREAMBLE.size + len(body)
    start = PREAMBLE.pack(MAGIC, version, size, header_bytes, text_size, b"")[: -hashlib.sha256().digest_size]
    return start + hashlib.sha256(start + body).digest() + body


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Parts]:
    """A file taken apart; what its content breaks, here or in the block, is told in one line that names the file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not an artifact' if path.is_dir() else 'there is no such file'}")
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE.size)
            _check_start(start)  # before reading what may be no artifact and large
            parts = parse(start + file.read())
        yield parts
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        what = "" if isinstance(error, UserError) else "damaged: "
        raise UserError(f"{path}: {what}{_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    """The message, cut: it may quote anything that stands in a file."""
    line = " ".join(str(error).split())
    return line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "..."


def parse(data: bytes) -> Parts:
    """A file's bytes taken apart; a `ValueError` where magic, version, length, digest or header are not right."""
    _check_start(data[: PREAMBLE.size])
    _, version, size, header_bytes, text_size, digest = PREAMBLE.unpack_from(data)
    start, body = data[: PREAMBLE.size - len(digest)], np.frombuffer(data, np.uint8)[PREAMBLE.size :]
    if len(data) < size:
        raise UserError(f"truncated: {len(data)} of {size} bytes, or its length is damaged")
    sha = hashlib.sha256(start)
    sha.update(body)
    if sha.digest() != digest:
        raise UserError("damaged: its content does not match its SHA-256")
    if version != VERSION:
        raise ValueError(f"format {version} does not exist")
    if len(data) != size or header_bytes > len(body):
        raise ValueError(f"{len(data)} bytes instead of {size}, of which {header_bytes} are its header")
    header = headers.from_bytes(body[:header_bytes].tobytes(), text_size)
    return _split(header, body[header_bytes:], len(data))


def _check_start(start: bytes) -> None:
    if start[:4] == MAGIC[:4] and start[:8] != MAGIC[: len(start)]:
        raise UserError("damaged: its first bytes were changed as a transfer in text mode does; copy it as binary")
    if not start or start[:8] != MAGIC[: len(start)]:
        raise UserError("not a freezejax artifact")
    if len(start) < PREAMBLE.size:
        raise UserError(f"truncated: {len(start)} bytes are fewer than the first {PREAMBLE.size}")
    version = PREAMBLE.unpack(start)[1]
    if version == 1:
        raise UserError("format 1, which named maps and adapters otherwise, is no longer read: pack the model again")
    if version > VERSION:
        raise UserError(f"written by a newer freezejax: format {version}, this one reads {VERSION}")


def _split(header: Header, rest: np.ndarray, file_bytes: int) -> Parts:
    """`rest` is all that comes after the header."""
    weights = sum(tensor.size for tensor in header.tensors)
    if weights > MAX_EXPANSION * file_bytes:
        raise ValueError(f"{weights} weights cannot come from {file_bytes} bytes")
    ends = np.cumsum([SEED_BYTES * header.seeded, table_bytes(header.tensors)])
    if ends[-1] > len(rest):
        raise ValueError("its table is cut off")
    words, entries, sections = np.split(rest, ends)
    table = entries.view(ENTRY)
    ends = np.cumsum(table["bytes"], dtype=np.int64)
    *stored, padding = np.split(sections, ends)
    if ends[-1] > len(sections) or padding.any():
        raise ValueError("its table does not fit its bytes")
    if table["encoding"].max() >= len(ENCODINGS):
        raise ValueError(f"unknown encoding {table['encoding'].max()}")
    scales, small, *blobs = map(Blob, table["encoding"].tolist(), (section.tobytes() for section in stored))
    for tensor, blob in zip(header.tensors, blobs, strict=True):
        if tensor.small and blob.data:
            raise ValueError(f"small tensor {tensor.path!r} has bytes of its own")
    infinite = {_QUALITY.max: float("inf"), _QUALITY.min: float("-inf")}
    quality = [infinite.get(found, found / 100) for found in table["quality"][2:].tolist()]
    seed = (int(words.view("<u4")[0]), int(words.view("<u4")[1])) if header.seeded else None
    sizes = {"preamble": PREAMBLE.size, "header": file_bytes - PREAMBLE.size - len(rest), "seed": len(words)}
    sizes |= {"table": len(entries), "scales": len(scales.data), "small": len(small.data)}
    sizes |= {"codes": sum(len(blob.data) for blob in blobs), "padding": len(padding)}
    return Parts(header, seed, scales, small, blobs, quality, sizes)


def decode(parts: Parts) -> dict[str, np.ndarray]:
    """Dequantized float32 weights by path; a `ValueError` where bytes encode no such tensor."""
    tensors, compressor = parts.header.tensors, parts.header.compressor
    scales = decode_half(parts.scales, sum(tensor.rows for tensor in tensors), compressor)
    small = decode_half(parts.small, sum(tensor.size for tensor in tensors if tensor.small), compressor)
    if np.signbit(scales).any():
        raise ValueError("a scale is negative")
    weights = {}
    for tensor, blob in zip(tensors, parts.blobs, strict=True):
        if tensor.small:
            codes, small = small[: tensor.size], small[tensor.size :]
        else:
            codes = decode_codes(tensor, blob, compressor)
        mine, scales = scales[: tensor.rows], scales[tensor.rows :]
        weights[tensor.path] = dequantize(tensor, Rows(codes, mine))
    return weights
