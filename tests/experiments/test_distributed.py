"""Flags and environments that say which processes make a run; real ones run in test_two_processes.py."""

import socket

import jax
import pytest
from absl import flags

from experiments.engine import distributed
from freezejax.errors import UserError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4"}
ARGUMENTS = ("experiments.progressive", "--config=experiments/configs/progressive.py:tiny")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # a shell of sbatch, without srun
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),  # one task of a larger allocation
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}, "Slurm"),
        ({"SLURM_NTASKS": "4"}, None),  # left over in a shell, no job
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, "TPU pod"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_which_cluster_an_environment_names(environment, expected):
    assert distributed.cluster(environment) == expected


@pytest.fixture
def start(monkeypatch):
    """`start(environment, **flags) -> arguments of jax.distributed.initialize, or None where it was not called`."""
    holder = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", holder)
    for define in ("string", "integer", "enum"):
        original = getattr(flags, f"DEFINE_{define}")
        monkeypatch.setattr(flags, f"DEFINE_{define}", lambda *a, o=original, **k: o(*a, flag_values=holder, **k))
    distributed.define_flags()
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def go(environment, **given):
        holder(["program", *(f"--{name}={value}" for name, value in given.items())])
        monkeypatch.setattr(distributed.os, "environ", environment)
        distributed.start()
        return calls.pop() if calls else None

    return go


def test_alone_nothing_is_joined(start):
    assert start({}) is None
    assert start(SLURM, distributed="off") is None


def test_a_cluster_is_joined_as_it_says_itself(start):
    assert set(start(SLURM)) == {"initialization_timeout"}
    assert set(start({}, distributed="on")) == {"initialization_timeout"}
    assert set(start({}, distributed="on")) == {"initialization_timeout"}  # a TPU host asks its metadata server


def test_explicit_flags_win_over_a_cluster(start):
    given = {"coordinator": "[::1]:99", "num_processes": 3, "process_id": 2, "join_timeout": 30}
    joined = start(SLURM, distributed="off", **given)
    assert joined.pop("initialization_timeout") > 30  # ours comes first
    assert joined == {"coordinator_address": "[::1]:99", "num_processes": 3, "process_id": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process_id": 0}, "--coordinator, --num_processes and --process_id belong together: give all three"),
        ({"coordinator": "node0:1"}, "belong together"),
        ({"coordinator": "node0:1", "num_processes": 2}, "belong together"),
        ({"coordinator": "node0:1", "num_processes": 2, "process_id": 2}, "--process_id=2: expected 0 to 1"),
        ({"coordinator": "node0:1", "num_processes": 2, "process_id": -1}, "--process_id=-1: expected 0 to 1"),
        ({"coordinator": "node0:1", "num_processes": 0, "process_id": 0}, "--num_processes=0: expected 1 or more"),
        ({"coordinator": "node0", "num_processes": 2, "process_id": 0}, "--coordinator=node0: expected HOST:PORT"),
        ({"coordinator": "node0:x", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": ":12", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "node0:0", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
        ({"coordinator": "node0:65536", "num_processes": 2, "process_id": 0}, "expected HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused(start, given, message):
    with pytest.raises(UserError) as raised:
        start(SLURM, **given)
    assert message in str(raised.value)


@pytest.mark.parametrize(("error", "kind"), [(RuntimeError, distributed.NotJoined), (ValueError, UserError)])
def test_what_jax_refuses_is_told_in_one_line(start, monkeypatch, error, kind):
    """Only what is no fault of the arguments may be tried again."""

    def refuse(**_):
        raise error("first line\nsecond line")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(kind, match=r"--coordinator: node0:1 cannot be used \(first line\); --distributed=off"):
        start({}, coordinator="node0:1", num_processes=2, process_id=1)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_nobody_joins_ends_in_one_line(command, tmp_path, process):
    """jax alone would wait for minutes and then abort with a stack trace. It is no bad input: the code is another."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        where = f"localhost:{probe.getsockname()[1]}"
    given = (f"--coordinator={where}", "--num_processes=2", f"--process_id={process}", "--join_timeout=1")
    ended = command(*ARGUMENTS, f"--workdir={tmp_path / 'run'}", *given)
    assert ended.code == 75, ended
    missing = f"not all processes of the run have come to {where} within --join_timeout=1 seconds"
    assert ended.err == f"error: {missing}; --distributed=off runs alone\n"
    assert not (tmp_path / "run").exists()
