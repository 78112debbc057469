"""How the result of one operation is split over a mesh, given how its operands are: one rule per kind of operation."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
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
    name = "reduce" if equation.primitive.startswith(("reduce_", "arg")) else equation.primitive
    summed = set[str]()
    if name == "dot_general":
        contract, _ = equation.params["dimension_numbers"]
        summed.update(*(specs[0][i] or specs[1][j] for i, j in zip(*contract, strict=True)))
    elif name == "reduce":
        summed.update(*(specs[0][i] for i in equation.params["axes"]))
    elif name == "scatter-add":
        summed = set(chain(*specs[2])).difference(*specs[0])
    return tuple(_RULES.get(name, _elementwise)(equation, specs)), frozenset(summed)


def spec_of(partition: Iterable[Any], rank: int) -> Spec:
    """The spec of a `PartitionSpec`, one entry per dimension.

    >>> import jax
    >>> spec_of(jax.sharding.PartitionSpec(("data", "fsdp")), 2)
    (('data', 'fsdp'), ())
    """
    entries = [() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in partition]
    return (*entries, *((),) * (rank - len(entries)))


def _elementwise(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
    """Also of slices and the like: a dimension is split as in the first operand that splits it."""
    out = equation.outputs[0]
    found: list[Axes] = [()] * len(out.shape)
    for array, spec in zip(equation.inputs, specs, strict=True):
        if len(array.shape) == len(out.shape):
            found = [old or (new if n != 1 else ()) for old, new, n in zip(found, spec, array.shape, strict=True)]
    return found


def _dot(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
    (contract, batch), (left, right) = equation.params["dimension_numbers"], specs
    shared = [left[i] or right[j] for i, j in zip(*batch, strict=True)]
    for spec, *gone in zip(specs, batch, contract, strict=True):
        shared += [axes for i, axes in enumerate(spec) if i not in chain(*gone)]
    return shared


def _reduce(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
    return (axes for i, axes in enumerate(specs[0]) if i not in equation.params["axes"])


def _broadcast(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
    (array, *_), out = equation.inputs, equation.outputs[0]
    found: list[Axes] = [()] * len(out.shape)
    for i, j in enumerate(equation.params["broadcast_dimensions"]):
        if array.shape[i] == out.shape[j]:
            found[j] = specs[0][i]
    return found


def _reshape(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
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
    return found


def _gather(equation: Equation, specs: Sequence[Spec]) -> Iterable[Axes]:
    """Rows of a table: split as the indices are, and along what is taken whole as the table is."""
    numbers, table, indices = equation.params["dimension_numbers"], equation.inputs[0], iter(specs[1])
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    columns = (i for i in range(len(table.shape)) if i not in gone)
    for i in range(len(equation.outputs[0].shape)):
        if i in numbers.offset_dims:
            column = next(columns)
            yield specs[0][column] if equation.params["slice_sizes"][column] == table.shape[column] else ()
        else:
            yield next(indices)


_RULES: dict[str, Callable[[Equation, Sequence[Spec]], Iterable[Axes]]] = {
    "sharding_constraint": lambda e, specs: spec_of(e.params["sharding"].spec, len(specs[0])),
    "dot_general": _dot,
    "reduce": _reduce,
    "broadcast_in_dim": _broadcast,
    "transpose": lambda e, specs: (specs[0][i] for i in e.params["permutation"]),
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "gather": _gather,
    "scatter-add": lambda e, specs: specs[0],
}
