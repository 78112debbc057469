"""What a front says beyond its largest budget: its gain over narrow models, as a straight line in log(bytes)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from experiments.report import fronts
from experiments.report.sides import SIDES, Cell, effect_text
from experiments.report.statistics import Interval
from experiments.report.table import Column, markdown, with_ci
from freezejax.errors import UserError


class Point(NamedTuple):
    """A paired effect at a size of the file: mean of `seeds` runs and half-width of its 95 % interval, in percent."""

    size: int
    pct: float
    ci95: float | None
    seeds: int


def extrapolate(points: Sequence[Point], size: int) -> Interval:
    """The effect at another size, by least squares through the points in log(bytes).

    The interval is that of the line alone: from the spread between seeds, pooled over the points. Whether the line goes
    on straight, and whether a longer run says the same, it does not know. Points of one size alone are a UserError.

    >>> line = extrapolate([Point(100, 1.0, 0.5, 3), Point(1_000, 2.0, 0.5, 3)], 10_000)
    >>> round(line.mean, 2), round(line.ci95, 2)
    (3.0, 0.72)
    """
    if len({point.size for point in points}) < 2:
        raise UserError("a trend needs fronts of two budgets or more")
    design = np.stack([np.ones(len(points)), np.log([point.size for point in points])], axis=1)
    weights_P = np.asarray([1.0, math.log(size)]) @ np.linalg.pinv(design)
    mean = float(weights_P @ [point.pct for point in points])
    if any(point.ci95 is None or point.seeds < 2 for point in points):
        return Interval(mean, None)
    freedom = [point.seeds - 1 for point in points]
    squares = [(point.ci95 / stdtrit(n, 0.975)) ** 2 for point, n in zip(points, freedom, strict=True) if point.ci95]
    error = math.sqrt(sum(squares) / len(points) * float(weights_P @ weights_P))
    return Interval(mean, float(stdtrit(sum(freedom), 0.975)) * error)


def gains(cell: Cell, side: str) -> list[Point]:
    """The gain of a side's best over the narrow model of the same bytes, at every budget."""
    found = []
    for at in cell["budgets"]:
        effect, seeds = at["over_narrow"][side], min(point["seeds"] for point in at["points"])
        found.append(Point(at["budget"], effect["pct"], effect["ci95"], seeds))
    return found


def lines(cells: Sequence[Cell], size: int, bpb: float) -> list[dict[str, Any]]:
    """For both sides of every cell the gain over narrow at `size` bytes, and bits per byte where narrow has `bpb`."""
    found = []
    for cell in cells:
        for side in SIDES:
            effect = extrapolate(gains(cell, side), size)
            half = None if effect.ci95 is None else bpb * effect.ci95 / 100
            found.append(
                {
                    "cell": fronts.title(cell),
                    "side": side,
                    "gain": {"pct": effect.mean, "ci95": effect.ci95},
                    "bpb": Interval(bpb * (1 + effect.mean / 100), half),
                }
            )
    return found


def as_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of `lines`."""
    columns = [
        Column("", lambda line: line["cell"], kind="words"),
        Column("side", lambda line: line["side"], kind="words"),
        Column("against narrow", lambda line: effect_text(line["gain"])),
        Column("bits/byte", lambda line: with_ci(line["bpb"].mean, line["bpb"].ci95, 4)),
    ]
    return markdown(columns, found)
