"""Entropy coders behind one pair of functions; decompression never makes more bytes than were asked for."""

import functools
import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import brotli
import zstandard

# Streams carry no header of their own where the library allows it: the artifact records sizes and a digest.
_LZMA: dict[str, Any] = {
    "format": lzma.FORMAT_RAW,
    "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 24, "lc": 4, "lp": 0, "pb": 0}],
}


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


def _streamed(make_coder: Callable[[], Any], data: bytes, size: int) -> bytes:
    coder = make_coder()
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
        functools.partial(zlib.compress, level=9, wbits=-15),
        functools.partial(_streamed, functools.partial(zlib.decompressobj, wbits=-15)),
    ),
    "lzma": Compressor(
        functools.partial(lzma.compress, **_LZMA),
        functools.partial(_streamed, functools.partial(lzma.LZMADecompressor, **_LZMA)),
    ),
    "zstd": Compressor(lambda data: zstandard.ZstdCompressor(level=19).compress(data), _unzstd),
    "brotli": Compressor(functools.partial(brotli.compress, quality=11, lgwin=24), _unbrotli),
}
