"""Matrix products in which every row meets the matrix of its own group: tokens and the experts they are sent to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from freezejax.sharding import kernel_gradient

ROWS = 128  # of a block, at most: enough to keep a matrix unit busy


class Blocks(NamedTuple):
    """Rows sorted by group and put into blocks, each of one group alone; see `blocks`."""

    place_M: jax.Array  # int32, where each row goes among the rows of all blocks
    group_K: jax.Array  # int32, the group of each block
    rows: int  # of a block

    def put(self, x_MxD: jax.Array) -> jax.Array:
        """Rows [M, D] in their blocks, [K, rows, D], with zeros where a group does not fill its last block."""
        shape = (len(self.group_K) * self.rows, x_MxD.shape[1])
        return jnp.zeros(shape, x_MxD.dtype).at[self.place_M].set(x_MxD).reshape(-1, self.rows, shape[1])

    def taken(self, x_KxRxD: jax.Array) -> jax.Array:
        """The inverse of `put`: [M, D]."""
        return x_KxRxD.reshape(-1, x_KxRxD.shape[-1])[self.place_M]


def blocks(group_M: jax.Array, groups: int) -> Blocks:
    """Blocks for rows of these groups; none is dropped, and there is room for any way in which they may fall.

    >>> found = blocks(jnp.array([1, 0, 1], jnp.int32), groups=2)
    >>> found.taken(found.put(jnp.arange(3.0)[:, None])).ravel()
    Array([0., 1., 2.], dtype=float32)
    """
    M = len(group_M)
    rows = min(ROWS, max(8, 1 << (M // groups // 2).bit_length()))
    count = -(-M // rows) + groups  # every group leaves one block half empty at most
    order_M = jnp.argsort(group_M, stable=True)
    sizes_G = jnp.zeros(groups, jnp.int32).at[group_M].add(1)
    last_G = jnp.cumsum(-(-sizes_G // rows), dtype=jnp.int32)  # block after a group's last
    first_G = jnp.concatenate([jnp.zeros(1, jnp.int32), last_G[:-1]])
    start_G = jnp.cumsum(sizes_G, dtype=jnp.int32) - sizes_G
    rank_M = jnp.zeros(M, jnp.int32).at[order_M].set(jnp.arange(M, dtype=jnp.int32)) - start_G[group_M]
    group_K = jnp.searchsorted(last_G, jnp.arange(count, dtype=jnp.int32), side="right").astype(jnp.int32)
    return Blocks(first_G[group_M] * rows + rank_M, jnp.minimum(group_K, groups - 1), rows)


@jax.custom_vjp
def grouped(x_KxRxI: jax.Array, kernel_GxIxO: jax.Array, group_K: jax.Array) -> jax.Array:
    """Each block times the matrix of its group: [K, rows, I] -> [K, rows, O], in the dtype of `x`.

    One block after the other, so that no matrix is copied for a block, and no row is multiplied with a matrix that is
    not its own. Where the kernel is not differentiated its gradient is dead code, and leaves no matmul behind.

    >>> grouped(jnp.ones((2, 1, 1)), jnp.array([[[3.0]], [[5.0]]]), jnp.array([1, 0])).ravel()
    Array([5., 3.], dtype=float32)
    """
    return _products(x_KxRxI, kernel_GxIxO, group_K, transposed=False)


def _products(x_KxRxI: jax.Array, kernel_GxIxO: jax.Array, group_K: jax.Array, transposed: bool) -> jax.Array:
    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_RxI, group = block
        kernel = kernel_GxIxO[group].astype(x_RxI.dtype)
        return x_RxI @ (kernel.T if transposed else kernel)

    return jax.lax.map(one, (x_KxRxI, group_K))


def _backward(saved, grad_KxRxO):
    x_KxRxI, kernel_GxIxO, group_K = saved

    def one(total_GxIxO, block):
        x_RxI, grad_RxO, group = block
        return total_GxIxO.at[group].add(kernel_gradient(x_RxI, grad_RxO)), None

    zeros = jnp.zeros(kernel_GxIxO.shape, jnp.float32)
    total, _ = jax.lax.scan(one, zeros, (x_KxRxI, grad_KxRxO, group_K))
    return _products(grad_KxRxO, kernel_GxIxO, group_K, transposed=True), total.astype(kernel_GxIxO.dtype), None


grouped.defvjp(lambda *args: (grouped(*args), args), _backward)
