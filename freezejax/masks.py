"""Masks: trees of Python bools, True where a leaf is trainable, made from ordered rules."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from freezejax.errors import UserError
from freezejax.paths import PyTree, leaf_paths, nearest, path_string
from freezejax.roles import Leaf, map_leaves

Rule = tuple[str, bool]
Rules = Sequence[Rule]


def trainable_mask(params: PyTree, rules: Rules) -> PyTree:
    """Tree of bools like `params`: True where a leaf is trainable. The seed of a random map never is.

    Args:
      params: any pytree; only its structure is read, so shapes or tracers do as well as arrays.
      rules: ordered `(pattern, trainable)` pairs. `re.fullmatch` is applied to the leaf path and the
        first match wins.

    Raises:
      UserError: a rule is not a `(pattern, bool)` pair, a pattern is not a regular expression or matches
        no leaf, or a leaf is covered by no rule. The message names it and the nearest alternatives. A
        pattern whose leaves were all claimed by earlier rules is fine: that is what a final
        `(".*", True)` often is.

    >>> params = {"mlp": {"gate": 1.0, "down": 2.0}}
    >>> trainable_mask(params, [("mlp/gate", False), (".*", True)])
    {'mlp': {'down': True, 'gate': False}}
    """
    compiled = [(compile_pattern(pattern), trainable) for pattern, trainable in check_rules(rules)]
    paths = leaf_paths(params)
    for pattern, _ in compiled:
        if not any(pattern.fullmatch(path) for path in paths):
            raise UserError(f"rule {pattern.pattern!r} matches no leaf; {nearest(pattern.pattern, paths)}")

    def first_match(leaf: Leaf) -> bool:
        for pattern, trainable in compiled:
            if pattern.fullmatch(leaf.path):
                return trainable and not leaf.role.constant
        patterns = [pattern.pattern for pattern, _ in compiled]
        raise UserError(f"leaf {leaf.path!r} is covered by no rule; {nearest(leaf.path, patterns)}")

    return map_leaves(first_match, params)


def check_rules(rules: Rules) -> tuple[Rule, ...]:
    """The rules as a tuple, each a `(pattern, bool)` pair.

    Raises:
      UserError: a rule is something else. `bool("frozen")` is True, so nothing is converted.

    >>> check_rules([(".*", "frozen")])
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: rule ('.*', 'frozen'): write (pattern, True) if it trains, (pattern, ...
    """

    def checked(rule: Any) -> Rule:
        match rule:
            case [str(pattern), bool() | np.bool_() as trainable]:
                return pattern, bool(trainable)
        raise UserError(f"rule {rule!r}: write (pattern, True) if it trains, (pattern, False) if not")

    return tuple(checked(rule) for rule in rules)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`re.compile` that tells a user what is wrong.

    >>> compile_pattern("mlp/(gate")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: rule 'mlp/(gate' is not a regular expression: missing ), ... at position 4
    """
    try:
        return re.compile(pattern)
    except re.error as error:
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
    for key_path, value in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(value, bool | np.bool_):
            raise UserError(
                f"mask leaf {path_string(key_path)!r} is {type(value).__name__}, not a Python bool; "
                "for a mask that depends on a traced step use scheduled_freeze"
            )
    mask_paths = leaf_paths(mask)
    # A leaf of the mask may stand over None in the tree: that is the absent half of a partition.
    with_absent = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    tree_paths = [path_string(key_path) for key_path, _ in with_absent]
    for path in leaf_paths(tree):
        if path not in mask_paths:
            raise UserError(f"mask has no leaf {path!r}; {nearest(path, mask_paths)}")
    for path in mask_paths:
        if path not in tree_paths:
            raise UserError(f"mask leaf {path!r} is not in the tree; {nearest(path, tree_paths)}")
    try:
        jax.tree.map(lambda *_: None, mask, tree)
    except ValueError:
        raise UserError(
            "mask and tree have the same leaf paths in other containers (a list for a tuple, a key '0' "
            "for 0); make the mask with trainable_mask(tree, rules)"
        ) from None


def count_parameters(params: PyTree, mask: PyTree | None = None) -> int:
    """Number of scalars in the leaves where `mask` is True (in all leaves without a mask).

    >>> import jax.numpy as jnp
    >>> count_parameters({"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}, {"a": True, "b": False})
    6
    """
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    sizes = jax.tree.map(lambda m, p: int(np.prod(np.shape(p), dtype=np.int64)) if m else 0, mask, params)
    return sum(jax.tree.leaves(sizes))
