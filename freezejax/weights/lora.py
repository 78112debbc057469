"""LoRA: a low-rank adapter over any weight, with the rank-stabilised scale as an option."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.paths import named_key
from freezejax.roles import Role, is_weight, leaves
from freezejax.sharding import kernel_gradient
from freezejax.weights.adapter import Adapter
from freezejax.weights.kinds import Site, check_flag, check_rank, is_positive
from freezejax.weights.linear import linear, matrix


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

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`; see `merged_product` for how it is computed where that pays."""
        (width_in, _), (_, width_out) = self.a.shape, self.b.shape
        pays = math.prod(x.shape[:-1]) * (width_in + width_out) >= width_in * width_out
        # A base with numbers of its own has cheaper gradients for them than by way of its matrix, and may shift.
        matrix_alone = not is_weight(self.base) or all(leaf.role.constant for leaf in leaves(self.base))
        # In bfloat16 the sum of the matrices would round away an adapter that is small beside its base.
        if pays and matrix_alone and x.dtype == jnp.float32:
            return merged_product(x, self.base, self.a, self.b, self.scale)
        return super().__call__(x)

    def added(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out], in the dtype of `x`."""
        return linear(linear(x, self.a) * jnp.asarray(self.scale, x.dtype), self.b)

    def delta(self) -> jax.Array:
        """The matrix [in, out] that it adds, float32."""
        return self.scale * self.a @ self.b


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def merged_product(x: jax.Array, base: Any, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """`x @ (base + scale * a @ b)`: float32 [..., in] -> [..., out]; the base is a matrix, stored or drawn.

    Unlike `x @ base + scale * (x @ a) @ b` it makes no thin product and no sum over whole activations, neither here
    nor for the gradient of `x`. Only what the gradients of `a` and `b` need is thin: `x @ a` and `grad @ b.T`, made in
    the backward pass. The price is a product of small matrices, [in, rank] and [rank, out], and a sum in each pass.
    Nothing is saved for the backward pass but the arguments, so that a map is drawn again.

    >>> merged_product(jnp.ones((1, 4)), jnp.ones((4, 2)), jnp.ones((4, 1)), jnp.ones((1, 2)), 0.5)
    Array([[6., 6.]], dtype=float32)
    """
    return x @ _merged(x, base, a, b, scale)


def _merged(after: jax.Array, base: Any, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    # The base waits for `after`: a map is drawn, and a kernel in shards gathered, when it is needed and not before.
    base, _ = jax.lax.optimization_barrier((base, after))
    return jax.lax.optimization_barrier(matrix(base) + scale * a @ b)  # summed once, not inside the matmul's loops


def _merged_backward(scale: float, saved: Any, grad: jax.Array) -> tuple[Any, ...]:
    x, base, a, b = saved
    x_NxI, grad_NxO = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    # Barriers keep the thin matrices [N, rank], so that they are what the next products transpose. XLA would turn the
    # products around and transpose the activations, which takes a CPU twice the time.
    low_NxR, high_NxR = jax.lax.optimization_barrier((x_NxI @ a * scale, grad_NxO @ b.T * scale))
    a_grad_RxI = jax.lax.optimization_barrier(high_NxR.T @ x_NxI)
    x_grad = grad_NxO @ _merged(high_NxR, base, a, b, scale).T
    _, to_base = jax.vjp(matrix, base)
    return x_grad.reshape(x.shape), *to_base(kernel_gradient(x, grad)), a_grad_RxI.T, low_NxR.T @ grad_NxO


merged_product.defvjp(lambda *args: (merged_product(*args), args[:-1]), _merged_backward)
