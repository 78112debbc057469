"""One tensor, or one section of float16, as bytes: the smallest of what packing and entropy coding give.

Decompression never makes more bytes than were asked for.
"""

import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import brotli
import numpy as np
import zstandard

from freezejax.artifact import codecs
from freezejax.artifact.codecs import BITS, Rows, qmax
from freezejax.artifact.tensors import Tensor, packed_size
from freezejax.errors import UserError

PACKED, PACKED_COMPRESSED, BYTES_COMPRESSED = range(3)
ENCODINGS = ("packed", "packed+{}", "bytes+{}")  # float16 counts as packed when its bytes are shuffled
_BLOCK = 1 << 20  # codes per block, a multiple of 8 so that blocks end on whole bytes
# Streams carry no header of their own where the library allows it: the artifact records sizes and a digest.
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 24, "lc": 4, "lp": 0, "pb": 0}]


class Blob(NamedTuple):
    """Stored bytes and the index of their encoding."""

    encoding: int
    data: bytes


class Quantized(NamedTuple):
    """A stored leaf: its codes with their scales, or float16 [n] without any; `sqnr_db` against the original."""

    tensor: Tensor
    rows: Rows
    sqnr_db: float


def quantize_leaf(tensor: Tensor, leaf: np.ndarray, step: float = 0.0) -> Quantized:
    """Codes or float16 of one leaf; a `UserError` where it holds NaN, infinity, or more than the codec can.

    `step` is that of a weight that is used at few levels.
    """
    weights = np.asarray(leaf, np.float32)
    if not np.isfinite(weights).all():
        raise UserError(f"leaf {tensor.path!r} is not finite: an artifact stores finite weights")
    try:
        if tensor.codec == "float16":
            half = codecs.to_float16(weights)
            rows = Rows(half.reshape(-1), np.empty(0, np.float16))
            return Quantized(tensor, rows, codecs.sqnr_db(weights, half.astype(np.float32)))
        x = codecs.to_rows(tensor.path, weights)
        is_grid = tensor.codec in codecs.LEVELS
        rows = codecs.to_levels(x, tensor.codec, step) if is_grid else codecs.quantize_rows(x, tensor.codec)
    except UserError as error:
        raise UserError(f"leaf {tensor.path!r}: {error}") from None
    restored = codecs.dequantize_rows(rows, tensor.codec).reshape(x.shape)
    return Quantized(tensor, rows, codecs.sqnr_db(x, restored))


def dequantize(tensor: Tensor, rows: Rows) -> np.ndarray:
    """Float32 weights in the tensor's shape."""
    if tensor.codec == "float16":
        return rows.codes.astype(np.float32).reshape(tensor.shape)
    return codecs.from_rows(tensor.path, codecs.dequantize_rows(rows, tensor.codec), tensor.shape)


def encode_codes(tensor: Tensor, codes: np.ndarray, compressor: str) -> Blob:
    """The codes of one tensor in the smallest encoding.

    Packed codes are compressed only where a byte holds a whole number of them: codes across bytes hide their
    statistics (Gaussian rows, int6, Brotli: 0.715 bytes per weight, 0.670 with one byte per code).
    """
    if tensor.codec == "float16":
        return encode_half(codes, compressor)
    bits = BITS[tensor.codec]
    values = (codes.reshape(-1).astype(np.int16) + qmax(tensor.codec)).astype(np.uint8)  # zero amid the range
    packed = pack(values, bits)
    to_compress = {PACKED_COMPRESSED: packed} if 8 % bits == 0 else {}
    if bits < 8:
        to_compress[BYTES_COMPRESSED] = values.tobytes()
    return _smallest(packed, to_compress, compressor)


def decode_codes(tensor: Tensor, blob: Blob, compressor: str) -> np.ndarray:
    """Codes int8 [rows, n], or float16 [n] for that codec; a `ValueError` where the bytes encode no such tensor."""
    if tensor.codec == "float16":
        return decode_half(blob, tensor.size, compressor)
    if blob.encoding == BYTES_COMPRESSED:
        values = np.frombuffer(decompress(compressor, blob.data, tensor.size), np.uint8)
    else:
        values = unpack(_unpacked(blob, tensor.packed_bytes, compressor), tensor.size, BITS[tensor.codec])
    if values.max() >= (count := codecs.count_codes(tensor.codec)):
        raise ValueError(f"code {values.max()} is above {count - 1}")
    return (values.astype(np.int16) - qmax(tensor.codec)).astype(np.int8).reshape(tensor.rows, -1)


def encode_half(half: np.ndarray, compressor: str) -> Blob:
    """Float16 values, shuffled, compressed where that is smaller."""
    shuffled = shuffle(half)
    return _smallest(shuffled, {PACKED_COMPRESSED: shuffled}, compressor)


def decode_half(blob: Blob, count: int, compressor: str) -> np.ndarray:
    """Float16 [count]; a `ValueError` where the bytes are not so many finite ones."""
    if blob.encoding == BYTES_COMPRESSED:
        raise ValueError("float16 has no encoding of one byte per code")
    half = unshuffle(_unpacked(blob, 2 * count, compressor))
    if not np.isfinite(half).all():
        raise ValueError("a float16 is not finite")
    return half


def pack(values: np.ndarray, bits: int) -> bytes:
    """Packs uint8 values below 2^bits, most significant bit first; the last byte is filled up with zeros.

    >>> pack(np.array([1, 2, 3], np.uint8), 4).hex()
    '1230'
    """
    blocks = (values[start : start + _BLOCK, None] for start in range(0, len(values), _BLOCK))
    return b"".join(np.packbits(np.unpackbits(block, axis=1)[:, 8 - bits :]).tobytes() for block in blocks)


def unpack(data: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse of `pack`, uint8 [count]."""
    packed, values = np.frombuffer(data, np.uint8), np.empty(count, np.uint8)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        block = np.unpackbits(packed[start * bits // 8 : packed_size(stop, bits)], count=(stop - start) * bits)
        values[start:stop] = np.packbits(np.pad(block.reshape(-1, bits), ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
    return values


def shuffle(half: np.ndarray) -> bytes:
    """All low bytes of a float16 array, then all high ones, which hold sign and exponent and compress.

    >>> shuffle(np.array([1.0, 2.0], np.float16)).hex()
    '00003c40'
    """
    return half.reshape(-1).astype("<f2").view(np.uint8).reshape(-1, 2).T.tobytes()


def unshuffle(data: bytes) -> np.ndarray:
    """The inverse of `shuffle`, float16 [n]."""
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(2, -1).T).view("<f2")[:, 0].astype(np.float16)


def _smallest(packed: bytes, to_compress: dict[int, bytes], compressor: str) -> Blob:
    compress = COMPRESSORS[compressor].compress
    compressed = [Blob(encoding, compress(data)) for encoding, data in to_compress.items()]
    return min(Blob(PACKED, packed), *compressed, key=lambda blob: len(blob.data))  # the first of equals


def _unpacked(blob: Blob, size: int, compressor: str) -> bytes:
    if blob.encoding == PACKED_COMPRESSED:
        return decompress(compressor, blob.data, size)
    if len(blob.data) != size:
        raise ValueError(f"{len(blob.data)} bytes instead of {size}")
    return blob.data


class Compressor(NamedTuple):
    """`compress(data) -> bytes` and `decompress(data, size) -> bytes`; the latter raises on any wrong input."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


def decompress(name: str, data: bytes, size: int) -> bytes:
    """Exactly `size` bytes, or a `ValueError`; memory is bounded by `size` whatever `data` holds."""
    try:
        found = COMPRESSORS[name].decompress(data, size)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, brotli.error, EOFError) as error:
        raise ValueError(f"{name} data is damaged: {error}") from None
    if len(found) != size:
        raise ValueError(f"{name} data does not hold exactly {size} bytes")
    return found


def _streamed(coder: Any, data: bytes, size: int) -> bytes:
    return _whole(coder.decompress(data, size + 1), coder.eof and not coder.unused_data)


def _unbrotli(data: bytes, size: int) -> bytes:
    coder = brotli.Decompressor()
    return _whole(coder.process(data, output_buffer_limit=size + 1), coder.is_finished())


def _whole(found: bytes, finished: bool) -> bytes:
    if not finished:
        raise EOFError("it does not end where its data ends")
    return found


def _unzstd(data: bytes, size: int) -> bytes:
    if zstandard.get_frame_parameters(data).content_size != size:  # the library trusts it over `max_output_size`
        raise EOFError(f"its frame is not of {size} bytes")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)


COMPRESSORS: dict[str, Compressor] = {
    "none": Compressor(bytes, lambda data, size: data),
    "zlib": Compressor(
        lambda data: zlib.compress(data, level=9, wbits=-15),
        lambda data, size: _streamed(zlib.decompressobj(wbits=-15), data, size),
    ),
    "lzma": Compressor(
        lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA),
        lambda data, size: _streamed(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA), data, size),
    ),
    "zstd": Compressor(lambda data: zstandard.ZstdCompressor(level=19).compress(data), _unzstd),
    "brotli": Compressor(lambda data: brotli.compress(data, quality=11, lgwin=24), _unbrotli),
}
