"""A study's figures as Markdown tables, for a README.

python -m experiments.markdown --summary=results/progressive/gutenberg/summary.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli
from experiments.summary import with_ci
from freezejax.errors import UserError

_SUMMARY = flags.DEFINE_string("summary", None, "A summary.json.")


def main() -> None:
    """Prints the table of rows and the table of contrasts."""
    if not _SUMMARY.value or not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary={_SUMMARY.value}: no such file; give the summary.json of a study")
    print(tables(json.loads(Path(_SUMMARY.value).read_text(encoding="utf-8"))))


def tables(found: Mapping[str, Any]) -> str:
    """Both tables of a summary.

    >>> row = {"name": "baseline", "val_ce_mean": 2.0, "val_ce_ci95": None, "val_bpb_mean": 2.9, "val_bpb_ci95": 0.1,
    ...        "delta_pct": 0.0, "delta_pct_ci95": None, "stored_bytes_predicted": 1500}
    >>> print(tables({"rows": [row], "contrasts": []}))
    | variant | CE, nats/token | bits/byte | against baseline | stored kB | paper | verdict |
    |---|---|---|---|---|---|---|
    | baseline | 2.0000 | 2.9000 ±0.1000 | +0.0% | 2 |  |  |
    """
    rows = [
        (
            row["name"],
            with_ci(row["val_ce_mean"], row["val_ce_ci95"], 4),
            with_ci(row["val_bpb_mean"], row["val_bpb_ci95"], 4),
            with_ci(row["delta_pct"], row["delta_pct_ci95"], 1, "%"),
            f"{row['stored_bytes_predicted'] / 1e3:,.0f}",
            *_paper(row),
        )
        for row in found["rows"]
    ]
    header = ("variant", "CE, nats/token", "bits/byte", "against baseline", "stored kB", "paper", "verdict")
    text = _table(header, rows)
    if found["contrasts"]:
        lines = [
            (
                item["variant"],
                item["reference"],
                with_ci(item["effect_pct"], item["effect_pct_ci95"], 1, "%"),
                *_paper(item),
                item["question"],
            )
            for item in found["contrasts"]
        ]
        text += "\n\n" + _table(("variant", "against", "effect", "paper", "verdict", "question"), lines)
    return text


def _paper(item: Mapping[str, Any]) -> tuple[str, str]:
    return (f"{item['paper']['delta_pct']:+.1f}%", item["verdict"]) if "paper" in item else ("", "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([head, "|" + "---|" * len(header), *body])


if __name__ == "__main__":
    cli.run(main)
