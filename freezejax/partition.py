"""Splitting a tree in its trainable and frozen halves, and differentiating the first alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.masks import check_static
from freezejax.paths import PyTree, path_string


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` into `(trainable, frozen)`; each holds None where the other holds the leaf.

    None is an empty subtree to JAX: an absent leaf has no buffer, no gradient and no optimizer state.

    Raises:
      UserError: `mask` is not a tree of Python bools with the leaves of `tree`.

    >>> partition({"a": 1, "b": 2}, {"a": True, "b": False})
    ({'a': 1, 'b': None}, {'a': None, 'b': 2})
    """
    check_static(mask, tree)
    trainable = jax.tree.map(lambda m, leaf: leaf if m else None, mask, tree)
    frozen = jax.tree.map(lambda m, leaf: None if m else leaf, mask, tree)
    return trainable, frozen


def combine(trainable: PyTree, frozen: PyTree) -> PyTree:
    """Inverse of `partition`.

    Raises:
      UserError: both halves hold a value for the same leaf.

    >>> combine({"a": 1, "b": None}, {"a": None, "b": 2})
    {'a': 1, 'b': 2}
    """

    def pick(path: Any, left: Any, right: Any) -> Any:
        if left is not None and right is not None:
            name = path_string(path)
            raise UserError(f"combine: both halves hold leaf {name!r}; pass the two halves of one partition")
        return right if left is None else left

    return jax.tree_util.tree_map_with_path(pick, trainable, frozen, is_leaf=lambda x: x is None)


def value_and_grad(
    loss: Callable[..., Any], mask: PyTree, *, has_aux: bool = False
) -> Callable[..., tuple[Any, PyTree]]:
    """Like `jax.value_and_grad` of `loss(params, *args)`, but differentiates the trainable half of `params` only.

    The gradient holds None for frozen leaves, so nothing downstream (a norm, a clip, a log line) can
    bring their matmuls back. `freeze(tx, mask).update` and `apply_updates` take it as it is.

    >>> grad = value_and_grad(lambda p, x: p["w"] * x + p["b"], {"w": True, "b": False})
    >>> value, grads = grad({"w": jnp.float32(2), "b": jnp.float32(1)}, 3.0)
    >>> float(value), float(grads["w"]), grads["b"]
    (7.0, 3.0, None)
    """

    def differentiated(params: PyTree, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        trainable, frozen = partition(params, mask)
        loss_of_half = lambda half: loss(combine(half, frozen), *args, **kwargs)  # noqa: E731
        return jax.value_and_grad(loss_of_half, has_aux=has_aux)(trainable)

    return differentiated


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """`optax.apply_updates` for updates that hold None where a leaf is frozen: that leaf stays as it is.

    So does the weight of an update of zero: `-0.0 + 0.0` is `0.0`, and CPUs flush a subnormal sum to zero.

    >>> import numpy as np
    >>> apply_updates({"a": np.float32(1), "b": np.float32(2)}, {"a": np.float32(0.5), "b": None})
    {'a': Array(1.5, dtype=float32), 'b': np.float32(2.0)}
    """

    def add(update: Any, leaf: Any) -> Any:
        if update is None or leaf is None:
            return leaf
        return jnp.where(update == 0, leaf, (leaf + update).astype(leaf.dtype))

    return jax.tree.map(add, updates, params, is_leaf=lambda x: x is None)
