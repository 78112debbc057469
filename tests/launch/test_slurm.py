"""launch/slurm.sh from submission to summary, on a Slurm of local processes: two nodes of two simulated devices."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(__file__).parent / "bin"
FIRST_PORT = 65535 - 2**12 + 1  # jax adds the job's number modulo 2**12


def free_job_id():
    for job_id in range(os.getpid() % 2**11 + 1, 2**12):
        with socket.socket() as probe:
            try:
                probe.bind(("", FIRST_PORT + job_id))
            except OSError:
                continue
            return job_id
    raise RuntimeError("no free port")


@pytest.fixture
def slurm(tmp_path, python):
    """Environment of a user of the fake Slurm."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path),
        "FAKE_JOB_ID": str(free_job_id()),
        "FREEZEJAX_PYTHON": python,
        "FREEZEJAX_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }


def start(command, environment):
    return subprocess.Popen(command, cwd="/", env=environment, start_new_session=True)


def ended(process, seconds):
    """Exit code; whatever the process started is gone."""
    try:
        return process.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_study_on_two_nodes_is_stopped_by_the_time_limit_requeued_and_finished(tmp_path, slurm):
    workdir = tmp_path / "work dir"
    metrics = workdir / "runs" / "baseline" / "seed_0" / "metrics.jsonl"
    flags = ["variants=baseline", "data.val_sequences=8", "data.eval_batch_size=4", "artifact.compressor=none"]
    flags += ["train.steps=40", "train.log_every=1", "train.eval_every=0", "train.checkpoint_every=0"]
    flags += ["train.batch_size=4", "train.seq_len=16", "sizes.small.num_layers=1"]
    command = [ROOT / "launch" / "slurm.sh", "--nodes=2", "progressive", "tiny", workdir]
    command += [f"--config.{flag}" for flag in flags]
    code = ended(start(command, {**slurm, "FAKE_WATCH": str(metrics)}), 400)
    log = (workdir / f"slurm-{slurm['FAKE_JOB_ID']}.log").read_text()
    assert code == 0, log
    assert "stopped by SIGTERM after step" in log
    assert (tmp_path / "requeued").exists()
    steps = [row["step"] for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]
    assert steps == list(range(1, 41))  # each once, over both lives
    (row,) = json.loads((workdir / "summary.json").read_text())["rows"]
    assert row["name"] == "baseline"


def in_job(slurm, tmp_path, srun):
    """The job itself, whose srun is a script."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(f"#!/usr/bin/env bash\n{srun}\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    environment = {**slurm, "PATH": f"{tmp_path / 'bin'}:{slurm['PATH']}", "SLURM_JOB_ID": "7"}
    command = ["bash", ROOT / "launch" / "slurm.sh", "--in-job", "progressive", "tiny", "x"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_only_a_saved_checkpoint_is_requeued(code, slurm, tmp_path):
    assert ended(in_job(slurm, tmp_path, f"exit {code}"), 30) == code
    assert not (tmp_path / "requeue").exists()


def test_counterpart_a_saved_checkpoint_is(slurm, tmp_path):
    assert ended(in_job(slurm, tmp_path, "exit 143"), 30) == 143
    assert (tmp_path / "requeue").exists()


def test_a_cancelled_job_is_not_requeued(slurm, tmp_path):
    job = in_job(slurm, tmp_path, f"touch {tmp_path / 'running'}; sleep 1; exit 143")
    while not (tmp_path / "running").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)  # scancel ends the shell too
    assert ended(job, 30) == -signal.SIGTERM
    assert not (tmp_path / "requeue").exists()
