"""VeRA: two matrices drawn from the base seed, shared by the layers, and trained vectors around them."""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.roles import Role, Weight
from freezejax.weights.adapter import Adapter
from freezejax.weights.kinds import Site, check_flag, check_rank, is_positive
from freezejax.weights.linear import linear, matrix, scaled
from freezejax.weights.random_map import RandomMap
from freezejax.weights.seeded import MapWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredMap(Weight):
    """A matrix that stands where a random map could: drawn by a generator that is not ours, so it is stored."""

    roles: ClassVar = {"values": Role.KERNEL}

    values: jax.Array  # [in, out]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(x, self.values)

    def materialize(self) -> jax.Array:
        """The matrix [in, out]."""
        return self.values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VeraWeight(Adapter):
    """`x @ base + ((x @ a) * d) @ b * g`: `a` and `b` are seeded, `d` [rank] and `g` are trained.

    With `g` of length `out`, which starts at zero, this is VeRA (Kopiczko et al. 2023, arXiv:2310.11454). With `g` of
    length `rank` it is the variant of PR 1301, `b0 diag(d * g) a0 / rank`, which trains 2 * rank numbers. Kernels with
    as many inputs share `a`, those with as many outputs `b`; neither takes a byte.

    >>> from freezejax.weights import Site
    >>> weight = VeraWeight.make(jnp.ones((4, 2)), Site("up", jax.random.key(0), jax.random.key(1)), rank=3)
    >>> weight.d.shape, weight.g.shape, weight(jnp.ones((1, 4)))
    ((3,), (2,), Array([[4., 4.]], dtype=float32))
    """

    roles: ClassVar = {**Adapter.roles, "d": Role.ADAPTER, "g": Role.ADAPTER}

    a: Any  # a weight [in, rank]
    d: jax.Array  # float32 [rank]
    b: Any  # a weight [rank, out]
    g: jax.Array  # float32 [out], or [rank] if `scalars`
    scalars: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def make(
        cls,
        base: Any,
        site: Site,
        *,
        rank: int = 256,
        d_initial: float = 0.1,
        distribution: str = "uniform",
        scalars: bool = False,
    ) -> Self:
        """Kind "vera": `d` starts at `d_initial`; `scalars` is the variant with 2 * rank numbers.

        Both matrices have the variance 1 / inputs; the paper draws them uniformly.
        """
        check_rank(rank)
        check_flag("scalars", scalars)
        if not is_positive(d_initial):
            raise UserError(f"d_initial={d_initial!r} must be a finite number above 0")
        width_in, width_out = base.shape
        a = MapWeight.create(RandomMap((width_in, rank), distribution, name="vera/a"), site.base_key)
        b = MapWeight.create(RandomMap((rank, width_out), distribution, name="vera/b"), site.base_key)
        g = jnp.zeros(rank if scalars else width_out, jnp.float32)
        return cls(base, a, jnp.full(rank, d_initial, jnp.float32), b, g, scalars)

    def added(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        low = linear(x, self.a)
        if self.scalars:
            return linear(scaled(low, self._between()), self.b)
        return scaled(linear(scaled(low, self.d), self.b), self.g)

    def delta(self) -> jax.Array:
        """The matrix [in, out] that it adds, float32."""
        if self.scalars:
            return (matrix(self.a) * self._between()[None]) @ matrix(self.b)
        return (matrix(self.a) * self.d[None]) @ matrix(self.b) * self.g[None]

    def _between(self) -> jax.Array:
        return self.d * self.g / len(self.d)
