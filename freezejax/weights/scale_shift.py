"""A learned scale and shift per output feature, over any weight."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.roles import Role
from freezejax.weights.gain import GainWeight
from freezejax.weights.kinds import Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaleShiftWeight(GainWeight):
    """`(x @ base) * gain + shift`. Sources: Lian et al. 2022, arXiv:2210.08823; Parameter Golf, PR 1195.

    >>> ScaleShiftWeight(jnp.ones((4, 2)), jnp.array([1.0, 3.0]), jnp.array([0.5, 0.0]))(jnp.ones((1, 4)))
    Array([[ 4.5, 12. ]], dtype=float32)
    """

    roles: ClassVar = {**GainWeight.roles, "shift": Role.GAIN}
    shifts: ClassVar = True

    shift: Any = None  # float32 [out]

    @classmethod
    def make(cls, base: Any, site: Site) -> Self:
        """Kind "scale_shift": it takes no options. It starts as its base."""
        return dataclasses.replace(super().make(base, site), shift=jnp.zeros(base.shape[1], jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        shift = self.shift.astype(x.dtype)
        return super().__call__(x) + jnp.expand_dims(shift, range(x.ndim - 1))
