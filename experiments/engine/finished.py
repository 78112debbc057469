"""The results of the finished runs of a study, each read once."""

from collections.abc import Iterator
from pathlib import Path

from experiments.engine.variants import Run, Study
from experiments.engine.workdir import RESULT, Result, read_metrics, read_result
from freezejax.training.metrics import Record


class Finished:
    """Results of the runs of a study's folder.

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
                self._add(path)

    def add(self, run: Run) -> None:
        """Reads the result of a run that has just ended."""
        self._add(run.directory(self.workdir) / RESULT)

    def _add(self, path: Path) -> None:
        result = read_result(path.parent)
        self._results.setdefault(path.parents[1].name, {})[result["seed"], result["base_seed"]] = result

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
