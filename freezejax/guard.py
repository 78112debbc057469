"""What an optax transformation is shown: no tree that it would call, no part of a matrix that it would mix."""

import collections
import sys
from typing import Any

import jax
import optax

from freezejax.errors import UserError
from freezejax.paths import PyTree, path_string
from freezejax.rows import Rows


def fields(tree: PyTree) -> PyTree:
    """A callable tree as the dict of its fields, an nnx state as the dict of its values; any other tree as it is.

    optax calls a mask or a tree of labels that is callable, and a module with `__call__` is both. Leaf paths stay the
    same. `nnx.Optimizer` shows variables at init and their values at update: both, and their masks, are the same dict.

    >>> from flax import nnx
    >>> fields(nnx.State({"w": nnx.Param(1)}))
    {'w': 1}
    """
    nnx: Any = sys.modules.get("flax.nnx")  # the core does not import it: whoever has such a state has it, too
    if nnx is not None and isinstance(tree, nnx.State):
        return nnx.to_pure_dict(tree)
    if not callable(tree):
        return tree
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return collections.OrderedDict((path_string(path), child) for path, child in children)


def guarded(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx`, which sees the `fields` of a callable tree and refuses parts of an array that it would mix.

    Raises:
      UserError: (at update) `tx` multiplies a part made by `freezejax.rows` as a matrix. Muon does: it
        orthogonalizes a matrix as a whole, and has no update for some of its rows.
    """
    tx = optax.with_extra_args_support(tx)
    checked = set()  # structures, so that a loop that is not compiled looks once

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        shown, shown_params = fields(updates), fields(params)
        structure = jax.tree.structure(shown)
        if structure not in checked:
            _check_rows_stay_apart(tx, shown, extra)
            checked.add(structure)
        new, state = tx.update(shown, state, shown_params, **extra)
        if shown is not updates:
            new = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(new))
        return new, state

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(fields(params)), update)


def _check_rows_stay_apart(tx: Any, tree: PyTree, extra: dict[str, Any]) -> None:
    is_rows = lambda node: isinstance(node, Rows)  # noqa: E731
    nodes, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_rows)
    for at, (path, node) in enumerate(nodes):
        if not is_rows(node):
            continue
        alone = jax.tree.unflatten(structure, [node if i == at else optax.MaskedNode() for i in range(len(nodes))])

        def one_update(part: PyTree) -> PyTree:
            return tx.update(part, tx.init(part), part, **extra)[0]

        if _has_matrix_product(jax.make_jaxpr(one_update)(alone).jaxpr):
            raise UserError(
                f"rows: the optimizer multiplies {path_string(path)!r} as a matrix (Muon does), so it has no update "
                "for some of its rows; give this leaf an optimizer that works element by element"
            )


def _has_matrix_product(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        # A dot product of vectors is a norm of the whole tree, which is no business of one leaf.
        if equation.primitive.name == "dot_general" and any(value.aval.ndim > 1 for value in equation.invars):
            return True
        inner = (getattr(param, "jaxpr", param) for param in jax.tree.leaves(equation.params))
        if any(_has_matrix_product(program) for program in inner if hasattr(program, "eqns")):
            return True
    return False
