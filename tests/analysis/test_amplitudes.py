"""Amplitudes of bumps: the least absolute deviations that a linear program finds, and figures that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import kurtosis

from freezejax import UserError, analysis
from freezejax.analysis import amplitudes as implementation


def least(row, basis):
    """The smallest sum of absolute deviations, by a linear program."""
    count, columns = basis.shape
    cost = np.concatenate([np.zeros(count), np.ones(columns)])
    both = np.block([[basis.T, -np.eye(columns)], [-basis.T, -np.eye(columns)]])
    bounds = [(None, None)] * count + [(0, None)] * columns
    found = linprog(cost, A_ub=both, b_ub=np.concatenate([row, -row]), bounds=bounds)
    return found.fun


@given(st.integers(0, 999), st.integers(1, 6), st.integers(8, 40), st.sampled_from([1e-4, 1.0, 1e4]))
@settings(max_examples=15)
def test_no_sum_of_bumps_is_nearer(seed, count, columns, size):
    matrix = size * np.random.default_rng(seed).standard_t(2, size=(3, columns)).astype(np.float32)
    basis = np.asarray(analysis.bumps(columns, count), np.float64)
    fit = analysis.fit_amplitudes(jnp.asarray(matrix), count=count)
    for row, values, residual in zip(matrix.astype(np.float64), fit.values, fit.residual, strict=True):
        error = np.abs(row - np.asarray(values, np.float64) @ basis).sum()
        best = least(row, basis)
        assert best * (1 - 1e-6) <= error <= best * 1.003
        assert float(residual) == pytest.approx(error / np.abs(row).sum(), rel=1e-3)


def test_counterpart_least_squares_is_further_away():
    matrix = np.random.default_rng(1).standard_t(1.5, size=(1, 40)).astype(np.float32)
    basis = np.asarray(analysis.bumps(40, 4), np.float64)
    squares = analysis.fit_amplitudes(jnp.asarray(matrix), count=4, iterations=0).values
    best = least(matrix[0].astype(np.float64), basis)
    assert np.abs(matrix[0] - np.asarray(squares[0], np.float64) @ basis).sum() > 1.05 * best


def test_bumps_are_found_again_whatever_a_few_outliers_say():
    wanted = np.random.default_rng(2).normal(size=(5, 8)).astype(np.float32)
    matrix = np.array(jnp.asarray(wanted) @ analysis.bumps(64))
    matrix[:, ::17] += 100.0  # which least squares would follow
    np.testing.assert_allclose(analysis.fit_amplitudes(jnp.asarray(matrix)).values, wanted, atol=1e-2)


def test_of_many_rows_none_fails():
    """With residuals of 1e-6 told apart, float32 loses some rows: NaN, and on average a fit that is 1 % worse."""
    matrix = jnp.asarray(np.random.default_rng(5).normal(size=(2000, 64)), jnp.float32)
    found = analysis.fit_amplitudes(matrix)
    assert bool(jnp.all(jnp.isfinite(found.values)))
    assert bool(jnp.all(found.residual <= analysis.fit_amplitudes(matrix, iterations=5).residual + 1e-3))


def test_rows_of_zeros_and_one_bump_per_column_are_fitted():
    assert not np.any(analysis.fit_amplitudes(jnp.zeros((2, 16))).values)
    matrix = np.random.default_rng(3).normal(size=(4, 8)).astype(np.float32)
    assert float(jnp.max(analysis.fit_amplitudes(jnp.asarray(matrix), count=8).residual)) < 1e-3


def test_a_large_matrix_takes_no_more_memory_than_some_of_its_rows():
    shape, basis = jax.ShapeDtypeStruct((4096, 14336), jnp.float32), jax.eval_shape(lambda: analysis.bumps(14336))
    analysed = implementation._fit.lower(shape, basis, 60, 256).compile().memory_analysis()
    assert analysed.temp_size_in_bytes < 256 * 14336 * 4 * 8  # a few copies of 256 rows; the matrix has 16 times that


def test_structured_amplitudes_have_few_dimensions_and_loose_ones_all():
    rng = np.random.default_rng(4)
    one = rng.normal(size=(500, 1)) * np.linspace(1, 2, 8)
    assert float(analysis.participation_ratio(jnp.asarray(one, jnp.float32))) == pytest.approx(1.0, abs=1e-3)
    assert analysis.max_correlation(jnp.asarray(one, jnp.float32)) == pytest.approx(1.0, abs=1e-4)
    loose = rng.normal(size=(5000, 8))
    assert float(analysis.participation_ratio(jnp.asarray(loose, jnp.float32))) > 7.9
    found = np.corrcoef(loose.T) - np.eye(8)
    assert analysis.max_correlation(jnp.asarray(loose, jnp.float32)) == pytest.approx(np.abs(found).max(), abs=1e-4)


def test_the_width_alone_decides_how_many_dimensions_the_amplitudes_of_noise_have():
    noise = jax.random.normal(jax.random.key(0), (1000, 64))
    ratio = lambda width: float(analysis.participation_ratio(analysis.fit_amplitudes(noise, width=width).values))  # noqa: E731
    assert ratio(0.25) > 7.8
    assert 5.5 < ratio(0.5) < 6.4
    assert ratio(1.0) < 1.6
    with pytest.raises(UserError, match="width=0: expected a number above 0"):
        analysis.bumps(64, width=0)


@given(st.integers(0, 999))
def test_kurtosis_is_that_of_scipy(seed):
    values = np.random.default_rng(seed).standard_t(5, size=(20, 8)).astype(np.float32)
    assert analysis.kurtosis(jnp.asarray(values)) == pytest.approx(kurtosis(values.ravel()), rel=1e-3, abs=1e-3)


def test_what_is_no_matrix_or_has_too_few_columns_is_refused():
    with pytest.raises(UserError, match=r"a matrix is expected, this array has shape \(3,\)"):
        analysis.fit_amplitudes(jnp.ones(3))
    with pytest.raises(UserError, match="bumps=8: expected 1 to 4"):
        analysis.fit_amplitudes(jnp.ones((2, 4)))
