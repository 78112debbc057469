"""`freezejax COMMAND`: every command of the project by its name."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command


def run(*arguments):
    script = Path(sys.executable).parent / "freezejax"
    return subprocess.run([script, *arguments], capture_output=True, text=True)


def test_every_study_is_a_command_and_what_studies_share_is_none():
    configs = {path.stem for path in (Path(command.__file__).parent / "configs").glob("[a-z]*.py")}
    assert set(command.commands()) >= configs - {"parameter_golf"} | {"artifact", "evaluate", "preflight"}
    assert not {"parts", "bases", "command"} & command.commands().keys()  # nothing would run, with exit code 0


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
