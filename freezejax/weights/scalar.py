"""One learned number beside a whole weight."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.paths import PyTree
from freezejax.roles import Role, Weight, leaves
from freezejax.weights.kinds import Site
from freezejax.weights.linear import linear, matrix, unscaled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScalarWeight(Weight):
    """`beta * (x @ base)`. Under an adapter, beta says how much of its base a model has come to use.

    It starts at one. Source: LottaLoRA, arXiv:2604.08749.

    >>> ScalarWeight(jnp.ones((4, 2)), jnp.array(0.5))(jnp.ones((1, 4)))
    Array([[2., 2.]], dtype=float32)
    """

    roles: ClassVar = {"base": Role.KERNEL, "beta": Role.GAIN}

    base: Any  # an array [in, out] or a Weight
    beta: jax.Array  # float32 []

    @classmethod
    def make(cls, base: Any, site: Site) -> Self:
        """Kind "scalar": it takes no options. Its rule stands before those of adapters that it is not to scale."""
        return cls(base, jnp.ones((), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(x, self.base) * self.beta.astype(x.dtype)

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used."""
        return matrix(self.base) * self.beta

    def unmerged(self, merged: jax.Array) -> Self:
        """This number over the base under which it is the matrix `merged`; a beta of zero leaves the base."""
        return dataclasses.replace(self, base=unscaled(merged, self.beta, self.base))


def betas_of(params: PyTree) -> dict[str, float]:
    """Every beta of a tree of parameters by the path of its kernel.

    >>> betas_of({"up": ScalarWeight(jnp.ones((4, 2)), jnp.array(0.5))})
    {'up': 0.5}
    """
    found = [leaf for leaf in leaves(params) if isinstance(leaf.owner, ScalarWeight) and leaf.role is Role.GAIN]
    return {leaf.kernel: float(leaf.value) for leaf in found}
