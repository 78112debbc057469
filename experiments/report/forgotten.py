"""What `forgetting.measure` found, as tables and as two pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report import page, plots
from experiments.report.forgetting import MOVED, Row, Scale, judged
from experiments.report.heatmap import Cells


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables: what each row changed on the target and elsewhere, and the rest's loss at equal distance and gain."""
    scale = Scale(**found["scale"])
    level = {key: f"{found['base'][key]:.{scale.digits}f}" for key in ("all", "target", "elsewhere")}
    lines = [
        f"The base: {level['all']} {scale.unit} over {found['items']:,} {scale.item}; {level['target']} on the target "
        f"({', '.join(found['target'])}), {level['elsewhere']} elsewhere; {len(found['seeds'])} seed(s). Changes are "
        f"in {scale.unit}, {'more' if scale.better > 0 else 'less'} is better, with 95 % intervals over items.",
        "",
    ]
    rows, claimed = found["rows"], any("claim" in row for row in found["rows"])
    heads = ["trained", "parameters", "on the target", "elsewhere", "which is", "overall"]
    lines += _table(heads + ["the source", "verdict"] * claimed, [_first(row, scale, claimed) for row in rows])
    heads = ["trained", "moved", "CE of the target", "CE elsewhere", "... all moved as far"]
    heads.append("... the target's CE as low")
    return "\n".join([*lines, "", *_table(heads, [_second(row) for row in rows if row["curve"]])]) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _first(row: Row, scale: Scale, claimed: bool) -> list[str]:
    told = [_pm(row[key], scale) for key in ("gain", "decay", "change")]
    claim = row.get("claim")
    of_source = [f"{claim['points']:+.1f}", claim["verdict"]] if claim else ["", ""]
    return [row["name"], f"{row['trained']:,}", *told[:2], judged(row["decay"], scale), told[2], *of_source * claimed]


def _second(row: Row) -> list[str]:
    last = row["curve"][-1]
    equal = [row.get(f"at_equal_{axis}", {}).get("rest_ce") for axis in (MOVED, "target_ce")]
    cells = [f"{last[key]:.3f}" for key in (MOVED, "target_ce", "rest_ce")]
    return [row["name"], *cells, *("never" if x is None else f"{x:.3f}" for x in equal)]


def _pm(told: Mapping[str, float | None], scale: Scale) -> str:
    half = "" if told["ci95"] is None else f" ±{told['ci95']:.{scale.digits}f}"
    return f"{told['mean']:+.{scale.digits}f}{half}"


def heat_map(found: Mapping[str, Any]) -> str:
    """Change by family and row, an SVG that stands alone."""
    rows, scale = found["rows"], Scale(**found["scale"])
    families = list(rows[0]["families"])
    table = np.array([[row["families"][family]["mean"] for family in families] for row in rows])
    alt = f"Change of {len(families)} families after training one part of the model, by part, {scale.unit}"
    cells = Cells("forgetting", alt, f"change, {scale.unit}", max(0, scale.digits - 1), scale.better, scale.none)
    return cells.draw(table, [row["name"] for row in rows], families, slant=30)


def gain_against_decay(found: Mapping[str, Any]) -> str:
    """Every row as a point: the change on the target, the change elsewhere, and their intervals."""
    rows, scale = found["rows"], Scale(**found["scale"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, row in enumerate(rows):
            (x, x_half), (y, y_half) = ((row[key]["mean"], row[key]["ci95"]) for key in ("gain", "decay"))
            axes.errorbar(x, y, xerr=x_half, yerr=y_half, fmt="o", color=plots.COLOR[f"c{i % 10}"], elinewidth=0.8)
            axes.annotate(row["name"], (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
        axes.axhline(0.0, color=plots.COLOR["muted"], linewidth=0.8)
        axes.axvline(0.0, color=plots.COLOR["muted"], linewidth=0.8)
        axes.set_xlabel(f"change on the target, {scale.unit}")
        axes.set_ylabel(f"change elsewhere, {scale.unit}")

    told = ", ".join(f"{row['name']} {row['gain']['mean']:+.2f} and {row['decay']['mean']:+.2f}" for row in rows)
    return page.alone(plots.render("gain", f"Change on the target and elsewhere, {scale.unit}: {told}", 6.0, draw))
