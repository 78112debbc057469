"""Masks: trees of Python bools, True where a leaf is trainable, made from ordered rules."""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from freezejax.errors import UserError
from freezejax.paths import PyTree, by_path, check_known, leaf_paths, nearest, path_string
from freezejax.roles import Role, leaves

Rule = tuple[str, bool]
Rules = Sequence[Rule]


def trainable_mask(params: PyTree, rules: Rules) -> PyTree:
    """Tree of bools like `params`: True where a leaf is trainable. No seed of a map is, nor a balance of experts.

    `rules` are ordered `(pattern, trainable)` pairs: `re.fullmatch` is applied to the leaf path, and the first match
    wins. No value of `params` is read, so shapes or tracers do as well as arrays.

    Raises:
      UserError: a rule is not a `(pattern, bool)` pair, a pattern is not a regular expression or matches no leaf, or
        a leaf is covered by no rule. A rule comes too late: earlier ones have decided all of its leaves otherwise
        (a final rule of every leaf may). A leaf is a function, or rules split one array at two leaves (see `tie`).

    >>> params = {"mlp": {"gate": 1.0, "down": 2.0}}
    >>> trainable_mask(params, [("mlp/gate", False), (".*", True)])
    {'mlp': {'down': True, 'gate': False}}
    """
    (mask,) = masks_of(params, [check_rules(rules)])
    check_shared_arrays(params, [mask])
    return mask


def masks_of(params: PyTree, rule_sets: Sequence[Rules], *, overruled: bool = False) -> list[PyTree]:
    """One mask per rule set, whose rules may come too late if `overruled`; each pattern is tried on the paths once."""
    paths, structure, found_leaves = leaf_paths(params), jax.tree.structure(params), leaves(params)
    _check_no_functions(paths, params)
    learned = [leaf.role.learns for leaf in found_leaves]
    kernels = {leaf.path: leaf.value for leaf in found_leaves if leaf.role is Role.KERNEL}
    stacks = {path: kernel.shape[0] for path, kernel in kernels.items() if np.ndim(kernel) == 3}
    matched = matcher(paths, "rule", stacks)

    def mask_of(rules: Rules) -> PyTree:
        claimed: dict[str, Rule] = {}
        for rule in rules:
            found = matched(rule[0])
            if not overruled and len(found) < len(paths):
                _check_is_heard(rule, found, claimed)
            for path in found:
                claimed.setdefault(path, rule)
        if len(claimed) < len(paths):
            bare = next(path for path in paths if path not in claimed)
            raise UserError(f"leaf {bare!r} is covered by no rule; {nearest(bare, [pattern for pattern, _ in rules])}")
        return jax.tree.unflatten(structure, [claimed[p][1] and may for p, may in zip(paths, learned, strict=True)])

    return [mask_of(rules) for rules in rule_sets]


def _check_no_functions(paths: Sequence[str], params: PyTree) -> None:
    for path, leaf in zip(paths, jax.tree.leaves(params), strict=True):
        if callable(leaf) and not hasattr(leaf, "shape"):
            raise UserError(
                f"leaf {path!r} is a function, not a weight: split the module first, with equinox "
                "params, static = eqx.partition(model, eqx.is_array), or take eqx.filter(model, eqx.is_array)"
            )


def _check_is_heard(rule: Rule, found: Sequence[str], claimed: Mapping[str, Rule]) -> None:
    """Refuses a rule whose every leaf has been decided otherwise before."""
    before = [claimed.get(path, rule) for path in found]
    if all(trains != rule[1] for _, trains in before):
        raise UserError(
            f"rule {rule!r} decides nothing: {before[0]!r} comes before it and decides {found[0]!r} otherwise; "
            "the first match wins, so put the special rule before the general one"
        )


def matcher(paths: Sequence[str], where: str, stacks: Mapping[str, int] | None = None) -> Callable[[str], list[str]]:
    """Function from a pattern to the leaf paths that it matches whole; a pattern that matches none is refused.

    `stacks` are paths of leaves that hold several matrices, and how many: an error says how rules can name one.
    Each pattern is worked out once, and one that is a leaf path, or several joined by `|`, is looked up and not
    searched for: a rule per leaf of a large tree takes one pass.

    >>> matcher(["mlp/down", "mlp/gate", "norm"], "rule")("mlp/.*")
    ['mlp/down', 'mlp/gate']
    """
    known = dict.fromkeys(paths)

    @functools.cache
    def matched(pattern: str) -> list[str]:
        alternatives = pattern.split("|")
        if all(_LITERAL.fullmatch(alternative) for alternative in alternatives):
            unescaped = (re.sub(r"\\(\W)", r"\1", alternative) for alternative in alternatives)
            found = [path for path in unescaped if path in known]
        else:
            compiled = compile_pattern(pattern)
            found = [path for path in paths if compiled.fullmatch(path)]
        if not found:
            hint = _of_stack(pattern, stacks or {}) or nearest(pattern, paths)
            raise UserError(f"{where} {pattern!r} matches no leaf; {hint}")
        return found

    return matched


def _of_stack(pattern: str, stacks: Mapping[str, int]) -> str:
    """What a pattern may mean that has the number of a matrix anywhere in the path of its stack; "" if it has none."""
    compiled = compile_pattern(pattern)
    for path, count in stacks.items():
        names = path.split("/")
        places = ("/".join([*names[:at], str(i), *names[at:]]) for i in range(count) for at in range(1, len(names) + 1))
        if any(compiled.fullmatch(place + end) for place in places for end in ("", "/a")):
            return f"{path!r} is one leaf of {count} matrices: with kind 'each' in weights they are {path}/0 and so on"
    return ""


# Letters, digits, `_`, `/` and `-` stand for themselves, and so does a backslash before anything else.
_LITERAL = re.compile(r"(?:[\w/-]|\\\W)+")


def first_places(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Of every path at which the same array (by identity) stands as at an earlier path: that path."""
    first: dict[int, str] = {}
    arrays = ((path, leaf) for path, leaf in leaves.items() if isinstance(leaf, jax.Array | np.ndarray))
    places = {path: first.setdefault(id(leaf), path) for path, leaf in arrays}
    return {path: place for path, place in places.items() if path is not place}


def check_shared_arrays(params: PyTree, masks: Sequence[PyTree]) -> None:
    """Refuses a mask under which one array trains at one leaf and is frozen at another; tracers say nothing."""
    held = by_path(params)
    tied = first_places(held)
    for mask in masks if tied else ():
        trains = dict(zip(held, jax.tree.leaves(mask), strict=True))
        for path, first in tied.items():
            if trains[path] != trains[first] and not isinstance(held[path], jax.core.Tracer):
                only = first if trains[first] else path
                raise UserError(
                    f"leaves {first!r} and {path!r} are one array, but only {only!r} trains: make them one leaf "
                    "with freezejax.tie(params), give both the same rule, or copy the array if they are two weights"
                )


def check_rules(rules: Rules) -> tuple[Rule, ...]:
    """The rules as a tuple of `(pattern, bool)` pairs; `bool("frozen")` is True, so nothing is converted.

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
    """`re.compile` that tells a user what is wrong."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"rule {pattern!r} is not a regular expression: {error}") from None


def invert(mask: PyTree) -> PyTree:
    """The mask that is True where `mask` is False."""
    return jax.tree.map(lambda m: not m, mask)


def union(mask: PyTree, other: PyTree) -> PyTree:
    """True where either mask is True."""
    return jax.tree.map(lambda m, n: m or n, mask, other)


def intersection(mask: PyTree, other: PyTree) -> PyTree:
    """True where both masks are True."""
    return jax.tree.map(lambda m, n: m and n, mask, other)


def check_static(mask: PyTree, tree: PyTree, *, whole: bool = False) -> None:
    """Checks that `mask` is a tree of Python bools with the leaves of `tree`: none missing or left over.

    A leaf of the mask may stand over None in the tree: that is the absent half of a partition. Not with `whole`.

    >>> check_static({"a": True}, {"b": 1.0})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: mask has no leaf 'b'; nearest: a
    """
    for key_path, value in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(value, bool | np.bool_):
            leaf, kind = f" leaf {path_string(key_path)!r}" if key_path else "", type(value).__name__
            raise UserError(f"mask{leaf} is {kind}, not a Python bool; {_instead_of(value)}")
    structure: Any = jax.tree.structure(mask)
    if structure == jax.tree.structure(tree):
        return
    with_absent = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None and not whole)
    in_mask, in_tree = by_path(mask), {path_string(key_path) for key_path, _ in with_absent}
    for path in leaf_paths(tree):
        check_known(path, in_mask, f"mask has no leaf {path!r}", count=3)
    for path in in_mask:
        check_known(path, in_tree, f"mask leaf {path!r} is not in the tree", count=3)
    try:
        jax.tree.map(lambda *_: None, mask, tree)
    except ValueError:
        raise UserError(
            "mask and tree have the same leaf paths in other containers (a list for a tuple, a key '0' "
            "for 0); make the mask with trainable_mask(tree, rules)"
        ) from None


def _instead_of(value: Any) -> str:
    if hasattr(value, "phases"):
        return "the masks of a schedule are those of schedule.phases(params, total_steps)"
    if callable(value):
        return "if this is the optimizer, the arguments are swapped: freeze(tx, mask)"
    if isinstance(value, jax.Array) and value.dtype == bool:
        return "for a mask that depends on a traced step use scheduled_freeze"
    return "make a mask with trainable_mask(params, rules)"


def count_parameters(params: PyTree, mask: PyTree | None = None) -> int:
    """Number of scalars in the leaves where `mask` is True (in all leaves without a mask).

    >>> count_parameters({"a": np.zeros((2, 3)), "b": np.zeros(4)}, {"a": True, "b": False})
    6
    """
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    return sum(jax.tree.leaves(jax.tree.map(lambda m, p: math.prod(np.shape(p)) if m else 0, mask, params)))
