"""Measures of spectra on matrices whose answers are known, and laws that hold for any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import analysis
from freezejax.errors import UserError

SHAPES = st.sampled_from([(5, 9), (9, 5), (6, 6), (2, 30)])


def draw(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) + 0.5


def of_values(values, shape=(12, 8), seed=0):
    """A matrix with these singular values and random axes."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in shape)
    return jnp.asarray(left * values @ right.T, jnp.float32)


@given(st.integers(0, 999), SHAPES, st.booleans())
def test_everything_agrees_with_numpys_covariance(seed, shape, centered):
    matrix = draw(seed, shape)
    rows = matrix - matrix.mean(0) if centered else matrix
    values = np.sort(np.linalg.eigvalsh((rows.T @ rows).astype(np.float64) / len(rows)))[::-1][: min(shape)]
    found = analysis.spectrum(matrix, centered=centered)
    np.testing.assert_allclose(found, values, atol=1e-4 * values[0])
    ratio = values.sum() ** 2 / (values**2).sum()
    assert float(analysis.participation_ratio(matrix, centered=centered)) == pytest.approx(ratio, rel=1e-3)
    assert float(analysis.first_share(matrix, centered=centered)) == pytest.approx(values[0] / values.sum(), rel=1e-3)


@given(st.integers(1, 8))
def test_equal_values_fill_as_many_dimensions_as_there_are(rank):
    matrix = of_values(np.full(rank, 3.0))
    for measure in (analysis.participation_ratio, analysis.first_share):
        wanted = rank if measure is analysis.participation_ratio else 1 / rank
        assert float(measure(matrix, centered=False)) == pytest.approx(wanted, rel=1e-3)
    assert float(analysis.stable_rank(matrix)) == pytest.approx(rank, rel=1e-3)
    assert analysis.components_for(matrix, 1.0, centered=False) == rank


def test_known_shares():
    matrix = of_values(np.sqrt([70.0, 20.0, 8.0, 2.0]))
    assert float(analysis.first_share(matrix, centered=False)) == pytest.approx(0.7, rel=1e-3)
    shares = (0.5, 0.7, 0.71, 0.9, 0.95, 0.99)
    assert [analysis.components_for(matrix, share, centered=False) for share in shares] == [1, 1, 2, 2, 3, 4]
    assert float(analysis.stable_rank(matrix)) == pytest.approx(1 / 0.7, rel=1e-3)


@given(st.integers(0, 99), SHAPES, st.floats(1e-12, 1e12))
def test_scale_and_rotation_change_nothing(seed, shape, scale):
    matrix = draw(seed, shape)
    turn = np.linalg.qr(draw(seed + 1, (shape[1], shape[1])))[0]
    for measure in (analysis.participation_ratio, analysis.first_share):
        assert float(measure(matrix @ turn * np.float32(scale))) == pytest.approx(float(measure(matrix)), rel=2e-3)


def test_a_common_row_is_one_dimension_unless_it_is_taken_away():
    """The counterpart of centering: a large mean looks like a matrix of rank one."""
    matrix = draw(0, (200, 20)) + 100
    assert float(analysis.participation_ratio(matrix, centered=False)) < 1.01
    assert float(analysis.participation_ratio(matrix)) > 15


def test_the_transpose_has_other_rows_but_the_same_values():
    matrix = draw(0, (7, 30))
    same = [float(analysis.participation_ratio(m, centered=False)) for m in (matrix, matrix.T)]
    assert same[0] == pytest.approx(same[1], rel=1e-4)
    other = [float(analysis.participation_ratio(m)) for m in (matrix, matrix.T)]
    assert abs(other[0] / other[1] - 1) > 0.01


def test_a_large_matrix_needs_no_more_than_the_smaller_gram_matrix():
    shape = jax.ShapeDtypeStruct((4096, 14336), jnp.bfloat16)
    axes = lambda matrix, centered: analysis.principal_axes(matrix, 8, centered=centered)  # noqa: E731
    for measure in (analysis.participation_ratio, analysis.first_share, axes):
        program = jax.jit(lambda m, measure=measure: measure(m, centered=False)).lower(shape).compile()
        wide, gram = 4 * 4096 * 14336, 4 * 4096 * 4096
        assert program.memory_analysis().temp_size_in_bytes < wide + 4 * gram


@pytest.mark.parametrize(
    "action", [lambda: analysis.spectrum(jnp.ones(3)), lambda: analysis.components_for(jnp.eye(2), 0)]
)
def test_what_cannot_be_is_told(action):
    with pytest.raises(UserError, match=r"a matrix is expected|share=0: expected a number above 0"):
        action()
