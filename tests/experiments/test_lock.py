"""One command per workdir, however its holder ends, on this machine or on another one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.engine import lock
from freezejax.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from experiments.engine import lock
with lock.held:
    lock.acquire(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(environment):
    """`hold(folder, seconds=60) -> Popen` of a process that holds the folder."""
    started = []

    def go(folder, seconds=60):
        command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def released():
    yield
    lock.held.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "STALE", 0.5)


def left_behind(folder, age=0.0, **changed):
    """The file of a holder that ended without a word."""
    who = {"host": "far", "pid": 7, "boot": "another", "since": "2026-01-01 00:00:00", **changed}
    (folder / lock.NAME).write_text(json.dumps(who))
    os.utime(folder / lock.NAME, (time.time() - age,) * 2)


def test_a_second_process_is_told_the_first_ones_host_and_number(hold, tmp_path):
    first = hold(tmp_path)
    with pytest.raises(UserError) as told:
        lock.acquire(tmp_path)
    assert f"--workdir={tmp_path} is in use by process {first.pid} on {os.uname().nodename}, started 2" in str(
        told.value
    )
    assert first.poll() is None
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == first.pid


def test_a_holder_that_ends_leaves_nothing(hold, tmp_path, capsys):
    assert hold(tmp_path, seconds=0).wait(60) == 0
    assert list(tmp_path.iterdir()) == []
    lock.acquire(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_killed_holder_is_taken_over_at_once_and_said_to_be_dead(hold, tmp_path, capsys):
    first = hold(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    lock.acquire(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: process {first.pid} on ")
    assert said.endswith("has died; its place is taken over\n")
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_on_another_host_an_old_sign_of_life_is_a_dead_holder(tmp_path, quick, capsys):
    left_behind(tmp_path, age=9)
    lock.acquire(tmp_path)
    assert capsys.readouterr().out == (
        f"{tmp_path}: process 7 on far, started 2026-01-01 00:00:00 has died; its place is taken over\n"
    )


def test_on_another_host_a_young_sign_of_life_is_waited_out(tmp_path, quick, capsys):
    left_behind(tmp_path)
    lock.acquire(tmp_path)
    waiting, taken = capsys.readouterr().out.splitlines()
    assert "for a sign of life of process 7 on far" in waiting
    assert "has died" in taken


def test_on_another_host_a_living_holder_keeps_it(tmp_path, quick):
    left_behind(tmp_path)
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(tmp_path / lock.NAME)

    threading.Thread(target=live).start()
    with pytest.raises(UserError, match="in use by process 7 on far"):
        lock.acquire(tmp_path)
    ended.set()


def test_where_the_kernel_has_no_locks_the_sign_of_life_decides(tmp_path, quick, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    lock.acquire(tmp_path)  # and gives signs of life
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        lock.acquire(tmp_path)


@pytest.mark.parametrize("age", [0.0, 9.0], ids=["young", "old"])
def test_a_lock_that_a_file_server_keeps_of_a_lost_host_is_taken_over(age, tmp_path, quick, monkeypatch):
    def refuse(*_):
        raise BlockingIOError

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    left_behind(tmp_path, age, boot=lock._boot())  # on this machine it is the word of a living process
    with pytest.raises(UserError, match="in use by process 7 on far"):
        lock.acquire(tmp_path)
    left_behind(tmp_path, age)
    lock.acquire(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_what_is_no_holders_word_is_nobodys(tmp_path, capsys):
    for content in ("", "[]", "hello", '{"pid": 3}'):
        (tmp_path / lock.NAME).write_text(content)
        lock.acquire(tmp_path)
        lock.held.close()
    assert capsys.readouterr().out == ""


def test_the_second_of_two_commands_ends_and_the_first_is_undisturbed(hold, command, tmp_path):
    (tmp_path / "run").mkdir()
    first = hold(tmp_path / "run")
    ended = command("experiments.progressive", f"--workdir={tmp_path / 'run'}", "--config.variants=baseline")
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert f"is in use by process {first.pid} on" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
