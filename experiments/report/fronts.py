"""Two sides at several budgets of bytes: which one wins, in a sentence each, as tables and as a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.statistics import Interval
from experiments.report.table import Column, markdown, terminal, with_ci
from freezejax.data.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FROZEN, TRAINED = "random maps", "all trained"
SIDES = (FROZEN, TRAINED)
Cell = dict[str, Any]  # one stack on one text; what frontier.json holds
Point = dict[str, Any]


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
    budget: int, points: Sequence[Point], winners: Mapping[str, str], contrasts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All about one budget: `winners` are the names of both sides' best points, by the search.

    The first of `contrasts` compares them, the second after training for the same FLOPs.
    """
    effects = [{"pct": item["packed_effect_pct"], "ci95": item["packed_effect_pct_ci95"]} for item in contrasts[:2]]
    told = [sentence(budget, Interval(effect["pct"], effect["ci95"])) for effect in effects]
    return {
        "budget": budget,
        "winners": dict(winners),
        "points": list(points),
        "effect": {**effects[0], "says": told[0]},
        "effect_at_flops": {**effects[1], "says": told[1]},
    }


def sentence(budget: int, effect: Interval) -> str:
    """Which side wins, by the 95 % interval of the difference of random maps to trained weights alone.

    >>> sentence(300_000, Interval(2.0, 0.5)), sentence(300_000, Interval(-2.0, 3.0))
    ('300kB: all trained wins by 2.0 ±0.5 %', '300kB: neither side wins, random maps differ by -2.0 ±3.0 %')
    """
    size = size_name(budget)
    if effect.low > 0 or effect.high < 0:
        side = TRAINED if effect.low > 0 else FROZEN
        return f"{size}: {side} wins by {with_ci(abs(effect.mean), effect.ci95, 1)} %"
    return f"{size}: neither side wins, {FROZEN} differ by {with_ci(effect.mean, effect.ci95, 1, ' %')}"


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
    Column("way", lambda point: point["way"] + " (longer)" * ("_for_" in point["name"]), kind="name"),
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
        at["effect"]["says"] + "; for the same FLOPs of training: " + at["effect_at_flops"]["says"].partition(": ")[2]
        for at in cell["budgets"]
    ]


def write(workdir: Path, cell: Cell) -> None:
    """Writes frontier.json, prints its table and what it says."""
    path = workdir / "frontier.json"
    write_atomically(path, json.dumps(cell, indent=2) + "\n")
    terminal("Loss of the packed file, on text that nothing was chosen on", COLUMNS, lines(cell), width=150)
    print("\n".join([*sentences(cell), f"Written: {path}"]))


def as_markdown(cells: Sequence[Cell]) -> str:
    """Sentences and tables of several cells."""
    parts = []
    for cell in cells:
        parts += [
            f"## {title(cell)}",
            "\n".join(f"- {line}" for line in sentences(cell)),
            markdown(COLUMNS, lines(cell)),
        ]
    return "\n\n".join(parts)


def title(cell: Cell) -> str:
    """What a cell is of.

    >>> title({"family": "geglu", "optimizer": "adamw", "source": "text", "tokenizer": "bytes"})
    'geglu with adamw, text (bytes)'
    """
    return f"{cell['family']} with {cell['optimizer']}, {cell['source']} ({cell['tokenizer']})"


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

    for side, color, marker in ((TRAINED, COLOR["trainable"], "o"), (FROZEN, COLOR["seeded"], "^")):
        others = [
            point
            for at in cell["budgets"]
            for point in at["points"]
            if point["side"] == side and point["name"] not in at["winners"].values()
        ]
        axes.plot([p["bytes"] for p in others], [p["bpb"] for p in others], marker, color=color, ms=3, alpha=0.5, lw=0)
        best = [p for at in cell["budgets"] for p in at["points"] if p["name"] == at["winners"][side]]
        x, y = [p["bytes"] for p in best], [p["bpb"] for p in best]
        half = [p["bpb_ci95"] or 0.0 for p in best]
        axes.plot(x, y, f"{marker}-", color=color, ms=5, lw=1.4, label=side)
        low, high = ([b + sign * h for b, h in zip(y, half, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    axes.set_xscale("log")
    budgets = [at["budget"] for at in cell["budgets"]]
    axes.set_xticks(budgets, [size_name(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    axes.set_title(f"{cell['family']}, {Path(cell['source']).name}", fontsize=9)
