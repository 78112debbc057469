"""A stack of matrices, such as those of all experts, each of which is a weight of its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from freezejax.errors import UserError
from freezejax.roles import Role, Weight
from freezejax.weights.linear import whole


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Stack(Weight):
    """What stands in the parameters where a kernel is [E, in, out] and its matrices are weights of any kind.

    Leaves are those of its parts, under their numbers: `experts/up_proj/kernel/3/a`; rules of masks so tell single
    experts apart. It is used whole, [E, in, out], drawn and put together in each pass.

    >>> Stack((jnp.ones((2, 3)), jnp.zeros((2, 3)))).shape
    (2, 2, 3)
    """

    parts: tuple[Any, ...]  # arrays [in, out] or weights

    @property
    def roles(self) -> dict[str, Role]:  # type: ignore[override]
        """Every array is the kernel of its part."""
        return {str(i): Role.KERNEL for i in range(len(self.parts))}

    def materialize(self) -> jax.Array:
        """All matrices, [E, in, out]."""
        return jnp.stack(self.matrices())

    def matrices(self) -> tuple[jax.Array, ...]:
        """All of them, [in, out], in the dtype of the parts, so that none loses a bit; float32 where they differ."""
        parts = tuple(whole(part) for part in self.parts)
        same = len({part.dtype for part in parts}) == 1
        return parts if same else tuple(part.astype(jnp.float32) for part in parts)

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        """For JAX."""
        return [(jax.tree_util.SequenceKey(i), part) for i, part in enumerate(self.parts)], None

    @classmethod
    def tree_unflatten(cls, _: None, parts: Any) -> "Stack":
        """For JAX."""
        return cls(tuple(parts))


def matrices(kernel: Any) -> jax.Array | tuple[jax.Array, ...]:
    """A kernel [E, in, out] as an array, or as its matrices [in, out] where each is a weight of its own."""
    return kernel.matrices() if isinstance(kernel, Stack) else whole(kernel)


def each(kernel: Any, site: Any) -> Any:
    """Kind "each": every matrix of a stack is a leaf of its own, which rules of masks can name by its number."""
    if not site.path.rpartition("/")[2].isdigit():
        raise UserError("there is one matrix here, and no stack to be taken apart")
    return kernel
