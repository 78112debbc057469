"""Codes to bytes and back without loss: exact bit packing, and the byte shuffle for float16."""

import numpy as np

from freezejax.artifact.codecs import BITS, qmax

_BLOCK = 1 << 20  # codes per block, a multiple of 8 so that blocks end on whole bytes


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed codes.

    >>> packed_size(5, 6)
    4
    """
    return -(-count * bits // 8)


def pack(values: np.ndarray, bits: int) -> bytes:
    """Packs uint8 values below 2^bits, most significant bit first; the last byte is filled up with zeros.

    >>> pack(np.array([1, 2, 3], np.uint8), 4).hex()
    '1230'
    """
    parts = []
    for start in range(0, len(values), _BLOCK):
        block = np.unpackbits(values[start : start + _BLOCK, None], axis=1)[:, 8 - bits :]
        parts.append(np.packbits(block).tobytes())
    return b"".join(parts)


def unpack(data: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse of `pack`, uint8 [count].

    Raises:
      ValueError: `data` is not exactly `packed_size(count, bits)` bytes.

    >>> unpack(bytes.fromhex("1230"), 3, 4).tolist()
    [1, 2, 3]
    """
    if len(data) != packed_size(count, bits):
        raise ValueError(f"{len(data)} bytes do not hold {count} codes of {bits} bits")
    packed, values = np.frombuffer(data, np.uint8), np.empty(count, np.uint8)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        block = np.unpackbits(packed[start * bits // 8 : packed_size(stop, bits)], count=(stop - start) * bits)
        values[start:stop] = np.packbits(np.pad(block.reshape(-1, bits), ((0, 0), (8 - bits, 0))), axis=1)[:, 0]
    return values


def to_values(codes: np.ndarray, codec: str) -> np.ndarray:
    """Signed codes as uint8 values in row order, zero in the middle of the range.

    >>> to_values(np.array([[-7, 0, 7]], np.int8), "int4").tolist()
    [0, 7, 14]
    """
    return (codes.reshape(-1).astype(np.int16) + qmax(codec)).astype(np.uint8)


def from_values(values: np.ndarray, codec: str, rows: int) -> np.ndarray:
    """The inverse of `to_values`, int8 [rows, n].

    Raises:
      ValueError: a value that stands for no code.
    """
    if values.size and int(values.max()) > 2 * qmax(codec):
        raise ValueError(f"code {int(values.max())} is above {2 * qmax(codec)}")
    return (values.astype(np.int16) - qmax(codec)).astype(np.int8).reshape(rows, -1 if values.size else 0)


def shuffle(half: np.ndarray) -> bytes:
    """All low bytes of a float16 array, then all high ones, which hold sign and exponent and compress.

    >>> shuffle(np.array([1.0, 2.0], np.float16)).hex()
    '00003c40'
    """
    return half.reshape(-1).astype("<f2").view(np.uint8).reshape(-1, 2).T.tobytes()


def unshuffle(data: bytes) -> np.ndarray:
    """The inverse of `shuffle`, float16 [n].

    Raises:
      ValueError: an odd number of bytes, or a value that is not finite.

    >>> unshuffle(shuffle(np.array([1.0, 2.0], np.float16))).tolist()
    [1.0, 2.0]
    """
    if len(data) % 2:
        raise ValueError(f"{len(data)} bytes are no whole number of float16")
    half = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(2, -1).T).view("<f2")[:, 0].astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("a float16 is not finite")
    return half


def bits_of(codec: str) -> int:
    """Bits per weight before entropy coding.

    >>> bits_of("int6"), bits_of("float16")
    (6, 16)
    """
    return BITS.get(codec, 16)
