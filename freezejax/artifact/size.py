"""Stored bytes of a model, predicted from shapes before any training."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from freezejax.artifact import codecs, container, encode
from freezejax.artifact.header import make_header, to_bytes
from freezejax.artifact.tensors import CodecRules, Tensor, seed_leaves, stored_tensors
from freezejax.paths import PyTree
from freezejax.weights.grid import GAUSSIAN_STEPS

Quantile = Callable[[np.ndarray], np.ndarray]

_STUDENT: Quantile = functools.partial(stdtrit, 3.0)
_LOW = 0.9  # see `predict_size`
_FINE = 1 << 18  # quantiles that stand for a distribution


class SizeEstimate(NamedTuple):
    """Bytes of the whole file: an interval, and the value for Gaussian rows. All equal without an entropy coder."""

    low: int
    high: int
    gaussian: int


def predict_bytes(shapes: PyTree, codec: CodecRules = "int6") -> int:
    """Payload bytes: bit-packed codes, float16 scales and small tensors, 8 for a base seed. Maps cost nothing.

    `shapes` are arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: an unknown codec, or a leaf that no rule covers.

    >>> predict_bytes({"w": np.zeros((64, 128)), "b": np.zeros(3)}, "int4")  # 4096 + 2 * 128 + 2 * 3
    4358
    """
    stored = sum(tensor.packed_bytes + 2 * tensor.rows for tensor in stored_tensors(shapes, codec))
    return stored + container.SEED_BYTES * bool(seed_leaves(shapes))


def predict_size(
    shapes: PyTree,
    *,
    model: Mapping[str, Any] | None = None,
    codec: CodecRules = "int6",
    compressor: str = "none",
    tokenizer: Mapping[str, str] | None = None,
    notes: Any = None,
) -> SizeEstimate:
    """Bytes of the file `save` would write; exact for compressor 'none' when given the same arguments.

    An entropy coder never makes a tensor larger, so `high` is the size without one. `gaussian` takes codes and small
    tensors at their entropy where weights are normally distributed, and scales at half. `low` takes codes where rows
    have Student's t distribution with 3 degrees of freedom, and the rest at nothing; a coder that learns each row's
    width does better than the entropy over all rows, hence 0.9 of it. Rows of zeros fall below.

    Raises:
      UserError: an unknown codec or compressor, or a leaf that no rule covers.

    >>> import jax
    >>> shapes = {"w": jax.ShapeDtypeStruct((512, 512), np.float32)}
    >>> predict_size(shapes, codec="int6", compressor="brotli")
    SizeEstimate(low=123499, high=197818, gaussian=177708)
    """
    header = make_header(shapes, model, codec, compressor, tokenizer, notes)
    tensors, text = header.tensors, to_bytes(header)[0]
    outside = container.PREAMBLE.size + len(text) + container.table_bytes(tensors)
    high = outside + predict_bytes(shapes, codec)
    if compressor == "none":
        return SizeEstimate(high, high, high)
    fixed = outside + container.SEED_BYTES * header.seeded
    scales = sum(tensor.rows for tensor in tensors)
    low = fixed + int(_LOW * _coded_bytes([tensor for tensor in tensors if not tensor.small], _STUDENT))
    return SizeEstimate(low, high, fixed + scales + round(_coded_bytes(tensors, ndtri)))


def _coded_bytes(tensors: list[Tensor], quantile: Quantile) -> float:
    """Entropy of the codes of tensors whose rows have a distribution."""
    return sum(tensor.size * _bits(tensor, quantile) / 8 for tensor in tensors)


def _bits(tensor: Tensor, quantile: Quantile) -> float:
    if tensor.codec == "float16":
        return min(_entropy_of_half(quantile, 2**octave) for octave in (-3.0, -2.75, -2.5, -2.25))
    return _entropy_of_codes(tensor.codec, tensor.size // tensor.rows, quantile)


@functools.cache
def _entropy_of_codes(codec: str, length: int, quantile: Quantile) -> float:
    """The scale is that of a row of `length` quantiles, the codes are those of the whole distribution."""
    if codec in codecs.LEVELS:
        levels = codecs.to_levels(_finely(quantile), codec, GAUSSIAN_STEPS[codecs.LEVELS[codec]])
        return _entropy(levels.codes[0].astype(np.int64) + codecs.qmax(codec))
    row = quantile(_midpoints(length)).astype(np.float32)
    scale = float(codecs.quantize_rows(row[None], codec).scales[0])
    codes = np.clip(np.rint(_finely(quantile) / scale), -codecs.qmax(codec), codecs.qmax(codec))
    return _entropy(codes.astype(np.int64) + codecs.qmax(codec))


@functools.cache
def _entropy_of_half(quantile: Quantile, std: float) -> float:
    half = codecs.to_float16((std * _finely(quantile)).astype(np.float32))
    return sum(_entropy(plane) for plane in np.frombuffer(encode.shuffle(half), np.uint8).reshape(2, -1))


@functools.cache
def _finely(quantile: Quantile) -> np.ndarray:
    return quantile(_midpoints(_FINE))


def _midpoints(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _entropy(values: np.ndarray) -> float:
    """In bits per value."""
    p = np.bincount(values) / values.size
    return float(-np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p))))
