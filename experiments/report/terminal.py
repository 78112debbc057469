"""A study's tables on the terminal, and how a figure is written beside its interval."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.report.tables import is_packed

_WORDS = ("variant", "against", "verdict", "question")  # columns set left; numbers are set right


def print_tables(found: Mapping[str, Any]) -> None:
    """Prints the rows and the contrasts of a summary."""
    console = Console()
    if not console.is_terminal:
        console.width = 170  # a log file has no edge to wrap at
    title = f"{found['experiment']} ({found['scale']}), {found['data']['source']}"
    console.print(_table(title, [_row(row) for row in found["rows"]]))
    if found["contrasts"]:
        lines = [_contrast(item) for item in found["contrasts"]]
        console.print(_table("paired contrasts (negative = lower loss)", lines))


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    packed = is_packed([row])
    bits = {"packed b/B": with_ci(row["packed_bpb_mean"], row["packed_bpb_ci95"], 4)} if packed else {}
    return {
        "variant": row["name"],
        "val CE": with_ci(row["val_ce_mean"], row["val_ce_ci95"], 4),
        "bits/byte": with_ci(row["val_bpb_mean"], row["val_bpb_ci95"], 4),
        **bits,
        "vs baseline": with_ci(row["delta_pct"], row["delta_pct_ci95"], 1, "%"),
        **_judged(row),
        "trainable": f"{row['trainable_params']:,}",
        "predicted kB": f"{row['stored_bytes_predicted'] / 1e3:,.1f}",
        "file kB": f"{row['artifact_bytes'] / 1e3:,.1f}",
        "ms/step": "" if row["step_ms_median"] is None else f"{row['step_ms_median']:.1f}",
    }


def _contrast(item: Mapping[str, Any]) -> dict[str, str]:
    packed = {}
    if "packed_effect_pct" in item:
        packed = {"packed": with_ci(item["packed_effect_pct"], item["packed_effect_pct_ci95"], 1, "%")}
    return {
        "variant": item["variant"],
        "against": item["reference"],
        "effect": with_ci(item["effect_pct"], item["effect_pct_ci95"], 1, "%"),
        **packed,
        **_judged(item),
        "question": item["question"],
    }


def _judged(item: Mapping[str, Any]) -> dict[str, str]:
    paper = f"{item['paper']['delta_pct']:+.1f}%" if "paper" in item else ""
    return {"paper": paper, "verdict": item.get("verdict", "")}


def _table(title: str, lines: list[dict[str, str]]) -> Table:
    table = Table(title=title)
    for column in lines[0] if lines else ():
        table.add_column(column, justify="left" if column in _WORDS else "right")
    for line in lines:
        table.add_row(*line.values())
    return table


def with_ci(mean: float | None, ci95: float | None, digits: int, unit: str = "") -> str:
    """A figure with its 95 % half-width; signed where it has a unit, empty where it is unknown.

    >>> with_ci(1.234, 0.05, 2), with_ci(-2.0, None, 1, "%")
    ('1.23 ±0.05', '-2.0%')
    """
    if mean is None:
        return ""
    text = f"{mean:+.{digits}f}" if unit else f"{mean:.{digits}f}"
    return f"{text}{unit}" if ci95 is None else f"{text} ±{ci95:.{digits}f}{unit}"
