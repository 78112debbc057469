"""Compilers of machines that are not attached: each in a process of its own, because platforms start once."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from freezejax import aot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """`start(module, *arguments, **environment)`: the command as a user starts it, its exit code and output."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "FREEZEJAX_CACHE": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # the programs that a user gets

    def run(module: str, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True)

    return run


@pytest.fixture
def compiler() -> Callable[[str], None]:
    """`compiler(topology)` skips where its packages are missing."""

    def need(topology: str) -> None:
        if missing := aot.missing_packages(topology):
            pytest.skip(f"{' and '.join(missing)} missing: install the preflight extra")

    return need
