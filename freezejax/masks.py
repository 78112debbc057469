"""Masks: trees of Python bools, True where a leaf is trainable, made from ordered rules."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths, map_with_paths, nearest

Rule = tuple[str, bool]
Rules = Sequence[Rule]


def trainable_mask(params: PyTree, rules: Rules) -> PyTree:
    """Tree of bools like `params`: True where a leaf is trainable.

    Args:
      params: any pytree; only its structure is read, so shapes or tracers do as well as arrays.
      rules: ordered `(pattern, trainable)` pairs. `re.fullmatch` is applied to the leaf path and the
        first match wins.

    Raises:
      UserError: a pattern is not a regular expression or matches no leaf, or a leaf is covered by no
        rule. The message names it and the nearest alternatives. A pattern whose leaves were all
        claimed by earlier rules is fine: that is what a final `(".*", True)` often is.

    >>> params = {"mlp": {"gate": 1.0, "down": 2.0}}
    >>> trainable_mask(params, [("mlp/gate", False), (".*", True)])
    {'mlp': {'down': True, 'gate': False}}
    """
    compiled = [(_compile(pattern), bool(trainable)) for pattern, trainable in rules]
    paths = leaf_paths(params)
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            raise UserError(f"rule {pattern.pattern!r} matches no leaf; {nearest(pattern.pattern, paths)}")

    def first_match(path: str, _: Any) -> bool:
        for pattern, trainable in compiled:
            if pattern.fullmatch(path):
                return trainable
        patterns = [pattern.pattern for pattern, _ in compiled]
        raise UserError(f"leaf {path!r} is covered by no rule; {nearest(path, patterns)}")

    return map_with_paths(first_match, params)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"rule {pattern!r} is not a regular expression: {error}") from None


def invert(mask: PyTree) -> PyTree:
    """The mask that is True where `mask` is False.

    >>> invert({"a": True, "b": False})
    {'a': False, 'b': True}
    """
    return jax.tree.map(lambda m: not m, mask)


def union(mask: PyTree, other: PyTree) -> PyTree:
    """True where either mask is True.

    >>> union({"a": True, "b": False}, {"a": False, "b": False})
    {'a': True, 'b': False}
    """
    return jax.tree.map(lambda m, n: m or n, mask, other)


def intersection(mask: PyTree, other: PyTree) -> PyTree:
    """True where both masks are True.

    >>> intersection({"a": True, "b": True}, {"a": False, "b": True})
    {'a': False, 'b': True}
    """
    return jax.tree.map(lambda m, n: m and n, mask, other)


def check_static(mask: PyTree, tree: PyTree) -> None:
    """Checks that `mask` is a tree of Python bools with exactly the leaves of `tree`.

    Raises:
      UserError: a leaf is missing, left over, or not a static bool (a traced mask belongs to
        `scheduled_freeze`).

    >>> check_static({"a": True}, {"b": 1.0})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: mask has no leaf 'b'; nearest: a
    """
    for path, value in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(value, bool | np.bool_):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"mask leaf {name!r} is {type(value).__name__}, not a Python bool; "
                "for a mask that depends on a traced step use scheduled_freeze"
            )
    # A leaf of the mask may stand over None in the tree: that is the absent half of a partition.
    mask_paths = leaf_paths(mask)
    tree_paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    ]
    if jax.tree.structure(mask) == jax.tree.structure(tree):
        return
    for path in leaf_paths(tree):
        if path not in mask_paths:
            raise UserError(f"mask has no leaf {path!r}; {nearest(path, mask_paths)}")
    for path in mask_paths:
        if path not in tree_paths:
            raise UserError(f"mask leaf {path!r} is not in the tree; {nearest(path, tree_paths)}")


def count_parameters(params: PyTree, mask: PyTree | None = None) -> int:
    """Number of scalars in the leaves where `mask` is True (in all leaves without a mask).

    >>> import jax.numpy as jnp
    >>> count_parameters({"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}, {"a": True, "b": False})
    6
    """
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    sizes = jax.tree.map(lambda m, p: int(np.prod(np.shape(p), dtype=np.int64)) if m else 0, mask, params)
    return sum(jax.tree.leaves(sizes))
