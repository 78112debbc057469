"""A program as XLA's CPU compiler runs it: which operations share one kernel, and so which arrays reach memory.

The rules are those of XLA's simplification and instruction fusion. What only gives an array another shape is no
operation; equal operations are one; a matmul reads a transposed matrix where it lies. An elementwise operation is
computed inside the kernels of its readers, in each of them again, unless it is expensive and has several, or joins
several full arrays and one of its readers needs it in memory anyway.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from freezejax.cost.program import Array, Equation, FlatProgram

# What needs no work: the result is the operand under another name.
_RENAMED = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient", "name"}
_RENAMED |= {"sharding_constraint", "reshard", "random_wrap", "random_unwrap"}
_GENERATED = {"broadcast_in_dim", "iota"}  # always made where they are read
_EXPENSIVE = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erf_inv", "erfc", "sin", "cos"}
_EXPENSIVE |= {"div", "rem", "pow", "sqrt", "rsqrt", "cbrt", "gather", "concatenate"}
# Kernels of their own: they take nothing in, and their results reach memory. So does everything with a body.
_ALONE = re.compile(
    "dot_general|conv|reduce|arg|cum|scatter|sort|random|threefry|rng|fft|top_k"
    "|psum|all_gather|cholesky|lu|qr|geqrf|householder|eig|svd|triangular"
)
# What only a sum reads is made while summing.
_INTO_REDUCTIONS = {"mul", "square", "integer_pow", "abs", "add", "sub", "neg", "exp", "max", "min"}


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Operations that run together."""

    outputs: tuple[Array, ...]
    reads: tuple[Array, ...]
    equations: tuple[Equation, ...]


def stands_alone(equation: Equation) -> bool:
    """Whether an operation is a kernel of its own, and what it reads and makes is in memory."""
    return bool(equation.bodies) or _ALONE.match(equation.primitive) is not None


def simplify(program: FlatProgram) -> FlatProgram:
    """The program without renamed arrays, repeated equations and transposed matrices before matmuls."""
    same: dict[Array, Array] = {}
    seen: dict[tuple[object, ...], Equation] = {}
    made: dict[Array, Equation] = {}
    pinned = _pinned(program)
    for equation in program.equations:
        inputs = tuple(same.get(array, array) for array in equation.inputs)
        if equation.primitive in _RENAMED or _changes_nothing(equation, inputs):
            same.update(zip(equation.outputs, inputs, strict=False))
            continue
        if (batch := _batch_sizes(equation)) in ([], [1]):
            inputs = tuple(_untransposed(array, made) for array in inputs)
            free = set(inputs) - pinned if batch else set[Array]()  # XLA reshapes those first, which fuses
            squared = bool(free) and inputs[0] is inputs[1]  # a matrix by its own transpose: XLA makes both
            inputs = tuple(_as_matrix(x, made, seen, x in free, squared and i == 1) for i, x in enumerate(inputs))
        key: tuple[object, ...] = (equation,)  # a loop is equal to no other
        if not equation.bodies:
            operands = tuple(array if array.literal is None else array.literal for array in inputs)
            key = (equation.primitive, operands, repr(sorted(equation.params.items())))
            if key in seen:
                same.update(zip(equation.outputs, seen[key].outputs, strict=True))
                continue
        seen[key] = dataclasses.replace(equation, inputs=inputs)
        made |= dict.fromkeys(equation.outputs, seen[key])
    return _without_barriers(FlatProgram(program.inputs, program.outputs, tuple(seen.values())).renamed(same).pruned())


def _without_barriers(program: FlatProgram) -> FlatProgram:
    """What stands behind a barrier is not equal to what stands before it, but lies in the same place."""
    same: dict[Array, Array] = {}
    kept = list[Equation]()
    for equation in program.equations:
        if equation.primitive == "optimization_barrier":
            pairs = zip(equation.outputs, equation.inputs, strict=True)
            same |= {output: same.get(array, array) for output, array in pairs}
        else:
            kept.append(equation)
    return FlatProgram(program.inputs, program.outputs, tuple(kept)).renamed(same)


def _changes_nothing(equation: Equation, inputs: tuple[Array, ...]) -> bool:
    by_one = equation.primitive in ("mul", "div") and inputs[1].literal == 1
    return by_one and inputs[0].shape == equation.outputs[0].shape


def _batch_sizes(equation: Equation) -> list[int] | None:
    """Of the batch axes of a matmul; None of another operation."""
    if equation.primitive != "dot_general":
        return None
    axes, _ = equation.params["dimension_numbers"][1]
    return [equation.inputs[0].shape[axis] for axis in axes]


def _pinned(program: FlatProgram) -> set[Array]:
    """Arrays that something else reads in memory than a matmul with one batch axis of size 1, which XLA drops."""
    found = set(program.outputs)
    for equation in reversed(program.equations):
        renames = equation.primitive in _RENAMED or equation.primitive == "transpose"
        reads = stands_alone(equation) and _batch_sizes(equation) != [1]
        if reads or (renames and not found.isdisjoint(equation.outputs)):
            found.update(equation.inputs)
    return found


def _untransposed(array: Array, made: Mapping[Array, Equation]) -> Array:
    while array in made and made[array].primitive == "transpose":
        (array,) = made[array].inputs
    return array


def _as_matrix(
    array: Array, made: dict[Array, Equation], seen: dict[tuple[object, ...], Equation], free: bool, transposed: bool
) -> Array:
    """What a matmul reads: an array of more axes than two is computed for it as a matrix, if that is cheap or free."""
    if len(array.shape) < 3 or array not in made or stands_alone(made[array]):
        return array
    if not free and not _cheap_again(made[array], made):
        return array
    matrix = Equation("matrix", (array,), (Array((array.size,), array.itemsize),), {})
    found = seen.setdefault(("matrix", array, transposed), matrix)
    made[found.outputs[0]] = found
    return found.outputs[0]


@functools.lru_cache(maxsize=64)  # FLOPs and memory are both read off the kernels
def fuse(program: FlatProgram) -> tuple[Kernel, ...]:
    """The kernels of a program, see the head of this file.

    >>> import jax.numpy as jnp
    >>> from freezejax.cost.program import trace
    >>> found = fuse(trace(lambda x: jnp.sum(jnp.exp(x) * x - 1.0), jnp.ones(3)))
    >>> [[equation.primitive for equation in kernel.equations] for kernel in found]
    [['reduce_sum', 'sub', 'mul', 'exp']]
    """
    program = simplify(program)
    made = {array: equation for equation in program.equations for array in equation.outputs}
    readers: dict[Array, list[Equation]] = {array: [] for array in made}
    for equation in program.equations:
        for array in made.keys() & equation.inputs:
            readers[array].append(equation)
    absorbed = {e: _absorbed(e, made, readers, program) for e in program.equations if e.primitive.startswith("reduce")}
    stored, inlined = _places(program, made, readers, {part for parts in absorbed.values() for part in parts})
    kernels = []
    for equation in program.equations:
        if stands_alone(equation):
            kernels.append(_kernel(equation.outputs, [equation, *absorbed.get(equation, ())]))
        else:
            computed = _computed_with(equation, made, inlined)
            kernels += [_kernel((array,), computed) for array in equation.outputs if array in stored]
    return tuple(kernels)


def _kernel(outputs: tuple[Array, ...], equations: Sequence[Equation]) -> Kernel:
    within = {array for equation in equations for array in equation.outputs}
    reads = dict.fromkeys(array for equation in equations for array in equation.inputs if array not in within)
    return Kernel(outputs, tuple(array for array in reads if array.literal is None), tuple(equations))


def _absorbed(
    reduction: Equation, made: Mapping[Array, Equation], readers: Mapping[Array, list[Equation]], program: FlatProgram
) -> list[Equation]:
    """What is computed inside a reduction."""
    found, arrays = list[Equation](), [reduction.inputs[0]]
    for array in arrays:  # which grows
        equation = made.get(array)
        if equation is None or equation.primitive not in _INTO_REDUCTIONS:
            continue
        if len(readers[array]) == 1 and array not in program.outputs:
            found.append(equation)
            arrays += [operand for operand in equation.inputs if operand.size == array.size]
    return found


def _computed_with(equation: Equation, made: Mapping[Array, Equation], inlined: set[Array]) -> list[Equation]:
    """The operation, and those whose results it computes for itself."""
    found = [equation]
    for part in found:  # which grows
        sources = dict.fromkeys(made[array] for array in part.inputs if array in inlined)
        found += [source for source in sources if source not in found]
    return found


def _places(
    program: FlatProgram,
    made: Mapping[Array, Equation],
    readers: Mapping[Array, list[Equation]],
    taken: set[Equation],
) -> tuple[set[Array], set[Array]]:
    """Arrays that reach memory, and those that their readers compute for themselves; an array may be both."""
    stored, inlined, homes = set[Array](), set[Array](), dict[Array, set[Array]]()
    for equation in reversed(program.equations):
        if equation in taken:
            continue
        for array in equation.outputs:
            users = readers[array]
            alone = [user for user in users if user in taken or stands_alone(user)]
            home = {root for user in users if user not in alone for out in user.outputs for root in homes[out]}
            needed = array in program.outputs or bool(alone)
            once = not needed and (equation.primitive not in _EXPENSIVE or len(home) == 1)
            if not stands_alone(equation) and (once or _cheap_again(equation, made)):
                inlined.add(array)
                homes[array] = home | ({array} if needed else set())
            else:
                needed, homes[array] = True, {array}
            if needed and equation.primitive not in _GENERATED:
                stored.add(array)
    return stored, inlined


def _cheap_again(equation: Equation, made: Mapping[Array, Equation]) -> bool:
    """Whether making it a second time reads no more memory than its result would take."""
    if equation.primitive in _GENERATED | _EXPENSIVE:
        return equation.primitive in _GENERATED
    size = max(array.size for array in equation.outputs)
    full = {array for array in equation.inputs if array.size >= size}
    return sum(array not in made or made[array].primitive not in _GENERATED for array in full) <= 1
