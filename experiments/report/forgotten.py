"""What `forgetting.measure` found, as tables and as two pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.report import page, plots
from experiments.report.forgetting import Row, Scale, judged
from experiments.report.heatmap import Cells


def as_markdown(found: Mapping[str, Any]) -> str:
    """The tables: what each row changed on the target and elsewhere, the source's claims, and losses on equal terms."""
    scale = Scale(**found["scale"])
    level = {key: f"{found['base'][key]:.{scale.digits}f}" for key in ("all", "target", "elsewhere")}
    rows, claimed = found["rows"], any(row["claims"] for row in found["rows"])
    lines = [
        f"The base: {level['all']} {scale.unit} over {found['items']:,} {scale.item}; {level['target']} on the target "
        f"({', '.join(found['target'])}), {level['elsewhere']} elsewhere; {len(found['seeds'])} seed(s). Changes are "
        f"in {scale.unit}, {'more' if scale.better > 0 else 'less'} is better. Intervals are of 95 %, the wider of "
        f"that over {scale.item} and that over seeds; of {len(rows)} rows one in twenty is misjudged by chance.",
        "",
    ]
    heads = ["trained", "parameters", "on the target", "which is", "elsewhere", "which is", "overall"]
    lines += _table(heads, [_first(row, scale) for row in rows])
    if claimed:
        told = [_claim(row, claim, scale) for row in rows for claim in row["claims"]]
        lines += ["", *_table(["trained", "what", "the source", "here", "verdict"], told)]
    if all("moved" in row for row in rows):
        heads = ["trained", "moved", "loss of the target", "loss elsewhere", "... all moved as far"]
        heads.append("... the target's loss as low")
        lines += ["", f"Losses are changes in {scale.loss}.", "", *_table(heads, [_second(row) for row in rows])]
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _first(row: Row, scale: Scale) -> list[str]:
    gain, decay, change = (_pm(row[key], scale.digits) for key in ("gain", "decay", "change"))
    gained = judged(row["gain"], scale, ("loses", "as before", "gains"))
    return [row["name"], f"{row['trained']:,}", gain, gained, decay, judged(row["decay"], scale), change]


def _claim(row: Row, claim: Mapping[str, Any], scale: Scale) -> list[str]:
    here = _pm(row["change" if claim["what"] == "overall" else "gain"], scale.digits)
    return [row["name"], claim["what"], f"{claim['points']:+.1f}", here, claim["verdict"]]


def _second(row: Row) -> list[str]:
    losses = [row["loss"]["target"], row["loss"]["elsewhere"], *(row["equal"][term] for term in ("moved", "target"))]
    return [row["name"], f"{row['moved']:.3f}", *("never" if told is None else _pm(told, 3) for told in losses)]


def _pm(told: Mapping[str, float | None], digits: int) -> str:
    half = "" if told["ci95"] is None else f" ±{told['ci95']:.{digits}f}"
    return f"{told['mean']:+.{digits}f}{half}"


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
