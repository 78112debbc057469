"""A program on one device of a mesh: the part of every array that it holds, and the bytes that devices exchange.

Where an array lies follows from the arguments' shardings and the program's sharding constraints, operation by operation
in the order of the program. A matmul over a split axis leaves a sum in parts; a constraint, or an operation that is not
linear, adds the parts up. So XLA's partitioner treats programs laid out by `freezejax.sharding`; it can do more.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from freezejax.cost.program import Array, Equation, Program
from freezejax.cost.splitting import Axes, Spec, spec_of_sharding, split_result

KINDS = ("all-gather", "reduce-scatter", "all-reduce")

_LINEAR = {"convert_element_type", "neg", "transpose", "reshape", "squeeze", "expand_dims", "copy", "reduce_sum", "name"}
_LINEAR |= {"broadcast_in_dim", "slice", "split", "sharding_constraint", "add", "add_any", "sub"}


class Placement:
    """Cuts a program for one device of a mesh with axes of given sizes, and counts what that device sends.

    >>> Placement({"data": 2}).sent
    Counter()
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Takes the size of every mesh axis."""
        self.sizes = sizes
        self.sent: Counter[str] = Counter()  # bytes per device, by kind, where a group of devices forms a ring
        self._specs: dict[Array, Spec] = {}
        self._parts: dict[Array, frozenset[str]] = {}  # axes over which a value is still to be summed
        self._wanted: dict[Array, Spec] = {}

    def cut(self, program: Program, specs: Sequence[Spec]) -> Program:
        """The program of one device.

        Args:
          program: over whole arrays.
          specs: how its inputs are split.
        """
        self._specs |= {array: self._fit(array, spec) for array, spec in zip(program.inputs, specs, strict=True)}
        self._wish(program)
        equations = tuple(self._cut(equation) for equation in program.equations)
        self._sum_up(program.outputs)
        local: dict[Array, Array] = {}

        def part(arrays: Iterable[Array]) -> tuple[Array, ...]:
            return tuple(local.setdefault(array, self._part(array)) for array in arrays)

        cut = [dataclasses.replace(e, inputs=part(e.inputs), outputs=part(e.outputs)) for e in equations]
        return Program(part(program.inputs), part(program.outputs), tuple(cut))

    def _spec(self, array: Array) -> Spec:
        return self._specs.get(array, ((),) * len(array.shape))

    def _part(self, array: Array) -> Array:
        shape = [n // self._ways(axes) for n, axes in zip(array.shape, self._spec(array), strict=True)]
        return dataclasses.replace(array, shape=tuple(shape))

    def _ways(self, axes: Iterable[str]) -> int:
        return math.prod(self.sizes[axis] for axis in axes)

    def _fit(self, array: Array, spec: Spec) -> Spec:
        """Without axes that do not divide the shape, or that an earlier dimension has."""
        used, found = set[str](), list[Axes]()
        for size, axes in zip(array.shape, spec, strict=True):
            axes = axes if used.isdisjoint(axes) and size % self._ways(axes) == 0 else ()
            used.update(axes)
            found.append(axes)
        return tuple(found)

    def _wish(self, program: Program) -> None:
        """What is drawn or generated is made in the shards that a constraint behind it asks for."""
        for equation in reversed(program.equations):
            out = equation.outputs[0]
            if equation.primitive == "sharding_constraint":
                self._wanted[out] = spec_of_sharding(equation.params["sharding"], len(out.shape))
            for array in equation.inputs:
                if out in self._wanted and array.shape == out.shape and equation.primitive != "scatter-add":
                    self._wanted.setdefault(array, self._wanted[out])

    def _cut(self, equation: Equation) -> Equation:
        if equation.bodies:
            return self._loop(equation)
        if equation.primitive == "optimization_barrier":
            for array, out in zip(equation.inputs, equation.outputs, strict=True):
                self._specs[out], self._parts[out] = self._spec(array), self._parts.get(array, frozenset())
            return equation
        specs = [self._spec(array) for array in equation.inputs]
        made = not any(axes for spec in specs for axes in spec) and equation.primitive != "sharding_constraint"
        spec, parts = split_result(equation, specs)
        parts |= self._passed_on(equation)
        for out in equation.outputs:
            wanted = self._wanted.get(out) if made and not any(self._parts.get(i) for i in equation.inputs) else None
            self._specs[out] = self._fit(out, spec if wanted is None or not _is_generated(equation) else wanted)
            self._parts[out] = parts
        if equation.primitive == "sharding_constraint":
            self._exchange(equation.inputs[0], equation.outputs[0])
        return equation

    def _passed_on(self, equation: Equation) -> frozenset[str]:
        """Parts of the operands that the result has as well; all others are summed up here."""
        arrays = [array for array in equation.inputs if array.literal is None]
        parts = [self._parts.get(array, frozenset()) for array in arrays]
        scaled = equation.primitive in ("mul", "div") and equation.inputs[-1].size == 1 and len(set(parts[1:])) < 2
        if equation.primitive in _LINEAR and len(set(parts)) == 1:
            return parts[0]
        if scaled and parts and not any(parts[1:]):
            return parts[0]
        self._sum_up(arrays)
        return frozenset()

    def _sum_up(self, arrays: Iterable[Array]) -> None:
        for array in arrays:
            if axes := self._parts.pop(array, frozenset()):
                self._send("all-reduce", 2 * self._bytes(array), axes)

    def _exchange(self, array: Array, placed: Array) -> None:
        """What a constraint makes devices send: parts are summed, and what is no longer split is gathered."""
        before, after = self._axes(array), self._axes(placed)
        parts = self._parts.pop(placed, frozenset())
        if scattered := parts & after:
            self._send("reduce-scatter", self._bytes(placed) * self._ways(scattered), scattered)
        if summed := parts - after:
            self._send("all-reduce", 2 * self._bytes(placed), summed)
        if gathered := before - after:
            self._send("all-gather", self._bytes(array) * self._ways(gathered), gathered)

    def _axes(self, array: Array) -> frozenset[str]:
        return frozenset(axis for axes in self._spec(array) for axis in axes)

    def _bytes(self, array: Array) -> int:
        return self._part(array).size * array.itemsize

    def _send(self, kind: str, size: int, axes: Iterable[str]) -> None:
        ways = self._ways(axes)
        self.sent[kind] += math.ceil(size * (ways - 1) / ways)

    def _loop(self, equation: Equation) -> Equation:
        """Carried arrays lie as their first value does, or as the body leaves them; its operands have no parts."""
        self._sum_up(equation.inputs)
        carried = equation.params.get("num_carry", len(equation.outputs))
        bodies = []
        for body in equation.bodies:
            operands = equation.inputs[len(equation.inputs) - len(body.inputs) :]
            specs = [self._spec(array)[len(array.shape) - len(own.shape) :] for array, own in zip(operands, body.inputs, strict=True)]
            inner = Placement(self.sizes)
            bodies.append(inner.cut(body, specs))
            self.sent.update({kind: size * equation.rounds for kind, size in inner.sent.items()})
            for index, (out, own) in enumerate(zip(equation.outputs, body.outputs, strict=False)):
                lead = 1 if index >= carried else 0
                self._specs[out] = self._fit(out, ((),) * lead + inner._spec(own))
        return dataclasses.replace(equation, bodies=tuple(bodies))


def _is_generated(equation: Equation) -> bool:
    return all(array.size == 1 or array.literal is not None for array in equation.inputs) or equation.primitive.startswith("random")
