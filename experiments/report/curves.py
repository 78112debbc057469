"""Loss over steps: small multiples by model size, means over seeds with their 95 % bands."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.engine.variants import Figure as Compared
from experiments.report.plots import COLOR, Row, render, spread
from experiments.report.statistics import interval
from experiments.report.tables import size

_MAX_POINTS = 60  # per curve; neighbouring records are averaged beyond
_SKIPPED = 0.15  # of the run: the steep start that would flatten the rest
_LINE = 0.16  # inches per label


class Curve(NamedTuple):
    """Mean over seeds and half-width of its 95 % interval, None for one seed; arrays over points."""

    steps: np.ndarray
    mean: np.ndarray
    ci95: np.ndarray | None


def curves_of(records: Iterable[Mapping[str, Any]], field: str) -> dict[str, Curve]:
    """The curve of every variant that recorded `field`, over the steps that all its seeds recorded.

    A training seed with several base seeds counts once, with their mean.

    >>> records = [{"variant": "a", "seed": s, "step": 1, "loss": 2.0 + s} for s in (0, 1)]
    >>> curves_of(records, "loss")["a"].mean
    array([2.5])
    """
    found: dict[str, dict[int, dict[int, list[float]]]] = {}
    for record in records:
        if field in record:
            by_seed = found.setdefault(record["variant"], {})
            by_seed.setdefault(record["seed"], {}).setdefault(record["step"], []).append(record[field])
    common = {name: sorted(set.intersection(*map(set, seeds.values()))) for name, seeds in found.items()}
    return {name: _curve(list(found[name].values()), steps) for name, steps in common.items() if steps}


def _curve(seeds: Sequence[Mapping[int, Sequence[float]]], steps: Sequence[int]) -> Curve:
    values = np.array([[np.mean(seed[step]) for step in steps] for seed in seeds])
    bins = np.array_split(np.arange(len(steps)), min(len(steps), _MAX_POINTS))
    intervals = [interval(values[:, part].mean(axis=1).tolist()) for part in bins]
    return Curve(
        steps=np.array([np.mean(np.asarray(steps)[part]) for part in bins]),
        mean=np.array([point.mean for point in intervals]),
        ci95=np.array([point.ci95 for point in intervals]) if len(seeds) > 1 else None,
    )


def plot(rows: Sequence[Row], records: Sequence[Mapping[str, Any]], compared: Compared) -> str:
    """Training loss and a validation figure, one line of panels per model size; "" where nothing was recorded."""
    titles = {"loss": "training loss", compared.trained: f"validation {compared.heading}"}
    fields = {field: found for field in titles if (found := curves_of(records, field))}
    if not rows or not fields:
        return ""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(size(row), []).append(row)
    heights = [max(2.1, _LINE * (len(members) + 1) + 0.5) for members in groups.values()]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(groups), len(fields), squeeze=False, sharex=True, height_ratios=heights)
        for line, (name, members), height in zip(grid, groups.items(), heights, strict=True):
            shown = [rows[0], *(row for row in members if row is not rows[0])]
            for axes, found in zip(line, fields.values(), strict=True):
                _panel(axes, shown, found)
            line[0].set_ylabel(name, fontweight="bold")
            _label_ends(line[-1], shown, next(reversed(fields.values())), height)
        for field, top, bottom in zip(fields, grid[0], grid[-1], strict=True):
            top.set_title(titles[field])
            bottom.set_xlabel("step")

    alt = f"Loss over steps of {', '.join(row['name'] for row in rows)}; model sizes {', '.join(groups)}"
    return render("curves", alt, sum(heights) + 0.5, draw)


def _color(position: int) -> str:
    return COLOR["muted"] if position == 0 else COLOR[f"c{(position - 1) % 10}"]


def _panel(axes: Axes, shown: Sequence[Row], curves: Mapping[str, Curve]) -> None:
    tails = []
    for position, row in enumerate(shown):
        if (curve := curves.get(row["name"])) is None:
            continue
        color, few = _color(position), len(curve.steps) <= 20
        axes.plot(curve.steps, curve.mean, color=color, lw=1.3, marker="o" if few else "", ms=2.5)
        if curve.ci95 is not None:
            low, high = curve.mean - curve.ci95, curve.mean + curve.ci95
            axes.fill_between(curve.steps, low, high, color=color, alpha=0.15, lw=0)
        late = (curve.steps >= _SKIPPED * row["steps"]) | (curve.steps == curve.steps[-1])
        tails.extend(curve.mean[late])
    for start in sorted({phase["start"] for row in shown for phase in row["phases"]} - {0}):
        axes.axvline(start, color=COLOR["ink"], lw=0.8, ls=(0, (4, 3)))
    if tails:
        pad = 0.08 * (max(tails) - min(tails)) or 0.1
        axes.set_ylim(min(tails) - pad, max(tails) + pad)


def _label_ends(axes: Axes, shown: Sequence[Row], curves: Mapping[str, Curve], height: float) -> None:
    ends = [(i, row["name"]) for i, row in enumerate(shown) if row["name"] in curves]
    low, high = axes.get_ylim()
    at = [(curves[name].mean[-1] - low) / (high - low) for _, name in ends]
    places = spread(at, _LINE / (height - 0.4), 0.0, 1.0)
    for (position, name), start, place in zip(ends, at, places, strict=True):
        style: dict[str, Any] = {"transform": axes.transAxes, "color": _color(position)}
        axes.plot((1.0, 1.03), (start, place), lw=0.7, clip_on=False, **style)
        axes.text(1.04, place, name, va="center", fontsize=8, **style)
