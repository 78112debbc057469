"""LoRA: a low-rank adapter over any weight, with the rank-stabilised scale as an option."""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.paths import named_key
from freezejax.roles import Role
from freezejax.weights.adapter import Adapter
from freezejax.weights.kinds import Site, check_flag, check_rank, is_positive
from freezejax.weights.linear import linear


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraWeight(Adapter):
    """Low-rank adapter: `x @ base + scale * (x @ a) @ b`, with scale `alpha / rank`, or `alpha / sqrt(rank)`.

    `b` starts at zero, so that the model starts as its base. Sources: Hu et al. 2021, arXiv:2106.09685; the scale by
    the root, under which features neither grow nor shrink with the rank: Kalajdzievski 2023, arXiv:2312.03732.

    >>> LoraWeight(jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones((1, 2)), alpha=0.5)(jnp.ones((1, 4)))
    Array([[6., 6.]], dtype=float32)
    """

    roles: ClassVar = {**Adapter.roles, "a": Role.ADAPTER, "b": Role.ADAPTER}

    a: jax.Array  # float32 [in, rank]
    b: jax.Array  # float32 [rank, out]
    alpha: float = dataclasses.field(metadata={"static": True})
    rank_stabilised: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def make(
        cls, base: Any, site: Site, *, rank: int = 16, alpha: float | None = None, rank_stabilised: bool = False
    ) -> Self:
        """Kind "lora": an adapter over `base`; `a` is N(0, 1/sqrt(in)) from the key folded with its path.

        `alpha` is the rank if None. A rank above the kernel's smaller side adds nothing.
        """
        check_rank(rank, base.shape)
        check_flag("rank_stabilised", rank_stabilised)
        if alpha is not None and not is_positive(alpha):
            raise UserError(f"alpha={alpha!r} must be a finite number above 0")
        width_in, width_out = base.shape
        a = jax.random.normal(named_key(site.key, f"{site.path}/a"), (width_in, rank), jnp.float32)
        b = jnp.zeros((rank, width_out), jnp.float32)
        return cls(base, a / math.sqrt(width_in), b, float(rank if alpha is None else alpha), rank_stabilised)

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        rank = self.a.shape[1]
        return self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def added(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(linear(x, self.a), self.b) * jnp.asarray(self.scale, x.dtype)

    def delta(self) -> jax.Array:
        """The matrix [in, out] that it adds, float32."""
        return self.scale * self.a @ self.b
