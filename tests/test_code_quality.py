"""Lint, format and types are tests like any other; so are the rules of the tree that no tool knows."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)],
    ids=["lint", "format", "types"],
)
def test_tool_finds_nothing(command):
    tool = shutil.which(command[0], path=Path(sys.executable).parent)
    assert tool, f"{command[0]} is missing: install the dev extra"
    found = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


LAYERS = ["errors", "core", "data", "models", "artifact", "training", "cost", "experiments"]  # bottom to top
MAY_IMPORT = {
    "core": {"errors", "core"},
    "data": {"errors", "core", "data"},
    "models": {"errors", "core", "models"},
    "artifact": {"errors", "core", "data", "models", "artifact"},
    "training": {"errors", "core", "data", "models", "artifact", "training"},
    "cost": set(LAYERS) - {"experiments"},
    "experiments": set(LAYERS),
}


def _layer(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "experiments":
        return "experiments"
    name = parts[1] if len(parts) > 1 else "core"
    return name if name in LAYERS else "core"


def _imports(path: Path) -> list[str]:
    import ast

    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            # "from freezejax import models" names the submodule, or a public name of the core.
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "freezejax" else []
            found += [node.module] if node.module != "freezejax" else []
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.split(".")[0] in ("freezejax", "experiments")]


def test_imports_only_point_down():
    files = [*(ROOT / "freezejax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    assert len(files) > 20
    upward = []
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        layer = _layer(module)
        if layer == "errors":
            continue
        upward += [f"{module} -> {name}" for name in _imports(path) if _layer(name) not in MAY_IMPORT[layer]]
    assert not upward


def test_files_stay_small():
    for path in [*(ROOT / "freezejax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 320, f"{path.name}: {lines} lines; one idea per file"
