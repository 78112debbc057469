"""Which module group trained when, as HTML bars over the steps of a run."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
_Bar = tuple[tuple[int, int, float], ...]  # (start, stop, trainable share) of each phase
_MAX_NAMED = 3  # groups named on one line; more are folded


def timelines(rows: Sequence[Row]) -> str:
    """One panel per distinct timeline, naming its variants; groups that behave alike share a line.

    >>> phase = {"start": 0, "stop": 9, "trainable": {"w": 1.0, "total": 1.0}}
    >>> 'trainable' in timelines([{"name": "a", "seeded_params": 0, "phases": [phase]}])
    True
    """
    panels: dict[Any, list[Row]] = {}
    for row in rows:
        steps = tuple((phase["start"], phase["stop"]) for phase in row["phases"])
        if steps:
            panels.setdefault((row["seeded_params"] > 0, steps, tuple(_bars(row).items())), []).append(row)
    return "\n".join(_panel(members, dict(bars), seeded) for (seeded, _, bars), members in panels.items())


def _bars(row: Row) -> dict[str, _Bar]:
    groups = {name: None for phase in row["phases"] for name in phase["trainable"] if name != "total"}
    return {
        name: tuple((p["start"], p["stop"], p["trainable"].get(name, 0.0)) for p in row["phases"]) for name in groups
    }


def _panel(rows: Sequence[Row], bars: Mapping[str, _Bar], seeded: bool) -> str:
    alike: dict[_Bar, list[str]] = {}
    for name, bar in bars.items():
        alike.setdefault(bar, []).append(name)
    lines = [_line(_groups(names), _segments(bar, seeded)) for bar, names in alike.items()]
    names = ", ".join(f"<code>{escape(row['name'])}</code>" for row in rows)
    return (
        f'<div class="timeline"><p>{names}</p>\n<dl>'
        + "".join(lines)
        + _line("whole model, share trained", _totals(rows))
        + _line("step", _axis(rows[0]["phases"]))
        + "</dl></div>"
    )


def _line(label: str, bar: str) -> str:
    return f'<dt>{label}</dt><dd><div class="bar">{bar}</div></dd>\n'


def _groups(names: Sequence[str]) -> str:
    listed = ", ".join(f"<code>{escape(name)}</code>" for name in names)
    if len(names) <= _MAX_NAMED:
        return listed
    return f"<details><summary>{len(names)} groups</summary>{listed}</details>"


def _segments(bar: _Bar, seeded: bool) -> str:
    never_trained = all(share == 0.0 for _, _, share in bar)
    merged: list[tuple[int, int, float]] = []
    for start, stop, share in bar:
        if merged and merged[-1][2] == share:
            start = merged.pop()[0]
        merged.append((start, stop, share))

    def word(share: float) -> str:
        if 0.0 < share < 1.0:
            return "part"
        return "trainable" if share else "seeded" if seeded and never_trained else "frozen"

    return "".join(
        _segment(start, stop, word(share), f"{share:.0%} trainable" if 0 < share < 1 else word(share))
        for start, stop, share in merged
    )


def _totals(rows: Sequence[Row]) -> str:
    found = []
    for phases in zip(*(row["phases"] for row in rows), strict=True):
        shares = [phase["trainable"].get("total", 0.0) for phase in phases]
        text = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))
        found.append(_segment(phases[0]["start"], phases[0]["stop"], "total", text))
    return "".join(found)


def _axis(phases: Sequence[Mapping[str, Any]]) -> str:
    starts = [_segment(p["start"], p["stop"], "tick", f"{p['start']:,}") for p in phases]
    return "".join(starts) + f'<span class="last">{phases[-1]["stop"]:,}</span>'


def _segment(start: int, stop: int, style: str, text: str) -> str:
    title = f"steps {start:,} to {stop:,}: {text}"
    return f'<span class="{style}" style="flex:{max(stop - start, 1)} 1 0" title="{title}">{text}</span>'
