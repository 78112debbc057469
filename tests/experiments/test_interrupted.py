"""What stops a command that was right: Ctrl-C while it starts, and a full disk. One line; the same command goes on."""

import contextlib
import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.engine import cli
from tests.experiments.conftest import ROOT
from tests.experiments.test_cli import SMALL, STUDY, check_one_line

# The package of a command is imported first, then the libraries, which take seconds; the signal comes with the first.
INTERRUPTED = """
import runpy, signal, sys
sys.argv[0] = "-m"  # as `python -m` has it at that moment
import experiments
class Finder:
    def find_spec(*_):
        signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("experiments.progressive", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_while_the_libraries_are_imported_is_one_line(environment):
    command = [sys.executable, "-c", INTERRUPTED]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "error: interrupted before the start; nothing was written\n"


def test_ctrl_c_in_the_first_second_of_a_command_is_one_line(spawn, tmp_path):
    process = spawn(STUDY, f"--workdir={tmp_path / 'run'}", *SMALL)
    while "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "error: interrupted before the start; nothing was written\n")


@contextlib.contextmanager
def small_disk(folder, kib):
    """A file system of that size; skips where it cannot be mounted."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_the_workdir_is_one_line_and_the_same_command_goes_on(command, tmp_path):
    fields = [*SMALL, "--config.variants=baseline", "--config.train.checkpoint_every=4"]
    with small_disk(tmp_path / "disk", 4000) as disk:
        workdir = f"--workdir={disk / 'run'}"
        (disk / "filler").write_bytes(b"x" * 3850 * 1024)
        line = check_one_line(command(STUDY, workdir, *fields))
        assert "No space left on device; free some, and run the same command again" in line
        assert str(disk) in line
        (disk / "filler").unlink()
        assert command(STUDY, workdir, *fields).code == 0


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/w/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/w/x"),
        ValueError("INTERNAL: write failed: /w/x: No space left on device [source locations=...]"),
        ExceptionGroup("several", [ValueError("a"), OSError(errno.ENOSPC, "No space left on device", "/w/x")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whoever_raises_it_a_full_disk_is_seen(error):
    last = RuntimeError("the checkpoint library's own words")
    last.__cause__ = error
    assert cli.no_space_left(last).startswith("/w/x: ")
    assert cli.no_space_left(OSError(errno.ENOENT, "No such file or directory", "/w/x")) is None
