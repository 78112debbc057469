"""What the processes of one run say to each other. With one process nothing is said."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from freezejax.errors import UserError
from freezejax.paths import PyTree


def is_main() -> bool:
    """Whether this is process 0, the one that writes files.

    >>> is_main()
    True
    """
    return jax.process_index() == 0


def on_main(action: Callable[[], object]) -> None:
    """Does something in process 0 alone, and returns when it is done; an error there ends all processes.

    Bad input there is bad input everywhere. Anything else, a lost disk for instance, may be gone at the next try, and
    whoever starts the processes again must not take it for bad input.

    >>> on_main(lambda: print("once"))
    once
    """
    error: Exception | None = None
    if is_main():
        try:
            action()
        except Exception as found:  # of any kind, a full disk for instance: the others would wait for ever
            error = found
    ended = broadcast_from_main(0 if error is None else 1 if isinstance(error, UserError) else 2)
    if ended:
        raise error or (UserError if ended == 1 else RuntimeError)(
            "process 0 has stopped; the reason stands in its own output"
        )


def wait_for_all(name: str) -> None:
    """Returns when every process of the run has come to this point.

    >>> wait_for_all("end")
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_main(value: int) -> int:
    """What process 0 says.

    >>> broadcast_from_main(3)
    3
    """
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: int) -> int:
    """The largest of what the processes say.

    >>> largest(3)
    3
    """
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Host values, the same in every process, as arrays laid out over the devices of all of them.

    >>> place({"w": np.ones(2, np.float32)}, {"w": jax.sharding.SingleDeviceSharding(jax.devices()[0])})["w"]
    Array([1., 1.], dtype=float32)
    """

    def one(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays in every process, whatever devices they were laid out over; gathered one leaf at a time.

    >>> to_host({"w": jax.numpy.ones(2)})
    {'w': array([1., 1.], dtype=float32)}
    """

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            assert isinstance(leaf.sharding, NamedSharding)
            everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
            leaf = jax.jit(lambda x: x, out_shardings=everywhere)(leaf).addressable_data(0)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def rows_of_process(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[int, int]:
    """`(share, shares)`: the rows of a batch that this process feeds are share number `share` of `shares`.

    Processes whose devices only differ in the `tensor` axis feed the same rows.

    Raises:
      UserError: the rows of a process are not one such share, as on a mesh whose devices are in an odd order.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> rows_of_process(NamedSharding(mesh, PartitionSpec("data")), (8, 4))
    (0, 1)
    """
    slices: dict[int, set[tuple[int, int]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        process: int = device.process_index  # type: ignore[attr-defined]
        slices.setdefault(process, set()).add(index[0].indices(shape[0])[:2])
    # Every process checks all of them: one that ended alone would leave the others waiting.
    shares = {process: _share(process, found, shape[0]) for process, found in sorted(slices.items())}
    return shares[jax.process_index()]


def _share(process: int, slices: set[tuple[int, int]], rows: int) -> tuple[int, int]:
    start, stop = min(first for first, _ in slices), max(last for _, last in slices)
    covered = sum(last - first for first, last in slices)
    if covered != stop - start or start % covered or rows % covered:
        raise UserError(
            f"train.mesh: the devices of process {process} hold rows {sorted(slices)} of the batch, which "
            "are not one block; let data * fsdp be a multiple of the number of processes"
        )
    return start // covered, rows // covered


def from_rows(batch: PyTree, sharding: NamedSharding, rows: int) -> PyTree:
    """The global batch of `rows` rows from the rows that each process has read.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> from_rows({"x": np.ones((2, 3))}, NamedSharding(mesh, PartitionSpec("data")), 2)["x"].shape
    (2, 3)
    """

    def one(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, local, (rows, *local.shape[1:]))

    return jax.tree.map(one, batch)


def check_batch(rows: int, mesh: Mesh | None, field: str) -> None:
    """Refuses a batch that the mesh does not divide.

    Raises:
      UserError: naming `field`.

    >>> check_batch(3, None, "train.batch_size")
    """
    if mesh is None:
        return
    ways = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
    if rows % ways:
        raise UserError(f"{field}={rows}: expected a multiple of {ways}, the parts that train.mesh splits its rows in")
