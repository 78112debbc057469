"""What a study declares, as data: variants, contrasts, and the paper's figures to compare with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from freezejax.errors import UserError
from freezejax.paths import nearest
from freezejax.schedules import FreezeSchedule


@dataclasses.dataclass(frozen=True)
class Paper:
    """A figure of a source document, and what it claims, in percent against the paper's baseline."""

    source: str
    value: float
    delta_pct: float
    claim: str


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a study: a model, how it trains, and what is frozen when.

    With `seeded`, leaves that never train are redrawn from the root seed and cost no stored bytes.
    Everything else is stored, frozen or not.
    """

    name: str
    model: Mapping[str, Any]  # family and its config
    train: Mapping[str, Any]  # fields of TrainConfig
    schedule: FreezeSchedule
    seeded: bool = False
    paper: Paper | None = None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """A paired comparison the study reports: `variant` against `reference`, on the same seeds."""

    variant: str
    reference: str
    question: str
    paper: Paper | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file declares: its variants (the first is the baseline) and its contrasts."""

    name: str
    variants: Sequence[Variant]
    contrasts: Sequence[Contrast] = ()


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
    return Study(study.name, variants, contrasts)
