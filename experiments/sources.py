"""Every row of the source documents' tables, ours beside it, from the committed results: one page, as Markdown.

python -m experiments.sources --results=results
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments.claims import claims_of
from experiments.engine import cli
from experiments.report.source_rows import TABLES, Row
from experiments.report.table import DASH, Column, markdown, with_ci
from freezejax.errors import UserError

NOT_RUN, NO_ROW = "not run", "no row of ours"


class Ours(NamedTuple):
    """What we have beside a row's figures."""

    figures: str
    verdict: str
    of: str


COLUMNS = [
    Column("row", lambda line: line[0].name, kind="words"),
    Column("it says", lambda line: line[0].says, kind="words"),
    Column("we measured", lambda line: "; ".join(ours.figures for ours in line[1]), kind="words"),
    Column("verdict", lambda line: "; ".join(ours.verdict or DASH for ours in line[1]), kind="words"),
    Column("of", lambda line: ", ".join(dict.fromkeys(ours.of for ours in line[1] if ours.of)), kind="words"),
]


def beside(row: Row, results: Path) -> list[Ours]:
    """Our figures for a row, in order."""
    found = [ours for where in row.ours for ours in _at(where, results)]
    return found or [Ours(NOT_RUN if row.ours else NO_ROW, "", "")]


def _at(where: str, results: Path) -> Iterator[Ours]:
    file, _, words = where.partition("#")
    if words:
        for claim in claims_of(_read(results / file) or {"claims": []}):
            if words in claim.claim:
                what = claim.claim.partition(":")[0].replace(words.rstrip(":"), "").strip(", ")
                yield Ours(f"{what} {claim.ours}", claim.verdict, file.split("/")[0])
        return
    folder, _, variant = where.partition(":")
    summary = _read(results / folder / "summary.json")
    for item in (row for row in (summary or {"rows": []})["rows"] if row["name"] == variant):
        judged = item.get("judged", {"effect_pct": item["delta_pct"], "effect_pct_ci95": item["delta_pct_ci95"]})
        figures = f"CE {with_ci(item['val_ce_mean'], item['val_ce_ci95'], 4)}"
        if item is not summary["rows"][0]:
            pct, ci95 = judged["effect_pct"], judged["effect_pct_ci95"]
            figures += f", {with_ci(pct, ci95, 1 if abs(pct) + (ci95 or 0) >= 1 else 2, ' %')}"
        yield Ours(figures, item.get("verdict", ""), f"{variant} ({folder})")


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def as_markdown(results: Path) -> str:
    """All tables, and how many of their rows have ours beside them."""
    lines = {table.title: [(row, beside(row, results)) for row in table.rows] for table in TABLES}
    rows = [line for of_table in lines.values() for line in of_table]
    measured = sum(ours[0].of != "" for _, ours in rows)
    tables = (f"## {title}\n\n{markdown(COLUMNS, of_table)}" for title, of_table in lines.items())
    return "\n\n".join([f"{len(rows)} rows, ours beside {measured}.", *tables])


def main(results: str) -> None:
    """Prints the page's tables."""
    if not Path(results).is_dir():
        raise UserError(f"--results={results}: no such folder; give that of the committed results")
    print(as_markdown(Path(results)))


if __name__ == "__main__":
    flags.DEFINE_string("results", "results", "The folder of the summaries.")
    cli.run(lambda: main(flags.FLAGS.results))
