"""report.html: a study's summary as one self-contained page; page.html holds its words."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.table import TEMPLATES, html
from experiments.report.tables import CONTRAST_COLUMNS, against_paper, figures_of, notes, row_columns
from experiments.report.timeline import timelines
from freezejax.data.atomic import write_atomically
from freezejax.training.metrics import read_json_lines


def write(found: Mapping[str, Any], workdir: Path) -> None:
    """Writes `workdir/report.html`, atomically, from a summary and the metrics.jsonl in the folder.

    The same summary and metrics give the same bytes. The page fetches nothing.

    Args:
      found: what `summary.write` returned (docs/summary.md).
      workdir: folder of the study; its `metrics.jsonl` may be missing.
    """
    from experiments.report import curves, plots  # matplotlib is slow to import, and only the end of a study draws

    path = workdir / "metrics.jsonl"
    records = list(read_json_lines(path)) if path.exists() else []
    rows, contrasts, figures = found["rows"], found["contrasts"], figures_of(found)
    judged = Counter(item["verdict"] for item in (*rows, *contrasts) if "verdict" in item)
    text = TEMPLATES.get_template("page.html").render(
        found=found,
        title=f"{found['experiment']} at scale {found['scale']}",
        first=figures[0],
        last=figures[-1],
        runs=sum(len(row["params_sha256"]) for row in rows),
        verdicts=", ".join(f"{judged[word]} {word}" for word in sorted(judged)),
        sources=sorted({item["paper"]["source"] for item in (*rows, *contrasts) if "paper" in item}),
        variants=html(row_columns(found), rows),
        notes=notes(found),
        contrasts=html(CONTRAST_COLUMNS, contrasts),
        forest=plots.forest(contrasts, figures[0], "forest"),
        paper=plots.forest(against_paper(found), figures[0], "paper"),
        curves=curves.plot(rows, records, figures[0]),
        tradeoff=plots.tradeoff(rows, figures[-1]),
        timelines=timelines(rows),
    )
    write_atomically(workdir / "report.html", text)


def picture(found: Mapping[str, Any], variants: Sequence[str]) -> str:
    """Loss against stored bytes of some variants, as an SVG file that stands alone in light and dark."""
    from experiments.report import plots

    rows = [row for row in found["rows"] if row["name"] in variants]
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    colors = re.findall(r"(?:@media[^{]*\{ )?:root \{[^}]*\}(?: \})?", page)
    style = f"<style>{' '.join(colors)} text {{ font-family: system-ui, sans-serif !important; }}</style>"
    start, rest = plots.tradeoff(rows, figures_of(found)[-1]).split(">", 1)
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'
