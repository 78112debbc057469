"""Two sides at several budgets of bytes: which one wins, in a sentence each, as tables and as a picture."""

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.table import Column, markdown, terminal, with_ci
from freezejax.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FROZEN, TRAINED = "random maps", "all trained"
SIDES = (FROZEN, TRAINED)
Cell = dict[str, Any]  # one stack on one text; what frontier.json holds
Point = dict[str, Any]
Effect = Mapping[str, Any]  # "pct" and "ci95" of a paired difference of bits per byte


def size_name(budget: int) -> str:
    """A budget of bytes as it stands in names.

    >>> size_name(300_000), size_name(1_000_000)
    ('300kB', '1MB')
    """
    return f"{budget // 1000}kB" if budget < 1_000_000 else f"{budget / 1_000_000:g}MB"


def point(way: str, side: str, options: Mapping[str, Any], row: Mapping[str, Any], step_flops: int) -> Point:
    """One trained way of building a model: `row` is that of the report's summary, `step_flops` per token."""
    return {
        "name": row["name"],
        "way": way,
        "side": side,
        "options": dict(options),
        "model_dim": row["model"]["model_dim"],
        "bytes": row["artifact_bytes"],
        "bpb": row["packed_bpb_mean"],
        "bpb_ci95": row["packed_bpb_ci95"],
        "train_flops": step_flops * row["train_tokens"],
        "steps": row["steps"],
        "step_ms": row["step_ms_median"],
        "seeds": len(row["seeds"]),
    }


def at_budget(
    budget: int, points: Sequence[Point], winners: Mapping[str, str], effects: Mapping[tuple[str, str], Effect]
) -> dict[str, Any]:
    """All about one budget: `winners` are the names of both sides' best points, by the search.

    `effects` are those of a point on another, by their names.
    """
    once = [point for point in points if not _is_longer(point)]
    at_flops = {**winners, **{point["side"]: point["name"] for point in points if _is_longer(point)}}
    found = {
        "budget": budget,
        "winners": dict(winners),
        "points": list(points),
        "effect": effects[winners[FROZEN], winners[TRAINED]],
        "effect_at_flops": effects[at_flops[FROZEN], at_flops[TRAINED]],
        # What is at random, against the best that is trained whole.
        "places": {p["way"]: effects[p["name"], winners[TRAINED]] for p in once if p["side"] == FROZEN},
    }
    for narrow in (point["name"] for point in once if point["way"] == "narrow"):
        same = {"pct": 0.0, "ci95": 0.0}
        found["over_narrow"] = {s: same if winners[s] == narrow else effects[winners[s], narrow] for s in SIDES}
    return found


def _is_longer(point: Point) -> bool:
    return "_for_" in point["name"]


def verdict(effect: Effect) -> str:
    """Which side wins, by the 95 % interval of the difference of random maps to trained weights alone.

    >>> verdict({"pct": 2.0, "ci95": 0.5}), verdict({"pct": -2.0, "ci95": 3.0})
    ('all trained wins by 2.0 ±0.5 %', 'neither side wins, random maps differ by -2.0 ±3.0 %')
    """
    mean, ci95 = effect["pct"], effect["ci95"]
    if ci95 is None or abs(mean) <= ci95:
        return f"neither side wins, {FROZEN} differ by {effect_text(effect)}"
    return f"{TRAINED if mean > 0 else FROZEN} wins by {with_ci(abs(mean), ci95, 1)} %"


def effect_text(effect: Effect) -> str:
    """An effect as it is written in a sentence or a cell of a table.

    >>> effect_text({"pct": -2.0, "ci95": 3.0})
    '-2.0 ±3.0 %'
    """
    return with_ci(effect["pct"], effect["ci95"], 1, " %")


def options_text(options: Mapping[str, Any]) -> str:
    """What was chosen for a point, in words.

    >>> options_text({"layers": 3, "uses": 2, "heads": 4, "mlp_mult": 2.0, "rate": 4.0, "few_bits": 4,
    ...     "adapter": "none", "distribution": "normal"})
    '3 layers x 2, mlp x 2, 4 bits, rate x 4'
    """
    bits = options["few_bits"]
    words = [
        f"{options['layers']} layers" + f" x {options['uses']}" * (options["uses"] > 1),
        f"mlp x {options['mlp_mult']:g}",
        "" if bits is None else "ternary" if bits == "ternary" else f"{bits} bits",
        options["adapter"].replace("none", ""),
        options["distribution"].replace("normal", ""),
        f"rate x {options['rate']:g}",
    ]
    return ", ".join(filter(None, words))


COLUMNS = [
    Column("budget", lambda point: size_name(point["budget"]), kind="name"),
    Column("way", lambda point: point["way"] + " (longer)" * _is_longer(point), kind="name"),
    Column("side", lambda point: point["side"], kind="words"),
    Column("chosen", lambda point: options_text(point["options"]), kind="words"),
    Column("width", lambda point: point["model_dim"]),
    Column("bytes", lambda point: point["bytes"], "{:,}".format),
    Column("bits/byte", lambda point: with_ci(point["bpb"], point["bpb_ci95"], 4)),
    Column("TFLOP of training", lambda point: point["train_flops"] / 1e12, "{:.3g}".format),
    Column("", lambda point: point["mark"], kind="words"),
]


def lines(cell: Cell) -> list[Point]:
    """The points of a cell in the order of a table: by budget, the best first; the winners of the search are marked."""
    found = []
    for at in cell["budgets"]:
        for one in sorted(at["points"], key=lambda point: point["bpb"]):
            mark = "chosen" if one["name"] in at["winners"].values() else ""
            found.append({**one, "budget": at["budget"], "mark": mark})
    return found


def sentences(cell: Cell) -> list[str]:
    """What a cell says: per budget at equal bytes, then at equal bytes and FLOPs."""
    return [
        f"{size_name(at['budget'])}: {verdict(at['effect'])}; "
        f"for the same FLOPs of training: {verdict(at['effect_at_flops'])}"
        for at in cell["budgets"]
    ]


def places(cell: Cell) -> list[dict[str, Any]]:
    """What a place at random costs at every budget, against the best that is trained whole; a line for each place."""
    named = [way for at in cell["budgets"][:1] for way in at["places"]]
    return [{"way": way, **{at["budget"]: at["places"][way] for at in cell["budgets"]}} for way in named]


def _place_columns(cell: Cell) -> list[Column]:
    sizes = [at["budget"] for at in cell["budgets"]]
    effects = [Column(size_name(size), operator.itemgetter(size), effect_text) for size in sizes]
    return [Column("at random", operator.itemgetter("way"), kind="name"), *effects]


def write(workdir: Path, cell: Cell) -> None:
    """Writes frontier.json, prints its table and what it says."""
    path = workdir / "frontier.json"
    write_atomically(path, json.dumps(cell, indent=2) + "\n")
    terminal("Loss of the packed file, on text that nothing was chosen on", COLUMNS, lines(cell), width=150)
    terminal("What is at random, against the best that trains whole: bits per byte", _place_columns(cell), places(cell))
    print("\n".join([*sentences(cell), f"Written: {path}"]))


def as_markdown(cells: Sequence[Cell]) -> str:
    """Sentences and tables of several cells."""
    parts = []
    for cell in cells:
        parts += [
            f"## {title(cell)}",
            "\n".join(f"- {line}" for line in sentences(cell)),
            markdown(COLUMNS, lines(cell)),
            "What is at random, against the best that trains whole:",
            markdown(_place_columns(cell), places(cell)),
        ]
    return "\n\n".join(parts)


def title(cell: Cell) -> str:
    """What a cell is of.

    >>> cell = {"family": "geglu", "optimizer": "adamw", "source": "text", "tokenizer": "bytes"}
    >>> title(cell), title({**cell, "chosen_on": "books"})
    ('geglu with adamw, text (bytes)', 'geglu with adamw, text (bytes), chosen on books')
    """
    chosen = f", chosen on {cell['chosen_on']}" if cell.get("chosen_on") else ""
    return f"{cell['family']} with {cell['optimizer']}, {cell['source']} ({cell['tokenizer']}){chosen}"


def picture(cells: Sequence[Cell]) -> str:
    """Bits per byte against stored bytes: a panel per cell, both fronts with their bands; SVG that stands alone."""
    from experiments.report import page, plots  # matplotlib is slow to import

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(cells), squeeze=False)[0]
        for axes, cell in zip(panels, cells, strict=True):
            _panel(axes, cell)
        panels[0].set_ylabel("bits/byte of the packed file")
        panels[0].legend(loc="upper right")

    told = "; ".join(f"{title(cell)}: {', '.join(sentences(cell))}" for cell in cells)
    return page.alone(plots.render("fronts", f"Bits per byte against stored bytes. {told}", 3.6, draw))


def _panel(axes: "Axes", cell: Cell) -> None:
    from experiments.report.plots import COLOR

    points = [point for at in cell["budgets"] for point in at["points"]]
    names = {name for at in cell["budgets"] for name in at["winners"].values()}
    best, others = ([p for p in points if (p["name"] in names) == wanted] for wanted in (True, False))
    for side, color, marker in ((TRAINED, COLOR["trainable"], "o"), (FROZEN, COLOR["seeded"], "^")):
        look: dict[str, Any] = {"marker": marker, "color": color}
        _plot(axes, [p for p in others if p["side"] == side and not _is_longer(p)], **look, ms=3, alpha=0.5, lw=0)
        _plot(axes, [p for p in others if p["side"] == side and _is_longer(p)], **look, ms=5, mfc="none", lw=0)
        front = [p for p in best if p["side"] == side]
        _plot(axes, front, **look, ms=5, lw=1.4, label=side)
        low, high = ([p["bpb"] + sign * (p["bpb_ci95"] or 0.0) for p in front] for sign in (-1, 1))
        axes.fill_between([p["bytes"] for p in front], low, high, color=color, alpha=0.2, lw=0)
    axes.set_xscale("log")
    budgets = [at["budget"] for at in cell["budgets"]]
    axes.set_xticks(budgets, [size_name(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    # A way that fails altogether would flatten the fronts.
    axes.set_ylim(top=1.03 * max(p["bpb"] + (p["bpb_ci95"] or 0.0) for p in best))
    elsewhere = f"\nchosen on {cell['chosen_on']}" if cell.get("chosen_on") else ""
    axes.set_title(f"{cell['family']}, {cell['source']}{elsewhere}", fontsize=9)


def _plot(axes: "Axes", points: Sequence[Point], **look: Any) -> None:
    axes.plot([p["bytes"] for p in points], [p["bpb"] for p in points], **look)
