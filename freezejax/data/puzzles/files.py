"""Puzzles as JSON lines, and those of others: one object a line with a prompt, an answer and a family."""

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from freezejax.atomic import write_atomically
from freezejax.data.puzzles.base import Puzzle
from freezejax.errors import UserError


def write_jsonl(path: str | PathLike[str], puzzles: Iterable[Puzzle]) -> None:
    """One object a line, of `Puzzle`'s fields."""
    write_atomically(Path(path), "".join(json.dumps(puzzle._asdict()) + "\n" for puzzle in puzzles))


def read_jsonl(path: str | PathLike[str]) -> list[Puzzle]:
    """The puzzles of a file; a line without a family is of the family named after the file.

    Raises:
      UserError: no such file, or a line that is no object with texts `prompt` and `answer`, named by its number.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold the other ends of lines that Python knows
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    puzzles = [_puzzle(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not puzzles:
        raise UserError(f"{path}: no puzzle in it; expected one JSON object a line")
    return puzzles


def _puzzle(path: Path, number: int, line: str) -> Puzzle:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{path}, line {number}: not JSON") from None
    expected = 'expected an object such as {"prompt": "4 -> ", "answer": "IV"}'
    if not isinstance(found, dict):
        raise UserError(f"{path}, line {number}: {expected}")
    for field in ("prompt", "answer", "family"):
        value = found.get(field, path.stem if field == "family" else None)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{path}, line {number}: {field} is {value!r}; {expected}")
    if "\n" in found["answer"]:
        raise UserError(f"{path}, line {number}: an answer of several lines; an answer ends with its line")
    return Puzzle(found.get("family", path.stem), found["prompt"], found["answer"])
