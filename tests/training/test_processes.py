"""Which rows of a batch a process reads, for meshes whose devices belong to several processes."""

import math
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from freezejax.errors import UserError
from freezejax.sharding import BATCH, make_mesh
from freezejax.training import processes

SIZES = st.sampled_from([1, 2, 3, 4])


class Device(NamedTuple):
    id: int
    process_index: int


class Pod:
    """Stands for the `NamedSharding` of a batch over a mesh of devices, `per_process` of them in each process."""

    def __init__(self, sizes, per_process, order=None):
        ids = range(math.prod(sizes)) if order is None else order
        self.mesh = np.array(ids).reshape(sizes)
        self.per_process, self.processes = per_process, range(len(ids) // per_process)

    def devices_indices_map(self, shape):
        parts = self.mesh.reshape(-1, self.mesh.shape[2])  # rows over data and fsdp, alike along tensor
        rows = shape[0] // len(parts)
        return {
            Device(int(device), int(device) // self.per_process): (slice(i * rows, (i + 1) * rows), slice(None))
            for i, part in enumerate(parts)
            for device in part
        }


def shares(pod, rows):
    found = []
    for process in pod.processes:
        with mock.patch("jax.process_index", return_value=process):
            found.append(processes.rows_of_process(pod, (rows, 5)))
    return found


def test_the_stand_in_says_what_jax_says():
    sharding = jax.sharding.NamedSharding(make_mesh(), P(BATCH))
    ((device, found),) = sharding.devices_indices_map((8, 5)).items()
    ((stand_in, expected),) = Pod((1, 1, 1), 1).devices_indices_map((8, 5)).items()
    assert device.process_index == stand_in.process_index == 0
    assert [part.indices(8) for part in found] == [part.indices(8) for part in expected]


@pytest.mark.parametrize(
    ("sizes", "per_process", "expected"),
    [
        ((8, 1, 1), 4, [(0, 2), (1, 2)]),
        ((2, 2, 2), 4, [(0, 2), (1, 2)]),
        ((2, 2, 2), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # tensor across two processes: they read the same rows
        ((1, 2, 4), 4, [(0, 2), (1, 2)]),
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),  # tensor across all: every process reads all rows
        ((3, 1, 2), 2, [(0, 3), (1, 3), (2, 3)]),
    ],
)
def test_shares_of_known_meshes(sizes, per_process, expected):
    assert shares(Pod(sizes, per_process), rows=24) == expected


@given(SIZES, SIZES, SIZES, st.integers(1, 3), st.data())
def test_the_shares_of_all_processes_are_the_batch(data, fsdp, tensor, rows, draw):
    sizes = (data, fsdp, tensor)
    total = data * fsdp * tensor
    per_process = draw.draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
    rows *= data * fsdp
    pod = Pod(sizes, per_process)
    try:
        found = shares(pod, rows)
    except UserError:  # a process holds part of what a line of `tensor` holds
        assert per_process % tensor
        return
    for device, (index, _) in pod.devices_indices_map((rows, 5)).items():
        share, count = found[device.process_index]
        assert rows // count * share <= index.start < index.stop <= rows // count * (share + 1)
    if per_process % tensor == 0 or tensor % per_process == 0:
        assert {share for share, _ in found} == set(range(found[0][1]))  # nobody reads more than it needs


def test_rows_that_are_no_block_are_refused_in_every_process():
    refused = {
        r"process 0 hold rows \[\(0, 4\), \(8, 12\)\]": (Pod((4, 1, 1), 2, [0, 2, 1, 3]), 16),
        r"process 1 hold rows \[\(4, 8\), \(8, 12\)\]": (Pod((4, 1, 3), 4), 16),  # those of 0 and 2 are blocks
    }
    for message, (pod, rows) in refused.items():
        for process in pod.processes:
            with (
                mock.patch("jax.process_index", return_value=process),
                pytest.raises(
                    UserError, match=f"train.mesh: the devices of {message}.* multiple of the number of proc"
                ),
            ):
                processes.rows_of_process(pod, (rows, 5))


def test_one_process_says_nothing_and_places_on_its_device():
    assert processes.broadcast_from_main(7) == processes.largest(7) == 7
    mesh = make_mesh()
    tree = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    placed = processes.place(tree, {"w": jax.sharding.NamedSharding(mesh, P("fsdp"))})
    assert np.array_equal(processes.to_host(placed)["w"], tree["w"])
    with pytest.raises(UserError, match="told"):
        processes.on_main(lambda: (_ for _ in ()).throw(UserError("told")))


@pytest.mark.parametrize(("error", "kind"), [(UserError("bad input"), UserError), (OSError("disk"), RuntimeError)])
def test_an_error_of_process_0_ends_the_others_too_and_as_what_it_is(error, kind, monkeypatch):
    told = []
    monkeypatch.setattr(processes, "broadcast_from_main", lambda value: told.append(value) or value)
    with pytest.raises(type(error)):
        processes.on_main(lambda: (_ for _ in ()).throw(error))
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr(processes, "broadcast_from_main", lambda value: told[0])
    ran = []
    with pytest.raises(kind, match="process 0 has stopped"):
        processes.on_main(lambda: ran.append(1))
    assert not ran


@pytest.mark.parametrize(("rows", "fits"), [(8, True), (12, False), (0, True)])
def test_a_batch_is_checked_against_the_parts_of_its_rows(rows, fits):
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 2, "expert": 1, "tensor": 3})
    if fits:
        processes.check_batch(rows, mesh, "train.batch_size")
    else:
        with pytest.raises(UserError, match=r"train\.batch_size=12: expected a multiple of 8"):
            processes.check_batch(rows, mesh, "train.batch_size")
