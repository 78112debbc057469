"""The figures of a report as inline SVG, drawn by matplotlib and coloured by the page's CSS variables."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from experiments.engine.variants import Figure as Compared
from experiments.report.table import typeset, with_ci
from experiments.report.tables import is_packed, reference

Row = Mapping[str, Any]
_Box = tuple[float, float, float, float]  # left, right, bottom, top, in points

# Matplotlib draws in these stand-ins; the file says var(--NAME), which the page sets for light and dark.
_NAMES = ("ink", "muted", "grid", "ours", "trainable", "frozen", "seeded", *(f"c{i}" for i in range(10)))
COLOR = {name: f"#fe00{index:02x}" for index, name in enumerate(_NAMES)}
WIDTH = 10.0  # inches; 720 pt, the width of the page's text
_COLORS = {
    "grid.color": COLOR["grid"],
    **dict.fromkeys(("text.color", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), COLOR["ink"]),
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), COLOR["muted"]),
}


def render(name: str, alt: str, height: float, draw: Callable[[Figure], None]) -> str:
    """One figure, `WIDTH` x `height` inches, as an SVG element for an HTML page; the same drawing gives the same bytes.

    `name` is a prefix of the ids inside, unique on the page; `alt` what a reader who cannot see the figure is told;
    `draw` puts axes and artists on the figure.

    >>> render("dot", "a dot", 1.0, lambda figure: None)[:43]
    '<svg role="img" aria-label="a dot" viewBox='
    """
    file = io.StringIO()
    style: list[Any] = ["default", Path(__file__).with_name("report.mplstyle"), {**_COLORS, "svg.hashsalt": name}]
    with matplotlib.style.context(style), warnings.catch_warnings():
        # The browser picks the font: a glyph that matplotlib's own lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
    head, text = text.partition("<svg")[2].split(">", 1)
    (view,) = re.findall(r'viewBox="[^"]*"', head)
    text = re.sub(r'( id="|url\(#)', rf"\1{name}-", text).replace('xlink:href="#', f'href="#{name}-')
    for color, value in COLOR.items():
        text = text.replace(value, f"var(--{color})")
    text = re.sub(r"\n\s*", "\n", text)
    return f'<svg role="img" aria-label="{escape(alt)}" {view}>{text}'


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the order of `wanted` and nearest to it in least squares.

    >>> [round(y, 2) for y in spread([0.5, 0.5, 0.1], 0.2, 0.0, 1.0)]
    [0.4, 0.6, 0.1]
    """
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    fitted = isotonic_regression(np.asarray(wanted, np.float64)[order] - steps).x
    placed = np.clip(fitted, low, max(low, high - steps[-1])) + steps
    found = np.empty(len(wanted))
    found[order] = placed
    return found.tolist()


def forest(items: Sequence[Row], compared: Compared, name: str) -> str:
    """Effects of contrasts with their intervals, the paper's claims as hollow diamonds; "" where there is none."""
    items = [item for item in items if item["effect_pct"] is not None]
    if not items:
        return ""
    effects = [typeset(with_ci(item["effect_pct"], item["effect_pct_ci95"], 2, " %")) for item in items]
    told = [
        f"{item['variant']} against {reference(item)} {effect}" for item, effect in zip(items, effects, strict=True)
    ]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=COLOR["ink"], lw=1)
        axes.set_yticks(range(len(items)), [f"{item['variant']}\nvs {reference(item)}" for item in items])
        axes.set_ylim(len(items) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        ours: dict[str, Any] = {"fmt": "o", "color": COLOR["ours"], "ms": 5, "capsize": 3, "lw": 1.4, "zorder": 3}
        claim: dict[str, Any] = {"ms": 7, "mfc": "none", "mec": COLOR["ink"], "mew": 1.1, "zorder": 4}
        for y, (item, effect) in enumerate(zip(items, effects, strict=True)):
            axes.errorbar(item["effect_pct"], y, xerr=item["effect_pct_ci95"], **ours)
            axes.text(1.01, y, effect, transform=axes.get_yaxis_transform(), va="center")
            if "paper" in item:
                axes.plot(item["paper"]["delta_pct"], y, "D", **claim)
        legend = "; diamond: the paper's" * any("paper" in item for item in items)
        axes.set_xlabel(f"difference in validation {compared.label}, %    (left of zero: lower{legend})")

    return render(name, f"Forest plot: {'; '.join(told)}", 0.9 + 0.42 * len(items), draw)


class _Point(NamedTuple):
    name: str
    kind: str  # how the weights that are not trained at the end exist; "trainable": there are none
    kilobytes: float
    figure: float
    half: float  # of the interval of the figure


def _point(row: Row, compared: Compared) -> _Point:
    """Bytes and figure of the real file; what was predicted and trained where no run was packed."""
    kind = "seeded" if row["seeded_params"] else "frozen" if row["frozen_params"] else "trainable"
    packed = is_packed(row)
    field, stored = (compared.packed, "artifact_bytes") if packed else (compared.trained, "stored_bytes_predicted")
    return _Point(row["name"], kind, row[stored] / 1e3, row[f"{field}_mean"], row[f"{field}_ci95"] or 0.0)


def tradeoff(rows: Sequence[Row], compared: Compared) -> str:
    """Stored bytes against a figure of what is stored, one labelled point per variant."""
    if not rows:
        return ""
    points = [_point(row, compared) for row in rows]
    told = [f"{point.name} {point.kilobytes:.1f} kB {point.figure:.3f}" for point in points]
    alt = f"Scatter, stored kB and {compared.label}: {'; '.join(told)}"
    kinds = {"trainable": ("o", "all trained"), "frozen": ("s", "frozen later"), "seeded": ("^", "seeded")}

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.07, 0.12, 0.92, 0.8))
        for word, (marker, label) in kinds.items():
            own = [point for point in points if point.kind == word]
            if own:
                _, _, x, y, bars = zip(*own, strict=True)
                axes.errorbar(x, y, yerr=bars, fmt=marker, color=COLOR[word], ms=6, lw=1, label=label)
        axes.set_xscale("log")
        _log_frame(axes, [point.kilobytes for point in points])
        axes.set_xlabel("stored kB (log scale)")
        axes.set_ylabel(f"validation {compared.heading}")
        _label_points(axes, points)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2)

    return render("tradeoff", alt, 5.2, draw)


def _log_frame(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values) / 1.15, max(values) * 1.15
    axes.set_xlim(low, high * (high / low) ** 0.3)  # room for the labels right of the points
    ticks = [base * 10.0**power for power in range(-3, 10) for base in (1, 2, 5)]
    shown = [tick for tick in ticks if low <= tick <= high] or [values[0]]
    axes.set_xticks(shown, [f"{tick:,g}" for tick in shown])
    axes.set_xticks([], minor=True)


def _label_points(axes: Axes, found: Sequence[_Point]) -> None:
    """Names right of their points, each at the nearest height where it covers no point, bar or name."""
    points = np.array([(point.kilobytes, point.figure) for point in found])
    halves = np.array([(0.0, point.half) for point in found])
    to_points = 72 / axes.figure.dpi
    at = axes.transData.transform(points) * to_points
    bars = np.maximum(axes.transData.transform(points + halves)[:, 1] * to_points - at[:, 1], 4.0)
    taken = [(x - 4.0, x + 4.0, y - bar, y + bar) for (x, y), bar in zip(at, bars, strict=True)]
    shifts = [sign * shift for shift in np.arange(0.0, 160.0, 3.0) for sign in (1, -1)]
    for index in np.argsort(at[:, 0], kind="stable"):
        x, y = at[index]
        right = x + 14.0 + 4.7 * len(found[index].name)  # a character is about 4.7 points wide
        boxes = {shift: (x + 12.0, right, y + shift - 5.0, y + shift + 5.0) for shift in shifts}
        shift = next((s for s, box in boxes.items() if not any(_overlap(box, other) for other in taken)), 0.0)
        taken.append(boxes[shift])
        axes.annotate(
            found[index].name,
            points[index],
            xytext=(12.0, shift),
            textcoords="offset points",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": COLOR["muted"], "lw": 0.5, "relpos": (0.0, 0.5)},
        )


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
