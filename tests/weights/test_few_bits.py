"""Weights of few bits: the nearest levels, straight through to the gradient, and as many bytes in the file as said."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import artifact
from freezejax.artifact.codecs import LEVELS, dequantize_rows, to_levels
from freezejax.weights import KINDS, MapWeight, RandomMap, ScaleShiftWeight, matrix
from freezejax.weights.grid import GAUSSIAN_STEPS, to_grid
from freezejax.weights.lowbit import BITS
from tests.weights.contract import BASE_KEY, SITE, moved, plain

CODECS = {levels: name for name, levels in LEVELS.items()}
every_grid = pytest.mark.parametrize("levels", GAUSSIAN_STEPS)


def grid(levels, step):
    return step * (np.arange(levels) - (levels - 1) / 2)


@every_grid
@given(st.integers(0, 2**32), st.floats(1e-3, 10.0))
def test_what_is_used_and_what_is_stored_are_the_nearest_level(levels, seed, step):
    step = float(np.float16(step))
    x = (np.random.default_rng(seed).normal(size=(7, 5)) * levels * step / 2).astype(np.float32)
    distance = np.abs(x[..., None] - grid(levels, step))
    used = np.asarray(to_grid(jnp.asarray(x), levels, step))
    np.testing.assert_allclose(np.abs(used - x), distance.min(-1), atol=1e-4 * step)
    np.testing.assert_array_equal(to_grid(used, levels, step), used)  # what comes back from a file is used as it is
    assert len(np.unique(used)) <= levels
    stored = dequantize_rows(to_levels(x, CODECS[levels], step), CODECS[levels]).reshape(x.shape)
    np.testing.assert_allclose(stored, used, rtol=1e-5, atol=1e-6 * step)


@every_grid
def test_the_steps_are_those_of_least_error_for_gaussian_weights(levels):
    x = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    error = lambda step: np.mean((np.asarray(to_grid(jnp.asarray(x), levels, step)) - x) ** 2)  # noqa: E731
    best = error(GAUSSIAN_STEPS[levels])
    assert best < min(error(0.93 * GAUSSIAN_STEPS[levels]), error(1.07 * GAUSSIAN_STEPS[levels]))


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_passes_as_if_nothing_were_rounded(bits):
    weight, x = KINDS["lowbit"](plain(), SITE, bits=bits), plain((5, 12), seed=2)
    loss = lambda weight: jnp.sum(jnp.sin(weight(x)))  # noqa: E731
    found = jax.grad(loss)(weight)
    outer = jnp.cos(weight(x))
    np.testing.assert_allclose(found.kernel, (x.T @ outer) * weight.gain[None], atol=1e-5)
    unrounded = dataclasses.replace(weight, kernel=weight.kernel + 1e-7)
    np.testing.assert_array_equal(unrounded(x) == weight(x), True)  # counterpart: a small step changes no product


@pytest.mark.parametrize("bits", BITS)
def test_it_starts_as_the_kernel_rounded_and_a_kernel_of_zeros_as_zeros(bits):
    kernel = 0.02 * plain((96, 64))
    weight = KINDS["lowbit"](kernel, SITE, bits=bits)
    found = np.asarray(weight.materialize())
    noise = np.mean((found - kernel) ** 2) / np.mean(np.square(kernel))
    assert noise == pytest.approx({1: 0.363, "ternary": 0.190, 2: 0.119, 3: 0.0375, 4: 0.0115}[bits], rel=0.1)
    zeros = KINDS["lowbit"](jnp.zeros((96, 64)), SITE, bits=bits)
    np.testing.assert_array_equal(zeros.materialize(), 0)
    gradient = jax.grad(lambda weight: jnp.sum(weight(plain((5, 96))) ** 2 + weight(plain((5, 96)))))(zeros)
    assert np.abs(gradient.gain).max() > 0


@pytest.mark.parametrize(
    ("kind", "options", "bits"),
    [
        *(("lowbit", {"bits": bits}, (levels - 1).bit_length()) for bits, levels in BITS.items()),
        ("supermask", {}, 1),
    ],
)
def test_a_file_holds_so_many_bits_for_each_weight_and_what_was_used(kind, options, bits, tmp_path):
    shape = (256, 192)
    base = plain(shape) if kind == "lowbit" else MapWeight.create(RandomMap(shape, name="up"), BASE_KEY)
    weight = moved(KINDS[kind](base, SITE, **options))
    params = {"up": {"kernel": weight}}
    saved = artifact.save(tmp_path / "x.fjax", params, compressor="none")
    assert saved.sizes["codes"] == shape[0] * shape[1] * bits // 8
    assert saved.bytes == artifact.predict_size(params, compressor="none").high
    packed = artifact.save(tmp_path / "y.fjax", params, compressor="brotli")
    assert packed.bytes <= artifact.predict_size(params, compressor="brotli").high
    _, loaded, _ = artifact.load(tmp_path / "y.fjax", like=params)
    quantized = artifact.quantize(params)["up"]["kernel"]
    np.testing.assert_array_equal(loaded["up"]["kernel"].materialize(), quantized.materialize())
    if kind == "supermask":
        np.testing.assert_array_equal(quantized.mask, weight.mask)
    else:  # the gain is stored as a float16
        same = np.isclose(quantized.materialize(), weight.materialize(), rtol=1e-3)
        assert same.mean() > 0.9999  # numpy and XLA may round one that lies between two levels to either


def test_a_supermask_keeps_its_share_and_hides_the_rest():
    base = plain((96, 64))
    weight = KINDS["supermask"](base, SITE, keep=0.3)
    mask = np.asarray(weight.mask)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask.mean() == pytest.approx(0.3, abs=0.02)
    np.testing.assert_array_equal(weight.materialize(), base * mask)
    x = plain((5, 96), seed=2)
    found = jax.grad(lambda weight: jnp.sum(jnp.sin(weight(x))))(weight)
    dense = x.T @ jnp.cos(weight(x))
    np.testing.assert_allclose(found.scores, dense * base / weight.step, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.base, dense * mask, atol=1e-5)  # none where the mask is zero


def test_a_masked_map_is_not_kept_for_the_backward_pass():
    """Law 7. Counterpart: without the checkpoint the masked matrix is."""
    weight = KINDS["supermask"](MapWeight.create(RandomMap((96, 64), name="up"), BASE_KEY), SITE)
    kept = lambda call: [x for x in jax.tree.leaves(jax.vjp(call, plain((5, 96)))[1]) if x.shape == (96, 64)]  # noqa: E731
    assert [np.array_equal(x, weight.scores) for x in kept(weight)] == [True]
    assert not all(np.array_equal(x, weight.scores) for x in kept(lambda x: x @ weight.materialize()))


BAD = {
    "bits": (lambda: KINDS["lowbit"](plain(), SITE, bits=5), "bits=5 must be 1, 2, 3, 4 or 'ternary'"),
    "no bits": (lambda: KINDS["lowbit"](plain(), SITE, bits=True), "bits=True must be"),
    "keep": (lambda: KINDS["supermask"](plain(), SITE, keep=1), "keep=1 must be a number above 0 and below 1"),
    "shift": (
        lambda: KINDS["supermask"](ScaleShiftWeight.make(plain(), SITE), SITE),
        "a supermask takes a matrix, without a shift",
    ),
    "a rule": (lambda: artifact.quantize({"w": plain()}, "levels3"), "there is no codec 'levels3'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_told_in_one_line(name, check_refused):
    call, message = BAD[name]
    check_refused(call, message)


def test_matrix_reads_what_is_used():
    weight = KINDS["lowbit"](plain(), SITE, bits="ternary")
    np.testing.assert_array_equal(matrix(weight), weight.materialize())
