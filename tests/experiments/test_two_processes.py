"""Two real processes of 2 devices, joined by gloo: they train, freeze, stop, are killed, and go on as one of 4."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.conftest import ROOT, Ended

MODULE, STEPS, FREEZE = "experiments.progressive", 36, 12
FIELDS = [
    "--config=experiments/configs/progressive.py:tiny",
    "--config.variants=progressive_small",
    *(f"--config.train.steps={STEPS}", "--config.train.seq_len=16", "--config.data.val_sequences=16"),
    *("--config.sizes.small.num_layers=1", "--config.train.log_every=2"),
    "--config.train.optimizer.learning_rate=5e-4",  # at the config's 3e-3 a rounding error grows a thousandfold
    *("--config.train.eval_every=18", "--config.train.checkpoint_every=5", "--config.train.mesh.fsdp=2"),
]
LIMIT = 300  # seconds until a hung process is killed


@pytest.fixture(scope="module")
def start(environment):
    """`start(workdir, processes, devices, *arguments) -> [Popen]`; none outlives the tests."""
    started = []

    def go(workdir, processes, devices, *arguments):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        settings = {**environment, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling for several devices is most of the time
        command = [sys.executable, "-m", MODULE, f"--workdir={workdir}", *FIELDS, *arguments]
        joined = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"] if processes > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        for index in range(processes):
            which = [*joined, f"--process_id={index}"] if processes > 1 else []
            started.append(subprocess.Popen([*command, *which], cwd=ROOT, env=settings, **pipes))
        return started[-processes:]

    yield go
    for process in started:
        process.kill()
        process.wait()


def ends(processes):
    """How all of them ended, their outputs read at once."""

    def one(process):
        out, err = process.communicate(timeout=LIMIT)
        return Ended(process.returncode, out, err)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(one, processes))


def own_lines(err):
    """Of stderr, without what gloo says."""
    return [line for line in err.splitlines() if line and not line.startswith("[Gloo]")]


def records(workdir: Path, variant="progressive_small"):
    path = workdir / "runs" / variant / "seed_0" / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(processes, workdir, step):
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit and all(process.poll() is None for process in processes):
        if (found := records(workdir)) and found[-1]["step"] >= step:
            return
        time.sleep(0.01)
    for process in processes:
        process.kill()
    pytest.fail(f"no step {step}: {ends(processes)}")


@pytest.fixture(scope="module")
def chain(start, command, tmp_path_factory):
    """Stopped by SIGTERM after the freeze, continued, killed, and ended by one process; beside it a run left alone."""
    workdir, whole = (tmp_path_factory.mktemp("two") / name for name in ("run", "whole"))
    pair = start(workdir, 2, 2)
    alone = command(MODULE, f"--workdir={whole}", *FIELDS, "--config.train.mesh.fsdp=1")
    wait_for_step(pair, workdir, FREEZE + 2)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    stopped, at_stop = ends(pair), records(workdir)
    other_study = start(workdir, 2, 1, "--config.train.mesh.fsdp=1", "--config.train.seq_len=32")
    refused = ends(other_study)
    pair = start(workdir, 2, 2)
    wait_for_step(pair, workdir, at_stop[-1]["step"] + 6)
    for process in pair:
        process.kill()
    killed = ends(pair)
    (ended,) = ends(start(workdir, 1, 4))
    return {
        "alone": alone,
        "stopped": stopped,
        "at stop": at_stop,
        "refused": refused,
        "killed": killed,
        "ended": ended,
        "found": records(workdir),
        "expected": records(whole),
        "results": [json.loads(next(path.rglob("result.json")).read_text()) for path in (workdir, whole)],
    }


def test_sigterm_stops_both_after_the_same_step_in_one_line(chain):
    codes = [ended.code for ended in chain["stopped"]]
    assert codes == [143, 143], chain["stopped"]
    main, other = (own_lines(ended.err) for ended in chain["stopped"])
    assert len(main) == 1, main
    assert main[0].startswith("stopped by SIGTERM after step ")
    assert main == other


def test_another_study_in_the_folder_ends_every_process_with_one_line(chain):
    main, other = chain["refused"]
    assert (main.code, other.code) == (2, 2), chain["refused"]
    (line,), (short,) = own_lines(main.err), own_lines(other.err)
    assert "holds a study with config/train/seq_len=16, not 32" in line
    assert short == "error: process 0 has stopped; the reason stands in its own output"


def test_a_killed_pair_goes_on_as_one_process_and_ends_where_an_undisturbed_run_does(chain):
    assert [ended.code for ended in chain["killed"]] == [-signal.SIGKILL] * 2
    assert "resumed after step" in chain["killed"][0].out
    assert chain["ended"].code == 0, chain["ended"]
    assert chain["alone"].code == 0, chain["alone"]
    assert "resumed after step" in chain["ended"].out
    assert chain["at stop"][-1]["phase"] == 1  # the freeze was before all of this


def test_no_step_is_missing_or_doubled_and_every_loss_is_that_of_one_device(chain):
    for field in ("loss", "grad_norm", "val_ce", "val_bpb", "learning_rate", "trainable_share"):
        found, expected = (
            [(record["step"], record[field]) for record in chain[which] if field in record]
            for which in ("found", "expected")
        )
        assert [step for step, _ in found] == [step for step, _ in expected], field
        np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], rtol=2e-5, err_msg=field)
    logged = [record["step"] for record in chain["found"] if "loss" in record]
    assert logged == list(range(2, STEPS + 1, 2))
    here, there = chain["results"]
    for field in ("val_ce", "val_bpb", "trainable_params", "steps", "train_tokens"):
        assert here[field] == pytest.approx(there[field], rel=1e-4), field


def test_a_batch_that_the_mesh_does_not_divide_is_told_in_one_line(start, tmp_path):
    """What the flags alone can get wrong is in test_distributed.py."""
    (ended,) = ends(start(tmp_path / "run", 1, 4, "--config.train.batch_size=6"))
    assert ended.code == 2, ended
    (line,) = own_lines(ended.err)
    assert line.startswith("error: train.batch_size / train.accumulation=6: expected a multiple of 4, the parts that")
    assert not (tmp_path / "run").exists()
