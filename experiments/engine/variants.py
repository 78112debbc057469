"""What a study declares, as data: variants, contrasts, the figures it compares, and the paper's to compare with."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.engine.evaluators import Evaluators
from freezejax.data import Corpus
from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.schedules import FreezeSchedule


class Figure(NamedTuple):
    """A figure that an evaluation gives; lower is better. It is taken of the trained weights and of the packed file.

    >>> Figure("ce", "CE", "nats/token").heading, Figure("ce", "CE", "nats/token").trained
    ('CE, nats/token', 'val_ce')
    """

    name: str
    label: str
    unit: str = ""

    @property
    def heading(self) -> str:
        """What stands over a column or beside an axis."""
        return ", ".join(filter(None, (self.label, self.unit)))

    @property
    def trained(self) -> str:
        """Field of an evaluation and of `result.json`."""
        return f"val_{self.name}"

    @property
    def packed(self) -> str:
        """Field of `result.json`: the same of the weights loaded back from the packed file."""
        return f"packed_{self.name}"


LANGUAGE = (Figure("ce", "CE", "nats/token"), Figure("bpb", "bits/byte"))


@dataclasses.dataclass(frozen=True)
class Paper:
    """A figure of a source document, and what it claims, in percent against the document's own reference."""

    corpus: str  # what the document measured it on, see `experiments.engine.papers`
    source: str
    value: float | None  # None where the source gives the difference alone
    delta_pct: float
    claim: str
    reference: str = ""  # the variant that stands for the document's reference; "" = the baseline


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a study: a model, how it trains, and what is frozen when.

    Random maps are part of the model's config and cost no stored bytes; every other weight is stored, frozen or not.
    """

    name: str
    model: Mapping[str, Any]  # family and its config, as for `models.build`
    train: Mapping[str, Any]  # fields of TrainConfig
    schedule: FreezeSchedule
    base_seeds: bool = False  # runs with every base seed, not with the first alone
    same_bytes_as: str = ""  # a control: the variant whose file this one's is to match in size
    papers: Sequence[Paper] = ()  # one per corpus at most


class Run(NamedTuple):
    """One run: a variant, the seed it trains with, and the base seed that its random maps come from.

    >>> Run("selective", 0).folder, Run("selective", 0, 1).folder
    ('seed_0', 'seed_0_base_1')
    >>> Run("selective", 0, 1).title
    'selective, seed 0, base seed 1'
    """

    variant: str
    seed: int
    base_seed: int = 0

    @property
    def folder(self) -> str:
        """Name of the run's folder, inside that of its variant."""
        return f"seed_{self.seed}" + (f"_base_{self.base_seed}" if self.base_seed else "")

    @property
    def title(self) -> str:
        """What the terminal calls the run."""
        return f"{self.variant}, seed {self.seed}" + (f", base seed {self.base_seed}" if self.base_seed else "")

    def directory(self, workdir: Path) -> Path:
        """The run's folder in that of the study.

        >>> Run("selective_small", 0, 1).directory(Path("work")).as_posix()
        'work/runs/selective_small/seed_0_base_1'
        """
        return workdir / "runs" / self.variant / self.folder


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A paired comparison the study reports: `variant` against `reference`, on the same seeds."""

    variant: str
    reference: str
    question: str
    papers: Sequence[Paper] = ()


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file declares: its variants (the first is the baseline), its contrasts, what it compares.

    Effects and verdicts are on the first of the figures; the spread over seeds and what packing does, on the last.
    """

    name: str
    variants: Sequence[Variant]
    contrasts: Sequence[Contrast] = ()
    figures: Sequence[Figure] = LANGUAGE
    evaluators: Callable[[ConfigDict, Corpus], Evaluators] = Evaluators  # they give `val_NAME` of every figure

    def runs(self, seeds: int, base_seeds: int) -> Iterator[tuple[Variant, Run]]:
        """Every run, in order: all of the first base seed before any of the next.

        >>> [run.folder for _, run in Study("s", [Variant("a", {}, {}, None, base_seeds=True)]).runs(2, 2)]
        ['seed_0', 'seed_1', 'seed_0_base_1', 'seed_1_base_1']
        """
        for base_seed in range(base_seeds):
            for seed in range(seeds):
                for variant in self.variants:
                    if base_seed == 0 or variant.base_seeds:
                        yield variant, Run(variant.name, seed, base_seed)


def select(study: Study, wanted: str) -> Study:
    """The study with only the named variants (comma separated; empty = all), baseline kept first.

    Raises:
      UserError: a name that no variant has.
    """
    if not wanted:
        return study
    names = [variant.name for variant in study.variants]
    chosen = [name.strip() for name in wanted.split(",")]
    for name in chosen:
        if name not in names:
            raise UserError(f"config.variants: no variant is named {name!r}; {nearest(name, names)}")
    chosen = [names[0], *chosen]
    variants = [variant for variant in study.variants if variant.name in chosen]
    contrasts = [c for c in study.contrasts if c.variant in chosen and c.reference in chosen]
    return dataclasses.replace(study, variants=variants, contrasts=contrasts)
