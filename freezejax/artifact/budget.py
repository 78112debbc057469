"""What a submission weighs: UTF-8 bytes of code plus bytes of the model file."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import freezejax
from freezejax.errors import UserError


class Budget(NamedTuple):
    """Bytes of code and model against a limit. Source: the contract of openai/parameter-golf."""

    code: int
    files: int
    model: int
    limit: int

    @property
    def left(self) -> int:
        """Bytes still free; negative where the limit is passed."""
        return self.limit - self.code - self.model


def measure(model: str | Path, limit: int, code: Iterable[str | Path] = ()) -> Budget:
    """Counts the model file and the `.py` files.

    Args:
      model: the artifact.
      limit: decimal bytes.
      code: files, or folders searched to the bottom; the freezejax package if there is none.

    Raises:
      UserError: a path that does not exist, or holds no `.py` file.
    """
    files = code_files(code)
    return Budget(code_bytes(files), len(files), Path(model).stat().st_size, limit)


def code_files(code: Iterable[str | Path] = ()) -> list[Path]:
    """The `.py` files among the given files and folders, each once; those of the freezejax package if none is given.

    Raises:
      UserError: as `measure`.
    """
    roots = [Path(path) for path in code] or [Path(freezejax.__file__).parent]
    return sorted({file.resolve() for root in roots for file in _python_files(root)})


def code_bytes(files: Iterable[Path]) -> int:
    """Bytes of files of code.

    >>> code_bytes([])
    0
    """
    return sum(file.stat().st_size for file in files)


def _python_files(root: Path) -> list[Path]:
    files = [root] if root.is_file() else sorted(root.rglob("*.py"))
    if not files:
        raise UserError(f"--code={root}: no such file, or a folder without .py files")
    return files
