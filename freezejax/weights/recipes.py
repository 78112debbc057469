"""How the numbers of a random map come from random bits: integers, so that every backend draws the same.

A recipe draws *levels*, small integers held in float32 (exact in bfloat16, too), from the words of
`jax.random.bits` of a threefry2x32 key. Weights are levels times one constant; see `random_map`. Words fill
rows from the left, and of a word the low bits come first. A larger shape shares no prefix with a smaller one.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Shape = tuple[int, int]

# The 128 positive quantiles of N(0, 1) at (i + 1/2) / 256, in steps of 1/44: the largest is 127.
_QUANTILE_STEPS = 44
_QUANTILES = np.array(
    [round(_QUANTILE_STEPS * statistics.NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.float32
)


class Recipe(NamedTuple):
    """How one distribution is drawn."""

    levels: Callable[..., jax.Array]  # (key, [in, out], how it will be sharded) -> float32 [in, out]
    std: float  # standard deviation of the levels; their mean is zero
    kurtosis: float  # fourth moment over squared variance; 3 for a normal distribution
    portable: bool  # the same bits on every backend, mesh and supported jax version


def rademacher(key: jax.Array, shape: Shape, sharding: NamedSharding | None = None) -> jax.Array:
    """Signs, 32 to a word: bit 0 is +1, bit 1 is -1."""
    return _signs(_fields(key, shape, 1, sharding))


def uniform(key: jax.Array, shape: Shape, sharding: NamedSharding | None = None) -> jax.Array:
    """The 256 odd integers from -255 to 255, four to a word."""
    return 2.0 * _fields(key, shape, 8, sharding).astype(jnp.float32) - 255.0


def normal(key: jax.Array, shape: Shape, sharding: NamedSharding | None = None) -> jax.Array:
    """256 quantiles of the normal distribution as integers from -127 to 127, four to a word."""
    return jnp.asarray(_QUANTILES).at[_fields(key, shape, 8, sharding)].get(mode="promise_in_bounds")


def hadamard(key: jax.Array, shape: Shape, sharding: NamedSharding | None = None) -> jax.Array:
    """A randomized Hadamard matrix: random signs around randomly chosen rows and columns of Sylvester's.

    With N the power of two not below both sides, entry (i, j) is `s_i t_j (-1)^popcount(r_i & c_j)`; r and c
    are parts of random permutations of 0..N-1. If the larger side is N, vectors along it are exactly
    orthogonal. If not, their cosines scatter like those of random signs, smaller by sqrt((N - larger) / (N - 1)).
    Source: Ailon and Chazelle 2009 (fast Johnson-Lindenstrauss transform).

    >>> w = hadamard(jax.random.key(0), (4, 8))
    >>> bool((w @ w.T == 8 * jnp.eye(4)).all())
    True
    """
    n = 1 << (max(shape) - 1).bit_length()

    def line(name: int, size: int) -> tuple[jax.Array, jax.Array]:
        # A few kilobytes: every device draws them all.
        bits = _place(jax.random.bits(jax.random.fold_in(key, name), (2, n), jnp.uint32), sharding)
        order = jnp.argsort(bits[0], stable=True).astype(jnp.uint32)
        return _place(order[:size], sharding), _place(bits[1, :size] >> 31, sharding)

    (rows_I, row_signs_I), (columns_O, column_signs_O) = line(0, shape[0]), line(1, shape[1])
    parity_IxO = jax.lax.population_count(rows_I[:, None] & columns_O[None])
    return _signs((parity_IxO + row_signs_I[:, None] + column_signs_O[None]) & 1)


def normal_f32(key: jax.Array, shape: Shape, _: NamedSharding | None = None) -> jax.Array:
    """`jax.random.normal`, for comparison: its last bits may differ between backends."""
    return jax.random.normal(key, shape, jnp.float32)


def orthogonal_qr(key: jax.Array, shape: Shape, _: NamedSharding | None = None) -> jax.Array:
    """Haar-distributed orthonormal vectors along the smaller side, from a QR decomposition, for comparison.

    Its bits differ between backends and the whole matrix is drawn on every device.
    """
    return jax.nn.initializers.orthogonal(math.sqrt(max(shape)))(key, shape, jnp.float32)


def _fields(key: jax.Array, shape: Shape, width: int, sharding: NamedSharding | None) -> jax.Array:
    """Unsigned integers of `width` bits, [in, out], cut from as few words as hold a row."""
    rows, columns = shape
    per_word = 32 // width
    row_axes, column_axes = (*sharding.spec, None, None)[:2] if sharding else (None, None)
    if sharding and sharding.shard_shape(shape)[1] % per_word:  # a word's fields lie on two devices: both draw it
        column_axes = None
    words_IxW = jax.random.bits(key, (rows, -(-columns // per_word)), jnp.uint32)
    words_IxW = _place(words_IxW, sharding, row_axes, column_axes)
    # Without the barrier a compiler may draw every word again for each field cut from it.
    words_IxW = jax.lax.optimization_barrier(words_IxW)
    shifts = (width * jnp.arange(per_word, dtype=jnp.uint32))[None, None]
    fields = ((words_IxW[..., None] >> shifts) & jnp.uint32(2**width - 1)).reshape(rows, -1)
    return _place(fields[:, :columns], sharding, row_axes, column_axes)


def _place(x: jax.Array, sharding: NamedSharding | None, *axes: Any) -> jax.Array:
    """`x` laid out over mesh axes, so that what follows from it needs no collective."""
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, PartitionSpec(*axes)))


def _signs(bits: jax.Array) -> jax.Array:
    # The sign bit set on the float 1.0: one shift and one or, no conversion.
    return jax.lax.bitcast_convert_type((bits.astype(jnp.uint32) << 31) | jnp.uint32(0x3F800000), jnp.float32)


_VARIANCE, _FOURTH_MOMENT = (float(np.mean(_QUANTILES.astype(np.float64) ** power)) for power in (2, 4))
RECIPES: dict[str, Recipe] = {
    "rademacher": Recipe(rademacher, 1.0, 1.0, True),
    "uniform": Recipe(uniform, math.sqrt((256**2 - 1) / 3), 1.8 * (256**2 - 7 / 3) / (256**2 - 1), True),
    "normal": Recipe(normal, math.sqrt(_VARIANCE), _FOURTH_MOMENT / _VARIANCE**2, True),
    "hadamard": Recipe(hadamard, 1.0, 1.0, True),
    "normal_f32": Recipe(normal_f32, 1.0, 3.0, False),
    "orthogonal_qr": Recipe(orthogonal_qr, 1.0, 3.0, False),
}
