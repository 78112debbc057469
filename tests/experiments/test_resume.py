"""Law 9 for whole commands: Ctrl-C, SIGTERM and SIGKILL, then the same command again, give the same bits."""

import json
import random
import shutil
import signal
import time

import pytest

FIELDS = [
    "--config.variants=baseline,progressive_small",
    "--config.sizes.small.num_layers=1",
    *("--config.train.steps=240", "--config.train.seq_len=32", "--config.train.batch_size=4"),
    *("--config.data.val_sequences=16", "--config.train.eval_every=40", "--config.train.checkpoint_every=20"),
]
MODULE = "experiments.progressive"


def hashes(workdir):
    rows = json.loads((workdir / "summary.json").read_text())["rows"]
    return {row["name"]: row["params_sha256"] for row in rows}


def wait_for_step(process, workdir, variant, step):
    metrics = workdir / "runs" / variant / "seed_0" / "metrics.jsonl"
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        time.sleep(0.002)
    pytest.fail(f"no step {step} of {variant}: {process.communicate()}")


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    ended = command(MODULE, f"--workdir={workdir}", *FIELDS)
    assert ended.code == 0, ended
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return hashes(workdir), figures(metrics)


def figures(records):
    return [{key: value for key, value in record.items() if key != "tokens_per_second"} for record in records]


def check_damage_is_one_line(command, workdir, damaged):
    """On stderr too there is nothing else, whatever Orbax's tasks have to say."""
    shutil.copytree(workdir, damaged)
    newest = max(damaged.rglob("checkpoints/*/"), key=lambda path: int(path.name) if path.name.isdecimal() else -1)
    for path in newest.rglob("d/*"):
        path.write_bytes(b"x" * path.stat().st_size)
    ended = command(MODULE, f"--workdir={damaged}", *FIELDS)
    assert ended.code == 2
    assert ended.err.startswith(f"error: checkpoint {newest} cannot be restored")
    assert ended.err.count("\n") == 1


def test_stopped_three_ways_and_resumed_it_ends_the_same(spawn, command, uninterrupted, tmp_path):
    """Ctrl-C before the freeze, SIGTERM after it, SIGKILL at some moment later; then to the end."""
    workdir = tmp_path / "run"
    arguments = (f"--workdir={workdir}", *FIELDS)
    stops = [("baseline", 30, signal.SIGINT, 130), ("progressive_small", 90, signal.SIGTERM, 143)]
    for variant, step, number, code in stops:
        process = spawn(MODULE, *arguments)
        wait_for_step(process, workdir, variant, step)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        assert err.startswith(f"stopped by {signal.Signals(number).name} after step ")
        assert "run the same command again" in err
        assert err.count("\n") == 1
    check_damage_is_one_line(command, workdir, tmp_path / "damaged")
    process = spawn(MODULE, *arguments)
    wait_for_step(process, workdir, "progressive_small", 150)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    ended = command(MODULE, *arguments)
    assert ended.code == 0, ended
    assert "finished before, kept" in ended.out
    assert "resumed after step" in ended.out
    assert hashes(workdir) == uninterrupted[0]
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert figures(metrics) == uninterrupted[1]
    assert not list(workdir.rglob("checkpoints"))


def last_steps(workdir):
    """Last recorded step of every run of the study, added up."""
    found = [path.read_text().split("\n")[:-1] for path in workdir.rglob("runs/*/*/metrics.jsonl")]
    return sum(json.loads(lines[-1])["step"] for lines in found if lines)


def test_killed_at_five_seeded_moments_it_ends_the_same(command, uninterrupted, tmp_path):
    """One moment in each fifth of the study's 2 x 240 steps, and somewhat after the record that shows it."""
    workdir, moments = tmp_path / "run", random.Random(0)
    arguments = (f"--workdir={workdir}", *FIELDS)
    for fifth in range(5):
        moment, delay = 96 * fifth + moments.randint(45, 85), moments.uniform(0, 0.03)

        def reached(moment=moment, delay=delay):
            if last_steps(workdir) < moment:
                return False
            time.sleep(delay)
            return True

        ended = command(MODULE, *arguments, stop_when=reached)
        assert ended.code == -signal.SIGKILL, ended
        assert fifth == 0 or "resumed after step" in ended.out or "finished before, kept" in ended.out
    ended = command(MODULE, *arguments)
    assert ended.code == 0, ended
    assert "resumed after step" in ended.out
    assert hashes(workdir) == uninterrupted[0]
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert figures(metrics) == uninterrupted[1]
