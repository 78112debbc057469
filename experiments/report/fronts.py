"""Both sides at several budgets of bytes: which one wins, in a sentence each, as tables and as a picture."""

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.sides import FROZEN, TRAINED, Cell, Point, compared, effect_text, is_longer, size_name, verdict
from experiments.report.table import Column, markdown, terminal, with_ci
from freezejax.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    Column("way", lambda point: point["way"] + " (longer)" * is_longer(point), kind="name"),
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
        f"{size_name(at['budget'])}: {verdict(compared(at))}; "
        f"for the same FLOPs of training: {verdict(compared(at, 'effect_at_flops'))}"
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
        _plot(axes, [p for p in others if p["side"] == side and not is_longer(p)], **look, ms=3, alpha=0.5, lw=0)
        _plot(axes, [p for p in others if p["side"] == side and is_longer(p)], **look, ms=5, mfc="none", lw=0)
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
