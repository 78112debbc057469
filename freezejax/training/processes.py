"""What the processes of one run say to each other. With one process nothing is said."""

import collections
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from freezejax.errors import UserError
from freezejax.paths import PyTree
from freezejax.sharding import BATCH


def is_main() -> bool:
    """Whether this is process 0, the one that writes files."""
    return jax.process_index() == 0


def on_main(action: Callable[[], object]) -> None:
    """Does something in process 0 alone, and returns when it is done; an error there ends all processes.

    Bad input there is bad input everywhere. Anything else, a lost disk for instance, may be gone at the next try, and
    whoever starts the processes again must not take it for bad input.

    >>> on_main(lambda: print("once"))
    once
    """
    error: Exception | None = None
    try:
        if is_main():
            action()
    except Exception as found:  # of any kind, a full disk for instance: the others would wait for ever
        error = found
    if ended := broadcast_from_main(0 if error is None else 1 if isinstance(error, UserError) else 2):
        kind = UserError if ended == 1 else RuntimeError
        raise error or kind("process 0 has stopped; the reason stands in its own output")


def broadcast_from_main(value: int) -> int:
    """What process 0 says."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: int) -> int:
    """The largest of what the processes say."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def all_finite(tree: PyTree) -> bool:
    """Whether every value is a finite number, in every process; read on the host, where nothing is compiled for it.

    >>> all_finite({"w": jax.numpy.ones(2)}), all_finite({"w": jax.numpy.asarray([1.0, jax.numpy.inf])})
    (True, False)
    """
    shards = (shard.data for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
    return not largest(int(not all(np.isfinite(np.asarray(values)).all() for values in shards)))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Host values, the same in every process, as arrays laid out over the devices of all of them."""
    host, make = jax.tree.map(np.asarray, tree), jax.make_array_from_callback
    return jax.tree.map(lambda leaf, sharding: make(leaf.shape, sharding, leaf.__getitem__), host, shardings)


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays in every process, whatever devices they were laid out over; gathered one leaf at a time.

    >>> to_host({"w": jax.numpy.ones(2)})
    {'w': array([1., 1.], dtype=float32)}
    """

    def one(leaf: Any) -> np.ndarray:
        elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if elsewhere else leaf)

    return jax.tree.map(one, tree)


def rows_of_process(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """`(share, shares)`: the rows of a batch that this process feeds are share number `share` of `shares`.

    Processes whose devices only differ in the `tensor` axis feed the same rows. Rows that are no such share, as on a
    mesh whose devices are in an odd order, are refused.
    """
    slices = collections.defaultdict[int, set[tuple[int, int]]](set)
    for device, index in sharding.devices_indices_map(shape).items():
        slices[device.process_index].add(index[0].indices(shape[0])[:2])  # type: ignore[attr-defined]
    shares = {}
    for process, found in sorted(slices.items()):  # all of them: one that ended alone would leave the others waiting
        starts, stops = zip(*found, strict=True)
        start, covered = min(starts), sum(stops) - sum(starts)
        if covered != max(stops) - start or start % covered or shape[0] % covered:
            raise UserError(
                f"train.mesh: the devices of process {process} hold rows {sorted(found)} of the batch, which "
                "are not one block; let data * fsdp be a multiple of the number of processes"
            )
        shares[process] = start // covered, shape[0] // covered
    return shares[jax.process_index()]


def from_rows(batch: PyTree, sharding: NamedSharding, rows: int) -> PyTree:
    """The global batch of `rows` rows from the rows that each process has read."""
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda local: make(sharding, local, (rows, *local.shape[1:])), batch)


def check_batch(rows: int, mesh: Mesh | None, field: str) -> None:
    """Refuses, naming `field`, a batch that the mesh does not divide."""
    ways = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH)
    if rows % ways:
        raise UserError(f"{field}={rows}: expected a multiple of {ways}, the parts that train.mesh splits its rows in")
