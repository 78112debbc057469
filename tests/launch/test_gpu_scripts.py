"""The benchmarks on a GPU machine without a network: which modules, with which wheels."""

import shlex
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_gpu_benchmarks_call_modules_that_are_there(launch, bare_path):
    arguments = ["benchmarks/gpu.sh", "--print", "--quick", "--torch_python=torch/bin/python"]
    lines = [shlex.split(line) for line in launch(*arguments, path=bare_path).stdout.splitlines()]
    modules = [line[line.index("-m") + 1] for line in lines]
    assert {f"benchmarks.{name}" for name in ("mfu", "freezing", "random_maps", "phase_switch", "step")} == set(modules)
    for line, module in zip(lines, modules, strict=True):
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        for place in ("benchmarks/command.py", "experiments/engine/accelerators.py"):  # flags that several share
            text += (ROOT / place).read_text(encoding="utf-8") * (f"{Path(place).stem}." in text)
        for flag in line[line.index(module) + 1 :]:
            assert f'"{flag.removeprefix("--").split("=")[0]}"' in text


def test_gpu_benchmarks_stop_where_there_is_no_gpu(launch, bare_path):
    found = launch("benchmarks/gpu.sh", "--torch_python=python", path=bare_path)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "no GPU here" in found.stderr


# A Python that lacks `mine` and has `numpy`: what the script unpacks, and with which path it starts a benchmark.
PYTHON_WITHOUT = """#!/bin/bash
if [ "$1" = -m ]; then echo "$2 $PYTHONPATH" >> "$RAN"; elif [ "$1" = - ]; then exec {python} "$@"; else exit 1; fi
"""


def wheel(folder, name, tag="py3-none-any"):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as file:
        file.writestr(f"{name}.py", f"# {name}")


def test_gpu_benchmarks_unpack_what_the_python_lacks_without_a_network(launch, tmp_path, python):
    (tmp_path / "python").write_text(PYTHON_WITHOUT.format(python=python))
    (tmp_path / "python").chmod(0o755)
    for name in ("mine", "numpy"):
        wheel(tmp_path / "wheels", name)
    arguments = (f"--wheels={tmp_path / 'wheels'}", f"--out={tmp_path / 'out'}")
    environment = {"FREEZEJAX_PYTHON": str(tmp_path / "python"), "RAN": str(tmp_path / "ran"), "JAX_PLATFORMS": "cpu"}
    found = launch("benchmarks/gpu.sh", *arguments, **environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "From wheels: mine\n"
    assert "has no torch: the comparison with PyTorch is left out" in found.stderr
    packages = tmp_path / "out" / "packages"
    assert [path.name for path in packages.iterdir()] == ["mine.py"]
    ran = [line.split() for line in (tmp_path / "ran").read_text().splitlines()]
    assert ran == [[f"benchmarks.{name}", str(packages)] for name in ("mfu", "freezing", "random_maps", "phase_switch")]
    wheel(tmp_path / "wheels", "other", tag="cp39-cp39-manylinux_2_17_x86_64")
    found = launch("benchmarks/gpu.sh", *arguments, **environment)
    assert found.returncode == 2
    assert "is for another version of Python" in found.stderr


def test_the_wheels_are_resolved_for_that_python_and_within_the_lock(launch, bare_path):
    resolve, collect = launch("benchmarks/wheels.sh", "--print", "--python=3.13", path=bare_path).stdout.splitlines()
    assert "--constraint requirements.lock --python-version 3.13" in resolve
    assert "--python 3.13 --with pip python -m pip wheel" in collect
