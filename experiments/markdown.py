"""A study's figures as Markdown tables, for a README.

python -m experiments.markdown --summary=results/progressive/gutenberg/summary.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.engine import cli
from experiments.report.tables import is_packed
from experiments.report.terminal import with_ci
from freezejax.errors import UserError

_SUMMARY = flags.DEFINE_string("summary", None, "A summary.json.")


def main() -> None:
    """Prints the table of rows and the table of contrasts."""
    if not _SUMMARY.value or not Path(_SUMMARY.value).is_file():
        raise UserError(f"--summary={_SUMMARY.value}: no such file; give the summary.json of a study")
    print(tables(json.loads(Path(_SUMMARY.value).read_text(encoding="utf-8"))))


def tables(found: Mapping[str, Any]) -> str:
    """Both tables of a summary; figures of the packed file where the summary has them.

    >>> row = {"name": "baseline", "val_ce_mean": 2.0, "val_ce_ci95": None, "val_bpb_mean": 2.9, "val_bpb_ci95": 0.1,
    ...        "delta_pct": 0.0, "delta_pct_ci95": None, "stored_bytes_predicted": 1500}
    >>> print(tables({"rows": [row], "contrasts": []}))
    | variant | CE, nats/token | bits/byte | against baseline | stored kB | paper | verdict |
    |---|---|---|---|---|---|---|
    | baseline | 2.0000 | 2.9000 ±0.1000 | +0.0% | 2 |  |  |
    """
    columns = _packed_columns if is_packed(found["rows"]) else _columns
    text = _table([columns(row) for row in found["rows"]])
    if found["contrasts"]:
        text += "\n\n" + _table([_contrast(item) for item in found["contrasts"]])
    return text


def _columns(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        **_losses(row),
        "against baseline": with_ci(row["delta_pct"], row["delta_pct_ci95"], 1, "%"),
        "stored kB": f"{row['stored_bytes_predicted'] / 1e3:,.0f}",
        **_paper(row),
    }


def _packed_columns(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        **_losses(row),
        "packed bits/byte": with_ci(row["packed_bpb_mean"], row["packed_bpb_ci95"], 4),
        "against baseline": with_ci(row["delta_pct"], row["delta_pct_ci95"], 1, "%"),
        "predicted kB": f"{row['stored_bytes_predicted'] / 1e3:,.1f}",
        "file kB": f"{row['artifact_bytes'] / 1e3:,.1f}",
        "sd over training, base seeds": ", ".join(_sd(row[f"{axis}_seed_sd"]) for axis in ("training", "base")),
        **_paper(row),
    }


def _losses(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "variant": row["name"],
        "CE, nats/token": with_ci(row["val_ce_mean"], row["val_ce_ci95"], 4),
        "bits/byte": with_ci(row["val_bpb_mean"], row["val_bpb_ci95"], 4),
    }


def _contrast(item: Mapping[str, Any]) -> dict[str, str]:
    packed = {}
    if "packed_effect_pct" in item:
        packed = {"packed effect": with_ci(item["packed_effect_pct"], item["packed_effect_pct_ci95"], 1, "%")}
    return {
        "variant": item["variant"],
        "against": item["reference"],
        "effect": with_ci(item["effect_pct"], item["effect_pct_ci95"], 1, "%"),
        **packed,
        **_paper(item),
        "question": item["question"],
    }


def _sd(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _paper(item: Mapping[str, Any]) -> dict[str, str]:
    judged = (f"{item['paper']['delta_pct']:+.1f}%", item["verdict"]) if "paper" in item else ("", "")
    if "judged" in item:
        ours = with_ci(item["judged"]["effect_pct"], item["judged"]["effect_pct_ci95"], 1, "%")
        judged = (f"{judged[0]} against {item['judged']['reference']}", f"{judged[1]} ({ours})")
    return dict(zip(("paper", "verdict"), judged, strict=True))


def _table(lines: Sequence[Mapping[str, str]]) -> str:
    header = list(lines[0]) if lines else []
    head, *body = ["| " + " | ".join(line) + " |" for line in (header, *(line.values() for line in lines))]
    return "\n".join([head, "|" + "---|" * len(header), *body])


if __name__ == "__main__":
    cli.run(main)
