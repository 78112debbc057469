"""Adapters: trainable leaves beside a weight that may be frozen, stored or seeded."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp

from freezejax.paths import named_key
from freezejax.weights.linear import linear


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight:
    """Low-rank adapter: `x @ base + alpha / rank * (x @ a) @ b`.

    `b` starts at zero, so that the model starts as its base. Source: Hu et al. 2021, arXiv:2106.09685.

    >>> weight = LoraWeight.create(jnp.ones((4, 2)), jax.random.key(0), "mlp/up/kernel", (4, 2), rank=1)
    >>> weight(jnp.ones((1, 4)))
    Array([[4., 4.]], dtype=float32)
    """

    base: Any  # an array [in, out] or a MapWeight
    a: jax.Array  # float32 [in, rank]
    b: jax.Array  # float32 [rank, out]
    alpha: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(
        cls, base: Any, key: jax.Array, name: str, shape: tuple[int, int], *, rank: int, alpha: float | None = None
    ) -> Self:
        """An adapter over `base`; `a` is N(0, 1/sqrt(in)) from the key folded with its path, `alpha` is `rank`."""
        a = jax.random.normal(named_key(key, f"{name}/a"), (shape[0], rank), jnp.float32) / math.sqrt(shape[0])
        return cls(base, a, jnp.zeros((rank, shape[1]), jnp.float32), float(rank if alpha is None else alpha))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        low = linear(linear(x, self.a), self.b)
        return linear(x, self.base) + low * jnp.asarray(self.alpha / self.a.shape[1], x.dtype)
