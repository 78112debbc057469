"""The tables of a report as HTML, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
DASH = "–"  # not known, or too few seeds or steps to say


def is_packed(rows: Sequence[Row]) -> bool:
    """Whether the runs were packed and scored again: summaries of earlier versions hold no such figures.

    >>> is_packed([{"packed_bpb_mean": 2.0}]), is_packed([{}])
    (True, False)
    """
    return all("packed_bpb_mean" in row for row in rows)


def rows_table(rows: Sequence[Row]) -> str:
    """One line per variant."""
    packed = is_packed(rows)
    headings = (
        *("variant", "runs", "val CE", "bits per byte", *["packed"] * packed, "vs baseline", "paper", "verdict"),
        *("trainable", "frozen", "seeded", "predicted kB", "file kB", "ms/step"),
    )
    lines = [
        (
            f"<code>{escape(row['name'])}</code>{_below(size(row))}",
            f"{len(row['params_sha256'])}",
            _stacked(mean(row["val_ce_mean"], row["val_ce_ci95"])),
            _stacked(mean(row["val_bpb_mean"], row["val_bpb_ci95"])),
            *([_stacked(mean(row["packed_bpb_mean"], row["packed_bpb_ci95"]))] if packed else []),
            "baseline" if is_baseline(row, rows) else _stacked(effect(row["delta_pct"], row["delta_pct_ci95"])),
            *_judged(row),
            *(count(row[f"{word}_params"]) for word in ("trainable", "frozen", "seeded")),
            f"{row['stored_bytes_predicted'] / 1e3:,.1f}",
            f"{row['artifact_bytes'] / 1e3:,.1f}",
            DASH if row["step_ms_median"] is None else f"{row['step_ms_median']:.1f}",
        )
        for row in rows
    ]
    return _table(headings, lines, words=(0, headings.index("verdict")))


def contrasts_table(contrasts: Sequence[Row]) -> str:
    """One line per paired comparison."""
    packed = all("packed_effect_pct" in item for item in contrasts)
    headings = ("question", "variant", "against", "effect", *["packed"] * packed, "paper", "verdict")
    lines = [
        (
            escape(item["question"]),
            f"<code>{escape(item['variant'])}</code>",
            f"<code>{escape(item['reference'])}</code>",
            effect(item["effect_pct"], item["effect_pct_ci95"]),
            *([effect(item["packed_effect_pct"], item["packed_effect_pct_ci95"])] if packed else []),
            *_judged(item),
        )
        for item in contrasts
    ]
    return _table(headings, lines, words=(0, 1, 2, headings.index("verdict")))


def _stacked(text: str) -> str:
    value, found, half = text.partition(" ± ")
    return value + _below(f"± {half}" if found else "")


def _below(text: str) -> str:
    """A second line of a cell: fourteen columns have to fit."""
    return f'<span class="below">{escape(text)}</span>' if text else ""


def _judged(item: Row) -> tuple[str, str]:
    if "paper" not in item:
        return DASH, DASH
    verdict = escape(item["verdict"])
    style = verdict.replace(" ", "-")
    return f"{signed(item['paper']['delta_pct'])} %", f'<span class="verdict {style}">{verdict}</span>'


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int]) -> str:
    """`words`: columns of text, set left; the others are numbers, set right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        styles = ["" if column in words else ' class="number"' for column in range(len(cells))]
        return "".join(f"<{tag}{style}>{cell}</{tag}>" for style, cell in zip(styles, cells, strict=True))

    body = "\n".join(f"<tr>{line('td', cells)}</tr>" for cells in lines)
    return (
        f'<div class="wide"><table><thead><tr>{line("th", headings)}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def is_baseline(row: Row, rows: Sequence[Row]) -> bool:
    """Whether this row is the study's baseline: the first, and the one all differences are against.

    >>> is_baseline({"delta_pct": None}, [{"delta_pct": 0.0}])
    False
    """
    return row is rows[0] and row["delta_pct"] == 0.0


def size(row: Row) -> str:
    """Layers and width of a row's model.

    >>> size({"model": {"num_layers": 4, "model_dim": 128}})
    '4 × 128'
    """
    return " × ".join(str(row["model"][field]) for field in ("num_layers", "model_dim") if field in row["model"])


def effect(value: float | None, ci95: float | None) -> str:
    """A relative difference in percent with its interval; a dash where there is none.

    >>> effect(-3.0, 0.5), effect(3.0, None), effect(None, None)
    ('−3.00 ± 0.50 %', '+3.00 %', '–')
    """
    if value is None:
        return DASH
    half = "" if ci95 is None else f" ± {ci95:.2f}"
    return f"{signed(value, 2)}{half} %"


def mean(value: float, ci95: float | None) -> str:
    """A mean with its interval, where it has one.

    >>> mean(3.25, 0.01), mean(3.25, None)
    ('3.2500 ± 0.0100', '3.2500')
    """
    return f"{value:.4f}" if ci95 is None else f"{value:.4f} ± {ci95:.4f}"


def count(value: int | None) -> str:
    """A whole number with thousands set apart; a dash for None.

    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return DASH if value is None else f"{value:,}"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, minus as U+2212.

    >>> signed(-2.25), signed(0.04)
    ('−2.2', '+0.0')
    """
    return f"{value:+.{digits}f}".replace("-", "−")
