"""Matrix products in which every row meets the matrix of its own group: tokens and the experts they are sent to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freezejax.sharding import kernel_gradient

ROWS = 128  # of a block, at most: enough to keep a matrix unit busy


class Blocks(NamedTuple):
    """Rows sorted by group and put into blocks, each of one group alone; see `blocks`."""

    place_M: jax.Array  # int32, where each row goes among the rows of all blocks; beyond them: nowhere
    group_K: jax.Array  # int32, the group of each block; the number of groups: the block is empty
    rows: int  # of a block

    def put(self, x_MxD: jax.Array) -> jax.Array:
        """Rows [M, D] in their blocks, [K, rows, D], with zeros where a group does not fill its last block."""
        shape = (len(self.group_K) * self.rows, x_MxD.shape[1])
        placed = jnp.zeros(shape, x_MxD.dtype).at[self.place_M].set(x_MxD, mode="drop")
        return placed.reshape(-1, self.rows, shape[1])

    def taken(self, x_KxRxD: jax.Array) -> jax.Array:
        """The inverse of `put`, [M, D], with zeros for rows that have no group."""
        return x_KxRxD.reshape(-1, x_KxRxD.shape[-1]).at[self.place_M].get(mode="fill", fill_value=0)


def blocks(group_M: jax.Array, groups: int) -> Blocks:
    """Blocks for rows of these groups; none is dropped, and there is room for any way in which they may fall.

    A row of group `groups` has no group here: it has no place, and costs nothing.

    >>> found = blocks(jnp.array([1, 0, 1], jnp.int32), groups=2)
    >>> found.taken(found.put(jnp.arange(3.0)[:, None])).ravel()
    Array([0., 1., 2.], dtype=float32)
    """
    M = len(group_M)
    rows = min(ROWS, max(8, 1 << (M // groups // 2).bit_length()))
    count = -(-M // rows) + groups  # every group leaves one block half empty at most
    order_M = jnp.argsort(group_M, stable=True)
    here_M, known_M = group_M < groups, jnp.minimum(group_M, groups - 1)
    sizes_G = jnp.zeros(groups, jnp.int32).at[group_M].add(1, mode="drop")
    last_G = jnp.cumsum(-(-sizes_G // rows), dtype=jnp.int32)  # block after a group's last
    first_G = jnp.concatenate([jnp.zeros(1, jnp.int32), last_G[:-1]])
    start_G = jnp.cumsum(sizes_G, dtype=jnp.int32) - sizes_G
    rank_M = jnp.zeros(M, jnp.int32).at[order_M].set(jnp.arange(M, dtype=jnp.int32)) - start_G[known_M]
    group_K = jnp.searchsorted(last_G, jnp.arange(count, dtype=jnp.int32), side="right").astype(jnp.int32)
    return Blocks(jnp.where(here_M, first_G[known_M] * rows + rank_M, count * rows), group_K, rows)


Matrices = jax.Array | tuple[jax.Array, ...]  # [G, in, out] as one array, or G arrays [in, out]


@jax.custom_vjp
def grouped(x_KxRxI: jax.Array, kernel_GxIxO: Matrices, group_K: jax.Array) -> jax.Array:
    """Each block times the matrix of its group: [K, rows, I] -> [K, rows, O], in the dtype of `x`.

    One block after the other, so that no matrix is copied for a block, no row is multiplied with a matrix that is not
    its own, and an empty block with none. Where the kernel is not differentiated its gradient is dead code, and leaves
    no matmul behind; of matrices that are arrays of their own, those that are not differentiated have no gradient,
    and their blocks are skipped.

    >>> grouped(jnp.ones((2, 1, 1)), jnp.array([[[3.0]], [[5.0]]]), jnp.array([1, 0])).ravel()
    Array([5., 3.], dtype=float32)
    """
    return _products(x_KxRxI, _stacked(kernel_GxIxO), group_K, transposed=False)


def _stacked(kernel_GxIxO: Matrices) -> jax.Array:
    return jnp.stack(kernel_GxIxO) if isinstance(kernel_GxIxO, tuple) else kernel_GxIxO


def _products(x_KxRxI: jax.Array, kernel_GxIxO: jax.Array, group_K: jax.Array, transposed: bool) -> jax.Array:
    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_RxI, group = block

        def product() -> jax.Array:
            kernel = kernel_GxIxO[group].astype(x_RxI.dtype)
            return x_RxI @ (kernel.T if transposed else kernel)

        return _if(group < len(kernel_GxIxO), product)

    return jax.lax.map(one, (x_KxRxI, group_K))


def _if(wanted: jax.Array, product: Callable[[], jax.Array]) -> jax.Array:
    """The product, or zeros."""
    shape = jax.eval_shape(product)
    return jax.lax.cond(wanted, product, lambda: jnp.zeros(shape.shape, shape.dtype))


def _forward(x, kernel, group):
    """Arguments say whether they are differentiated; the keys of a dict are static, so that the backward pass knows."""
    args = jax.tree.map(lambda primal: primal.value, (x, kernel, group))
    trained = {i: None for i, part in enumerate(kernel) if part.perturbed} if isinstance(kernel, tuple) else None
    return grouped(*args), (*args, trained)


def _backward(saved, grad_KxRxO):
    x_KxRxI, kernel, group_K, trained = saved
    kernel_grad: Any
    if trained is None:
        kernel_grad = _gradients(x_KxRxI, grad_KxRxO, group_K, len(kernel)).astype(kernel.dtype)
    else:  # a group without a gradient has its place beyond those that have one, as an empty block has
        place_G = np.full(len(kernel) + 1, len(trained), np.int32)
        place_G[[*trained]] = np.arange(len(trained))
        place_K = jnp.asarray(place_G)[group_K]
        found = _gradients(x_KxRxI, grad_KxRxO, place_K, len(trained)).astype(kernel[0].dtype) if trained else ()
        of_part = dict(zip(trained, found, strict=True))
        kernel_grad = tuple(of_part.get(i) for i in range(len(kernel)))
    return _products(grad_KxRxO, _stacked(kernel), group_K, transposed=True), kernel_grad, None


def _gradients(x_KxRxI: jax.Array, grad_KxRxO: jax.Array, place_K: jax.Array, count: int) -> jax.Array:
    """Those of so many matrices, float32 [count, I, O]: each block adds to that at its place."""

    def one(total_TxIxO: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x_RxI, grad_RxO, place = block
        added = _if(place < count, lambda: kernel_gradient(x_RxI, grad_RxO))
        return total_TxIxO.at[place].add(added, mode="drop"), None

    zeros = jnp.zeros((count, x_KxRxI.shape[-1], grad_KxRxO.shape[-1]), jnp.float32)
    return jax.lax.scan(one, zeros, (x_KxRxI, grad_KxRxO, place_K))[0]


grouped.defvjp(_forward, _backward, symbolic_zeros=True)
