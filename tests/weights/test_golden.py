"""Law 6: the bits of a map follow from base seed, path, shape and recipe alone, for ever.

The hashes below pin every portable recipe. Updating one is never legitimate: artifacts in the field hold a seed and
the recipe's name and nothing else, and would silently become other models. Another way to draw is another recipe,
under a new name, with hashes of its own.
"""

import functools
import hashlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import RandomMap
from freezejax.paths import named_key
from freezejax.weights import RECIPES, recipes
from tests.weights import reference

PATH, SEED = "blocks/3/mlp/gate/kernel", 20_240_917
SHAPES = {"tall": (96, 40), "wide": (24, 77), "column": (7, 1)}
GOLDEN = {
    ("rademacher", "tall"): "221161c0223c10f60257ebf8a35752f15f323c7362336b6838799b8eb4f7bf6d",
    ("rademacher", "wide"): "c91a260d58eb7ce10fef6f5a86c79661df5164d395fe4bc601639b317cd1dccb",
    ("rademacher", "column"): "0f6ff7823044690f0b6b4d42d243da56f8ac9d3646abf7a4b52efbb4947e77ac",
    ("uniform", "tall"): "9f90bd0363f5c44c8a65a95385daca402a735f12b6ede79743d8d19d7f1549ed",
    ("uniform", "wide"): "dc2a298c7fe1da1fbe065ae009902dee8e576f8aeaf43493edc6b880acee6a12",
    ("uniform", "column"): "9b53957510c3ef0b2bd2a4b1a621b4003b7a94475e0480e32b6c4db76bbc6502",
    ("normal", "tall"): "9e69d6771c26d89069b54c03481e4eb37059f4bfae3439650947e48d6ff18da3",
    ("normal", "wide"): "d611c5c27acd77d766a0e1b5540e765cf832e39ac4ca09b7e2e477bcccecd671",
    ("normal", "column"): "7fb6ac1cd8416a009e2a8d2464f87fdc6d55cd8abe259183b6a441912abd5d8a",
    ("hadamard", "tall"): "169491c2b3a016cc628bb428e6b5a0e064d488a285e237a64ced3935f7f851dd",
    ("hadamard", "wide"): "3ec6eb5872ac7da9551ccd4cdcd437b0aa3562683cca1144d2f4b3d8d7372aae",
    ("hadamard", "column"): "ccc5560dae8cc5338a774565f3116729ee41a394f0ecc014148a9c56a8a15a6c",
}


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


@functools.cache
def draw_all(shape):
    """Jitted `key of the leaf -> levels of every portable recipe`."""
    portable = {name: recipe for name, recipe in RECIPES.items() if recipe.portable}
    return jax.jit(lambda key: {name: recipe.levels(key, shape) for name, recipe in portable.items()})


@functools.cache
def weights(shape):
    maps = [RandomMap(shape, name, name=PATH) for name, recipe in RECIPES.items() if recipe.portable]
    drawn = jax.jit(lambda key: {m.distribution: m.materialize(key) for m in maps})(jax.random.key(SEED))
    return {name: np.asarray(array) for name, array in drawn.items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_golden_bits(portable, shape):
    assert sha256(weights(SHAPES[shape])[portable]) == GOLDEN[portable, shape]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_independent_implementation_draws_the_same_weights(portable, shape):
    expected = reference.materialize(portable, shape, PATH, SEED, shape[0] ** -0.5)
    found = weights(shape)[portable]
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@given(
    shape=st.sampled_from([(5, 33), (40, 12)]),
    seed=st.integers(0, 2**32 - 1),
    path=st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_an_independent_implementation_draws_the_same_levels_from_any_seed_and_path(shape, seed, path):
    found = draw_all(shape)(named_key(jax.random.key(seed), path))
    for name, levels in found.items():
        assert np.array_equal(levels, reference.RECIPES[name](reference.path_key(seed, path), shape))


def test_every_portable_recipe_is_pinned():
    assert set(GOLDEN) == {(name, shape) for name, recipe in RECIPES.items() if recipe.portable for shape in SHAPES}


@np.errstate(over="ignore")
def test_the_reference_threefry_gives_the_published_vectors():
    """Known answers of the Random123 distribution, kat_vectors, threefry2x32 with 20 rounds."""
    ones = 0xFFFFFFFF
    known = {
        ((0, 0), (0, 0)): (0x6B200159, 0x99BA4EFE),
        ((ones, ones), (ones, ones)): (0x1CB996FC, 0xBB002BE7),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)): (0xC4923A9C, 0x483DF7A0),
    }
    for (key, counter), expected in known.items():
        assert tuple(int(word) for word in reference.threefry2x32(key, counter)) == expected


def test_the_table_does_not_hang_on_the_last_bits_of_the_quantiles():
    """No quantile lies near a rounding boundary, and another library's give the same table."""
    exact = 44 * reference.norm.ppf((np.arange(256) + 0.5) / 256)
    assert np.abs(np.abs(exact) % 1 - 0.5).min() > 1e-3
    assert np.array_equal(recipes._QUANTILES, np.rint(exact))
    assert not np.signbit(recipes._QUANTILES[recipes._QUANTILES == 0]).any()  # one zero, so integers tell it all


SIGNS, FIELDS = recipes._signs, recipes._fields
CHANGES = {
    "which bit is +1": ("_signs", lambda bits: SIGNS(1 - bits)),
    "the order of a word's bits": ("_fields", lambda *args: FIELDS(*args)[:, ::-1]),
    "the hash of a path": (None, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_counterpart_a_changed_recipe_is_seen(change, monkeypatch):
    name, changed = CHANGES[change]
    if name:
        monkeypatch.setattr(recipes, name, changed)
    path = PATH if name else PATH + "/"
    found = RandomMap(SHAPES["tall"], "rademacher", name=path).materialize(jax.random.key(SEED))
    assert sha256(found) != GOLDEN["rademacher", "tall"]
