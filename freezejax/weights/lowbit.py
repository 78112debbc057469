"""A matrix of few bits per weight, trained as such: the honest alternative to weights that take none."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.paths import named_key
from freezejax.roles import Role, Weight
from freezejax.weights.grid import step_for, to_grid
from freezejax.weights.kinds import Site
from freezejax.weights.linear import matmul, scaled

BITS = {1: 2, "ternary": 3, 2: 4, 3: 8, 4: 16}  # of the option -> levels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowBitWeight(Weight):
    """`(x @ grid(kernel)) * gain`: of the trained kernel only the nearest levels are used, and only they are stored.

    The levels are fixed, spaced for weights of variance 1 / inputs; a gain per output gives the size. The gradient
    passes the rounding (straight-through). Sources: Courbariaux et al. 2015, arXiv:1511.00363; for three levels
    Ma et al. 2024, arXiv:2402.17764.

    >>> weight = LowBitWeight(jnp.array([[0.9], [-0.1]]), jnp.array([2.0]), levels=3, step=1.0)
    >>> weight.materialize()
    Array([[2.],
           [0.]], dtype=float32)
    """

    roles: ClassVar = {"kernel": Role.CODED, "gain": Role.GAIN}

    kernel: jax.Array  # float32 [in, out]
    gain: jax.Array  # float32 [out]
    levels: int = dataclasses.field(metadata={"static": True})
    step: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def make(cls, kernel: Any, site: Site, *, bits: int | str = "ternary") -> Self:
        """Kind "lowbit": `bits` is 1, 2, 3, 4 or "ternary". It starts as the kernel, rounded.

        A kernel of zeros is drawn at random and starts under a gain of zero, which is what trains first.
        """
        if isinstance(kernel, Weight):
            raise UserError("a matrix of few bits takes the place of the kernel: let its rule stand before the others")
        if isinstance(bits, bool) or bits not in BITS:
            raise UserError(f"bits={bits!r} must be 1, 2, 3, 4 or 'ternary'")
        fan_in = 1 / jnp.sqrt(kernel.shape[0])
        size = jnp.sqrt(jnp.mean(jnp.square(kernel)))
        drawn = jax.random.normal(named_key(site.key, f"{site.path}/kernel"), kernel.shape, jnp.float32) * fan_in
        latent = jnp.where(size == 0, drawn, kernel * (fan_in / jnp.where(size == 0, 1, size)))
        gain = jnp.full(kernel.shape[1], size / fan_in, jnp.float32)
        return cls(latent, gain, BITS[bits], step_for(kernel.shape[0], BITS[bits]))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return scaled(matmul(x, to_grid(self.kernel, self.levels, self.step)), self.gain)

    def materialize(self) -> jax.Array:
        """The weights [in, out] as used."""
        return to_grid(self.kernel, self.levels, self.step) * self.gain[None]
