"""LoRA: a low-rank adapter over any weight."""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.paths import named_key
from freezejax.roles import Role, Weight
from freezejax.weights.kinds import Site, is_count, is_positive
from freezejax.weights.linear import linear, matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight(Weight):
    """Low-rank adapter: `x @ base + alpha / rank * (x @ a) @ b`.

    `b` starts at zero, so that the model starts as its base. Source: Hu et al. 2021, arXiv:2106.09685.

    >>> LoraWeight(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones((1, 2)), alpha=0.5)(jnp.ones((1, 4)))
    Array([[6., 6.]], dtype=float32)
    """

    roles: ClassVar = {"base": Role.KERNEL, "a": Role.ADAPTER, "b": Role.ADAPTER}

    base: Any  # an array [in, out] or a Weight
    a: jax.Array  # float32 [in, rank]
    b: jax.Array  # float32 [rank, out]
    alpha: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def make(cls, base: Any, site: Site, *, rank: int = 16, alpha: float | None = None) -> Self:
        """Kind "lora": an adapter over `base`; `a` is N(0, 1/sqrt(in)) from the key folded with its path.

        `alpha` is scale times rank, and the rank if None. A rank above the kernel's smaller side adds nothing.
        """
        if not is_count(rank):
            raise UserError(f"rank={rank!r} must be an integer of at least 1")
        if alpha is not None and not is_positive(alpha):
            raise UserError(f"alpha={alpha!r} must be a finite number above 0")
        width_in, width_out = base.shape
        if rank > max(width_in, width_out):  # not the smaller: one rule may name kernels of several sizes
            raise UserError(f"rank={rank} must be at most {max(width_in, width_out)}, the larger side of the kernel")
        a = jax.random.normal(named_key(site.key, f"{site.path}/a"), (width_in, rank), jnp.float32)
        b = jnp.zeros((rank, width_out), jnp.float32)
        return cls(base, a / math.sqrt(width_in), b, float(rank if alpha is None else alpha))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        low = linear(linear(x, self.a), self.b)
        return linear(x, self.base) + low * jnp.asarray(self.alpha / self.a.shape[1], x.dtype)

    def materialize(self) -> jax.Array:
        """The weights [in, out], adapter included."""
        return matrix(self.base) + self.alpha / self.a.shape[1] * self.a @ self.b
