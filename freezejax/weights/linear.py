"""`linear(x, weight)` for every way a weight can exist: an array, a random map, an adapter over either."""

from typing import Any

import jax
import jax.numpy as jnp

from freezejax.sharding import kernel_gradient


def linear(x: jax.Array, weight: Any) -> jax.Array:
    """`x @ weight`: [..., in] -> [..., out], in the dtype of `x` (float32 or bfloat16).

    `weight` is an array [in, out], or a callable pytree such as `MapWeight`.

    >>> linear(jnp.ones((1, 3)), jnp.ones((3, 2)))
    Array([[3., 3.]], dtype=float32)
    """
    return weight(x) if callable(weight) else matmul(x, weight)


def matrix(weight: Any) -> jax.Array:
    """The matrix [in, out] of an array or of a weight of any kind, float32.

    >>> matrix(jnp.ones((1, 2)))
    Array([[1., 1.]], dtype=float32)
    """
    return (weight.materialize() if hasattr(weight, "materialize") else weight).astype(jnp.float32)


def whole(weight: Any) -> jax.Array:
    """The array that a kernel is, gathered where it lies in shards; in its own dtype."""
    return weight.materialize() if hasattr(weight, "materialize") else weight


def scaled(x: jax.Array, vector_D: jax.Array) -> jax.Array:
    """`x` [..., D] times a vector [D], in the dtype of `x`."""
    return x * jnp.expand_dims(vector_D.astype(x.dtype), range(x.ndim - 1))


def unscaled(merged: jax.Array, factor: jax.Array, base: Any) -> jax.Array:
    """What a factor was multiplied with to give `merged`: where it is zero, the matrix of `base`."""
    return jnp.where(factor == 0, matrix(base), merged / jnp.where(factor == 0, 1, factor))


@jax.custom_vjp
def matmul(x: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """`x @ kernel`: [..., in] -> [..., out], in the dtype of `x`; the kernel's gradient is of its own dtype throughout.

    Autodiff would form the kernel's gradient from the transposed output gradient, which XLA recomputes in that
    layout, a fifth of the whole step of a small model; here the input is what gets transposed. Autodiff would also
    round the gradient of a float32 kernel to bfloat16 where `x` is, and devices would sum what is rounded. The
    gradient of a kernel that is not differentiated is dead code and leaves no matmul behind.

    >>> jax.grad(lambda w: matmul(jnp.ones((5, 2)), w).sum())(jnp.ones((2, 1)))
    Array([[5.],
           [5.]], dtype=float32)
    """
    return x @ kernel_IxO.astype(x.dtype)


def _matmul_backward(saved, grad):
    x, kernel_IxO = saved
    x_grad = grad.reshape(-1, grad.shape[-1]) @ kernel_IxO.astype(x.dtype).T
    return x_grad.reshape(x.shape), kernel_gradient(x, grad).astype(kernel_IxO.dtype)


matmul.defvjp(lambda x, kernel_IxO: (matmul(x, kernel_IxO), (x, kernel_IxO)), _matmul_backward)
