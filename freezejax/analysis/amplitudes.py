"""The shape of each row of a matrix as a sum of Gaussian bumps, and what their amplitudes say (papers 61 and 62).

Paper 61, which says how the bumps are placed, is not among the sources. Chosen here: a row of n numbers is fitted by K
bumps with centres evenly spaced over its columns and `width` times their distance as standard deviation, so that a row
has K amplitudes and nothing else is free; the error is the sum of absolute differences (L1). Bumps as wide as they are
apart overlap so much that the amplitudes of white noise are nearly collinear: a participation ratio of 1.4 of 8, where
half the width gives 5.9 and a quarter 8.0. And the order of a matrix's columns is as arbitrary as that of its units.
So whatever is measured of amplitudes is to be read beside the same of the columns in another order, and of noise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from freezejax.errors import UserError

_SMALL = 1e-4  # of a row's mean size: residuals below count alike; smaller ones are lost to float32


class Amplitudes(NamedTuple):
    """A fit of every row."""

    values: jax.Array  # float32 [rows, bumps]
    residual: jax.Array  # float32 [rows], sum of absolute errors over that of the row: 0 = fitted, 1 = not at all


def bumps(columns: int, count: int = 8, width: float = 0.5) -> jax.Array:
    """The bumps, float32 [count, columns], each 1 at its centre.

    >>> bumps(16, 2).shape
    (2, 16)
    """
    if not 1 <= count <= columns:
        raise UserError(f"bumps={count}: expected 1 to {columns}, the number of columns")
    if not width > 0:
        raise UserError(f"width={width}: expected a number above 0, in distances of the bumps")
    apart = columns / count
    centres = (jnp.arange(count, dtype=jnp.float32) + 0.5) * apart - 0.5
    away = (jnp.arange(columns, dtype=jnp.float32)[None] - centres[:, None]) / (apart * width)
    return jnp.exp(-0.5 * jnp.square(away))


def fit_amplitudes(
    matrix: jax.Array, *, count: int = 8, width: float = 0.5, iterations: int = 60, rows_at_once: int = 1024
) -> Amplitudes:
    """Least absolute deviations of every row from a sum of bumps: [rows, columns] -> amplitudes.

    By least squares weighted anew with the inverse of each residual (Schlossmacher 1973): convex, and within about
    0.1 % of the least sum after the default iterations. All rows are fitted at once, `rows_at_once` of them in memory.

    Raises:
      UserError: no matrix, or more bumps than columns.

    >>> fit = fit_amplitudes(3.0 * bumps(32, 4), count=4)
    >>> bool(jnp.allclose(fit.values, 3.0 * jnp.eye(4), atol=1e-2)), bool(jnp.all(fit.residual < 1e-2))
    (True, True)
    """
    if matrix.ndim != 2:
        raise UserError(f"a matrix is expected, this array has shape {matrix.shape}")
    basis_KxC = bumps(matrix.shape[1], count, width)
    return _fit(matrix.astype(jnp.float32), basis_KxC, iterations, rows_at_once)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _fit(matrix: jax.Array, basis_KxC: jax.Array, iterations: int, rows_at_once: int) -> Amplitudes:
    count = basis_KxC.shape[0]
    products_CxKK = (basis_KxC[:, None] * basis_KxC[None]).reshape(count * count, -1).T

    def of_row(row_C: jax.Array) -> Amplitudes:
        size = jnp.maximum(jnp.mean(jnp.abs(row_C)), jnp.finfo(jnp.float32).tiny)
        scaled_C = row_C / size

        def again(_: int, values_K: jax.Array) -> jax.Array:
            weight_C = 1.0 / jnp.maximum(jnp.abs(scaled_C - values_K @ basis_KxC), _SMALL)
            gram_KxK = (weight_C @ products_CxKK).reshape(count, count)
            return jnp.linalg.solve(gram_KxK, basis_KxC @ (weight_C * scaled_C))

        first_K = jnp.linalg.solve(basis_KxC @ basis_KxC.T, basis_KxC @ scaled_C)
        values_K = jax.lax.fori_loop(0, iterations, again, first_K)
        error = jnp.sum(jnp.abs(scaled_C - values_K @ basis_KxC)) / jnp.maximum(jnp.sum(jnp.abs(scaled_C)), 1e-30)
        return Amplitudes(values_K * size, error)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(of_row, matrix, batch_size=min(rows_at_once, matrix.shape[0]))


def max_correlation(amplitudes: jax.Array) -> float:
    """Largest absolute correlation, over rows, of two different bumps' amplitudes: [rows, bumps] -> [0, 1].

    >>> round(max_correlation(jnp.array([[1.0, -2.0], [2.0, -4.0], [4.0, -8.0]])), 3)
    1.0
    """
    centred = amplitudes - amplitudes.mean(axis=0, keepdims=True)
    lengths = jnp.linalg.norm(centred, axis=0, keepdims=True)
    unit = centred / jnp.where(lengths > 0, lengths, 1.0)
    found = jnp.abs(unit.T @ unit) * (1 - jnp.eye(unit.shape[1]))
    return float(jnp.max(found))


def kurtosis(values: jax.Array) -> float:
    """Excess kurtosis of all numbers of an array: 0 of a normal distribution, -2 of two equal points.

    >>> round(kurtosis(jnp.array([-1.0, 1.0, -1.0, 1.0])), 3)
    -2.0
    """
    centred = values.astype(jnp.float32).ravel() - jnp.mean(values)
    variance = jnp.mean(jnp.square(centred))
    return float(jnp.mean(centred**4) / jnp.square(variance) - 3.0)
