"""FLOPs of a program, as XLA's cost analysis counts them: matmuls exactly, everything else element by element."""

import math

from freezejax.cost.kernels import fuse
from freezejax.cost.program import Equation, FlatProgram

# XLA counts these apart, as transcendentals, or as no operation at all.
_FREE = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "sqrt", "rsqrt", "cbrt", "sin", "cos"}
_FREE |= {"broadcast_in_dim", "iota", "transpose", "slice", "split", "concatenate", "pad", "rev", "matrix", "gather"}
_FREE |= {"dynamic_slice", "dynamic_update_slice", "bitcast_convert_type", "dot_general", "conv_general_dilated"}
_FREE |= {"random_fold_in", "random_seed", "random_split", "pow", "all_gather", "psum_scatter", "axis_index"}
# Of what XLA writes out in simpler operations, the number of those per element. A count of threefry is of one turn of
# its loop, which is what XLA counts.
_WRITTEN_OUT = {"random_bits": 45.0, "erf_inv": 37.0, "cumsum": 17.0}


def matmul_flops(program: FlatProgram) -> int:
    """FLOPs of all matmuls and convolutions, two for a multiplication and an addition; loops with all their rounds.

    >>> import jax, jax.numpy as jnp
    >>> from freezejax.cost.program import trace
    >>> x, w = jnp.ones((5, 3)), jnp.ones((3, 2))
    >>> matmul_flops(trace(lambda x, w: x @ w, x, w)), matmul_flops(trace(jax.grad(lambda w, x: jnp.sum(x @ w)), w, x))
    (60, 60)
    """
    return sum(
        _matmul(equation) + equation.rounds * max(map(matmul_flops, equation.bodies), default=0)
        for equation in program.equations
    )


def other_flops(program: FlatProgram) -> int:
    """FLOPs of everything else: one per element and operation, in every kernel that computes it.

    >>> import jax.numpy as jnp
    >>> from freezejax.cost.program import trace
    >>> other_flops(trace(lambda x: jnp.sum(2.0 * x), jnp.ones(7)))
    14
    """
    found = 0.0
    for kernel in fuse(program):
        for equation in kernel.equations:
            inside = max(map(other_flops, equation.bodies), default=0)
            found += equation.rounds * inside if equation.bodies else _elementwise(equation)
    return round(found)


def _matmul(equation: Equation) -> int:
    if equation.primitive == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * equation.outputs[0].size * math.prod(equation.inputs[0].shape[i] for i in contracted)
    if equation.primitive == "conv_general_dilated":
        kernel, features = equation.inputs[1], equation.params["dimension_numbers"].rhs_spec[0]
        return 2 * equation.outputs[0].size * (kernel.size // kernel.shape[features])
    return 0


def _elementwise(equation: Equation) -> float:
    if equation.primitive in _FREE:
        return 0.0
    if equation.primitive.startswith(("reduce", "cum", "arg")):
        return equation.inputs[0].size
    if equation.primitive.startswith("scatter"):
        return equation.inputs[2].size
    return _WRITTEN_OUT.get(equation.primitive, 1.0) * max(array.size for array in equation.outputs)
