"""One array at several leaves (a tied embedding) as one leaf: masked, trained, counted and stored once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from freezejax.errors import UserError
from freezejax.masks import first_places, matcher
from freezejax.paths import PyTree, by_path, check_known, path_string
from freezejax.roles import weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Tied:
    """What stands in the parameters where the array of another leaf is used again. It has no leaf of its own."""

    to: str  # path of the leaf that holds the array, or of the weight
    shape: tuple[int, ...] | None = dataclasses.field(default=None, repr=False)  # where something stands over it


def tie(params: PyTree, rules: Sequence[tuple[str, str]] | None = None) -> PyTree:
    """Makes one leaf of an array that stands at several; `untie` puts it back, inside the loss.

    The other places hold no leaf then: rules, masks, gradients, optimizer state, `describe` and counts see the
    array once. The gradients of all its uses add up.

    `rules` are ordered `(pattern, path)` pairs: leaves that match the pattern are the array at `path`. Equal copies, as
    a checkpoint gives them back, need them; without rules, an array that is one object is tied to its first place.

    Raises:
      UserError: a pattern matches no leaf, `path` is none, or the arrays differ in shape, dtype or values.

    >>> table = np.ones((3, 2), np.float32)
    >>> tie({"embed": table, "head": table})["head"]
    Tied(to='embed')
    """
    leaves = by_path(params)
    holder = first_places(leaves) if rules is None else _by_rules(leaves, rules)
    tied = [Tied(holder[path]) if path in holder else leaf for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), tied)


def untie(params: PyTree) -> PyTree:
    """Inverse of `tie`: the one array at every place where it is used. Call it inside the loss.

    Raises:
      UserError: the leaf that holds the array is missing, as in one half of a `partition`.

    >>> untied = untie({"embed": np.ones(2), "head": Tied("embed")})
    >>> untied["head"] is untied["embed"]
    True
    """
    held = {**by_path(params), **dict(weights(params))}

    def put_back(path: Any, node: Any) -> Any:
        if not isinstance(node, Tied):
            return node
        if node.to not in held:
            raise UserError(
                f"untie: leaf {path_string(path)!r} is tied to {node.to!r}, which is missing: untie whole parameters, "
                "after join_rows and combine"
            )
        return held[node.to]

    return jax.tree_util.tree_map_with_path(put_back, params, is_leaf=lambda node: isinstance(node, Tied))


def moved(params: PyTree, path: str) -> PyTree:
    """The parameters as they stand at `path` of a larger tree: what is tied in them is tied to its place there.

    >>> moved({"embed": np.ones(2), "head": Tied("embed")}, "members/0")["head"]
    Tied(to='members/0/embed')
    """
    is_tied = lambda node: isinstance(node, Tied)  # noqa: E731
    there = lambda node: dataclasses.replace(node, to=f"{path}/{node.to}") if is_tied(node) else node  # noqa: E731
    return jax.tree.map(there, params, is_leaf=is_tied)


def _by_rules(leaves: Mapping[str, Any], rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    matched, holder = matcher(list(leaves), "tie:"), dict[str, str]()
    for pattern, to in rules:
        check_known(to, leaves, f"tie: there is no leaf {to!r}", count=3)
        for path in matched(pattern):
            if path != to:
                _check_equal(path, leaves[path], to, leaves[to])
                holder.setdefault(path, to)
    for path, to in holder.items():
        if to in holder:
            raise UserError(f"tie: {path!r} is tied to {to!r}, which is tied to {holder[to]!r}; tie both to one leaf")
    return holder


def _check_equal(path: str, leaf: Any, to: str, held: Any) -> None:
    one, other = ((tuple(np.shape(x)), np.dtype(x.dtype).name) for x in (leaf, held))
    if one != other:
        raise UserError(
            f"tie: {path!r} is {one[1]}{list(one[0])} and {to!r} is {other[1]}{list(other[0])}; they cannot be one"
        )
    known = [isinstance(x, jax.Array | np.ndarray) and not isinstance(x, jax.core.Tracer) for x in (leaf, held)]
    if leaf is not held and all(known) and np.asarray(leaf).tobytes() != np.asarray(held).tobytes():
        raise UserError(f"tie: {path!r} and {to!r} hold different values, and one would be lost; make them equal")
