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
from freezejax.paths import PyTree, leaf_paths, nearest, path_string

Which = slice | Sequence[int] | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What stands in the parameters where one array is split in two leaves: `rows`, and the `rest` of it.

    >>> Rows(jnp.zeros((3, 2)), jnp.ones((1, 2)), ((3, 4),), 0).whole().shape
    (4, 2)
    """

    rest: Any
    rows: Any
    runs: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})  # [start, stop) of the rows
    axis: int = dataclasses.field(metadata={"static": True})

    def whole(self) -> jax.Array:
        """The array, each row in its place."""
        count = self.rest.shape[self.axis] + self.rows.shape[self.axis]
        pieces, position, rest_at, rows_at = [], 0, 0, 0
        for start, stop in (*self.runs, (count, count)):
            gap, run = start - position, stop - start
            pieces.append(_cut(self.rest, rest_at, rest_at + gap, self.axis))
            pieces.append(_cut(self.rows, rows_at, rows_at + run, self.axis))
            position, rest_at, rows_at = stop, rest_at + gap, rows_at + run
        return jnp.concatenate([piece for piece in pieces if piece.shape[self.axis]], axis=self.axis)


def rows(params: PyTree, rules: Sequence[tuple[str, Which]], *, axis: int = 0) -> PyTree:
    """Splits arrays in two leaves each, so that a mask can say of some of their rows whether they train.

    The leaf `embed` becomes `embed/rows`, what `rules` name, and `embed/rest`. Masks, schedules, gradients,
    optimizer state and `describe` treat the two like any other leaves: freeze `embed/rest` and the other rows keep
    every bit and have neither gradient nor state. Put arrays together where they are used, inside the loss, with
    `join_rows`.

    Statistics of a leaf are those of the part: the factored moments of Adafactor, the norm of LAMB. What
    multiplies a leaf as a matrix (Muon) is refused by `freeze` and `scheduled_freeze`.

    Args:
      params: arrays of any rank; a new tree is returned.
      rules: ordered `(pattern, which)` pairs; the first pattern that matches a leaf path wins, and other leaves
        stay whole. `which` is what NumPy takes as an index along `axis`: a slice, row numbers, bools.
      axis: 0 for the rows of an embedding [vocabulary, features], 1 for the columns of a kernel [in, out].

    Raises:
      UserError: a pattern matches no leaf, a leaf has no such axis or rows, or none or all of its rows are named.

    >>> params = {"embed": jnp.arange(8.0).reshape(4, 2), "head": jnp.ones(2)}
    >>> split = rows(params, [("embed", slice(-1, None))])
    >>> leaf_paths(split)
    ['embed/rest', 'embed/rows', 'head']
    >>> split["embed"].rows
    Array([[6., 7.]], dtype=float32)
    >>> bool((join_rows(split)["embed"] == params["embed"]).all())
    True
    """
    paths = leaf_paths(params)
    matched, which_of = matcher(paths), dict[str, Which]()
    for pattern, which in rules:
        found = matched(pattern)
        if not found:
            raise UserError(f"rows: {pattern!r} matches no leaf; {nearest(pattern, paths)}")
        for path in found:
            which_of.setdefault(path, which)
    leaves = zip(paths, jax.tree.leaves(params), strict=True)
    split = [_split(path, leaf, which_of[path], axis) if path in which_of else leaf for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), split)


def join_rows(params: PyTree) -> PyTree:
    """Inverse of `rows`: every split array whole again. Call it inside the loss, on the whole parameters.

    It holds one more copy of the array while the loss is computed, and the gradient of the whole array is formed
    before its rows are cut out of it: what is saved is the optimizer state, and the gradient that is kept.

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
    try:
        chosen = np.unique(np.arange(count)[which if isinstance(which, slice) else np.asarray(which)])
    except IndexError:
        raise UserError(
            f"rows: {which!r} is no index into the {count} rows of leaf {path!r} along axis {axis}"
        ) from None
    if not 0 < len(chosen) < count:
        named = "all" if len(chosen) else "none"
        raise UserError(f"rows: {named} of the {count} rows of leaf {path!r} are named; a rule of the mask says that")
    breaks = np.flatnonzero(np.diff(chosen) > 1) + 1
    runs = tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(chosen, breaks))
    gaps = zip((0, *(stop for _, stop in runs)), (*(start for start, _ in runs), count), strict=True)
    return Rows(_gather(leaf, gaps, axis), _gather(leaf, runs, axis), runs, axis)


def _gather(leaf: Any, runs: Any, axis: int) -> Any:
    concatenate = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
    return concatenate([_cut(leaf, start, stop, axis) for start, stop in runs if stop > start], axis=axis)


def _cut(leaf: Any, start: int, stop: int, axis: int) -> Any:
    return leaf[(*itertools.repeat(slice(None), axis), slice(start, stop))]
