"""DoRA: a low-rank adapter that turns the columns of its base, and a trained length for each of them."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.roles import Role
from freezejax.weights.kinds import Site
from freezejax.weights.linear import matrix, scaled, unscaled
from freezejax.weights.lora import LoraWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoraWeight(LoraWeight):
    """`magnitude * V / |V|` with `V = base + scale * a @ b` and `|V|` [out] the lengths of its columns.

    The magnitude starts as the lengths of the base. The lengths are constants to the gradient, as in section 4.3 of
    the paper. A column of zeros, which has no direction, is left alone: it is multiplied with one.
    Source: Liu et al. 2024, arXiv:2402.09353.

    >>> base, a, b = jnp.array([[3.0, 0.0], [4.0, 0.0]]), jnp.ones((2, 1)), jnp.zeros((1, 2))
    >>> DoraWeight(base, a, b, 1.0, magnitude=jnp.array([10.0, 0.0])).materialize()
    Array([[6., 0.],
           [8., 0.]], dtype=float32)
    """

    roles: ClassVar = {**LoraWeight.roles, "magnitude": Role.GAIN}

    magnitude: Any = None  # float32 [out]

    @classmethod
    def make(
        cls, base: Any, site: Site, *, rank: int = 16, alpha: float | None = None, rank_stabilised: bool = False
    ) -> Self:
        """Kind "dora": options as of "lora"."""
        made = super().make(base, site, rank=rank, alpha=alpha, rank_stabilised=rank_stabilised)
        return dataclasses.replace(made, magnitude=jnp.linalg.norm(matrix(base).astype(jnp.float32), axis=0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return scaled(super().__call__(x), self._factor())

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used."""
        return super().materialize() * self._factor()[None]

    def unmerged(self, merged: jax.Array) -> Self:
        """The columns get back the lengths that they have here, which the matrix does not tell."""
        return super().unmerged(unscaled(merged, self._factor()[None], super().materialize()))

    def _factor(self) -> jax.Array:
        length = jax.lax.stop_gradient(jnp.linalg.norm(super().materialize().astype(jnp.float32), axis=0))
        return jnp.where(length == 0, 1.0, self.magnitude / jnp.where(length == 0, 1.0, length))
