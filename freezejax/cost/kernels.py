"""A program as XLA's CPU compiler runs it: which operations share one kernel, and so which arrays reach memory.

The rules are those of XLA's simplification and instruction fusion. What only gives an array another shape is no
operation; equal operations are one; a matmul reads a transposed matrix where it lies. An elementwise operation is
computed inside the kernels of its readers, in each of them again, unless it is expensive and has several, or joins
several full arrays and one of its readers needs it in memory anyway.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from freezejax.cost.program import Array, Equation, FlatProgram

# What needs no work: the result is the operand under another name.
_RENAMED = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient", "name"}
_RENAMED |= {"sharding_constraint", "reshard", "random_wrap", "random_unwrap"}
_GENERATED = {"broadcast_in_dim", "iota"}  # always made where they are read
_EXPENSIVE = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erf_inv", "erfc", "sin", "cos"}
_EXPENSIVE |= {"div", "rem", "pow", "sqrt", "rsqrt", "cbrt", "gather", "concatenate"}
# Kernels of their own: they take nothing in, and their results reach memory. So does everything with a body.
_ALONE: tuple[str, ...] = (
    "dot_general",
    "conv",
    "reduce",
    "arg",
    "cum",
    "scatter",
    "sort",
    "random",
    "threefry",
    "rng",
    "fft",
    "top_k",
)
_ALONE += ("fft", "top_k", "cholesky", "lu", "qr", "geqrf", "householder", "eig", "svd", "triangular")
# What only a sum reads is made while summing.
_INTO_REDUCTIONS = {"mul", "square", "integer_pow", "abs", "add", "sub", "neg", "exp", "max", "min"}


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Operations that run together."""

    outputs: tuple[Array, ...]
    reads: tuple[Array, ...]
    equations: tuple[Equation, ...]

    @property
    def in_place(self) -> bool:
        """Whether it may write its result over an operand."""
        return not any(map(stands_alone, self.equations))


def stands_alone(equation: Equation) -> bool:
    """Whether an operation is a kernel of its own, and what it reads and makes is in memory."""
    return bool(equation.bodies) or equation.primitive.startswith(_ALONE)


def simplify(program: FlatProgram) -> FlatProgram:
    """The program without renamed arrays, repeated equations and transposed matrices before matmuls."""
    same: dict[Array, Array] = {}
    seen: dict[tuple[object, ...], Equation] = {}
    made: dict[Array, Equation] = {}
    for equation in program.equations:
        inputs = tuple(same.get(array, array) for array in equation.inputs)
        if equation.primitive in _RENAMED or _changes_nothing(equation, inputs):
            same.update(zip(equation.outputs, inputs, strict=False))
            continue
        if equation.primitive == "dot_general" and not equation.params["dimension_numbers"][1][0]:
            inputs = tuple(_as_matrix(_untransposed(array, made), made, seen) for array in inputs)
        operands = tuple(array if array.literal is None else array.literal for array in inputs)
        key = (equation.primitive, operands, repr(sorted(equation.params.items())))
        if not equation.bodies and key in seen:
            same.update(zip(equation.outputs, seen[key].outputs, strict=True))
            continue
        seen[key] = dataclasses.replace(equation, inputs=inputs)
        made |= dict.fromkeys(equation.outputs, seen[key])
    outputs = tuple(same.get(array, array) for array in program.outputs)
    return _without_barriers(FlatProgram(program.inputs, outputs, tuple(seen.values())).pruned())


def _changes_nothing(equation: Equation, inputs: tuple[Array, ...]) -> bool:
    return (
        equation.primitive in ("mul", "div") and inputs[1].literal == 1 and inputs[0].shape == equation.outputs[0].shape
    )


def _without_barriers(program: FlatProgram) -> FlatProgram:
    """What stands behind a barrier is not equal to what stands before it, but lies in the same place."""
    same: dict[Array, Array] = {}
    equations = []
    for equation in program.equations:
        inputs = tuple(same.get(array, array) for array in equation.inputs)
        if equation.primitive == "optimization_barrier":
            same.update(zip(equation.outputs, inputs, strict=True))
        else:
            equations.append(dataclasses.replace(equation, inputs=inputs))
    return FlatProgram(program.inputs, tuple(same.get(array, array) for array in program.outputs), tuple(equations))


def fuse(program: FlatProgram) -> list[Kernel]:
    """The kernels of a program, see the head of this file.

    >>> import jax.numpy as jnp
    >>> from freezejax.cost.program import trace
    >>> found = fuse(trace(lambda x: jnp.sum(jnp.exp(x) * x - 1.0), jnp.ones(3)))
    >>> [[equation.primitive for equation in kernel.equations] for kernel in found]
    [['reduce_sum', 'sub', 'mul', 'exp']]
    """
    program = simplify(program)
    made = {array: equation for equation in program.equations for array in equation.outputs}
    absorbed = dict(_absorbed(program, made))
    stored, inlined = _places(program, made, absorbed)
    return list(_kernels(program, made, absorbed, stored, inlined))


def _untransposed(array: Array, made: Mapping[Array, Equation]) -> Array:
    while array in made and made[array].primitive == "transpose":
        (array,) = made[array].inputs
    return array


def _as_matrix(array: Array, made: dict[Array, Equation], seen: dict[tuple[object, ...], Equation]) -> Array:
    """What a matmul reads: a cheap array of more axes than two is computed for it as a matrix, apart from others."""
    if len(array.shape) < 3 or array not in made or stands_alone(made[array]) or not _cheap_again(made[array], made):
        return array
    matrix = Equation("matrix", (array,), (Array((array.size,), array.itemsize),), {})
    found = seen.setdefault(("matrix", array), matrix)
    made[found.outputs[0]] = found
    return found.outputs[0]


def _readers(program: FlatProgram) -> dict[Array, list[Equation]]:
    found: dict[Array, list[Equation]] = defaultdict(list)
    for equation in program.equations:
        for array in dict.fromkeys(equation.inputs):
            found[array].append(equation)
    return found


def _absorbed(program: FlatProgram, made: Mapping[Array, Equation]) -> Iterator[tuple[Equation, list[Equation]]]:
    """What is computed inside a reduction: `(reduction, operations)`."""
    readers, outputs = _readers(program), set(program.outputs)

    def inside(array: Array) -> Iterator[Equation]:
        equation = made.get(array)
        if equation is None or equation.primitive not in _INTO_REDUCTIONS:
            return
        if len(readers[array]) == 1 and array not in outputs:
            yield equation
            for operand in equation.inputs:
                if operand.size == array.size:
                    yield from inside(operand)

    for equation in program.equations:
        if equation.primitive.startswith("reduce"):
            yield equation, list(inside(equation.inputs[0]))


def _places(
    program: FlatProgram, made: Mapping[Array, Equation], absorbed: Mapping[Equation, list[Equation]]
) -> tuple[set[Array], set[Array]]:
    """Arrays that reach memory, and those that their readers compute for themselves; an array may be both."""
    readers, outputs, taken = (
        _readers(program),
        set(program.outputs),
        {part for parts in absorbed.values() for part in parts},
    )
    stored, inlined, homes = set[Array](), set[Array](), dict[Array, set[Array]]()
    for equation in reversed(program.equations):
        if equation in taken:
            continue
        for array in equation.outputs:
            users = readers[array]
            alone = [user for user in users if user in taken or stands_alone(user)]
            home = {root for user in users if user not in alone for out in user.outputs for root in homes[out]}
            needed = array in outputs or bool(alone)
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
    if equation.primitive in _GENERATED:
        return True
    if equation.primitive in _EXPENSIVE:
        return False
    size = max(array.size for array in equation.outputs)
    full = {array for array in equation.inputs if array.size >= size}
    return sum(array not in made or made[array].primitive not in _GENERATED for array in full) <= 1


def _kernels(
    program: FlatProgram,
    made: Mapping[Array, Equation],
    absorbed: Mapping[Equation, list[Equation]],
    stored: set[Array],
    inlined: set[Array],
) -> Iterator[Kernel]:
    for equation in program.equations:
        if stands_alone(equation):
            parts = (equation, *absorbed.get(equation, ()))
            within = {array for part in parts for array in part.outputs}
            inputs = [array for part in parts for array in part.inputs if array not in within]
            yield Kernel(equation.outputs, _in_memory(inputs), parts)
            continue
        for array in equation.outputs:
            if array in stored:
                loop: dict[Equation, None] = {equation: None}
                reads: dict[Array, None] = {}
                _collect(equation, made, inlined, loop, reads)
                yield Kernel((array,), _in_memory(reads), tuple(loop))


def _collect(
    equation: Equation,
    made: Mapping[Array, Equation],
    inlined: set[Array],
    parts: dict[Equation, None],
    reads: dict[Array, None],
) -> None:
    for array in equation.inputs:
        if array not in inlined:
            reads[array] = None
        elif made[array] not in parts:
            parts[made[array]] = None
            _collect(made[array], made, inlined, parts, reads)


def _in_memory(arrays: Iterable[Array]) -> tuple[Array, ...]:
    return tuple(dict.fromkeys(array for array in arrays if array.literal is None))
