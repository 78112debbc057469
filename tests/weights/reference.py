"""The portable recipes a second time, in numpy alone, from the papers: what the package is compared with.

Threefry-2x32 with 20 rounds: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"
(Random123). How jax counts: docs.jax.dev, jax_threefry_partitionable: word i of an array is enciphered from the
64-bit counter i, and its two output words are xored.
"""

import hashlib
import math

import numpy as np
from scipy.stats import norm

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def threefry2x32(key, counter):
    """`(key words, counter words) -> two output words`, uint32 arrays."""
    words = [np.asarray(word, np.uint32) for word in counter]
    schedule = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0]) ^ np.uint32(key[1]) ^ np.uint32(PARITY)]
    x, y = words[0] + schedule[0], words[1] + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x = x + y
            y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def seed_key(seed):
    return seed >> 32, seed & 0xFFFFFFFF


@np.errstate(over="ignore")  # the cipher adds modulo 2**32
def fold_in(key, number):
    return tuple(int(word) for word in threefry2x32(key, (0, number)))


def path_key(seed, path):
    return fold_in(seed_key(seed), int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "little"))


@np.errstate(over="ignore")
def bits(key, shape):
    index = np.arange(math.prod(shape), dtype=np.uint64)
    high, low = threefry2x32(key, ((index >> np.uint64(32)).astype(np.uint32), index.astype(np.uint32)))
    return (high ^ low).reshape(shape)


def fields(key, shape, width):
    """Rows of words, cut from the low bits up."""
    per_word = 32 // width
    words = bits(key, (shape[0], math.ceil(shape[1] / per_word)))
    cut = [(words >> np.uint32(width * i)) & np.uint32(2**width - 1) for i in range(per_word)]
    return np.stack(cut, axis=-1).reshape(shape[0], -1)[:, : shape[1]].astype(np.int64)


def rademacher(key, shape):
    return 1 - 2 * fields(key, shape, 1)


def uniform(key, shape):
    return 2 * fields(key, shape, 8) - 255


def normal(key, shape):
    return np.rint(44 * norm.ppf((fields(key, shape, 8) + 0.5) / 256)).astype(np.int64)


def hadamard(key, shape):
    """Rows and columns of Sylvester's matrix, built by its recursion, permuted and signed."""
    size = 2 ** math.ceil(math.log2(max(shape)))
    sylvester = np.ones((1, 1), np.int64)
    while len(sylvester) < size:
        sylvester = np.block([[sylvester, sylvester], [sylvester, -sylvester]])
    lines = []
    for side, length in enumerate(shape):
        order, signs = bits(fold_in(key, side), (2, size))
        chosen = np.argsort(order, kind="stable")[:length]
        lines.append((chosen, np.where(signs[:length] >= 2**31, -1, 1)))
    (rows, row_signs), (columns, column_signs) = lines
    return sylvester[np.ix_(rows, columns)] * row_signs[:, None] * column_signs[None]


RECIPES = {"rademacher": rademacher, "uniform": uniform, "normal": normal, "hadamard": hadamard}
VARIANCE = {
    "rademacher": 1.0,
    "uniform": float(np.mean(np.arange(-255, 256, 2) ** 2.0)),
    "normal": float(np.mean(np.rint(44 * norm.ppf((np.arange(256) + 0.5) / 256)) ** 2)),
    "hadamard": 1.0,
}


def materialize(distribution, shape, path, seed, std):
    """The weights, float32 [in, out]."""
    levels = RECIPES[distribution](path_key(seed, path), shape).astype(np.float32)
    return levels * np.float32(std / math.sqrt(VARIANCE[distribution]))
