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

_RULES = 6  # of a phase, that are printed; metrics.jsonl has all


class Progress:
    """Progress of all runs of a study; `run` gives the sink of one of them.

    >>> with Progress(1) as progress:
    ...     progress.skip("baseline, seed 0")
    [1/1] baseline, seed 0: finished before, kept
    """

    def __init__(self, runs: int, figures: Sequence[Figure] = LANGUAGE, *, quiet: bool = False) -> None:
        """`runs` is how many there are in all, `figures` what each ends with; all processes but one are quiet."""
        self.runs, self.figures, self.finished = runs, figures, 0
        console = Console(file=sys.stdout, soft_wrap=True, highlight=False, quiet=quiet)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self.live = console.is_terminal
        self.bar = RichProgress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not self.live)

    def __enter__(self) -> Self:
        """Starts the live bar where there is a terminal."""
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clears the bar."""
        self.bar.stop()

    def say(self, text: str) -> None:
        """One plain line."""
        self.bar.console.print(text, markup=False)

    def end(self, title: str, what: str) -> None:
        """One run fewer to go."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.runs}] {title}: {what}")

    def skip(self, title: str) -> None:
        """A run that was finished before."""
        self.end(title, "finished before, kept")

    def run(self, title: str, config: TrainConfig) -> Sink:
        """Sink of one run."""
        return _RunProgress(self, title, config.steps)


class _RunProgress:
    """Shows the records of one run."""

    def __init__(self, progress: Progress, title: str, steps: int) -> None:
        self.progress, self.title, self.steps = progress, title, steps
        self.task = progress.bar.add_task(title, total=steps, figures="")
        self.began, self.spoken, self.start = time.monotonic(), time.monotonic(), 0

    def begin(self, step: int) -> None:
        self.start = step
        if step:
            self.progress.say(f"{self.title}: resumed after step {step}")

    def write(self, record: Record) -> None:
        step, now = record["step"], time.monotonic()
        if len(rules := record.get("rules", ())) > 1:
            more = f", and {len(rules) - _RULES} more" if len(rules) > _RULES else ""
            self.progress.say(f"{self.title}: from step {step} on {', then '.join(rules[:_RULES])}{more}")
        if "loss" in record:
            pace = f"{record['tokens_per_second']:,.0f} tokens/s  " if "tokens_per_second" in record else ""
            figures = (
                f"step {step}  loss {record['loss']:.3f}  {pace}"
                f"phase {record['phase']}  frozen {1.0 - record['trainable_share']:.0%}"
            )
            self.progress.bar.update(self.task, completed=step, figures=figures)
            if not self.progress.live and now - self.spoken > 10:  # seconds
                self.spoken = now
                left = (now - self.began) / max(step - self.start, 1) * (self.steps - step)
                self.progress.say(f"{self.title}: step {step}/{self.steps}  {figures}  ETA {left:.0f} s")
        if self.progress.figures[0].trained in record and step == self.steps:
            found = ", ".join(f"val {figure.label} {record[figure.trained]:.4f}" for figure in self.progress.figures)
            self.progress.end(self.title, f"{found}, {now - self.began:.1f} s")

    def close(self) -> None:
        self.progress.bar.remove_task(self.task)
