"""Leaf paths: the `/`-joined names by which rules, errors, tables and keys speak of a leaf."""

import collections
import difflib
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax

from freezejax.errors import UserError

PyTree = Any


def path_string(key_path: tuple[Any, ...]) -> str:
    """`/`-joined name of one `jax.tree_util` key path, as `mlp/3`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def by_path(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf, in flattening order.

    Raises:
      UserError: two leaves share a path (a dict key that contains `/`, say), so no rule could tell them apart.

    >>> by_path({"mlp": {"up": 1.0, "down": 2.0}, "head": [3.0]})
    {'head/0': 3.0, 'mlp/down': 2.0, 'mlp/up': 1.0}
    """
    pairs = [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(path for path, _ in pairs).most_common(1)[0][0]
        raise UserError(f"leaf path {twice!r} names two leaves: rename a key so that paths are unique")
    return found


def leaf_paths(tree: PyTree) -> list[str]:
    """Path of every leaf, see `by_path`."""
    return list(by_path(tree))


def map_with_paths(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function also gets the leaf's path."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_string(path), *leaves), tree, *rest)


def nearest(wanted: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `wanted`, as the end of an error message."""
    found = difflib.get_close_matches(wanted, list(known), n=count, cutoff=0.0)
    return f"nearest: {', '.join(found)}" if found else "there are none"


def check_known(name: str, known: Iterable[str], told: str, count: int = 1) -> None:
    """Refuses a name that is not in the set, list or mapping `known`: what is `told`, and the nearest.

    >>> check_known("gelu", {"geglu": 1}, "there is no model 'gelu'")
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: there is no model 'gelu'; nearest: geglu
    """
    if name not in known:
        raise UserError(f"{told}; {nearest(name, known, count)}")


def stable_hash(name: str) -> int:
    """32-bit hash of a name that is the same in every process, Python and platform.

    >>> stable_hash("blocks/0/mlp/gate/kernel")
    2872684656
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def named_key(key: jax.Array, name: str) -> jax.Array:
    """Key of one name: folding in the name, never the order of splits, keeps other names' keys still."""
    return jax.random.fold_in(key, stable_hash(name))
