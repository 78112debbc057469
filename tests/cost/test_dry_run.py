"""`--dry_run` prints one line per variant and phase, writes nothing, and needs no device of the config's mesh."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import progressive, selective
from experiments.configs import progressive as progressive_config
from experiments.configs import selective as selective_config
from experiments.engine import dry_run
from experiments.engine.variants import select
from freezejax import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study():
    config = progressive_config.get_config("tiny")
    return select(progressive.make_study(config, 256), "progressive_small"), config


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if re.search(r"\d to [\d,]", line)]


def test_one_line_per_variant_and_phase(study, capsys):
    dry_run.print_costs(*study)
    first, second, third = lines(capsys)
    assert "baseline" in first
    assert "0 to 80" in first
    assert "progressive_small" in second
    assert "0 to 27" in second
    assert "27 to 80" in third
    assert "progressive_small" not in third


def test_time_is_there_if_a_hardware_is_named(study, capsys):
    dry_run.print_costs(*study, "v5e", 0.3)
    assert "v5e at 30% of its peak" in capsys.readouterr().out
    with pytest.raises(UserError, match="no hardware 'h10'; nearest: h100, h200"):
        dry_run.print_costs(*study, "h10")


def test_mesh_of_another_machine_shows_collectives(capsys):
    config = selective_config.get_config("tiny")
    config.train.mesh = {"data": -1, "fsdp": 4, "tensor": 1}
    study = select(selective.make_study(config, 256), "selective_small")
    dry_run.print_costs(study, config)
    out = capsys.readouterr().out
    assert "reduce-scatter" in out
    assert "all-gather" in out


def run(*arguments, cwd):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "experiments.progressive", "--dry_run", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_command_needs_no_workdir_and_writes_nothing(tmp_path):
    config = f"--config={ROOT}/experiments/configs/progressive.py:tiny"
    found = run(config, "--config.model.vocab_size=300", "--config.variants=progressive_small", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "progressive_small" in found.stdout
    assert not list(tmp_path.iterdir())


def test_unknown_hardware_is_one_line_and_exit_code_2(tmp_path):
    config = f"--config={ROOT}/experiments/configs/progressive.py:tiny"
    found = run(config, "--config.model.vocab_size=300", "--hardware=abacus", cwd=tmp_path)
    assert found.returncode == 2
    assert found.stderr.startswith("error: there is no hardware 'abacus'")
    assert len(found.stderr.splitlines()) == 1
