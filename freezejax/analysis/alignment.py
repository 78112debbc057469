"""How far two sets of axes point the same way, and how well one table of numbers predicts another."""

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError


def principal_axes(matrix: jax.Array, count: int, *, centered: bool = True) -> jax.Array:
    """The first principal axes of the rows of a matrix, one per row of the result: float32 [count, columns].

    There are as many as the matrix has rows or columns, whichever are fewer; the work is done on the smaller of the two
    Gram matrices.

    Uncentered they are the eigenvectors of `matrix^T matrix` with the largest eigenvalues: of an embedding E [V, D]
    those of E^T E (paper 62).

    >>> jnp.abs(principal_axes(jnp.diag(jnp.array([1.0, 3.0])), 1, centered=False))
    Array([[0., 1.]], dtype=float32)
    """
    if not 1 <= count <= min(matrix.shape):
        raise UserError(f"count={count}: expected 1 to {min(matrix.shape)}, the smaller side of the matrix")
    wide = matrix.astype(jnp.float32)
    if centered:
        wide = wide - wide.mean(axis=0, keepdims=True)
    is_wide = wide.shape[0] < wide.shape[1]
    gram = jnp.matmul(*((wide, wide.T) if is_wide else (wide.T, wide)), precision="highest")
    first = jnp.linalg.eigh(gram)[1][:, ::-1][:, :count]
    if not is_wide:
        return first.T
    # Of the axes of the other side X^T takes each to its own; where there is no variance left any other will do.
    return jnp.linalg.qr(jnp.matmul(wide.T, first, precision="highest"))[0].T


def alignment(axes: jax.Array, others: jax.Array) -> float:
    """Mean cosine of the principal angles between two spans: [m, d] and [n, d] -> [0, 1]; 1 where one holds the other.

    Neither order nor sign nor length of the axes matters. Of random spans it is far from 0: see `chance_alignment`.

    >>> round(alignment(jnp.eye(2, 4), jnp.eye(3, 4)), 3)
    1.0
    """
    one, other = (jnp.linalg.qr(side.astype(jnp.float32).T)[0] for side in (axes, others))
    cosines = jnp.linalg.svd(jnp.matmul(one.T, other, precision="highest"), compute_uv=False)
    return float(jnp.mean(jnp.clip(cosines, 0.0, 1.0)))


def chance_alignment(axes: int, others: int, columns: int, *, draws: int = 100, seed: int = 0) -> float:
    """The mean `alignment` of random spans of these sizes.

    >>> 0.2 < chance_alignment(8, 8, 64) < 0.4
    True
    """
    keys = jax.random.split(jax.random.key(seed), 2 * draws)
    pairs = zip(keys[:draws], keys[draws:], strict=True)
    found = [
        alignment(jax.random.normal(one, (axes, columns)), jax.random.normal(other, (others, columns)))
        for one, other in pairs
    ]
    return float(np.mean(found))


def cross_validated_r2(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    penalty: float = 1.0,
    seed: int = 0,
) -> float:
    """Share of the variance of targets [n, k] that ridge regression on features [n, p] predicts out of sample.

    Features are standardized on each training part and the penalty is `penalty` per feature. 1 = all, 0 = no better
    than the mean of the training part, below 0 = worse. The mean over targets of 1 - squared error / variance. Rows of
    one of the `groups` [n] are held out together: those that share their features would tell each other.

    Raises:
      UserError: fewer rows, or groups, than folds, or rows that do not match.

    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(cross_validated_r2(x, x @ np.array([[1.0], [2.0]]), penalty=1e-6), 3)
    1.0
    """
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    targets = targets[:, None] if targets.ndim == 1 else targets
    names, group = np.unique(np.arange(len(features)) if groups is None else groups, return_inverse=True)
    if not len(features) == len(targets) == len(group) or len(names) < folds or folds < 2:
        told = f"{len(features)} rows of features, {len(targets)} of targets, {len(names)} groups, {folds} folds"
        raise UserError(f"{told}: do not fit")
    part = (np.random.default_rng(seed).permutation(len(names)) % folds)[group]
    errors, spreads = np.zeros(targets.shape[1]), np.zeros(targets.shape[1])
    for fold in range(folds):
        held = part == fold
        mean, deviation = features[~held].mean(0), features[~held].std(0)
        x, centre = (features - mean) / np.where(deviation > 0, deviation, 1.0), targets[~held].mean(0)
        gram = x[~held].T @ x[~held] + penalty * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x[~held].T @ (targets[~held] - centre))
        errors += np.square(targets[held] - centre - x[held] @ weights).sum(0)
        spreads += np.square(targets[held] - centre).sum(0)
    return float(np.mean(1 - errors / np.where(spreads > 0, spreads, 1.0)))
