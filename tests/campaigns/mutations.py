"""Ways to damage a file, each a function of a random generator: `mutate(rng, content, other) -> bytes`."""

import struct
from collections.abc import Callable

import numpy as np

from tests.campaigns.reader import PREAMBLE

Rng = np.random.Generator
Mutation = Callable[[Rng, bytes, bytes], bytes]

# Any file.


def flip_bits(rng: Rng, content: bytes, other: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(content, np.uint8))
    at = rng.integers(0, len(bits), rng.integers(1, 65)) if rng.random() < 0.5 else rng.integers(0, len(bits), 1)
    bits[at] ^= 1
    return np.packbits(bits).tobytes()


def set_bytes(rng: Rng, content: bytes, other: bytes) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    at = rng.integers(0, len(values), rng.integers(1, 17))
    values[at] = rng.choice(np.array([0, 1, 127, 128, 255, int(rng.integers(256))], np.uint8), len(at))
    return values.tobytes()


def truncate(rng: Rng, content: bytes, other: bytes) -> bytes:
    return content[: rng.integers(0, len(content))]


def extend(rng: Rng, content: bytes, other: bytes) -> bytes:
    more = int(rng.integers(1, 2000))
    return content + (rng.bytes(more), bytes(more), other)[rng.integers(3)]


def zero_block(rng: Rng, content: bytes, other: bytes) -> bytes:
    start, stop = np.sort(rng.integers(0, len(content) + 1, 2))
    return content[:start] + bytes(int(stop - start)) + content[stop:]


def splice_within(rng: Rng, content: bytes, other: bytes) -> bytes:
    """A piece goes elsewhere: inserted, or over what is there."""
    start, stop, at = (int(x) for x in np.sort(rng.integers(0, len(content) + 1, 3))[rng.permutation(3)])
    piece = content[min(start, stop) : max(start, stop)]
    return content[:at] + piece + content[at + len(piece) * int(rng.integers(2)) :]


def splice_between(rng: Rng, content: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another, cut at one place or at two."""
    if rng.random() < 0.5:
        at = int(rng.integers(0, min(len(content), len(other)) + 1))
        return content[:at] + other[at:]
    return content[: rng.integers(0, len(content) + 1)] + other[rng.integers(0, len(other) + 1) :]


def garbage(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Random bytes, alone or after a beginning that is right."""
    return content[: int(rng.choice([0, 4, 8, 12, PREAMBLE.size, 1024]))] + rng.bytes(int(rng.integers(0, 3000)))


ANY: dict[str, Mutation] = {
    "flip bits": flip_bits,
    "set bytes": set_bytes,
    "truncate": truncate,
    "extend": extend,
    "zero block": zero_block,
    "splice within": splice_within,
    "splice between": splice_between,
    "garbage": garbage,
}


# Token shards.


def shard_numbers(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Numbers of the header changed, or tokens whose count the header tells rightly."""
    if rng.random() < 0.5:
        n = int(rng.integers(0, 50))
        tokens = rng.integers(0, int(rng.choice([2, 256, 257, 2**16])), n).astype("<u2").tobytes()
        return content[:8] + struct.pack("<i", n) + content[12:1024] + tokens
    at, value = 4 * int(rng.choice([0, 1, 2, 2, 3, 255])), int(rng.integers(-(2**31), 2**31))
    (old,) = struct.unpack_from("<i", content, at)
    value = int(rng.choice([value, old + 1, old - 1, 0, -old]))
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]
