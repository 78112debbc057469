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


# Bottom to top.
LAYERS = ["errors", "core", "weights", "data", "models", "artifact", "training", "aot", "cost", "experiments"]
# Every folder of Python files and its layer. A new folder is added by hand, with the layer that it belongs to.
FOLDERS = {
    "freezejax": "core",
    "freezejax/weights": "weights",
    "freezejax/analysis": "weights",
    "freezejax/data": "data",
    "freezejax/data/puzzles": "data",
    "freezejax/models": "models",
    "freezejax/artifact": "artifact",
    "freezejax/training": "training",
    "freezejax/training/objectives": "training",
    "freezejax/training/programs": "training",
    "freezejax/training/prefix_cache": "training",
    "freezejax/aot": "aot",
    "freezejax/cost": "cost",
    "experiments": "experiments",
    "experiments/configs": "experiments",
    "experiments/engine": "experiments",
    "experiments/report": "experiments",
}
# What is narrower than "its own layer and everything below it".
MAY_NOT_IMPORT = {"data": {"weights"}, "models": {"data"}}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    _module(path): path for package in ("freezejax", "experiments") for path in sorted((ROOT / package).rglob("*.py"))
}


def _layer(module: str) -> str:
    """Layer of a module that exists; `freezejax` alone, which only hands on names, is of no layer."""
    if module in ("freezejax", "freezejax.errors"):
        return {"freezejax": "", "freezejax.errors": "errors"}[module]
    folder = SOURCES[module].parent.relative_to(ROOT).as_posix()
    assert folder in FOLDERS, f"{folder}: add it to FOLDERS in tests/test_code_quality.py, with its layer"
    return FOLDERS[folder]


def _imports(path: Path) -> list[str]:
    """Modules of this repository that a file imports. A public name of `freezejax` is that of the module it is from."""
    import ast

    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.append(submodule if submodule in SOURCES else PUBLIC.get(submodule, node.module))
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name != "freezejax"]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "freezejax":
            name = f"freezejax.{node.attr}"
            found += [name] if name in SOURCES else [PUBLIC[name]] if name in PUBLIC else []
    return [module for module in found if module.split(".")[0] in ("freezejax", "experiments")]


def _public_names() -> dict[str, str]:
    import ast

    tree = ast.parse(SOURCES["freezejax"].read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {f"freezejax.{alias.name}": str(node.module) for node in imports for alias in node.names}


PUBLIC = _public_names()


def _may_import(layer: str, other: str) -> bool:
    below = LAYERS[: LAYERS.index(layer) + 1]
    return other in below and other not in MAY_NOT_IMPORT.get(layer, set())


def test_imports_only_point_down():
    assert len(SOURCES) > 100
    upward = [
        f"{module} -> {name}"
        for module, path in SOURCES.items()
        if _layer(module)
        for name in _imports(path)
        if not _may_import(_layer(module), _layer(name))
    ]
    assert not upward


def test_every_folder_is_known():
    assert {path.parent.relative_to(ROOT).as_posix() for path in SOURCES.values()} <= FOLDERS.keys()
    assert set(FOLDERS.values()) | {"errors"} == set(LAYERS)


def test_counterpart_the_check_sees_an_unknown_folder_and_an_import_that_points_up(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "freezejax.novelty.thing", ROOT / "freezejax/novelty/thing.py")
    with pytest.raises(AssertionError, match="freezejax/novelty: add it to FOLDERS"):
        _layer("freezejax.novelty.thing")
    with pytest.raises(KeyError):
        _layer("freezejax.of_no_file")
    file = tmp_path / "upward.py"
    file.write_text("import optax\nfrom freezejax import RandomMap, models\nfrom freezejax.masks import invert\n")
    assert _imports(file) == [PUBLIC["freezejax.RandomMap"], "freezejax.models", "freezejax.masks"]
    file.write_text("import freezejax\nprint(freezejax.__file__, freezejax.models.build, freezejax.freeze)\n")
    assert sorted(_imports(file)) == ["freezejax.models", "freezejax.optimizer"]
    assert not _may_import("core", _layer("freezejax.models"))
    assert _may_import("models", _layer("freezejax.masks"))


def _unpicklers(source: str) -> list[str]:
    """What in a source may run code that a file holds: a module that unpickles, or a call that does."""
    import ast

    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in UNPICKLE]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


UNPICKLE = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def test_nothing_is_ever_unpickled():
    files = [*SOURCES.values(), *(ROOT / "benchmarks").glob("*.py")]
    assert not {path.name: found for path in files if (found := _unpicklers(path.read_text(encoding="utf-8")))}
    bad = "import os, pickle\nfrom joblib import load\nimport torch\ntorch.load(x)\nnp.load(x, allow_pickle=True)\n"
    assert sorted(_unpicklers(bad)) == ["allow_pickle", "joblib", "pickle", "torch.load"]  # the counterpart


def test_files_stay_small():
    for path in [*(ROOT / "freezejax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 320, f"{path.name}: {lines} lines; one idea per file"
