"""Running the launch scripts as a user does, with as little around them as there may be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch():
    """Runs `launch/NAME` with arguments; `path` is all the PATH there is."""

    def run(name: str, *arguments: str, path: str = "/usr/bin:/bin", **environment: str):
        clean = {"PATH": path, "HOME": os.environ.get("HOME", "/"), **environment}
        command = ["bash", str(ROOT / name if "/" in name else ROOT / "launch" / name), *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        return subprocess.run(command, cwd="/", env=clean, timeout=300, **pipes)

    return run


@pytest.fixture
def bare_path(tmp_path):
    """A PATH of the small tools alone: no sbatch, gcloud, kubectl, uv or nvidia-smi."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for tool in ("bash", "basename", "cat", "dirname", "env", "grep", "sed", "paste", "mkdir"):
        (folder / tool).symlink_to(next(p for p in (Path("/usr/bin", tool), Path("/bin", tool)) if p.exists()))
    return str(folder)


@pytest.fixture
def python():
    """The interpreter that runs the tests, for $FREEZEJAX_PYTHON."""
    return sys.executable
