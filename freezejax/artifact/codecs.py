"""Per-row symmetric integers: a float tensor as small codes and one float16 scale per output feature.

A row is everything that feeds one output feature: for kernels and adapters [..., out] the last axis counts rows, for
embeddings [V, D] the first, for the kernels of experts [E, in, out] both, so that no expert shares a scale. Row
weights are `code * scale`, codes in [-qmax, qmax] with qmax = 2^(bits-1) - 1. The product of an 8-bit code and a
float16 is exact in float32, so dequantizing gives the same bits everywhere.
"""

import math
from typing import NamedTuple

import numpy as np

from freezejax.errors import UserError

CODECS = ("int8", "int6", "int5", "int4", "float16")
# Of weights that are used at so few levels, and stored as these: no rule names them. See `freezejax.weights.grid`.
LEVELS = {"levels2": 2, "levels3": 3, "levels4": 4, "levels8": 8, "levels16": 16}
BITS = {"int8": 8, "int6": 6, "int5": 5, "int4": 4} | {name: (n - 1).bit_length() for name, n in LEVELS.items()}

_COARSE = np.geomspace(1.0, 0.12, 20)  # clip points tried, as fractions of the row's largest magnitude
_BLOCK = 1 << 16  # weights per block: the working set stays in a core's cache
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_SMALLEST_SCALE = np.float32(2.0**-24)  # smallest float16 above zero


class Rows(NamedTuple):
    """A quantized tensor: `codes` int8 [rows, n] and `scales` float16 [rows]."""

    codes: np.ndarray
    scales: np.ndarray


def qmax(codec: str) -> int:
    """Largest code of an integer codec: 127, 31, 15 or 7; half the levels of a grid, rounded down."""
    return LEVELS[codec] // 2 if codec in LEVELS else (1 << (BITS[codec] - 1)) - 1


def count_codes(codec: str) -> int:
    """How many codes there are, from -qmax on."""
    return LEVELS.get(codec, 2 * qmax(codec) + 1)


def row_axes(path: str, rank: int) -> tuple[int, ...]:
    """The axes of a tensor of at least two dims that count rows.

    >>> row_axes("tok_emb/embedding", 2), row_axes("mlp/up/kernel", 2), row_axes("experts/up_proj/kernel", 3)
    ((0,), (1,), (0, 2))
    """
    *parents, last = path.split("/")
    if last == "embedding":
        return (0,)
    return (0, rank - 1) if rank == 3 and "experts" in parents else (rank - 1,)


def to_rows(path: str, weights: np.ndarray) -> np.ndarray:
    """The tensor as float32 [rows, n], contiguous."""
    axes = row_axes(path, weights.ndim)
    rows = np.moveaxis(weights, axes, range(len(axes)))
    return np.ascontiguousarray(rows, np.float32).reshape(count_rows(path, weights.shape), -1)


def from_rows(path: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_rows`."""
    axes = row_axes(path, len(shape))
    sides = [shape[axis] for axis in axes] + [side for axis, side in enumerate(shape) if axis not in axes]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(sides), range(len(axes)), axes))


def count_rows(path: str, shape: tuple[int, ...]) -> int:
    """Of a tensor of at least two dims."""
    return math.prod(shape[axis] for axis in row_axes(path, len(shape)))


def quantize_rows(rows_RxN: np.ndarray, codec: str, *, clip: bool = True) -> Rows:
    """Codes and scales, each row clipped where its mean squared error is smallest.

    The clip point is searched over fractions of the row's largest magnitude, 1 included, each judged with its scale
    already rounded to float16; `clip=False` takes the largest magnitude itself. Rows are finite float32; those of zeros
    get scale 0.

    Raises:
      UserError: a row too large for a float16 scale.

    >>> codes, scales = quantize_rows(np.array([[0.5, -1.0, 0.0]], np.float32), "int4", clip=False)
    >>> codes.tolist(), float(scales[0])
    ([[4, -7, 0]], 0.142822265625)
    """
    limit = qmax(codec)
    codes = np.empty(rows_RxN.shape, np.int8)
    scales = np.zeros(len(rows_RxN), np.float16)
    step = max(1, _BLOCK // max(1, rows_RxN.shape[1]))
    for start in range(0, len(rows_RxN), step):
        block = slice(start, start + step)
        x = rows_RxN[block]
        absmax = np.abs(x).max(axis=1, initial=0.0)
        if absmax.size and absmax.max() / limit > _FLOAT16_MAX:
            raise UserError(f"magnitude {absmax.max():g} is too large: {codec} holds up to {limit * _FLOAT16_MAX:.3g}")
        scale = _best_scale(x, absmax, limit) if clip else _scale(absmax, limit)
        scales[block] = scale
        codes[block] = _codes(x, scale, limit, np.empty_like(x))
    return Rows(codes, scales)


def dequantize_rows(rows: Rows, codec: str = "int8") -> np.ndarray:
    """`codes * scales` as float32 [rows, n], exact; levels of an even number lie half a code higher."""
    half = np.float32(0.5 if LEVELS.get(codec, 1) % 2 == 0 else 0)
    return (rows.codes.astype(np.float32) + half) * rows.scales.astype(np.float32)[:, None]


def to_levels(weights: np.ndarray, codec: str, step: float) -> Rows:
    """The nearest levels, multiples of one float16 step, as a single row."""
    half, lowest = 0.5 * (LEVELS[codec] % 2 == 0), -qmax(codec)
    codes = np.clip(np.rint(weights / np.float32(step) - np.float32(half)), lowest, lowest + LEVELS[codec] - 1)
    return Rows(codes.astype(np.int8).reshape(1, -1), np.array([step], np.float16))


def to_float16(weights: np.ndarray) -> np.ndarray:
    """Float16; a `UserError` where a magnitude is above 65504, which would become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        half = weights.astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(f"magnitude {np.abs(weights).max():g} is too large: float16 holds up to {_FLOAT16_MAX:.3g}")
    return half


def sqnr_db(weights: np.ndarray, restored: np.ndarray) -> float:
    """Signal to quantization-noise ratio in dB: 10 log10(sum w^2 / sum (w - restored)^2); infinite without loss.

    >>> round(sqnr_db(np.array([1.0, 1.0]), np.array([1.0, 0.9])), 6)
    23.0103
    """
    signal, noise = (float(np.sum(np.square(x, dtype=np.float64))) for x in (weights, weights - restored))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def _best_scale(x_RxN: np.ndarray, absmax_R: np.ndarray, limit: int) -> np.ndarray:
    work, error = np.empty_like(x_RxN), np.empty_like(x_RxN)
    best, fraction = np.full(len(x_RxN), np.inf), np.ones(len(x_RxN))
    scale = np.zeros(len(x_RxN), np.float32)

    def attempt(fractions_R: np.ndarray) -> None:
        tried = _scale(absmax_R * fractions_R, limit)
        np.multiply(_codes(x_RxN, tried, limit, work), tried[:, None], out=error)
        np.subtract(x_RxN, error, out=error)
        loss = np.einsum("rn,rn->r", error, error)
        better = loss < best
        best[better], fraction[better], scale[better] = loss[better], fractions_R[better], tried[better]

    for coarse in _COARSE:
        attempt(np.full(len(x_RxN), coarse))
    step = (_COARSE[0] / _COARSE[1]) ** 0.25
    centre = fraction.copy()
    for power in (-3, -2, -1, 1, 2, 3):
        attempt(np.minimum(centre * step**power, 1.0))
    return scale


def _scale(clip_R: np.ndarray, limit: int) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        scale = (clip_R / limit).astype(np.float16).astype(np.float32)
    # A row too small for float16 gets the smallest scale there is, not zero. One just above its range gets the largest.
    scale = np.clip(scale, _SMALLEST_SCALE, np.float32(_FLOAT16_MAX))
    return np.where(clip_R > 0, scale, np.float32(0))


def _codes(x_RxN: np.ndarray, scale_R: np.ndarray, limit: int, out: np.ndarray) -> np.ndarray:
    np.divide(x_RxN, np.where(scale_R > 0, scale_R, np.float32(1))[:, None], out=out)
    np.rint(out, out=out)
    return np.clip(out, -limit, limit, out=out)
