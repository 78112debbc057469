"""Part of one array trains: some rows of an embedding, the columns of new tokens in a head."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.errors import UserError
from freezejax.masks import matcher
from freezejax.paths import PyTree, by_path, path_string

Which = slice | Sequence[int] | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What stands in the parameters where one array is split in two leaves: `rows`, and the `rest` of it.

    >>> Rows(jnp.zeros((3, 2)), jnp.ones((1, 2)), (3,), 0).whole().shape
    (4, 2)
    """

    rest: Any
    rows: Any
    edges: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of the cuts: rest, rows, rest, ...
    axis: int = dataclasses.field(metadata={"static": True})

    def whole(self) -> jax.Array:
        """The array, each row in its place."""
        sizes = np.diff(self.edges, prepend=0)  # of all pieces but the last
        rest = jnp.split(self.rest, np.cumsum(sizes[::2]), self.axis)
        rows = jnp.split(self.rows, np.cumsum(sizes[1::2]), self.axis)
        pieces = itertools.chain(*itertools.zip_longest(rest, rows))
        return jnp.concatenate([x for x in pieces if x is not None and x.shape[self.axis]], axis=self.axis)


def rows(params: PyTree, rules: Sequence[tuple[str, Which]], *, axis: int = 0) -> PyTree:
    """Splits arrays in two leaves each, so that a mask can say of some of their rows whether they train.

    The leaf `embed` becomes `embed/rows`, what `rules` name, and `embed/rest`, two leaves like any others: freeze
    `embed/rest`, and the other rows keep every bit and have neither gradient nor state. Put arrays together where they
    are used, inside the loss, with `join_rows`.

    Statistics of a leaf (Adafactor's factored moments, the norm of LAMB) are those of the part. An optimizer that
    multiplies a leaf as a matrix (Muon) is refused by `freeze` and `scheduled_freeze`.

    `rules` are ordered `(pattern, which)` pairs; the first match of a leaf path wins, and other leaves stay whole.
    `which` is what NumPy takes as an index along `axis` (a slice, row numbers, bools): 0 for the rows of an embedding
    [vocabulary, features], 1 for the columns of a kernel [in, out].

    Raises:
      UserError: a pattern matches no leaf, a leaf has no such axis or rows, or none or all of its rows are named.

    >>> params = {"embed": jnp.arange(8.0).reshape(4, 2), "head": jnp.ones(2)}
    >>> rows(params, [("embed", slice(-1, None))])["embed"].rows
    Array([[6., 7.]], dtype=float32)
    """
    leaves = by_path(params)
    matched, which_of = matcher(list(leaves), "rows:"), dict[str, Which]()
    for pattern, which in rules:
        for path in matched(pattern):
            which_of.setdefault(path, which)
    split = [_split(path, x, which_of[path], axis) if path in which_of else x for path, x in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), split)


def join_rows(params: PyTree) -> PyTree:
    """Inverse of `rows`: every split array whole again. Call it inside the loss, on the whole parameters.

    The loss holds one more copy of the array, and the gradient of the whole array before its rows are cut out: what is
    saved is the optimizer state, and the gradient that is kept.

    Raises:
      UserError: half of a split array is missing, as in one half of a `partition`.

    >>> join_rows(rows({"w": jnp.arange(3.0)}, [("w", [0, 2])]))["w"]
    Array([0., 1., 2.], dtype=float32)
    """

    def join(path: Any, node: Any) -> Any:
        if not isinstance(node, Rows):
            return node
        inner = dataclasses.replace(node, rest=join_rows(node.rest), rows=join_rows(node.rows))
        if inner.rest is None or inner.rows is None:
            raise UserError(f"join_rows: half of {path_string(path)!r} is missing; combine the halves first")
        return inner.whole()

    return jax.tree_util.tree_map_with_path(join, params, is_leaf=lambda node: isinstance(node, Rows))


def _split(path: str, leaf: Any, which: Which, axis: int) -> Rows:
    shape = np.shape(leaf)
    if not 0 <= axis < len(shape):
        raise UserError(f"rows: leaf {path!r} of shape {shape} has no axis {axis}")
    count = shape[axis]
    chosen = np.zeros(count, np.bool_)
    try:
        chosen[which if isinstance(which, slice) else np.asarray(which)] = True
    except IndexError:
        raise UserError(
            f"rows: {which!r} is no index into the {count} rows of leaf {path!r} along axis {axis}"
        ) from None
    if chosen.all() or not chosen.any():
        named = "all" if count and chosen.all() else "none"
        raise UserError(f"rows: {named} of the {count} rows of leaf {path!r} are named; a rule of the mask says that")
    numpy: Any = np if isinstance(leaf, np.ndarray) else jnp
    edges = np.flatnonzero(np.diff(chosen, prepend=False))
    pieces = numpy.split(leaf, edges, axis)
    rest, rows = (numpy.concatenate(part, axis=axis) for part in (pieces[::2], pieces[1::2]))
    return Rows(rest, rows, tuple(edges.tolist()), axis)
