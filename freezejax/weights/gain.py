"""A learned gain per output feature, over any weight."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.roles import Role, Weight
from freezejax.weights.kinds import Site
from freezejax.weights.linear import linear, matrix, scaled, unscaled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GainWeight(Weight):
    """`(x @ base) * gain`. The gain starts at one. Source: Parameter Golf, PR 1228.

    >>> GainWeight(jnp.ones((4, 2)), jnp.array([1.0, 3.0]))(jnp.ones((1, 4)))
    Array([[ 4., 12.]], dtype=float32)
    """

    roles: ClassVar = {"base": Role.KERNEL, "gain": Role.GAIN}

    base: Any  # an array [in, out] or a Weight
    gain: jax.Array  # float32 [out]

    @classmethod
    def make(cls, base: Any, site: Site) -> Self:
        """Kind "gain": it takes no options."""
        return cls(base, jnp.ones(base.shape[1], jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return scaled(linear(x, self.base), self.gain)

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used, with their gain."""
        return matrix(self.base) * self.gain[None]

    def unmerged(self, merged: jax.Array) -> Self:
        """This gain over the base under which it is the matrix `merged`; a gain of zero leaves its column."""
        return dataclasses.replace(self, base=unscaled(merged, self.gain[None], self.base))
