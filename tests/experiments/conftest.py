"""The commands as a user starts them: with their own arguments, exit code, stdout and stderr.

Starting Python and importing JAX takes seconds. `command` starts one process that imports everything and
forks a fresh child for each command; `spawn` starts the real thing.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORKS = """
import json, os, runpy, sys, traceback
import experiments.engine.study, freezejax.data.builder, grain, sentencepiece
for line in sys.stdin:
    module, arguments, out, err = json.loads(line)
    if (child := os.fork()) == 0:
        for name, fd in ((out, 1), (err, 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        sys.argv, code = [module, *arguments], 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base, inherited = tmp_path_factory.getbasetemp(), {**os.environ}
    # What one worker of pytest-xdist has compiled the other need not.
    cache = base.parent / "cache" if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.mktemp("cache")
    inherited.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # the programs that a user runs
    return {**inherited, "FREEZEJAX_CACHE": str(cache), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def command(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """`command(module, *arguments, stop_when=None, by=SIGKILL) -> Ended`; `stop_when()` is asked often."""
    folder = tmp_path_factory.mktemp("streams")
    arguments = [sys.executable, "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, **pipes) as server:

        def run(
            module: str, *arguments: str, stop_when: Callable[[], bool] | None = None, by: int = signal.SIGKILL
        ) -> Ended:
            out, err = folder / "out", folder / "err"
            server.stdin.write(json.dumps([module, arguments, str(out), str(err)]) + "\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            if stop_when is not None:
                limit = time.monotonic() + 120
                while not stop_when() and time.monotonic() < limit:
                    time.sleep(0.002)
                with contextlib.suppress(ProcessLookupError):  # it ended before
                    os.kill(child, by)
            return Ended(int(server.stdout.readline()), out.read_text(), err.read_text())

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def spawn(environment: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """`spawn(module, *arguments) -> Popen`, which the test waits for or kills."""

    def start(module: str, *arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, **pipes)

    return start
