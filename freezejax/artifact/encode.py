"""One tensor, or one section of float16, as bytes: the smallest of what packing and entropy coding give."""

from typing import NamedTuple

import numpy as np

from freezejax.artifact import codecs, packing
from freezejax.artifact.compress import COMPRESSORS, decompress
from freezejax.artifact.tensors import Tensor
from freezejax.errors import UserError

PACKED, PACKED_COMPRESSED, BYTES_COMPRESSED = range(3)
ENCODINGS = ("packed", "packed+{}", "bytes+{}")  # float16 counts as packed when its bytes are shuffled


class Blob(NamedTuple):
    """Stored bytes and the index of their encoding."""

    encoding: int
    data: bytes


class Quantized(NamedTuple):
    """A stored leaf: `codes` int8 [rows, n] with `scales`, or `half` as float16; `sqnr_db` against the original."""

    tensor: Tensor
    rows: codecs.Rows | None
    half: np.ndarray | None
    sqnr_db: float

    @property
    def values(self) -> np.ndarray:
        """The dequantized weights, float32 in the leaf's shape."""
        return dequantize(self.tensor, self.rows, self.half)


def quantize_leaf(tensor: Tensor, leaf: np.ndarray) -> Quantized:
    """Codes or float16 of one leaf.

    Raises:
      UserError: the leaf holds NaN or infinity, or magnitudes the codec cannot hold.
    """
    weights = np.asarray(leaf, np.float32)
    if not np.isfinite(weights).all():
        raise UserError(f"leaf {tensor.path!r} is not finite: an artifact stores finite weights")
    try:
        if tensor.codec == "float16":
            half = codecs.to_float16(weights)
            return Quantized(tensor, None, half, codecs.sqnr_db(weights, half.astype(np.float32)))
        x = codecs.to_rows(tensor.path, weights)
        rows = codecs.quantize_rows(x, tensor.codec)
    except UserError as error:
        raise UserError(f"leaf {tensor.path!r}: {error}") from None
    return Quantized(tensor, rows, None, codecs.sqnr_db(x, codecs.dequantize_rows(rows)))


def dequantize(tensor: Tensor, rows: codecs.Rows | None, half: np.ndarray | None) -> np.ndarray:
    """Float32 weights in the tensor's shape, from codes or from float16."""
    if rows is None:
        assert half is not None
        return half.astype(np.float32).reshape(tensor.shape)
    return codecs.from_rows(tensor.path, codecs.dequantize_rows(rows), tensor.shape)


def encode_codes(quantized: Quantized, compressor: str) -> Blob:
    """The codes of one tensor in the smallest encoding.

    Packed codes are compressed only where a byte holds a whole number of them: codes across bytes hide their
    statistics (Gaussian rows, int6, Brotli: 0.715 bytes per weight, 0.670 with one byte per code).
    """
    if quantized.rows is None:
        assert quantized.half is not None
        return encode_half(quantized.half, compressor)
    bits = packing.bits_of(quantized.tensor.codec)
    values = packing.to_values(quantized.rows.codes, quantized.tensor.codec)
    choices = [Blob(PACKED, packing.pack(values, bits))]
    if compressor != "none":
        compress = COMPRESSORS[compressor].compress
        choices += [Blob(PACKED_COMPRESSED, compress(choices[0].data))] if 8 % bits == 0 else []
        choices += [Blob(BYTES_COMPRESSED, compress(values.tobytes()))] if bits < 8 else []
    return min(choices, key=lambda blob: len(blob.data))


def decode_codes(tensor: Tensor, blob: Blob, compressor: str) -> np.ndarray:
    """Codes int8 [rows, n], or float16 [n] for that codec.

    Raises:
      ValueError: the bytes are not an encoding of this tensor.
    """
    if tensor.codec == "float16":
        return decode_half(blob, tensor.size, compressor)
    if blob.encoding == BYTES_COMPRESSED:
        values = np.frombuffer(decompress(compressor, blob.data, tensor.size), np.uint8)
    else:
        packed = _unpacked(blob, tensor.packed_bytes, compressor)
        values = packing.unpack(packed, tensor.size, packing.bits_of(tensor.codec))
    return packing.from_values(values, tensor.codec, tensor.rows)


def encode_half(half: np.ndarray, compressor: str) -> Blob:
    """Float16 values, shuffled, compressed where that is smaller."""
    raw = packing.shuffle(half)
    choices = [Blob(PACKED, raw)]
    if compressor != "none" and raw:
        choices.append(Blob(PACKED_COMPRESSED, COMPRESSORS[compressor].compress(raw)))
    return min(choices, key=lambda blob: len(blob.data))


def decode_half(blob: Blob, count: int, compressor: str) -> np.ndarray:
    """Float16 [count].

    Raises:
      ValueError: the bytes are not `count` finite float16.
    """
    if blob.encoding == BYTES_COMPRESSED:
        raise ValueError("float16 has no encoding of one byte per code")
    return packing.unshuffle(_unpacked(blob, 2 * count, compressor))


def _unpacked(blob: Blob, size: int, compressor: str) -> bytes:
    if blob.encoding == PACKED_COMPRESSED:
        return decompress(compressor, blob.data, size)
    if len(blob.data) != size:
        raise ValueError(f"{len(blob.data)} bytes instead of {size}")
    return blob.data
