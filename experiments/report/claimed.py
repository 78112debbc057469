"""A paper's figure with ours beside it, as `experiments.claims` lists them; a file of those that are no comparison."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.report.statistics import Interval, same_figure
from experiments.report.table import with_ci
from freezejax.atomic import write_atomically

FILE = "claims.json"  # of a workdir: {"claims": [fields of a Claim, ...]}


class Claim(NamedTuple):
    """A paper's figure, and what a study measured."""

    source: str
    claim: str
    ours: str
    verdict: str
    measured: str  # what against what, and where


def of_figure(
    source: str, what: str, claimed: float, ours: Interval | float, measured: str, *, digits: int = 2, unit: str = ""
) -> Claim:
    """A figure that was measured, not compared: whether ours is the paper's is decided by `same_figure`.

    >>> of_figure("paper 62", "PR of L4", 1.03, 1.06, "L4")
    Claim(source='paper 62', claim='PR of L4: 1.03', ours='1.06', verdict='reproduced', measured='L4')
    """
    mean, ci95 = ours if isinstance(ours, Interval) else (ours, None)
    told = f"{what}: {claimed:.{digits}f}{unit}"
    return Claim(source, told, with_ci(mean, ci95, digits) + unit, same_figure(ours, claimed), measured)


def write(path: Path, claims: Iterable[Claim]) -> None:
    """Writes the file that `experiments.claims` reads."""
    write_atomically(path, json.dumps({"claims": [claim._asdict() for claim in claims]}, indent=1) + "\n")
