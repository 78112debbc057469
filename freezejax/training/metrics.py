"""Where the records of a run go: JSON lines always, TensorBoard and the terminal by wish."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from freezejax.atomic import write_atomically
from freezejax.errors import UserError
from freezejax.masks import Rules
from freezejax.paths import PyTree
from freezejax.schedules import Phase
from freezejax.selection import matches

Record = dict[str, Any]


def phase_record(params: PyTree, phase: Phase, rules: Rules) -> Record:
    """With what a phase begins: what each of its rules catches. `params` may be shapes.

    >>> import numpy as np
    >>> phase_record({"up": np.ones(2), "down": np.ones(3)}, Phase(5, 9, None), [("up", False), (".*", True)])
    {'step': 6, 'rules': ["rule 'up' freezes up", "rule '.*' trains the rest: 1 leaf"]}
    """
    return {"step": phase.start + 1, "rules": [str(match) for match in matches(params, rules)]}


class Sink(Protocol):
    """Takes the records of one run, in order of their steps."""

    def begin(self, step: int) -> None:
        """A run starts, or resumes, after `step` updates: later records are void."""

    def write(self, record: Record) -> None:
        """One record: `record["step"]` is the number of updates so far, of a phase that begins that of its first."""

    def close(self) -> None:
        """The run has ended or stopped."""


@dataclasses.dataclass
class JsonLines:
    """Records as lines of JSON in a file; a resumed run first drops those beyond its checkpoint.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     sink = JsonLines(Path(directory) / "metrics.jsonl")
    ...     sink.begin(0); sink.write({"step": 1, "loss": 2.0}); sink.close()
    ...     list(read_json_lines(sink.path))
    [{'step': 1, 'loss': 2.0}]
    """

    path: Path

    def begin(self, step: int) -> None:
        """Keeps records up to `step`, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_json_lines(self.path) if r["step"] <= step] if self.path.exists() else []
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def write(self, record: Record) -> None:
        """Appends one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Nothing is left to write."""


@dataclasses.dataclass
class TensorBoard:
    """Every number of every record as a scalar event, in a folder."""

    path: Path
    _writer: Any = None

    def begin(self, step: int) -> None:
        """Opens the event file; events beyond `step` are marked void."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.path), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Adds the record's scalars, at once on disk."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()  # a kill must not lose what a checkpoint will not write again

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._writer.close()


def read_json_lines(path: Path) -> Iterator[Record]:
    """Records of a file; a last line cut short by a kill is dropped.

    Raises:
      UserError: it cannot be read, or a line before the last is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line, parse_constant=int)  # which refuses NaN
        except ValueError:
            raise UserError(f"{path}: line {number} is not JSON; delete it or the file") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}: line {number} is no record of a step; delete it or the file")
        yield record
