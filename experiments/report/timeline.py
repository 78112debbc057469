"""Which module group trained when, as bars over the steps of a run; timeline.html draws them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.table import TEMPLATES

Row = Mapping[str, Any]


class Segment(NamedTuple):
    """A part of a bar, in steps; the style is a class of the page's."""

    start: int
    stop: int
    style: str
    text: str


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
    return TEMPLATES.get_template("timeline.html").render(panels=[_panel(members) for members in panels.values()])


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
        totals.append(Segment(same[0]["start"], same[0]["stop"], "total", text))
    return {
        "variants": [row["name"] for row in rows],
        "bars": [([name for name, own in groups if own == bar], _segments(rows[0], bar)) for bar in distinct],
        "totals": totals,
        "axis": [Segment(p["start"], p["stop"], "tick", f"{p['start']:,}") for p in phases],
    }


def _segments(row: Row, shares: Sequence[float]) -> list[Segment]:
    """The bar of a group; neighbouring phases of the same share are one segment."""
    untrained = "seeded" if row["seeded_params"] and not any(shares) else "frozen"
    found = []
    for share, pairs in itertools.groupby(zip(shares, row["phases"], strict=True), key=lambda pair: pair[0]):
        phases = [phase for _, phase in pairs]
        style = "part" if 0 < share < 1 else "trainable" if share else untrained
        text = f"{share:.0%} trainable" if style == "part" else style
        found.append(Segment(phases[0]["start"], phases[-1]["stop"], style, text))
    return found
