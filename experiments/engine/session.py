"""One command at work on one folder: what its runs share, the results of the finished ones among them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.engine.evaluators import Evaluators
from experiments.engine.progress import Progress
from experiments.engine.variants import Run, Study
from experiments.engine.workdir import RESULT, Result, read_metrics, read_result
from freezejax.data import Corpus
from freezejax.training.interrupts import StopSignal
from freezejax.training.metrics import Record


class Finished:
    """Results of the finished runs of a study's folder, each read once.

    >>> Finished(Path("work")).of("baseline")
    []
    """

    def __init__(self, workdir: Path) -> None:
        """Reads nothing yet."""
        self.workdir = workdir
        self._results: dict[str, dict[tuple[int, int], Result]] = {}

    def read_all(self, study: Study) -> None:
        """Reads what earlier commands left in the folder."""
        for variant in study.variants:
            for path in (self.workdir / "runs" / variant.name).glob(f"seed_*/{RESULT}"):
                self.add(path.parent)

    def add(self, directory: Path) -> None:
        """Reads the result of a run that has ended."""
        result = read_result(directory)
        self._results.setdefault(directory.parent.name, {})[result["seed"], result["base_seed"]] = result

    def of(self, variant: str) -> list[Result]:
        """Results of a variant's runs, by training seed, then base seed."""
        return [result for _, result in sorted(self._results.get(variant, {}).items())]

    def records(self, study: Study) -> Iterator[Record]:
        """The metrics of every finished run, each record with the variant and the seeds that it is of."""
        for variant in study.variants:
            for result in self.of(variant.name):
                run = Run(variant.name, result["seed"], result["base_seed"])
                for record in read_metrics(run.directory(self.workdir), result):
                    yield {**run._asdict(), **record}


class Session(NamedTuple):
    """What the runs of one command share."""

    study: Study  # all variants, those that this command does not run among them
    config: ConfigDict
    corpus: Corpus
    workdir: Path
    evaluators: Evaluators
    finished: Finished  # of earlier commands and of this one; filled in process 0 alone
    progress: Progress
    stop: StopSignal
    tensorboard: bool  # also write events
