"""How many dimensions a matrix fills: measures of the eigenvalues of the covariance of its rows.

A matrix is taken as one sample per row. `centered=True` takes the mean row away first, as a principal component
analysis does; False measures the matrix as it multiplies. Columns as samples: give the transpose. Left uncentered, a
matrix and its transpose have the same eigenvalues, up to a factor and zeros.

All work on the smaller of the two Gram matrices, in float32: a [4096, 14336] matrix needs 64 MiB beside itself, and 224
more where it is centered first.
"""

import jax
import jax.numpy as jnp

from freezejax.errors import UserError


def spectrum(matrix: jax.Array, *, centered: bool = True) -> jax.Array:
    """Variances along the principal axes of the rows, largest first: float32 [min(rows, columns)].

    Their sum is the total variance, with rows in the denominator: the covariance is `X^T X / rows`.

    >>> spectrum(jnp.diag(jnp.array([3.0, 4.0])), centered=False)
    Array([8. , 4.5], dtype=float32)
    """
    gram = _gram(matrix, centered)
    return jnp.maximum(jnp.linalg.eigvalsh(gram)[::-1], 0.0)


def participation_ratio(matrix: jax.Array, *, centered: bool = True) -> jax.Array:
    """`(sum l)^2 / sum l^2` of the spectrum: 1 where one axis has all variance, n where n share it; NaN of zeros.

    No eigenvalue is computed: the sums are the trace and the squared Frobenius norm of the Gram matrix. Papers 62 and
    63 of the sources name the measure, of weights and of amplitudes, and do not say how they center.

    >>> round(float(participation_ratio(jnp.eye(5), centered=False)), 3)
    5.0
    """
    gram = _gram(matrix, centered)
    gram = gram / jnp.trace(gram)  # so that nothing overflows
    return 1.0 / jnp.sum(gram * gram)


def first_share(matrix: jax.Array, *, centered: bool = True) -> jax.Array:
    """Share of the variance along the first principal axis, in (0, 1] (papers 62 and 63: "PC1").

    >>> round(float(first_share(jnp.outer(jnp.arange(3.0), jnp.ones(4)))), 3)
    1.0
    """
    values = spectrum(matrix, centered=centered)
    return values[0] / values.sum()


def components_for(matrix: jax.Array, share: float = 0.95, *, centered: bool = True) -> int:
    """How many principal axes have together at least this share of the variance (paper 62: 0.95).

    >>> components_for(jnp.eye(20), centered=False)
    19
    """
    if not 0 < share <= 1:
        raise UserError(f"share={share!r}: expected a number above 0 and up to 1")
    values = spectrum(matrix, centered=centered)
    found = jnp.cumsum(values) / values.sum()
    return int(jnp.sum(found < share - 1e-6)) + 1


def stable_rank(matrix: jax.Array) -> jax.Array:
    """`|W|_F^2 / |W|_2^2`, of the matrix as it multiplies: at most its rank, and blind to small singular values.

    Source: Rudelson and Vershynin 2007, arXiv:math/0503442.

    >>> round(float(stable_rank(jnp.eye(5))), 3)
    5.0
    """
    return 1.0 / first_share(matrix, centered=False)


def _gram(matrix: jax.Array, centered: bool) -> jax.Array:
    if matrix.ndim != 2:
        raise UserError(f"a matrix is expected, this array has shape {matrix.shape}")
    wide = matrix.astype(jnp.float32)
    if centered:
        wide = wide - wide.mean(axis=0, keepdims=True)
    rows, columns = wide.shape
    left, right = (wide, wide.T) if rows <= columns else (wide.T, wide)
    return jnp.matmul(left, right, precision="highest") / rows
