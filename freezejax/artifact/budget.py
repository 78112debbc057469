"""What the code of a submission weighs, beside its model file. Source: the contract of openai/parameter-golf."""

from collections.abc import Iterable
from pathlib import Path

import freezejax
from freezejax.errors import UserError


def code_files(code: Iterable[str | Path] = ()) -> list[Path]:
    """The `.py` files among files and folders, searched to the bottom, each once; without any, freezejax itself."""
    found: set[Path] = set()
    for root in [Path(path) for path in code] or [Path(freezejax.__file__).parent]:
        files = [root] if root.is_file() else list(root.rglob("*.py"))
        if not files:
            raise UserError(f"--code={root}: no such file, or a folder without .py files")
        found.update(file.resolve() for file in files)
    return sorted(found)


def code_bytes(files: Iterable[Path]) -> int:
    """Bytes of files of code."""
    return sum(file.stat().st_size for file in files)
