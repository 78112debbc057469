"""Entropy coders behind one pair of functions; decompression never makes more bytes than were asked for."""

import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

import brotli
import zstandard

# Streams carry no header of their own where the library allows it: the artifact records sizes and a digest.
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 24, "lc": 4, "lp": 0, "pb": 0}]


class Compressor(NamedTuple):
    """`compress(data) -> bytes` and `decompress(data, size) -> bytes`; the latter raises on any wrong input."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


def decompress(name: str, data: bytes, size: int) -> bytes:
    """Exactly `size` bytes; memory is bounded by `size` whatever `data` holds.

    Raises:
      ValueError: `data` is damaged, or holds more or fewer bytes.

    >>> decompress("zlib", COMPRESSORS["zlib"].compress(b"abc" * 9), 27)[:4]
    b'abca'
    >>> decompress("zlib", COMPRESSORS["zlib"].compress(b"abc" * 9), 26)
    Traceback (most recent call last):
    ...
    ValueError: zlib data does not hold exactly 26 bytes
    """
    try:
        found = COMPRESSORS[name].decompress(data, size)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, brotli.error, EOFError) as error:
        raise ValueError(f"{name} data is damaged: {error}") from None
    if len(found) != size:
        raise ValueError(f"{name} data does not hold exactly {size} bytes")
    return found


def _zlib(data: bytes) -> bytes:
    coder = zlib.compressobj(9, wbits=-15)
    return coder.compress(data) + coder.flush()


def _unzlib(data: bytes, size: int) -> bytes:
    coder = zlib.decompressobj(wbits=-15)
    return _whole(coder.decompress(data, size + 1), coder.eof, coder.unused_data)


def _unlzma(data: bytes, size: int) -> bytes:
    coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
    return _whole(coder.decompress(data, size + 1), coder.eof, coder.unused_data)


def _unzstd(data: bytes, size: int) -> bytes:
    if zstandard.get_frame_parameters(data).content_size != size:  # the library trusts it over `max_output_size`
        raise EOFError(f"its frame is not of {size} bytes")
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)


def _unbrotli(data: bytes, size: int) -> bytes:
    parts: list[bytes] = []
    coder, left = brotli.Decompressor(), size + 1
    while left > 0 and not coder.is_finished():
        part = coder.process(b"" if parts else data, output_buffer_limit=left)
        parts.append(part)
        left -= len(part)
        if not part:
            break
    return _whole(b"".join(parts), coder.is_finished(), b"")


def _whole(found: bytes, finished: bool, rest: bytes) -> bytes:
    if not finished or rest:
        raise EOFError("it does not end where its data ends")
    return found


def _raw(data: bytes, size: int) -> bytes:
    return data


COMPRESSORS: dict[str, Compressor] = {
    "none": Compressor(bytes, _raw),
    "zlib": Compressor(_zlib, _unzlib),
    "lzma": Compressor(lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=_LZMA), _unlzma),
    "zstd": Compressor(lambda data: zstandard.ZstdCompressor(level=19).compress(data), _unzstd),
    "brotli": Compressor(lambda data: brotli.compress(data, quality=11, lgwin=24), _unbrotli),
}
