"""What the numbers of a map look like: moments, frequencies, independence, orthogonality; the same however drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from freezejax import RandomMap
from freezejax.weights import RECIPES, recipes

SHAPE = (192, 512)
SAMPLES = math.prod(SHAPE)
SIGMAS = 5
LEVELS = {
    "rademacher": np.array([-1.0, 1.0]),
    "uniform": np.arange(-255.0, 256.0, 2),
    "normal": recipes._QUANTILES.astype(np.float64),
    "hadamard": np.array([-1.0, 1.0]),
}


def cosines(vectors):
    """Cosines between different rows, float64."""
    unit = np.asarray(vectors, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]


@pytest.fixture(scope="module")
def drawn():
    """`drawn[distribution, path, seed]`: unscaled maps of variance one, float64."""
    draw = jax.jit(
        lambda key: {
            (name, path): RandomMap(SHAPE, name, scale="none", name=path).materialize(key)
            for name in RECIPES
            for path in ("a", "b")
        }
    )
    both = {seed: draw(jax.random.key(seed)) for seed in (0, 1)}
    return {(*key, seed): np.asarray(w, np.float64) for seed, maps in both.items() for key, w in maps.items()}


def test_moments(distribution, drawn):
    w, recipe = drawn[distribution, "a", 0], RECIPES[distribution]
    error = SIGMAS / math.sqrt(SAMPLES)
    assert abs(w.mean()) < error
    assert abs(np.mean(w**2) - 1) < error * math.sqrt(recipe.kurtosis - 1) + 1e-6
    # The eighth moment of a normal distribution is 105.
    assert abs(np.mean(w**4) - recipe.kurtosis) < error * math.sqrt(105) * (recipe.kurtosis > 1) + 0.02


@pytest.mark.parametrize("name", LEVELS)
def test_documented_moments_are_those_of_the_levels(name):
    levels, recipe = LEVELS[name], RECIPES[name]
    assert levels.mean() == 0
    assert recipe.std == pytest.approx(levels.std(), rel=1e-12)
    assert recipe.kurtosis == pytest.approx(np.mean(levels**4) / levels.var() ** 2, rel=1e-12)


def test_the_table_is_close_to_normal():
    table = LEVELS["normal"]
    assert (np.diff(table) >= 0).all()
    assert table[-1] == 127
    assert np.array_equal(table, -table[::-1])
    assert RECIPES["normal"].kurtosis == pytest.approx(2.92, abs=0.005)
    values, counts = np.unique(table, return_counts=True)
    above = np.cumsum(counts) / 256
    normal = scipy.stats.norm.cdf(values / 44)
    assert max(abs(above - normal).max(), abs(above - counts / 256 - normal).max()) < 0.01


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_is_as_frequent_as_it_should_be(name, drawn):
    levels, expected = np.unique(LEVELS[name], return_counts=True)
    integers = np.rint(drawn[name, "a", 0] * RECIPES[name].std)
    found, counts = np.unique(integers, return_counts=True)
    assert np.array_equal(found, levels)
    assert scipy.stats.chisquare(counts, expected / expected.sum() * SAMPLES).pvalue > 1e-4


def correlation(a, b):
    return abs(np.mean(a * b)) * math.sqrt(a.size)


def test_maps_of_other_paths_and_roots_and_their_own_neighbours_are_unrelated(distribution, drawn):
    w = drawn[distribution, "a", 0]
    assert correlation(w, w) > 50 * SIGMAS
    assert correlation(w, drawn[distribution, "b", 0]) < SIGMAS
    assert correlation(w, drawn[distribution, "a", 1]) < SIGMAS
    for shift in (1, 4, 32):  # neighbours, fields of one word, words
        assert correlation(w[:, shift:], w[:, :-shift]) < SIGMAS
        assert correlation(w[shift:], w[:-shift]) < SIGMAS


def test_levels_are_integers_that_bfloat16_holds(portable, drawn):
    levels = jax.jit(RandomMap(SHAPE, portable).levels)(jax.random.key(2))
    assert levels.dtype == jnp.float32
    assert bool((levels == jnp.round(levels)).all())
    assert bool((levels.astype(jnp.bfloat16).astype(jnp.float32) == levels).all())


def test_counterpart_bfloat16_does_not_hold_floats(drawn):
    w = jnp.asarray(drawn["normal_f32", "a", 0], jnp.float32)
    assert float((w.astype(jnp.bfloat16).astype(jnp.float32) == w).mean()) < 0.01


def test_jit_eager_and_vmap_draw_the_same_bits():
    """All portable recipes in one program, whose compiler may fuse what it likes."""
    maps = [RandomMap((12, 40), name, name="w") for name, recipe in RECIPES.items() if recipe.portable]
    keys = jax.random.split(jax.random.key(3), 3)
    draw = lambda key: [random_map.materialize(key) for random_map in maps]  # noqa: E731
    eager = [draw(key) for key in keys]
    jitted = [jax.jit(draw)(key) for key in keys]
    batched = jax.jit(jax.vmap(draw))(keys)
    for i, random_map in enumerate(maps):
        for k in range(len(keys)):
            expected = np.asarray(eager[k][i]).tobytes()
            assert np.asarray(jitted[k][i]).tobytes() == expected, random_map
            assert np.asarray(batched[i][k]).tobytes() == expected, random_map


@st.composite
def shapes_of_a_power_of_two(draw):
    larger = 2 ** draw(st.integers(0, 6))
    shape = larger, draw(st.integers(1, larger))
    return shape if draw(st.booleans()) else shape[::-1]


@settings(max_examples=8)
@given(shapes_of_a_power_of_two(), st.integers(0, 2**32 - 1))
def test_hadamard_is_exactly_orthogonal_along_the_smaller_side(shape, seed):
    w = np.asarray(jax.jit(RandomMap(shape, "hadamard").levels)(jax.random.key(seed)))
    vectors = w if shape[0] <= shape[1] else w.T
    assert np.array_equal(vectors @ vectors.T, max(shape) * np.eye(min(shape)))
    assert np.array_equal(np.abs(w), np.ones(shape))


@pytest.mark.parametrize("shape", [(48, 320), (600, 64)])
def test_hadamard_deviates_from_orthogonality_as_documented(shape):
    """Cosines of vectors along the larger side, root mean square, over eight keys."""
    keys = jax.random.split(jax.random.key(0), 8)
    maps = np.asarray(jax.jit(jax.vmap(RandomMap(shape, "hadamard").levels))(keys))
    maps = maps if shape[0] <= shape[1] else maps.transpose(0, 2, 1)
    found = np.sqrt(np.mean([np.mean(cosines(w) ** 2) for w in maps]))
    larger = max(shape)
    size = 1 << (larger - 1).bit_length()
    random_signs = larger**-0.5
    smaller_by = math.sqrt((size - larger) / (size - 1))
    assert smaller_by < 0.7  # far enough from 1 to tell
    assert found == pytest.approx(random_signs * smaller_by, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (40, 100)])
def test_hadamard_has_no_line_twice_not_even_with_the_sign_changed(shape):
    w = np.asarray(RandomMap(shape, "hadamard").materialize(jax.random.key(5)))
    assert np.abs(cosines(w)).max() < 0.99
    assert np.abs(cosines(w.T)).max() < 0.99


def test_counterpart_columns_drawn_with_replacement_come_twice(monkeypatch):
    order = jnp.argsort
    monkeypatch.setattr(recipes.jnp, "argsort", lambda bits, stable: order(bits, stable=stable) // 2)
    w = np.asarray(RandomMap((64, 256), "hadamard").materialize(jax.random.key(5)))
    assert np.abs(cosines(w.T)).max() > 0.99


@pytest.mark.parametrize("shape", [(48, 320), (320, 48)])
def test_orthogonal_qr_is_orthogonal_to_rounding_along_the_smaller_side(shape):
    w = np.asarray(RandomMap(shape, "orthogonal_qr", scale="none").materialize(jax.random.key(0)), np.float64)
    vectors = w if shape[0] <= shape[1] else w.T
    assert np.abs(vectors @ vectors.T / max(shape) - np.eye(min(shape))).max() < 1e-5


def test_counterpart_no_other_distribution_is_orthogonal(drawn):
    for name in set(RECIPES) - {"hadamard", "orthogonal_qr"}:
        assert np.sqrt(np.mean(cosines(drawn[name, "a", 0]) ** 2)) == pytest.approx(SHAPE[1] ** -0.5, rel=0.1)
