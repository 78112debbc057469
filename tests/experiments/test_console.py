"""`freezejax COMMAND`: every command of the project by its name."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command


def run(*arguments):
    script = Path(sys.executable).parent / "freezejax"
    return subprocess.run([script, *arguments], capture_output=True, text=True)


def test_every_file_beside_it_is_a_command_and_runs():
    files = {path.stem for path in Path(command.__file__).parent.glob("*.py")} - {"__init__", "command"}
    assert set(command.commands()) == files | {"artifact"}


def test_a_command_gets_its_flags_and_its_exit_code():
    found = run("artifact", "verify", "nowhere.fjax")
    assert (found.returncode, found.stderr) == (2, "error: nowhere.fjax: there is no such file\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [((), 2, "usage:"), (("--help",), 0, "usage:"), (("progresive",), 2, "progressive")]
)
def test_wrong_and_no_commands_are_told(arguments, code, said):
    found = run(*arguments)
    assert found.returncode == code
    assert said in found.stdout + found.stderr
