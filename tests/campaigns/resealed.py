"""Damage to an artifact whose digest is made right again: its content is refused, or says something else."""

import json
import lzma
import struct
import zlib
from hashlib import sha256
from typing import Any

import brotli
import numpy as np
import zstandard

from tests.campaigns import mutations
from tests.campaigns.mutations import Mutation, Rng
from tests.campaigns.reader import DECOMPRESS, ENTRY, PREAMBLE

COMPRESS = {
    "none": bytes,
    "zlib": lambda data: deflate(data),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**24}]),
    "zstd": zstandard.compress,
    "brotli": lambda data: brotli.compress(data, quality=5),
}


def seal(content: bytes) -> bytes:
    """The file with its length and digest made right."""
    if len(content) < PREAMBLE.size:
        return content
    start = content[:10] + struct.pack("<Q", len(content)) + content[18 : PREAMBLE.size - 32]
    body = content[PREAMBLE.size :]
    return start + sha256(start + body).digest() + body


def sealed(mutate: Mutation) -> Mutation:
    """The mutation of everything after the preamble."""

    def mutated(rng: Rng, content: bytes, other: bytes) -> bytes:
        body = mutate(rng, content[PREAMBLE.size :], other[PREAMBLE.size :])
        return seal(content[: PREAMBLE.size] + body)

    return mutated


def preamble(rng: Rng, content: bytes, other: bytes) -> bytes:
    """A number of the preamble changed, under a right digest."""
    magic, *numbers, _ = PREAMBLE.unpack_from(content)
    which, widths = int(rng.integers(4)), (16, 64, 32, 32)
    value = int(rng.integers(0, 2 ** widths[which], dtype=np.uint64))
    old = numbers[which]
    numbers[which] = [value, old + 1, max(0, old - 1), 0, 2 ** widths[which] - 1][rng.integers(5)]
    start, body = PREAMBLE.pack(magic, *numbers, b"")[:-32], content[PREAMBLE.size :]
    return start + sha256(start + body).digest() + body


def with_header(content: bytes, text: bytes) -> bytes:
    """The file with another text as its header."""
    magic, version, _, header_bytes, _, _ = PREAMBLE.unpack_from(content)
    packed = deflate(text)
    start = PREAMBLE.pack(magic, version, 0, len(packed), len(text), b"")
    return seal(start + packed + content[PREAMBLE.size + header_bytes :])


def header_text(rng: Rng, content: bytes, other: bytes) -> bytes:
    """The header's text damaged as any file is."""
    mutate = list(mutations.ANY.values())[rng.integers(len(mutations.ANY))]
    return with_header(content, mutate(rng, header_of(content), header_of(other)))


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**63, 10**400, 0.5, 1e-300, 1e300, float("nan")),
    *(
        "",
        "x",
        "é",
        "a\nb",
        "int4",
        "float16",
        "brotli",
        "none",
        "geglu",
        "hadamard",
        "gain",
        "map",
        "lora",
        "(a|a)*b",
        "[",
        ".*",
    ),
    *([], {}, [[]], [1, 2], {"a": 1}, "9" * 5000, ".*/(gate|up|down)/kernel", "\ud800", float("inf")),
]


def header_fields(rng: Rng, content: bytes, other: bytes) -> bytes:
    """One to three fields, at any depth, replaced, removed, doubled, exchanged or taken from another file."""
    fields = json.loads(header_of(content))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _edit(rng, fields, json.loads(header_of(other)))
    return with_header(content, json.dumps(fields).encode())


def _edit(rng: Rng, fields: Any, other: Any) -> None:
    places = _places(fields)
    if not places:
        return
    if isinstance(fields, dict) and rng.random() < 0.7:  # tensors are most of a header
        places = [place for name in fields if name != "tensors" for place in [(fields, name), *_places(fields[name])]]
    parent, key = places[rng.integers(len(places))]
    foreign = _places(other)
    kind = rng.integers(6)
    if kind == 0:
        parent[key] = VALUES[rng.integers(len(VALUES))]
    elif kind == 1:
        del parent[key]
    elif kind == 2:
        parent.insert(key, parent[key]) if isinstance(parent, list) else parent.update({f"{key}2": parent[key]})
    elif kind == 3:
        there, name = places[rng.integers(len(places))]
        parent[key] = json.loads(json.dumps(there[name]))
    elif kind == 4:
        there, name = foreign[rng.integers(len(foreign))]
        parent[key] = there[name]
    elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] += int(rng.choice([-1, 1, parent[key]]))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def table(rng: Rng, content: bytes, other: bytes) -> bytes:
    """One field of one entry of the table."""
    at, count = _table(content)
    at += ENTRY.size * int(rng.integers(count))
    entry, which = list(ENTRY.unpack_from(content, at)), int(rng.integers(3))
    low, high = [(0, 4), (0, 2**32 - 1), (-(2**15), 2**15 - 1)][which]
    near = entry[which] + int(rng.integers(-2, 3))
    entry[which] = min(max(near, low), high) if rng.random() < 0.5 else int(rng.integers(low, high + 1))
    return seal(content[:at] + ENTRY.pack(*entry) + content[at + ENTRY.size :])


def section(rng: Rng, content: bytes, other: bytes) -> bytes:
    """One section drawn anew: of the right or another size, plain or compressed, its entry told rightly or not."""
    at, count = _table(content)
    entries = [ENTRY.unpack_from(content, at + i * ENTRY.size) for i in range(count)]
    which = int(rng.integers(count))
    begin = at + ENTRY.size * count + sum(size for _, size, _ in entries[:which])
    encoding, size, quality = entries[which]
    compressor = json.loads(header_of(content))["compressor"]
    data = _random_section(rng, encoding, content[begin : begin + size], compressor)
    entries[which] = (encoding if rng.random() < 0.8 else int(rng.integers(3)), len(data), quality)
    packed = b"".join(ENTRY.pack(*entry) for entry in entries)
    return seal(content[:at] + packed + content[at + len(packed) : begin] + data + content[begin + size :])


def _random_section(rng: Rng, encoding: int, data: bytes, compressor: str) -> bytes:
    plain = DECOMPRESS[compressor](data) if encoding and data else data
    size = max(0, len(plain) + int(rng.choice([0, 0, 0, -1, 1, 2, 10**6])))
    top = int(rng.choice([1, 2, 15, 63, 123, 256]))  # 123: the high byte of float16s that are mostly finite
    drawn = rng.integers(0, top, size, dtype=np.uint8).tobytes()
    return drawn if encoding == 0 else COMPRESS[compressor](drawn)


_BOMB = {"family": "geglu", "num_layers": 1, "model_dim": 16, "num_heads": 1}
_NORMS, _ATTENTION, _MLP = (
    [("blocks/0/ln1/scale", [16]), ("blocks/0/ln2/scale", [16]), ("ln_f/scale", [16])],
    [("blocks/0/attn/qkv/kernel", [16, 48]), ("blocks/0/attn/out/kernel", [16, 16])],
    [
        ("blocks/0/mlp/gate/kernel", [16, 32]),
        ("blocks/0/mlp/up/kernel", [16, 32]),
        ("blocks/0/mlp/down/kernel", [32, 16]),
    ],
)


def bomb(rng: Rng, content: bytes, other: bytes) -> bytes:
    """A file of a large vocabulary, right in every field, whose embedding compresses to almost nothing."""
    compressor, vocabulary = str(rng.choice(["zlib", "lzma", "zstd", "brotli"])), int(2 ** rng.uniform(9, 18))
    small = [[path, shape, "float16"] for path, shape in _NORMS + _ATTENTION + _MLP]
    compress = COMPRESS[compressor]
    sections = [
        compress(bytes(2 * vocabulary)),
        compress(bytes(2 * sum(int(np.prod(shape)) for _, shape, _ in small))),
        compress(bytes([127]) * (16 * vocabulary)),
    ]
    fields = {
        **{"model": {**_BOMB, "vocab_size": vocabulary}, "codec": [[".*", "int8"]], "compressor": compressor},
        **{"seeded": False, "tokenizer": None, "notes": None},
        "tensors": [["tok_emb/embedding", [vocabulary, 16], "int8"], *small],
    }
    table = [(1, len(data), 0) for data in sections] + [(0, 0, 0)] * len(small)
    packed = deflate(text := json.dumps(fields).encode())
    start = PREAMBLE.pack(content[:8], 2, 0, len(packed), len(text), b"")
    return seal(b"".join([start, packed, *(ENTRY.pack(*entry) for entry in table), *sections]))


RESEALED: dict[str, Mutation] = {
    **{name: sealed(mutate) for name, mutate in mutations.ANY.items()},
    "preamble": preamble,
    "header text": header_text,
    "header fields": header_fields,
    "table": table,
    "section": section,
    "bomb": bomb,
}


def deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(9, wbits=-15)
    return coder.compress(data) + coder.flush()


def header_of(content: bytes) -> bytes:
    return zlib.decompress(content[PREAMBLE.size : PREAMBLE.size + PREAMBLE.unpack_from(content)[3]], wbits=-15)


def _table(content: bytes) -> tuple[int, int]:
    """Offset of the table and number of its entries."""
    fields = json.loads(header_of(content))
    return PREAMBLE.size + PREAMBLE.unpack_from(content)[3] + 8 * fields["seeded"], 2 + len(fields["tensors"])
