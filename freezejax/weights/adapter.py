"""What every adapter that adds a matrix to its base has in common; how adapters are worked into their kernels."""

import dataclasses
from typing import Any, ClassVar, Self

import jax

from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.roles import Role, Weight, is_weight, leaves
from freezejax.ties import Tied
from freezejax.weights.linear import linear, matrix
from freezejax.weights.stack import Stack


@dataclasses.dataclass(frozen=True)
class Adapter(Weight):
    """`x @ base + added(x)`, where `added(x)` is `x @ delta`. A kind says what both are; its base is any weight."""

    roles: ClassVar = {"base": Role.KERNEL}

    base: Any  # an array [in, out] or a Weight

    def added(self, x: jax.Array) -> jax.Array:
        """What the adapter adds: [..., in] -> [..., out], in the dtype of `x`."""
        raise TypeError(f"{type(self).__name__} does not say what it adds: write its added")

    def delta(self) -> jax.Array:
        """The matrix [in, out] that it adds."""
        raise TypeError(f"{type(self).__name__} does not say what it adds: write its delta")

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(x, self.base) + self.added(x)

    def materialize(self) -> jax.Array:
        """The weights [in, out], adapter included."""
        return matrix(self.base) + self.delta()

    def unmerged(self, merged: jax.Array) -> Self:
        """This adapter over the base under which it is the matrix `merged`."""
        return dataclasses.replace(self, base=merged - self.delta())


def merge(params: PyTree) -> PyTree:
    """The parameters with every adapter worked into its kernel: an array [in, out] of the kernel's own dtype.

    A weight that stands over no other, such as a random map or one of few bits, stays what it is.

    Raises:
      UserError: a weight that adds something beside a matrix, such as a shift, or that stands over a shared kernel.

    >>> import jax.numpy as jnp
    >>> from freezejax.weights import GainWeight
    >>> merge({"up": GainWeight(jnp.ones((1, 2)), jnp.array([1.0, 3.0]))})["up"]
    Array([[1., 3.]], dtype=float32)
    """
    return jax.tree.map(lambda node: _merged(node) if _is_adapted(node) else node, params, is_leaf=_is_one)


def unmerge(params: PyTree, like: PyTree) -> PyTree:
    """The inverse of `merge`: the adapters of `like` over the kernels under which they give the arrays of `params`.

    So merged weights may be trained further and the adapters then taken out of them again. What `like` holds beside
    its adapters is read only where a matrix does not tell it: the norms of DoRA, and what a gain of zero hides. A
    kernel that was a random map comes back as an array.

    Raises:
      UserError: the trees do not fit each other.

    >>> import jax.numpy as jnp
    >>> from freezejax.weights import GainWeight
    >>> like = {"up": GainWeight(jnp.ones((1, 2)), jnp.array([1.0, 4.0]))}
    >>> unmerge({"up": jnp.array([[5.0, 8.0]])}, like)["up"].base
    Array([[5., 2.]], dtype=float32)
    """
    inverse = lambda weight, node: _unmerged(weight, node) if _is_adapted(weight) else node  # noqa: E731
    try:
        return jax.tree.map(inverse, like, params, is_leaf=_is_one)
    except ValueError as error:
        raise UserError(f"unmerge: the parameters are not those of `like`, merged: {error}") from None


def _is_one(node: Any) -> bool:
    """Whether a node is a weight of one matrix: a stack is taken apart."""
    return is_weight(node) and not isinstance(node, Stack)


def _is_adapted(node: Any) -> bool:
    return is_weight(node) and hasattr(node, "base")


def _check_own(weight: Weight) -> None:
    is_tied = lambda node: isinstance(node, Tied)  # noqa: E731
    if tied := next(filter(is_tied, jax.tree.leaves(weight, is_leaf=is_tied)), None):
        raise UserError(
            f"a {type(weight).__name__} stands over the kernel of {tied.to!r}, which it shares: "
            "with freezejax.untie(params) every use has one of its own"
        )


def _merged(weight: Weight) -> jax.Array:
    _check_own(weight)
    if any(leaf.owner is not None and leaf.owner.shifts for leaf in leaves(weight)):
        raise UserError(f"a {type(weight).__name__} adds a shift, which is no part of a matrix: it cannot be merged")
    kernel = next((leaf.value for leaf in leaves(weight) if leaf.role is Role.KERNEL), None)
    merged = weight.materialize()
    return merged if kernel is None else merged.astype(kernel.dtype)


def _unmerged(weight: Any, merged: jax.Array) -> Any:
    if not _is_adapted(weight):
        return merged
    _check_own(weight)
    outer = weight.unmerged(merged)
    return dataclasses.replace(outer, base=_unmerged(weight.base, outer.base))
