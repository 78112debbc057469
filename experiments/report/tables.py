"""The tables of a study: what stands in their columns, once for the terminal, for Markdown and for the report."""

import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.engine.variants import LANGUAGE, Figure
from experiments.report.statistics import SAME_BYTES_PCT
from experiments.report.table import DASH, HTML, MARKDOWN, TERMINAL, WIDTH, Column, markdown, terminal, with_ci

Item = Mapping[str, Any]
DIFFERS = "sizes differ"  # in the place of a verdict
_WRITTEN = (MARKDOWN, HTML)


def show(found: Item) -> None:
    """Prints a summary: what the paper has a figure for first, then all variants and contrasts."""
    title = f"{found['experiment']} ({found['scale']})"
    if judged := against_paper(found):
        terminal(f"{title} against the paper", PAPER_COLUMNS, judged)
    terminal(f"{title}, {found['data']['source']}", row_columns(found), found["rows"])
    if found["contrasts"]:
        terminal("paired contrasts (negative = lower loss)", CONTRAST_COLUMNS, found["contrasts"])
    for note in notes(found):
        print(textwrap.fill(note, WIDTH))


def as_markdown(found: Item) -> str:
    """Both tables of a summary, and what a reader must know of them."""
    written = [(row_columns(found), found["rows"]), (CONTRAST_COLUMNS, found["contrasts"])]
    return "\n\n".join([*(markdown(columns, items) for columns, items in written if items), *notes(found)])


def figures_of(found: Item) -> Sequence[Figure]:
    """What a study compares; summaries made before they said so are of language."""
    return [Figure(**figure) for figure in found["figures"]] if "figures" in found else LANGUAGE


def is_packed(row: Item) -> bool:
    """Whether the runs of a row were packed and scored again: summaries of earlier versions hold no such figures."""
    return any(field.startswith("packed_") for field in row)


def against_paper(found: Item) -> list[dict[str, Any]]:
    """Every comparison that the paper has a figure for, once: ours beside it."""
    pairs = []
    for row in found["rows"]:
        ours = {"effect_pct": row["delta_pct"], "effect_pct_ci95": row["delta_pct_ci95"]}
        pair = {"variant": row["name"], "reference": found["rows"][0]["name"]}
        pairs.append({**pair, **row, **row.get("judged", ours)})
    items = [item for item in (*pairs, *found["contrasts"]) if "paper" in item]
    return list({(item["variant"], reference(item)): item for item in items}.values())


def notes(found: Item) -> list[str]:
    """What a reader must know of the tables: what the study finds, controls that miss their size, older sizes."""
    texts = [*found.get("findings", ())]
    texts += [
        f"{row['name']}: its file differs by {row['same_bytes']['difference_pct']:+.1f} % from that of "
        f"{row['same_bytes']['as']}, which it is to match within {SAME_BYTES_PCT:g} %: no verdict."
        for row in found["rows"]
        if _verdict(row) == DIFFERS
    ]
    if found.get("files", True) and not all(map(is_packed, found["rows"])):
        texts.append(
            "Made before runs were packed into files: predicted kB are those of int8 matrices, and models of the same "
            "stored bytes were matched at int8. Today's command matches, and packs, at the codec of the config."
        )
    return texts


def size(row: Item) -> str:
    """Layers and width of a row's model: "4 × 128"; of an ensemble those of its members: "2 × 64 + 2 × 64"."""
    parts = row["model"].get("members", [row["model"]])
    fields = ("num_layers", "model_dim")
    return " + ".join(" × ".join(str(part[field]) for field in fields if field in part) for part in parts)


def reference(item: Item) -> str:
    """What an effect is against; of an interaction also how many effects are taken away."""
    less = item.get("less", ())
    return item["reference"] + (f", less {len(less)} alone" if less else "")


def row_columns(found: Item) -> list[Column]:
    """Columns of the table of variants."""
    figures = figures_of(found)
    return [
        Column("variant", operator.itemgetter("name"), kind="name"),
        Column("layers × width", size, where=(HTML,)),
        Column("runs", lambda row: len(row["params_sha256"]), where=(HTML,)),
        *(_means(figure.heading, figure.trained) for figure in figures),
        _means(f"packed {figures[-1].label}", figures[-1].packed, where=_WRITTEN),
        *_effects("against baseline", "delta_pct"),
        Column("steps in all", _all_steps(found["rows"]), "{:,}".format, where=_WRITTEN),
        *(
            Column(word, operator.itemgetter(f"{word}_params"), "{:,}".format, where=(HTML,))
            for word in ("trainable", "frozen", "seeded")
        ),
        Column("predicted kB", lambda row: row["stored_bytes_predicted"] / 1e3, "{:,.1f}".format, where=_WRITTEN),
        Column("file kB", lambda row: row["artifact_bytes"] / 1e3 if is_packed(row) else None, "{:,.1f}".format),
        *(_measured(name) for name in dict.fromkeys(name for row in found["rows"] for name in row.get("measured", ()))),
        Column("ms/step", operator.itemgetter("step_ms_median"), "{:.1f}".format, where=(HTML,)),
        Column("sd over training, base seeds", _spreads, ", ".join, where=_WRITTEN),
        Column("paper", _paper, where=_WRITTEN),
        Column("verdict", _verdict, kind="mark", where=_WRITTEN),
    ]


def _all_steps(rows: Sequence[Item]) -> Callable[[Item], int | None]:
    """Steps of a row with those of the runs that it needs; told where a study has such rows."""
    chains = any(row.get("steps_before") for row in rows)
    return lambda row: row["steps"] + row["steps_before"] if chains else None


def _figure(heading: str, field: str, half: str, digits: int, unit: str, where: Sequence[str]) -> Column:
    """A figure with its half-width; empty where an item has none."""
    return Column(
        heading,
        lambda item: None if item.get(field) is None else (item[field], item[half]),
        lambda value: with_ci(value[0], value[1], digits, unit),
        where=where,
    )


def _measured(name: str) -> Column:
    """Least and largest of a measure, over places and runs."""

    def ends(row: Item) -> tuple[float, float] | None:
        values = [value for runs in row.get("measured", {}).get(name, {}).values() for value in runs]
        return (min(values), max(values)) if values else None

    return Column(name, ends, lambda pair: f"{pair[0]:.3f} to {pair[1]:.3f}", where=_WRITTEN)


def _means(heading: str, field: str, where: Sequence[str] = (TERMINAL, MARKDOWN, HTML)) -> Column:
    return _figure(heading, f"{field}_mean", f"{field}_ci95", 4, "", where)


def _effects(heading: str, field: str, narrow: Sequence[str] = (TERMINAL, MARKDOWN)) -> list[Column]:
    """An effect in percent; the report has room for a digit more."""
    return [
        _figure(heading, field, f"{field}_ci95", digits, "%", where) for digits, where in ((1, narrow), (2, (HTML,)))
    ]


def _spreads(row: Item) -> list[str] | None:
    found = [row.get(f"{axis}_seed_sd") for axis in ("training", "base")]
    return [DASH if sd is None else f"{sd:.4f}" for sd in found] if any(sd is not None for sd in found) else None


def _paper(item: Item) -> str | None:
    if "paper" not in item:
        return None
    against = f" against {item['judged']['reference']}" if "judged" in item else ""
    return f"{item['paper']['delta_pct']:+.1f}%{against}"


def _verdict(item: Item) -> str | None:
    if not item.get("same_bytes", {"holds": True})["holds"]:
        return DIFFERS
    if "judged" not in item:
        return item.get("verdict")
    ours = item["judged"]
    return f"{item['verdict']} ({with_ci(ours['effect_pct'], ours['effect_pct_ci95'], 1, '%')})"


_PAIR = [
    Column("variant", operator.itemgetter("variant"), kind="name"),
    Column("against", reference, kind="name"),
]
PAPER_COLUMNS = [
    *_PAIR,
    *_effects("ours", "effect_pct"),
    Column("paper", lambda item: item["paper"]["delta_pct"], "{:+.1f}%".format),
    Column("verdict", lambda item: item.get("verdict", DIFFERS), kind="mark"),
]
CONTRAST_COLUMNS = [
    *_PAIR,
    *_effects("effect", "effect_pct"),
    *_effects("packed effect", "packed_effect_pct", narrow=(MARKDOWN,)),
    Column("paper", _paper, where=_WRITTEN),
    Column("verdict", _verdict, kind="mark"),
    Column("question", operator.itemgetter("question"), kind="words", where=_WRITTEN),
]
