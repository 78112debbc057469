"""Packing and compressing lose nothing, and decompressing never makes more than was asked for."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax.artifact import encode
from freezejax.artifact.codecs import BITS, count_codes, qmax
from freezejax.artifact.encode import (
    COMPRESSORS,
    Blob,
    decode_codes,
    decode_half,
    decompress,
    encode_codes,
    encode_half,
)
from freezejax.artifact.tensors import Tensor, packed_size

CODERS = sorted(set(COMPRESSORS) - {"none"})


@given(st.integers(1, 8), st.integers(0, 2000), st.integers(0, 2**32))
def test_packing_is_exact_and_as_small_as_it_can_be(bits, count, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint8)
    packed = encode.pack(values, bits)
    assert len(packed) == packed_size(count, bits) == -(-count * bits // 8)
    assert (encode.unpack(packed, count, bits) == values).all()


@pytest.mark.parametrize("bits", [5, 6])
def test_packing_across_blocks(bits, monkeypatch):
    values = np.random.default_rng(0).integers(0, 2**bits, 1003, dtype=np.uint8)
    whole = encode.pack(values, bits)
    monkeypatch.setattr(encode, "_BLOCK", 64)
    assert encode.pack(values, bits) == whole
    assert (encode.unpack(whole, 1003, bits) == values).all()


def test_packed_bits_equal_those_of_one_long_number():
    values = np.array([1, 33, 62, 0, 5], np.uint8)
    number = 0
    for value in values:
        number = number << 6 | int(value)
    assert int.from_bytes(encode.pack(values, 6)) == number << 2


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False)))
def test_shuffle_is_exact(numbers):
    half = np.array(numbers, np.float16)
    assert encode.unshuffle(encode.shuffle(half)).tobytes() == half.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_float16_of_a_file_is_infinite(value):
    with pytest.raises(ValueError, match="not finite"):
        decode_half(Blob(0, encode.shuffle(np.array([1, value], np.float16))), 2, "none")


@given(st.sampled_from(sorted(BITS)), st.sampled_from(sorted(COMPRESSORS)), st.integers(0, 2**32), st.booleans())
def test_codes_survive_every_encoding(codec, compressor, seed, narrow):
    lowest = -qmax(codec)
    limits = (-1, 1) if narrow else (lowest, lowest + count_codes(codec))
    codes = np.random.default_rng(seed).integers(*limits, (65, 64)).astype(np.int8)
    tensor = Tensor("up/kernel", (64, 65), codec)
    blob = encode_codes(tensor, codes, compressor)
    assert len(blob.data) <= tensor.packed_bytes
    assert (decode_codes(tensor, blob, compressor).reshape(codes.shape) == codes).all()


@pytest.mark.parametrize("compressor", CODERS)
def test_half_survives_and_is_never_larger(compressor):
    half = np.random.default_rng(0).normal(size=999).astype(np.float16)
    blob = encode_half(half, compressor)
    assert len(blob.data) <= 2 * 999
    assert (decode_half(blob, 999, compressor) == half).all()


def test_a_code_that_does_not_exist_is_refused():
    tensor = Tensor("up/kernel", (64, 65), "int6")
    blob = Blob(0, encode.pack(np.full(64 * 65, 63, np.uint8), 6))
    with pytest.raises(ValueError, match="code 63 is above 62"):
        decode_codes(tensor, blob, "none")


@pytest.mark.parametrize("compressor", CODERS)
@pytest.mark.parametrize("size", [1, 1000])
def test_exactly_the_promised_bytes_or_an_error(compressor, size):
    data = bytes(range(256)) * 4
    packed = COMPRESSORS[compressor].compress(data[:size])
    assert decompress(compressor, packed, size) == data[:size]
    for wrong in (size - 1, size + 1, 2**40):
        with pytest.raises(ValueError, match=compressor):
            decompress(compressor, packed, wrong)
    for damaged in (packed[:-1], packed + b"x", b""):
        with pytest.raises(ValueError, match=compressor):
            decompress(compressor, damaged, size)


@pytest.mark.parametrize("compressor", CODERS)
def test_a_bomb_does_not_go_off(compressor):
    bomb = COMPRESSORS[compressor].compress(bytes(1 << 25))
    tracemalloc.start()
    with pytest.raises(ValueError, match=compressor):
        decompress(compressor, bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * (1 << 24)  # LZMA's window
