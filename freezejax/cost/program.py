"""The equations of a step, read from its jaxpr: calls written out, loops with their bodies, dead code left out."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from jax.interpreters import partial_eval

_LOOPS = ("scan", "while", "cond")  # whose bodies stay programs of their own; every other call is written out


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


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive operation on arrays."""

    primitive: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    params: Mapping[str, Any]
    bodies: tuple["FlatProgram", ...] = ()  # of a loop; of a branch one per case
    rounds: int = 1  # how often they run


@dataclasses.dataclass(frozen=True)
class FlatProgram:
    """Equations in an order in which they can run."""

    inputs: tuple[Array, ...]  # one per leaf of the arguments, read or not
    outputs: tuple[Array, ...]
    equations: tuple[Equation, ...]

    @property
    def read(self) -> set[Array]:
        """The inputs that are read: a compiled program takes no others."""
        found = {array for equation in self.equations for array in equation.inputs} | set(self.outputs)
        return found & set(self.inputs)

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
    inputs = tuple(_array(var) for var in jaxpr.invars)
    equations: list[Equation] = []
    outputs = _write(jaxpr, inputs, [True] * len(jaxpr.outvars), equations)
    return FlatProgram(inputs, outputs, tuple(equations)).pruned()


def _write(jaxpr: Any, inputs: Sequence[Array], used: Sequence[bool], into: list[Equation]) -> tuple[Array, ...]:
    """Appends the equations that the used outputs need; returns all outputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True)) | {var: _array(var) for var in jaxpr.constvars}
    live, _ = partial_eval.dce_jaxpr(jaxpr, list(used), instantiate=True)
    read = {id(var) for eqn in live.eqns for var in eqn.invars} | {id(var) for var in live.outvars}

    def array(atom: Any) -> Array:
        return _array(atom, np.asarray(atom.val).item()) if isinstance(atom, Literal) else known[atom]

    for eqn in live.eqns:
        operands = tuple(array(atom) for atom in eqn.invars)
        body = None if eqn.primitive.name in _LOOPS else _body(eqn.params)
        if body is not None and len(body.invars) == len(operands):
            outputs = _write(body, operands, [id(var) in read for var in eqn.outvars], into)
        else:
            outputs = tuple(_array(var) for var in eqn.outvars)
            into.append(Equation(eqn.primitive.name, operands, outputs, eqn.params, *_loop(eqn)))
        known.update(zip(eqn.outvars, outputs, strict=True))
    kept = iter(live.outvars)
    pairs = zip(jaxpr.outvars, used, strict=True)
    return tuple(array(next(kept)) if is_used else _array(var) for var, is_used in pairs)


def _loop(eqn: Any) -> tuple[tuple[FlatProgram, ...], int]:
    if eqn.primitive.name not in _LOOPS:
        return (), 1
    names = {"scan": ["jaxpr"], "while": ["body_jaxpr"], "cond": ["branches"]}[eqn.primitive.name]
    found = [eqn.params[name] for name in names]
    bodies = found[0] if isinstance(found[0], tuple) else found
    return tuple(_program(getattr(body, "jaxpr", body)) for body in bodies), eqn.params.get("length", 1)


def _body(params: Mapping[str, Any]) -> Any:
    body = next((params[name] for name in ("jaxpr", "call_jaxpr") if name in params), None)
    return getattr(body, "jaxpr", body)  # of a closed jaxpr; its constants are arguments of the step or literals


def _array(var: Any, literal: Any = None) -> Array:
    aval = var.aval
    is_key = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)
    return Array(tuple(aval.shape), 8 if is_key else np.dtype(aval.dtype).itemsize, literal)
