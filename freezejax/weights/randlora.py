"""RandLoRA: a sum of seeded low-rank matrices, weighted by trained diagonals, of full rank together."""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.roles import Role
from freezejax.weights.adapter import Adapter
from freezejax.weights.kinds import Site, check_rank, is_count
from freezejax.weights.linear import linear, matrix
from freezejax.weights.random_map import RandomMap
from freezejax.weights.seeded import MapWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandLoraWeight(Adapter):
    """`x @ base + sum_j ((x * gamma_j) @ a * lambda_j) @ b_j`: `a` and all `b_j` are seeded, the vectors trained.

    The `lambda_j` start at zero. With as many terms as `rank` goes into the smaller side the sum can have full rank,
    at terms * (in + rank) trained numbers. Source: Albert et al. 2025, arXiv:2502.00987.

    >>> from freezejax.weights import Site
    >>> weight = RandLoraWeight.make(jnp.ones((4, 6)), Site("up", jax.random.key(0), jax.random.key(1)), rank=2)
    >>> weight.gammas.shape, weight.lambdas.shape, weight.b.shape
    ((2, 4), (2, 2), (4, 6))
    """

    roles: ClassVar = {**Adapter.roles, "gammas": Role.ADAPTER, "lambdas": Role.ADAPTER}

    a: Any  # a weight [in, rank]
    b: Any  # a weight [terms * rank, out]: every b_j, one above the other
    gammas: jax.Array  # float32 [terms, in]
    lambdas: jax.Array  # float32 [terms, rank]

    @classmethod
    def make(
        cls, base: Any, site: Site, *, rank: int = 16, terms: int | None = None, distribution: str = "uniform"
    ) -> Self:
        """Kind "randlora": without `terms` as many as give full rank. Both matrices have the variance 1 / inputs."""
        check_rank(rank, base.shape)
        if terms is not None and not is_count(terms):
            raise UserError(f"terms={terms!r} must be an integer of at least 1")
        width_in, width_out = base.shape
        terms = math.ceil(min(base.shape) / rank) if terms is None else terms
        a, b = (
            MapWeight.create(RandomMap(shape, distribution, name=f"{site.path}/{name}"), site.base_key)
            for name, shape in (("a", (width_in, rank)), ("b", (terms * rank, width_out)))
        )
        return cls(base, a, b, jnp.ones((terms, width_in), jnp.float32), jnp.zeros((terms, rank), jnp.float32))

    def added(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(linear(x, self._down()), self.b)

    def delta(self) -> jax.Array:
        """The matrix [in, out] that it adds, float32."""
        return self._down() @ matrix(self.b)

    def _down(self) -> jax.Array:
        """Every `gamma_j a lambda_j` side by side, [in, terms * rank]."""
        terms_ItR = jnp.einsum("ti,ir,tr->itr", self.gammas, matrix(self.a), self.lambdas)
        return terms_ItR.reshape(len(terms_ItR), -1)
