"""A second reader of `.fjax` files, written from the description of the format: naive, trusting, for whole files only.

It says what the bytes say, so that a file which `artifact.load` accepts can be held against it.
"""

import json
import lzma
import math
import struct
import zlib
from typing import Any, NamedTuple

import brotli
import numpy as np
import zstandard

SMALL = 4096
BITS = {"int8": 8, "int6": 6, "int5": 5, "int4": 4}
PREAMBLE = struct.Struct("<8sHQII32s")
ENTRY = struct.Struct("<BIh")
DECOMPRESS = {
    "none": bytes,
    "zlib": lambda data: zlib.decompress(data, wbits=-15),
    "lzma": lambda data: lzma.decompress(
        data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**24}]
    ),
    "zstd": zstandard.decompress,
    "brotli": brotli.decompress,
}


class Content(NamedTuple):
    """What a file says."""

    header: dict[str, Any]
    seed: tuple[int, int] | None
    weights: dict[str, np.ndarray]  # float32, by path


def read(content: bytes) -> Content:
    header_bytes = PREAMBLE.unpack_from(content)[3]
    rest = content[PREAMBLE.size :]
    header = json.loads(zlib.decompress(rest[:header_bytes], wbits=-15))
    rest = rest[header_bytes:]
    seed = struct.unpack("<II", rest[:8]) if header["seeded"] else None
    rest = rest[8:] if header["seeded"] else rest
    count = 2 + len(header["tensors"])
    table = [ENTRY.unpack_from(rest, i * ENTRY.size) for i in range(count)]
    at, sections = count * ENTRY.size, []
    for encoding, size, _ in table:
        data = rest[at : at + size]
        is_coded = encoding > 0 and size > 0  # a small tensor has no bytes of its own
        sections.append((encoding, DECOMPRESS[header["compressor"]](data) if is_coded else data))
        at += size
    return Content(header, seed, _weights(header["tensors"], sections))


def _weights(tensors: list[Any], sections: list[tuple[int, bytes]]) -> dict[str, np.ndarray]:
    scales, small = (_halves(data) for _, data in sections[:2])
    found = {}
    for (path, shape, codec), (encoding, data) in zip(tensors, sections[2:], strict=True):
        size = math.prod(shape)
        if len(shape) < 2 or (size <= SMALL and codec == "float16"):
            values, small = small[:size], small[size:]
            found[path] = values.reshape(shape)
        elif codec == "float16":
            found[path] = _halves(data).reshape(shape)
        else:
            codes = _codes(data, size, BITS[codec], spread=encoding == 2)
            rows = shape[0] if path.endswith("embedding") else shape[-1]
            weights = codes.reshape(rows, -1) * scales[:rows, None]
            scales = scales[rows:]
            found[path] = weights.reshape(shape) if path.endswith("embedding") else weights.T.reshape(shape)
    assert not scales.size
    assert not small.size
    return found


def _halves(data: bytes) -> np.ndarray:
    low, high = np.frombuffer(data, np.uint8).reshape(2, -1).astype(np.uint16)
    return (256 * high + low).view(np.float16).astype(np.float32)


def _codes(data: bytes, size: int, bits: int, *, spread: bool) -> np.ndarray:
    values = np.frombuffer(data, np.uint8)
    if not spread:
        values = np.unpackbits(values)[: size * bits].reshape(-1, bits) @ (1 << np.arange(bits)[::-1])
    return values.astype(np.float32) - np.float32(2 ** (bits - 1) - 1)
