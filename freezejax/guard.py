"""What an optax transformation is shown, and which parameter each leaf of its state belongs to."""

import collections
import sys
from collections.abc import Callable
from typing import Any

import jax
import optax

from freezejax.errors import UserError
from freezejax.paths import PyTree, path_string
from freezejax.rows import Rows

KeyPath = tuple[Any, ...]


def fields(tree: PyTree) -> PyTree:
    """A callable tree as the dict of its fields, an nnx state as the dict of its values; any other tree as it is.

    optax calls a mask or a tree of labels that is callable, and a module with `__call__` is both. Leaf paths stay the
    same. `nnx.Optimizer` shows variables at init and their values at update: both, and their masks, are the same dict.
    """
    nnx: Any = sys.modules.get("flax.nnx")  # the core does not import it: whoever has such a state has it, too
    if nnx is not None and isinstance(tree, nnx.State):
        return nnx.to_pure_dict(tree)
    if not callable(tree):
        return tree
    children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    return collections.OrderedDict((path_string(path), child) for path, child in children)


def guarded(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx`, which sees the `fields` of a callable tree and refuses `Rows` of an array that it multiplies as a matrix.

    Muon does: it orthogonalizes a matrix as a whole, and has no update for some of its rows.
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


def state_owners(tx: optax.GradientTransformation, params: PyTree, state: Any) -> list[int | None]:
    """For every leaf of an optimizer state, the number of the parameter leaf it belongs to, or None.

    A state leaf belongs to the parameter with which it vanishes from `tx.init`; counts and schedules belong to
    none. Nearly every state holds trees like the parameters, so that the owner's path stands in the path of the state
    leaf; where it does not, owners are read off in binary, by log2 of the number of leaves calls of `tx.init`.
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
