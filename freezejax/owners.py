"""Which parameter each leaf of an optimizer state belongs to."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from freezejax.guard import fields
from freezejax.paths import PyTree

KeyPath = tuple[Any, ...]


def state_owners(tx: optax.GradientTransformation, params: PyTree, state: Any) -> list[int | None]:
    """For every leaf of an optimizer state, the number of the parameter leaf it belongs to, or None.

    A state leaf belongs to the parameter with which it vanishes from `tx.init`; counts and schedules belong to
    none. Nearly every state holds trees like the parameters, so that the owner's path stands in the path of the state
    leaf; where it does not, owners are read off in binary, by log2 of the number of leaves calls of `tx.init`.

    >>> params = {"b": jax.numpy.ones(1), "w": jax.numpy.ones(3)}
    >>> state_owners(optax.adam(0.1), params, optax.adam(0.1).init(params))
    [None, 0, 1, 0, 1]
    """
    params = fields(params)
    leaves, structure = jax.tree.flatten(params)

    def paths_without(absent: Callable[[int], bool]) -> set[KeyPath]:
        kept = [optax.MaskedNode() if absent(index) else leaf for index, leaf in enumerate(leaves)]
        return set(_key_paths(jax.eval_shape(tx.init, jax.tree.unflatten(structure, kept))))

    shared = paths_without(lambda index: True)
    paths = _key_paths(state)
    owned = [path for path in paths if path not in shared]
    owner = _by_path(owned, _key_paths(params)) or _in_binary(owned, len(leaves), paths_without)
    return [owner.get(path) for path in paths]


def _by_path(owned: list[KeyPath], of_params: list[KeyPath]) -> dict[KeyPath, int] | None:
    """Owners where the keys of parameters in each state path are one parameter's path; else None: it is not sure."""
    index = {path: at for at, path in enumerate(of_params)}
    keys = {key for path in of_params for key in path}
    found = {}
    for path in owned:
        places = [at for at, key in enumerate(path) if key in keys]
        own = path[places[0] : places[-1] + 1] if places else ()
        if len(own) != len(places) or own not in index:
            return None
        found[path] = index[own]
    return found


def _in_binary(
    owned: list[KeyPath], count: int, paths_without: Callable[[Callable[[int], bool]], set[KeyPath]]
) -> dict[KeyPath, int]:
    bits = range((count - 1).bit_length())
    present = [paths_without(lambda index, bit=bit: bool(index >> bit & 1)) for bit in bits]  # type: ignore[misc]
    return {path: sum((path not in present[bit]) << bit for bit in bits) for path in owned}


def _key_paths(tree: PyTree) -> list[KeyPath]:
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
