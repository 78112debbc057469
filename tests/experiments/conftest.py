"""The commands as a user starts them: with their own arguments, exit code, stdout and stderr.

Starting Python and importing JAX takes seconds. `command` starts one process that imports everything and
forks a fresh child for each command; `spawn` starts the real thing.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.experiments.forks import ROOT, Ended, Forks


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
    with Forks(environment, tmp_path_factory.mktemp("streams")) as forks:
        yield forks.run


@pytest.fixture(scope="session")
def spawn(environment: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """`spawn(module, *arguments) -> Popen`, which the test waits for or kills."""

    def start(module: str, *arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, **pipes)

    return start
