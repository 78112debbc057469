"""A trained choice among the weights of a base that is never trained: one stored bit for each of them."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from freezejax.errors import UserError
from freezejax.paths import named_key
from freezejax.roles import Role, Weight, leaves
from freezejax.weights.grid import step_for, to_grid
from freezejax.weights.kinds import Site, is_positive
from freezejax.weights.linear import matmul, matrix, unscaled


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SupermaskWeight(Weight):
    """`x @ (base * (scores > 0))`: the scores are trained straight through the choice; their signs are stored.

    Over a random map nothing is stored but a bit per weight. The masked matrix is made again in the backward pass, so
    that no map is kept between the passes. Sources: Ramanujan et al. 2020, arXiv:1911.13299; Parameter Golf, PR 1753.

    >>> weight = SupermaskWeight(jnp.array([[2.0], [3.0]]), jnp.array([[0.1], [-0.1]]), step=1.0)
    >>> weight.materialize()
    Array([[2.],
           [0.]], dtype=float32)
    """

    roles: ClassVar = {"base": Role.KERNEL, "scores": Role.CODED}
    levels: ClassVar = 2

    base: Any  # an array [in, out] or a Weight
    scores: jax.Array  # float32 [in, out]
    step: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def make(cls, base: Any, site: Site, *, keep: float = 0.5) -> Self:
        """Kind "supermask": a share `keep` of the weights, drawn from the key folded with the path, is on at first.

        The sizes of the others stay: give a map under it the scale 1 / sqrt(keep * in) for outputs of variance one.
        """
        if any(leaf.owner is not None and leaf.owner.shifts for leaf in leaves(base)):
            raise UserError("a supermask takes a matrix, without a shift: let its rule stand before that of the shift")
        if not (is_positive(keep) and keep < 1):
            raise UserError(f"keep={keep!r} must be a number above 0 and below 1")
        drawn = jax.random.normal(named_key(site.key, f"{site.path}/scores"), base.shape, jnp.float32)
        return cls(base, (drawn + ndtri(keep)) / jnp.sqrt(base.shape[0]), step_for(base.shape[0], cls.levels))

    @property
    def mask(self) -> jax.Array:
        """0 or 1 for each weight, float32 [in, out]."""
        return to_grid(self.scores, self.levels, self.step) / self.step + 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return jax.checkpoint(lambda x, weight: matmul(x, weight.materialize()))(x, self)

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used."""
        return matrix(self.base) * self.mask

    def unmerged(self, merged: jax.Array) -> Self:
        """This choice over the base under which it is the matrix `merged`; what it hides stays as it is."""
        return dataclasses.replace(self, base=unscaled(merged, self.mask, self.base))
