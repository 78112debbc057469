"""What may tell, before a matrix is frozen, whether that will cost: gradients, Fisher information, plasticity."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from freezejax.partition import combine, partition
from freezejax.paths import PyTree, by_path


class Sensitivity(NamedTuple):
    """Of one leaf."""

    gradient_norm: float  # of the mean loss
    fisher: float  # trace of the empirical Fisher information: mean over examples of the squared gradient norm


def sensitivities(
    loss: Callable[[PyTree, Any], jax.Array], params: PyTree, batches: Sequence[Any], mask: PyTree
) -> dict[str, Sensitivity]:
    """Gradient norm and Fisher information of every leaf that the mask names, over the rows of some batches.

    `loss(params, batch)` is a mean over the rows of a batch, whose leaves have them first. Rows are gone through one
    by one, so that no more than one gradient is held. Fisher: Kirkpatrick et al. 2017, arXiv:1612.00796, with the
    data's own targets.

    >>> found = sensitivities(lambda p, x: jnp.mean(p["w"] * x), {"w": jnp.ones(())}, [jnp.array([1.0, 3.0])],
    ...                       {"w": True})
    >>> found["w"]
    Sensitivity(gradient_norm=2.0, fisher=5.0)
    """
    half, rest = partition(params, mask)

    of_batch = jax.jit(functools.partial(gradient_sums, loss))
    rows, total = 0, None
    for batch in batches:
        rows += jax.tree.leaves(batch)[0].shape[0]
        found = of_batch(half, rest, batch)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert total is not None, "no batches"
    grads, squares = map(by_path, total)
    norm = lambda grad: float(jnp.linalg.norm(grad.astype(jnp.float32)))  # noqa: E731
    return {path: Sensitivity(norm(grads[path]) / rows, float(squares[path]) / rows) for path in grads}


def gradient_sums(
    loss: Callable[[PyTree, Any], jax.Array], half: PyTree, rest: PyTree, batch: Any
) -> tuple[PyTree, PyTree]:
    """Sums over the rows of a batch of what `half` of the parameters gets: gradients, and their squared norms by leaf.

    Traceable; arguments as of `sensitivities`, the parameters in two halves (`partition`).

    >>> gradient_sums(lambda p, x: jnp.mean(p["w"] * x), {"w": jnp.ones(())}, {"w": None}, jnp.array([1.0, 3.0]))[1]
    {'w': Array(10., dtype=float32)}
    """

    def add(sums: Any, row: Any) -> tuple[Any, None]:
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        grads = jax.grad(lambda part: loss(combine(part, rest), alone))(half)
        squares = jax.tree.map(lambda grad: jnp.sum(jnp.square(grad.astype(jnp.float32))), grads)
        return jax.tree.map(jnp.add, sums, (grads, squares)), None

    zeros = jax.tree.map(jnp.zeros_like, half), jax.tree.map(lambda leaf: jnp.zeros([], jnp.float32), half)
    found: tuple[PyTree, PyTree] = jax.lax.scan(add, zeros, batch)[0]
    return found


def plasticity(activations: jax.Array, reference: jax.Array) -> jax.Array:
    """How differently two models relate the examples of a batch to each other: [B, ...] twice -> a number >= 0.

    The mean squared difference of the matrices of similarities between examples, each row of length one: the
    similarity-preserving loss of Tung and Mori 2019 (arXiv:1907.09682), with which Egeria (arXiv:2201.06227) compares
    a layer with the same layer of an earlier snapshot. Near zero, the layer has stopped to learn.

    >>> float(plasticity(jnp.eye(3), 2 * jnp.eye(3)))
    0.0
    """
    return jnp.mean(jnp.square(similarities(activations) - similarities(reference)))


def similarities(activations: jax.Array) -> jax.Array:
    """How much each example of a batch is like each other: [B, ...] -> float32 [B, B], every row of length one.

    >>> similarities(2 * jnp.eye(2))
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    rows_BxF = activations.reshape(activations.shape[0], -1).astype(jnp.float32)
    gram = jnp.matmul(rows_BxF, rows_BxF.T, precision="highest")
    return gram / jnp.maximum(jnp.linalg.norm(gram, axis=1, keepdims=True), 1e-30)


def moved(params: PyTree, before: PyTree) -> dict[str, float]:
    """How far every leaf has gone, relative to its size before: `|W - W0| / |W0|`.

    A leaf that was zero is infinitely far, or 0 where it stayed.

    >>> moved({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 0.0])})
    {'w': 1.3333333730697632}
    """

    def distance(leaf: jax.Array, start: jax.Array) -> float:
        a, b = (jnp.linalg.norm(x.astype(jnp.float32).ravel()) for x in (leaf - start, start))
        return float(a / b) if a else 0.0

    now, then = by_path(params), by_path(before)
    return {path: distance(leaf, then[path]) for path, leaf in now.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
