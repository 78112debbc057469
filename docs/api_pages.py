"""A hook of mkdocs: one page per module of the library, made from its docstrings."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    """Every module of freezejax that can be imported, packages by their own name."""
    paths = (path.relative_to(ROOT) for path in sorted((ROOT / "freezejax").rglob("*.py")))
    named = (".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return [name for name in named if not name.endswith("__main__")]


def on_config(config: Any) -> Any:
    """Puts the pages into the navigation, by package."""
    packages: dict[str, list[str]] = {}
    for name in modules():
        parts = name.split(".")
        packages.setdefault(".".join(parts[:2]) if (ROOT / "/".join(parts[:2])).is_dir() else "freezejax", []).append(
            name
        )
    sections = [{package: [{name: f"api/{name}.md"} for name in names]} for package, names in packages.items()]
    config["nav"] = [entry for entry in config["nav"] if "API" not in entry] + [{"API": sections}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages themselves."""
    for name in modules():
        files.append(File.generated(config, f"api/{name}.md", content=f"# `{name}`\n\n::: {name}\n"))
    return files
