"""What policies measured while models trained: for every run a map of groups by steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report import page, plots
from experiments.report.plots import COLOR

Decisions = Sequence[Mapping[str, Any]]  # lines of decisions.jsonl: step, measured (group -> number), frozen (groups)


def picture(runs: Mapping[str, Decisions]) -> str:
    """An SVG that stands alone, a panel per run; "" where no measure of any run changes.

    Each group's figures are shares of its own largest; a dot says that the group was decided to be frozen then.
    """
    tables = {name: table(decisions) for name, decisions in runs.items()}
    shown = {name: (runs[name], values) for name, values in tables.items() if values.size and np.ptp(values, 1).any()}
    if not shown:
        return ""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(shown), squeeze=False)[:, 0]
        for axes, (name, (decisions, values)) in zip(panels, shown.items(), strict=True):
            taken = [decision for decision in decisions if decision["measured"]]
            groups = list(taken[0]["measured"])
            image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
            axes.set_title(name)
            axes.set_xticks(range(len(taken)), [f"{decision['step']:,}" for decision in taken])
            axes.set_yticks(range(len(groups)), [_label(group) for group in groups], fontsize=6)
            axes.grid(visible=False)
            dots = [(x, groups.index(group)) for x, one in enumerate(taken) for group in one["frozen"]]
            if dots:
                axes.plot(*zip(*dots, strict=True), ".", color=COLOR["ink"], ms=3, ls="none")
        panels[-1].set_xlabel("step")
        figure.colorbar(image, ax=list(panels), label="of the largest that the group had")

    told = "; ".join(
        f"{name} {values.shape[0]} groups at {values.shape[1]} steps" for name, (_, values) in shown.items()
    )
    height = sum(0.8 + 0.12 * len(values) for _, values in shown.values())
    return page.alone(plots.render("series", f"Measured while training: {told}", height, draw))


def table(decisions: Decisions) -> np.ndarray:
    """What was measured, [groups, steps], as shares of each group's largest; a decision without a measure is left out.

    >>> table([{"step": 2, "measured": {"a": 4.0}}, {"step": 4, "measured": {"a": 1.0}}])
    array([[1.  , 0.25]])
    """
    taken = [decision["measured"] for decision in decisions if decision["measured"]]
    groups = list(taken[0]) if taken else []
    rows = [[measured[group] for measured in taken] for group in groups]
    values = np.array(rows, np.float64).reshape(len(groups), len(taken))
    return values / np.maximum(values.max(axis=1, keepdims=True, initial=0), np.finfo(np.float64).tiny)


def _label(group: str) -> str:
    return group.removeprefix("blocks/").removesuffix("/kernel")
