"""How the result of one operation is split over a mesh, given how its operands are: one rule per kind of operation."""

from collections.abc import Callable, Sequence
from typing import Any

from freezejax.cost.program import Equation

Axes = tuple[str, ...]
Spec = tuple[Axes, ...]  # per dimension the mesh axes that split it


def split_result(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    """How the results are split, and the axes over which they are sums in parts.

    Args:
      equation: an operation without a body.
      specs: of its operands.

    >>> from freezejax.cost.program import Array
    >>> x, w, y = Array((8, 4), 4), Array((4, 2), 4), Array((8, 2), 4)
    >>> dot = Equation("dot_general", (x, w), (y,), {"dimension_numbers": (((1,), (0,)), ((), ()))})
    >>> split_result(dot, [(("data",), ("tensor",)), (("tensor",), ())])
    ((('data',), ()), frozenset({'tensor'}))
    """
    name = equation.primitive
    rule = _RULES.get("reduce" if name.startswith(("reduce_", "arg")) else name)
    return (_elementwise(equation, specs), frozenset()) if rule is None else rule(equation, specs)


def spec_of_sharding(sharding: Any, rank: int) -> Spec:
    """The spec of a named sharding, one entry per dimension.

    >>> import jax
    >>> mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"))
    >>> spec_of_sharding(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))), 2)
    (('data', 'fsdp'), ())
    """
    entries = [() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in sharding.spec]
    return (*entries, *((),) * (rank - len(entries)))


def _elementwise(equation: Equation, specs: Sequence[Spec]) -> Spec:
    """Also of slices and the like: a dimension is split as in the first operand that splits it."""
    out = equation.outputs[0]
    found: list[Axes] = [()] * len(out.shape)
    for array, spec in zip(equation.inputs, specs, strict=True):
        if len(array.shape) == len(out.shape):
            found = [old or (new if n != 1 else ()) for old, new, n in zip(found, spec, array.shape, strict=True)]
    return tuple(found)


def _constraint(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    sharding = equation.params["sharding"]
    return spec_of_sharding(sharding, len(equation.outputs[0].shape)), frozenset()


def _dot(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    (contract, batch), (left, right) = equation.params["dimension_numbers"], specs
    shared = [left[i] or right[j] for i, j in zip(*batch, strict=True)]
    free = [
        axes
        for spec, done, dims in zip(specs, batch, contract, strict=True)
        for i, axes in enumerate(spec)
        if i not in done and i not in dims
    ]
    summed = {axis for i, j in zip(*contract, strict=True) for axis in left[i] or right[j]}
    return (*shared, *free), frozenset(summed)


def _reduce(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    gone = equation.params["axes"]
    summed = {axis for i in gone for axis in specs[0][i]}
    return tuple(axes for i, axes in enumerate(specs[0]) if i not in gone), frozenset(summed)


def _broadcast(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    (array, *_), out = equation.inputs, equation.outputs[0]
    found: list[Axes] = [()] * len(out.shape)
    for i, j in enumerate(equation.params["broadcast_dimensions"]):
        if array.shape[i] == out.shape[j]:
            found[j] = specs[0][i]
    return tuple(found), frozenset()


def _transpose(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    return tuple(specs[0][i] for i in equation.params["permutation"]), frozenset()


def _reshape(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    """Dimensions are compared from the left, product by product; of those that are joined the first keeps its axes."""
    old, new = equation.inputs[0].shape, equation.outputs[0].shape
    found: list[Axes] = [()] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        start, split = j, [specs[0][i]]
        before, after = old[i], new[j]
        while before != after:
            if before < after:
                i += 1
                before *= old[i]
                split.append(specs[0][i])
            else:
                j += 1
                after *= new[j]
        wide = next((k for k in range(start, j + 1) if new[k] > 1), start)
        found[wide] = next((axes for axes in split if axes), ())
        i, j = i + 1, j + 1
    return tuple(found), frozenset()


def _gather(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    """Rows of a table: split as the indices are, and along what is taken whole as the table is."""
    numbers, table = equation.params["dimension_numbers"], equation.inputs[0]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(table.shape)) if i not in gone]
    rows, columns = iter(specs[1]), iter(kept)
    found = []
    for i in range(len(equation.outputs[0].shape)):
        if i in numbers.offset_dims:
            column = next(columns)
            whole = equation.params["slice_sizes"][column] == table.shape[column]
            found.append(specs[0][column] if whole else ())
        else:
            found.append(next(rows))
    return tuple(found), frozenset()


def _scatter_add(equation: Equation, specs: Sequence[Spec]) -> tuple[Spec, frozenset[str]]:
    there = {axis for axes in specs[0] for axis in axes}
    return specs[0], frozenset(axis for axes in specs[2] for axis in axes) - there


_RULES: dict[str, Callable[[Equation, Sequence[Spec]], tuple[Spec, frozenset[str]]]] = {
    "sharding_constraint": _constraint,
    "dot_general": _dot,
    "reduce": _reduce,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "gather": _gather,
    "scatter-add": _scatter_add,
}
