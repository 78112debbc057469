"""The equations of a step, read from its jaxpr: calls written out, loops with their bodies, dead code left out."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from jax.interpreters import partial_eval

# Where a loop has its bodies, which stay programs of their own, as does what a device of a mesh runs by itself; every
# other call is written out.
_LOOPS = {"scan": "jaxpr", "while": "body_jaxpr", "cond": "branches", "shard_map": "jaxpr"}
_NAMES = {"reduce_scatter": "psum_scatter"}  # as jax.lax calls it: a name of its own beside the reductions of one array


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
    """One array that a program computes with; equal to no other.

    >>> Array((2, 3), 4).size, Array((2, 3), 4) == Array((2, 3), 4)
    (6, False)
    """

    shape: tuple[int, ...]
    itemsize: int  # bytes of an element
    literal: Any = None  # its value, where it is a number written into the program

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive operation on arrays."""

    primitive: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    params: Mapping[str, Any]
    bodies: tuple["FlatProgram", ...] = ()  # of a loop or of shard_map; of a branch one per case
    rounds: int = 1  # how often they run


@dataclasses.dataclass(frozen=True, eq=False)
class FlatProgram:
    """Equations in an order in which they can run; equal to no other."""

    inputs: tuple[Array, ...]  # one per leaf of the arguments, read or not
    outputs: tuple[Array, ...]
    equations: tuple[Equation, ...]

    @property
    def read(self) -> set[Array]:
        """The inputs that are read: a compiled program takes no others."""
        found = {array for equation in self.equations for array in equation.inputs} | set(self.outputs)
        return found & set(self.inputs)

    def renamed(self, same: Mapping[Array, Array]) -> "FlatProgram":
        """The program that reads other arrays in the place of some."""

        def new(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(same.get(array, array) for array in arrays)

        equations = (dataclasses.replace(equation, inputs=new(equation.inputs)) for equation in self.equations)
        return FlatProgram(self.inputs, new(self.outputs), tuple(equations))

    def pruned(self) -> "FlatProgram":
        """The program without equations that no output needs."""
        needed, live = set(self.outputs), list[Equation]()
        for equation in reversed(self.equations):
            if not needed.isdisjoint(equation.outputs):
                live.append(equation)
                needed.update(equation.inputs)
        return dataclasses.replace(self, equations=tuple(reversed(live)))


def trace(fn: Callable[..., Any], *arguments: Any) -> FlatProgram:
    """The program of a function at arguments that may be shapes.

    >>> import jax.numpy as jnp
    >>> found = trace(lambda x, y: jax.jit(jnp.sin)(x), jnp.ones(3), jnp.ones(4))
    >>> [equation.primitive for equation in found.equations], [array.shape for array in found.read]
    (['sin'], [(3,)])
    """
    with jax.numpy_dtype_promotion("standard"):  # optax adds floats to an integer count, which strict mode refuses
        return _program(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _program(jaxpr: Any) -> FlatProgram:
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    inputs, equations = tuple(_array(var) for var in live.invars), list[Equation]()
    return FlatProgram(inputs, _write(live, inputs, equations), tuple(equations)).pruned()


def _write(jaxpr: Any, inputs: Sequence[Array], into: list[Equation]) -> tuple[Array, ...]:
    """Appends the equations of a jaxpr at given inputs; returns its outputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True)) | {var: _array(var) for var in jaxpr.constvars}

    def array(atom: Any) -> Array:
        return _array(atom, np.asarray(atom.val).item()) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        operands, name = tuple(array(atom) for atom in eqn.invars), eqn.primitive.name
        body = None if name in _LOOPS else _body(eqn.params)
        if name == "scan" and not 0 < eqn.params["unroll"] < eqn.params["length"]:
            outputs = _write_rounds(eqn, operands, into)
        elif body is not None and len(body.invars) == len(operands):
            outputs = _write(body, operands, into)
        else:
            outputs = tuple(_array(var) for var in eqn.outvars)
            name = _NAMES.get(name, name)
            into.append(Equation(name, operands, outputs, eqn.params, _bodies(eqn), eqn.params.get("length", 1)))
        known.update(zip(eqn.outvars, outputs, strict=True))
    return tuple(array(atom) for atom in jaxpr.outvars)


def _write_rounds(eqn: Any, operands: Sequence[Array], into: list[Equation]) -> tuple[Array, ...]:
    """Appends the rounds of a scan that is unrolled: XLA gets them one after another, and fuses over them."""
    body = _body(eqn.params)
    outputs = tuple(_array(var) for var in eqn.outvars)
    carried = sum(out.shape == own.aval.shape for out, own in zip(outputs, body.outvars, strict=True))
    stacked = sum(array.shape != own.aval.shape for array, own in zip(operands, body.invars, strict=True))
    constants, stacks = operands[: len(operands) - carried - stacked], operands[len(operands) - stacked :]
    carry, yielded = operands[len(constants) : len(constants) + carried], []
    for _ in range(eqn.params["length"]):
        rows = tuple(Array(stack.shape[1:], stack.itemsize) for stack in stacks)
        into += [Equation("slice", (stack,), (row,), {}) for stack, row in zip(stacks, rows, strict=True)]
        results = _write(body, (*constants, *carry, *rows), into)
        carry = results[:carried]
        yielded.append(results[carried:])
    for parts, output in zip(zip(*yielded, strict=True), outputs[carried:], strict=True):
        into.append(Equation("concatenate", parts, (output,), {}))
    return (*carry, *outputs[carried:])


def _bodies(eqn: Any) -> tuple[FlatProgram, ...]:
    found = eqn.params[_LOOPS[eqn.primitive.name]] if eqn.primitive.name in _LOOPS else ()
    bodies = found if isinstance(found, tuple) else (found,)
    return tuple(_program(getattr(body, "jaxpr", body)) for body in bodies)


def _body(params: Mapping[str, Any]) -> Any:
    body = params.get("jaxpr", params.get("call_jaxpr"))
    return getattr(body, "jaxpr", body)  # of a closed jaxpr; its constants are arguments of the step or literals


def _array(var: Any, literal: Any = None) -> Array:
    aval = var.aval
    is_key = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)
    return Array(tuple(aval.shape), 8 if is_key else np.dtype(aval.dtype).itemsize, literal)
