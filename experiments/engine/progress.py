"""What the terminal shows of a study: a live bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from experiments.engine.variants import LANGUAGE, Figure
from freezejax.training.config import TrainConfig
from freezejax.training.metrics import Record, Sink


class Progress:
    """Progress of all runs of a study; `run` gives the sink of one of them.

    >>> with Progress(1) as progress:
    ...     progress.skip("baseline, seed 0")
    [1/1] baseline, seed 0: finished before, kept
    """

    def __init__(self, runs: int, figures: Sequence[Figure] = LANGUAGE, *, quiet: bool = False) -> None:
        """`runs` is how many there are in all, `figures` what each ends with; all processes but one are quiet."""
        self.runs, self.figures, self.finished = runs, figures, 0
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False, quiet=quiet)
        self.bar: RichProgress | None = None

    def __enter__(self) -> Self:
        """Starts the live bar where there is a terminal."""
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
            self.bar = RichProgress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clears the bar."""
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """One plain line."""
        (self.bar.console if self.bar is not None else self.console).print(text, markup=False)

    def skip(self, title: str) -> None:
        """A run that was finished before."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.runs}] {title}: finished before, kept")

    def run(self, title: str, config: TrainConfig) -> Sink:
        """Sink of one run."""
        return _RunProgress(self, title, config)


class _RunProgress:
    """Shows the records of one run."""

    def __init__(self, progress: Progress, title: str, config: TrainConfig) -> None:
        self.progress, self.title, self.config = progress, title, config
        self.task = None if progress.bar is None else progress.bar.add_task(title, total=config.steps, figures="")
        self.began, self.spoken, self.start = time.monotonic(), time.monotonic(), 0

    def begin(self, step: int) -> None:
        self.start = step
        if step:
            self.progress.say(f"{self.title}: resumed after step {step}")

    def write(self, record: Record) -> None:
        step = record["step"]
        figures = self._figures(record)
        if self.progress.bar is not None and self.task is not None and "loss" in record:
            self.progress.bar.update(self.task, completed=step, figures=figures)
        # Without a terminal: a line at most every ten seconds, and one at the end.
        elif self.progress.bar is None and "loss" in record and time.monotonic() - self.spoken > 10:
            self.spoken = time.monotonic()
            left = (time.monotonic() - self.began) / max(step - self.start, 1) * (self.config.steps - step)
            self.progress.say(f"{self.title}: step {step}/{self.config.steps}  {figures}  ETA {left:.0f} s")
        if self.progress.figures[0].trained in record and step == self.config.steps:
            self.progress.finished += 1
            found = ", ".join(f"val {figure.label} {record[figure.trained]:.4f}" for figure in self.progress.figures)
            place, seconds = f"[{self.progress.finished}/{self.progress.runs}]", time.monotonic() - self.began
            self.progress.say(f"{place} {self.title}: {found}, {seconds:.1f} s")

    def _figures(self, record: Record) -> str:
        if "loss" not in record:
            return ""
        frozen = 1.0 - record["trainable_share"]
        return (
            f"step {record['step']}  loss {record['loss']:.3f}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"phase {record['phase']}  frozen {frozen:.0%}"
        )

    def close(self) -> None:
        if self.progress.bar is not None and self.task is not None:
            self.progress.bar.remove_task(self.task)
