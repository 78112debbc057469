"""A program on one device of a mesh: the part of every array that it holds, and the bytes that devices exchange.

Where an array lies follows from the arguments' shardings and the program's sharding constraints, operation by operation
in the order of the program. A matmul over a split axis leaves a sum in parts; a constraint, or an operation that is not
linear, adds the parts up. So XLA's partitioner treats programs laid out by `freezejax.sharding`; it can do more.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from freezejax.cost.program import Array, Equation, FlatProgram
from freezejax.cost.splitting import Axes, Spec, spec_of, split_result

KINDS = ("all-gather", "reduce-scatter", "all-reduce")
_BY_NAME = ("all_gather", "psum_scatter", "psum")  # what a program sends that is one device's already

_LINEAR = {"convert_element_type", "neg", "transpose", "reshape", "squeeze", "expand_dims", "copy", "reduce_sum"}
_LINEAR |= {"name", "broadcast_in_dim", "slice", "split", "sharding_constraint"}


class Placement:
    """Cuts a program for one device of a mesh with axes of given sizes, and counts what that device sends."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """Takes the size of every mesh axis."""
        self.sizes = sizes
        self.sent: Counter[str] = Counter()  # bytes per device, by kind, where a group of devices forms a ring
        self._specs: dict[Array, Spec] = {}
        self._parts: dict[Array, frozenset[str]] = {}  # axes over which a value is still to be summed
        self._wanted: dict[Array, Spec] = {}  # by a constraint further on
        self._summed: dict[Array, Spec] = {}  # how a value lies that was in parts where it was computed

    def cut(self, program: FlatProgram, specs: Sequence[Spec]) -> FlatProgram:
        """The part of a program over whole arrays that one device runs; `specs` say how its inputs are split."""
        self._specs |= {array: self._fit(array, spec) for array, spec in zip(program.inputs, specs, strict=True)}
        self._wish(program)
        equations = tuple(self._cut(equation) for equation in program.equations)
        self._sum_up(program.outputs)
        local: dict[Array, Array] = {}

        def part(arrays: Iterable[Array]) -> tuple[Array, ...]:
            return tuple(local.setdefault(array, self._part(array)) for array in arrays)

        cut = [dataclasses.replace(e, inputs=part(e.inputs), outputs=part(e.outputs)) for e in equations]
        return FlatProgram(part(program.inputs), part(program.outputs), tuple(cut))

    def _spec(self, array: Array) -> Spec:
        return self._summed.get(array) or self._specs.get(array, ((),) * len(array.shape))

    def _part(self, array: Array) -> Array:
        spec = self._specs.get(array, ((),) * len(array.shape))
        shape = [n // self._ways(axes) for n, axes in zip(array.shape, spec, strict=True)]
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

    def _wish(self, program: FlatProgram) -> None:
        """What is drawn or generated is made in the shards that a constraint behind it asks for."""
        for equation in reversed(program.equations):
            out = equation.outputs[0]
            if equation.primitive == "sharding_constraint":
                self._wanted[out] = spec_of(equation.params["sharding"].spec, len(out.shape))
            for array in equation.inputs:
                if out in self._wanted and array.shape == out.shape and equation.primitive != "scatter-add":
                    self._wanted.setdefault(array, self._wanted[out])

    def _cut(self, equation: Equation) -> Equation:
        if equation.primitive == "shard_map":
            return self._by_device(equation)
        if equation.bodies:
            return self._loop(equation)
        if equation.primitive in _BY_NAME:
            self._send_by_name(equation)
            return equation
        if equation.primitive == "optimization_barrier":
            for array, out in zip(equation.inputs, equation.outputs, strict=True):
                self._specs[out], self._parts[out] = self._spec(array), self._parts.get(array, frozenset())
            return equation
        passed_on = self._passed_on(equation)
        specs = [self._spec(array) for array in equation.inputs]
        drawn = equation.primitive.startswith("random") or all(array.size == 1 for array in equation.inputs)
        drawn = drawn and not any(map(any, specs))
        spec, parts = split_result(equation, specs)
        if parts and equation.primitive in ("dot_general", "scatter-add"):
            # Devices that would all compute the same sum in parts share its first dimension out among themselves.
            busy = parts.union(*spec, *itertools.chain(*specs))
            spec = (spec[0] + tuple(axis for axis in self.sizes if axis not in busy), *spec[1:])
        for out in equation.outputs:
            self._specs[out] = self._fit(out, self._wanted.get(out, spec) if drawn else spec)
            self._parts[out] = parts | passed_on
        if equation.primitive == "sharding_constraint":
            self._exchange(equation.inputs[0], equation.outputs[0])
        return equation

    def _passed_on(self, equation: Equation) -> frozenset[str]:
        """Parts of the operands that the result has as well; all others are summed up here."""
        arrays = [array for array in equation.inputs if array.literal is None]
        parts = [self._parts.get(array, frozenset()) for array in arrays]
        scaled = equation.primitive in ("mul", "div") and equation.inputs[-1].size == 1 and not any(parts[1:])
        if parts and (scaled or (equation.primitive in _LINEAR and len(set(parts)) == 1)):
            return parts[0]
        self._sum_up(arrays)
        return frozenset()

    def _sum_up(self, arrays: Iterable[Array]) -> None:
        for array in arrays:
            if axes := self._parts.pop(array, frozenset()):
                wanted = self._fit(array, self._wanted.get(array, ((),) * len(array.shape)))
                scattered = axes.intersection(itertools.chain(*wanted))
                self._reduce(self._part(array).nbytes, scattered, axes - scattered)
                if array in self._wanted:
                    self._summed[array] = wanted

    def _exchange(self, array: Array, placed: Array) -> None:
        """What a constraint makes devices send: parts are summed, and what is no longer split is gathered."""
        before, after = (frozenset(itertools.chain(*self._spec(x))) for x in (array, placed))
        parts = self._parts.pop(placed, frozenset())
        self._reduce(self._part(placed).nbytes * self._ways(parts & after), parts & after, parts - after)
        self._gather(array, before - after)

    def _gather(self, array: Array, axes: frozenset[str]) -> None:
        self._send("all-gather", self._part(array).nbytes * self._ways(axes), axes)

    def _reduce(self, size: int, scattered: frozenset[str], summed: frozenset[str]) -> None:
        self._send("reduce-scatter", size, scattered)
        self._send("all-reduce", 2 * size // self._ways(scattered), summed)

    def _send(self, kind: str, size: int, axes: Iterable[str]) -> None:
        ways = self._ways(axes)
        self.sent[kind] += math.ceil(size * (ways - 1) / ways)

    def _send_by_name(self, equation: Equation) -> None:
        """A collective that the program itself asks for, over axes of the mesh."""
        axes = frozenset(equation.params["axes" if equation.primitive == "psum" else "axis_name"])
        if equation.primitive == "all_gather":
            self._send("all-gather", equation.outputs[0].nbytes, axes)
        else:
            scattered = axes if equation.primitive == "psum_scatter" else frozenset[str]()
            self._reduce(sum(array.nbytes for array in equation.inputs), scattered, axes - scattered)

    def _by_device(self, equation: Equation) -> Equation:
        """What `shard_map` runs is one device's already: the arrays of its body have the shapes of parts."""
        self._sum_up(equation.inputs)
        for array, partition in zip(equation.inputs, equation.params["in_specs"], strict=True):
            given, taken = self._spec(array), spec_of(partition, len(array.shape))
            self._gather(array, frozenset(itertools.chain(*given)).difference(*taken))
        for array, partition in zip(equation.outputs, equation.params["out_specs"], strict=True):
            self._specs[array] = spec_of(partition, len(array.shape))
        (body,), inner = equation.bodies, Placement(self.sizes)
        local = inner.cut(body, [((),) * len(array.shape) for array in body.inputs])
        self.sent.update(inner.sent)
        return dataclasses.replace(equation, bodies=(local,))

    def _loop(self, equation: Equation) -> Equation:
        """Carried arrays lie as their first value does, or as the body leaves them; its operands have no parts."""
        self._sum_up(equation.inputs)
        bodies = []
        for body in equation.bodies:
            operands = equation.inputs[len(equation.inputs) - len(body.inputs) :]
            pairs = zip(operands, body.inputs, strict=True)
            specs = [self._spec(array)[len(array.shape) - len(own.shape) :] for array, own in pairs]  # of one round
            inner = Placement(self.sizes)
            bodies.append(inner.cut(body, specs))
            self.sent.update({kind: size * equation.rounds for kind, size in inner.sent.items()})
            for out, own in zip(equation.outputs, body.outputs, strict=False):
                stacked = len(out.shape) - len(own.shape)  # a scan stacks what every round yields
                self._specs[out] = self._fit(out, ((),) * stacked + inner._spec(own))
        return dataclasses.replace(equation, bodies=tuple(bodies))
