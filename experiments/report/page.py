"""report.html: a study's summary as one self-contained page; page.html and timeline.html hold its words."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.table import fill, html
from experiments.report.tables import CONTRAST_COLUMNS, against_paper, figures_of, notes, row_columns
from freezejax.atomic import write_atomically
from freezejax.training.metrics import read_json_lines

Row = Mapping[str, Any]
_Segment = tuple[int, int, str, str]  # first step, last step, style (a class of the page's), text


def write(found: Mapping[str, Any], workdir: Path) -> None:
    """Writes `workdir/report.html`, atomically, from a summary and the metrics.jsonl in the folder.

    The same summary (docs/summary.md) and metrics give the same bytes. The page fetches nothing.
    """
    from experiments.report import curves, plots  # matplotlib is slow to import, and only the end of a study draws

    path = workdir / "metrics.jsonl"
    records = list(read_json_lines(path)) if path.exists() else []
    rows, contrasts, figures = found["rows"], found["contrasts"], figures_of(found)
    judged = Counter(item["verdict"] for item in (*rows, *contrasts) if "verdict" in item)
    text = fill(
        "page.html",
        found=found,
        title=f"{found['experiment']} at scale {found['scale']}",
        first=figures[0],
        last=figures[-1],
        runs=sum(len(row["params_sha256"]) for row in rows),
        verdicts=", ".join(f"{judged[word]} {word}" for word in sorted(judged)),
        sources=sorted({item["paper"]["source"] for item in (*rows, *contrasts) if "paper" in item}),
        variants=html(row_columns(found), rows),
        notes=notes(found),
        contrasts=html(CONTRAST_COLUMNS, contrasts),
        forest=plots.forest(contrasts, figures[0], "forest"),
        paper=plots.forest(against_paper(found), figures[0], "paper"),
        curves=curves.plot(rows, records, figures[0]),
        tradeoff=plots.tradeoff(rows, figures[-1]),
        timelines=timelines(rows),
    )
    write_atomically(workdir / "report.html", text)


def picture(found: Mapping[str, Any], variants: Sequence[str]) -> str:
    """Loss against stored bytes of some variants, as an SVG file that stands alone in light and dark."""
    from experiments.report import plots

    rows = [row for row in found["rows"] if row["name"] in variants]
    return alone(plots.tradeoff(rows, figures_of(found)[-1]))


def alone(svg: str) -> str:
    """A figure of the page as an SVG file with the page's colours, light and dark."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    colors = re.findall(r"(?:@media[^{]*\{ )?:root \{[^}]*\}(?: \})?", page)
    style = f"<style>{' '.join(colors)} text {{ font-family: system-ui, sans-serif !important; }}</style>"
    start, rest = svg.split(">", 1)
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def timelines(rows: Sequence[Row]) -> str:
    """One panel per distinct timeline, naming its variants; groups that behave alike share a line.

    >>> phase = {"start": 0, "stop": 9, "trainable": {"w": 1.0, "total": 1.0}}
    >>> 'trainable' in timelines([{"name": "a", "seeded_params": 0, "phases": [phase]}])
    True
    """
    panels: dict[Any, list[Row]] = {}
    for row in rows:
        if row["phases"]:
            steps = tuple((phase["start"], phase["stop"]) for phase in row["phases"])
            panels.setdefault((row["seeded_params"] > 0, steps, tuple(_shares(row).items())), []).append(row)
    return fill("timeline.html", panels=[_panel(members) for members in panels.values()])


def _shares(row: Row) -> dict[str, tuple[float, ...]]:
    """Trainable share of every module group, phase by phase."""
    groups = {name: None for phase in row["phases"] for name in phase["trainable"] if name != "total"}
    return {name: tuple(phase["trainable"].get(name, 0.0) for phase in row["phases"]) for name in groups}


def _panel(rows: Sequence[Row]) -> dict[str, Any]:
    phases, groups = rows[0]["phases"], list(_shares(rows[0]).items())
    distinct = dict.fromkeys(shares for _, shares in groups)
    totals = []
    for same in zip(*(row["phases"] for row in rows), strict=True):
        shares = [phase["trainable"].get("total", 0.0) for phase in same]
        text = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))
        totals.append((same[0]["start"], same[0]["stop"], "total", text))
    return {
        "variants": [row["name"] for row in rows],
        "bars": [([name for name, own in groups if own == bar], _segments(rows[0], bar)) for bar in distinct],
        "totals": totals,
        "axis": [(p["start"], p["stop"], "tick", f"{p['start']:,}") for p in phases],
    }


def _segments(row: Row, shares: Sequence[float]) -> list[_Segment]:
    """The bar of a group; neighbouring phases of the same share are one segment."""
    untrained = "seeded" if row["seeded_params"] and not any(shares) else "frozen"
    found = []
    for share, pairs in itertools.groupby(zip(shares, row["phases"], strict=True), key=lambda pair: pair[0]):
        phases = [phase for _, phase in pairs]
        style = "part" if 0 < share < 1 else "trainable" if share else untrained
        text = f"{share:.0%} trainable" if style == "part" else style
        found.append((phases[0]["start"], phases[-1]["stop"], style, text))
    return found
