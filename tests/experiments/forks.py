"""Commands started as a user does, without the seconds that Python and JAX take to start: forks of one process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import json, os, runpy, sys, traceback
import experiments.engine.study, freezejax.data.builder, grain, sentencepiece
for line in sys.stdin:
    module, arguments, out, err, environment = json.loads(line)
    if (child := os.fork()) == 0:
        for name, fd in ((out, 1), (err, 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        os.environ.update(environment)
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
    _, status, usage = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)
"""


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str
    peak_bytes: int = 0  # of memory


class Forks:
    """One process that has imported everything, and forks a fresh child for each command; a context manager."""

    def __init__(self, environment: Mapping[str, str], folder: Path):
        arguments, pipes = [sys.executable, "-c", SERVER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen(arguments, cwd=ROOT, env=dict(environment), text=True, **pipes)
        self.out, self.err = folder / "out", folder / "err"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def run(
        self,
        module: str,
        *arguments: str,
        stop_when: Callable[[], bool] | None = None,
        by: int = signal.SIGKILL,
        limit: float = 120,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Runs a command to its end; or until `stop_when()`, which is asked often, or `limit` seconds: then killed."""
        order = [module, arguments, str(self.out), str(self.err), environment or {}]
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if stop_when is not None:
            until = time.monotonic() + limit
            with contextlib.suppress(ProcessLookupError):  # it ended before
                while not stop_when() and time.monotonic() < until:
                    os.kill(child, 0)
                    time.sleep(0.002)
                os.kill(child, by)
        code, peak_kib = map(int, self.server.stdout.readline().split())
        return Ended(code, self.out.read_text(errors="replace"), self.err.read_text(errors="replace"), 1024 * peak_kib)
