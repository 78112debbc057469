"""report.html: a study's summary as one self-contained page."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from experiments.report.table import DASH, html
from experiments.report.tables import CONTRAST_COLUMNS, against_paper, figures_of, notes, row_columns
from experiments.report.timeline import timelines
from freezejax.data.atomic import write_atomically
from freezejax.training.metrics import read_json_lines

_PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def write(found: Mapping[str, Any], workdir: Path) -> None:
    """Writes `workdir/report.html`, atomically, from a summary and the metrics.jsonl in the folder.

    The same summary and metrics give the same bytes. The page fetches nothing.

    Args:
      found: what `summary.write` returned (docs/summary.md).
      workdir: folder of the study; its `metrics.jsonl` may be missing.
    """
    path = workdir / "metrics.jsonl"
    records = list(read_json_lines(path)) if path.exists() else []
    title = f"{found['experiment']} at scale {found['scale']}"
    body = "\n".join([_header(found, title), *_tables(found), *_figures(found, records)])
    write_atomically(workdir / "report.html", _PAGE.substitute(title=escape(title), body=body))


def picture(found: Mapping[str, Any], variants: Sequence[str]) -> str:
    """Loss against stored bytes of some variants, as an SVG file that stands alone in light and dark."""
    from experiments.report import plots

    rows = [row for row in found["rows"] if row["name"] in variants]
    colors = re.findall(r"(?:@media[^{]*\{ )?:root \{[^}]*\}(?: \})?", _PAGE.template)
    style = f"<style>{' '.join(colors)} text {{ font-family: system-ui, sans-serif !important; }}</style>"
    start, rest = plots.tradeoff(rows, figures_of(found)[-1]).split(">", 1)
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _header(found: Mapping[str, Any], title: str) -> str:
    data, rows = found["data"], found["rows"]
    runs = sum(len(row["params_sha256"]) for row in rows)
    facts = {
        "Data": f"{data['source']}; tokenizer {data['tokenizer']}; sha256 {data['fingerprint'][:12]}…",
        "Training": f"{_count(data['train_tokens'])} tokens in the corpus",
        "Validation": f"{_count(data['tokens'])} tokens scored, {_count(data['bytes'])} bytes of text",
        "Runs": f"{len(rows)} variants, {runs} runs",
        "Verdicts": _verdicts([*rows, *found["contrasts"]]),
        "Versions": ", ".join(f"{package} {version}" for package, version in found["versions"].items()),
    }
    listed = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>\n" for key, value in facts.items())
    return (
        f'<header><h1>{escape(title)}</h1>\n<dl class="facts">{listed}</dl>\n'
        f"<p>To make it again:</p>\n<pre><code>{escape(found['command'])}</code></pre>\n"
        '<p class="note">The whole config is in <code>config.json</code>, the numbers '
        "below in <code>summary.json</code>, the curves in <code>metrics.jsonl</code>.</p></header>"
    )


def _verdicts(items: Sequence[Mapping[str, Any]]) -> str:
    judged = Counter(item["verdict"] for item in items if "verdict" in item)
    none = "none: the paper has no figure for these variants on this text"
    return ", ".join(f"{judged[word]} {word}" for word in sorted(judged)) or none


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _tables(found: Mapping[str, Any]) -> list[str]:
    items = [*found["rows"], *found["contrasts"]]
    sources = sorted({item["paper"]["source"] for item in items if "paper" in item})
    about_paper = f" Paper: {escape('; '.join(sources))}." if sources else ""
    first, last = figures_of(found)[0], figures_of(found)[-1]
    note = (
        f"{first.heading} and what follows it are of the validation text: the mean over training seeds, each of which "
        f"counts with the mean over its base seeds, ± 95 % (Student's t). Packed: {last.label} of the weights "
        "loaded back from the quantized file. The difference to the baseline is relative and paired by seed. "
        "Parameters are counted as they exist at the end of the run. 1 kB is 1,000 bytes; predicted: the file "
        "from shapes alone, before compression; file: its real bytes. A dash: not known, or too few seeds or steps to "
        f"say.{about_paper}"
    )
    marks = "".join(f'<p class="note">{escape(text)}</p>\n' for text in notes(found))
    sections = [_section("Variants", note, html(row_columns(found), found["rows"]) + marks)]
    if found["contrasts"]:
        note = (
            f"Relative difference in validation {first.label}, paired by seed; negative is lower. Packed: the "
            f"same in {last.label} of the packed files. A verdict judges the sign alone: reproduced where the 95 % "
            "interval lies wholly on the paper's side of zero, not reproduced where wholly on the other side, else "
            "inconclusive. One seed has no interval. Sizes differ: the two were to be packed into files of the same "
            "size, and were not."
        )
        sections.append(_section("Contrasts", note, html(CONTRAST_COLUMNS, found["contrasts"])))
    return sections


def _figures(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    from experiments.report import curves, plots  # matplotlib is slow to import, and only the end of a study draws

    rows, figures = found["rows"], figures_of(found)
    drawn = [
        ("Effects of the contrasts", plots.forest(found["contrasts"], figures[0], "forest"), _FOREST_NOTE),
        ("Against the paper", plots.forest(against_paper(found), figures[0], "paper"), _PAPER_NOTE),
        ("Loss over steps", curves.plot(rows, records, figures[0]), _CURVES_NOTE),
        (f"Stored bytes against {figures[-1].label}", plots.tradeoff(rows, figures[-1]), _TRADEOFF_NOTE),
    ]
    sections = [
        _section(title, "", f"<figure>{svg}\n<figcaption>{caption}</figcaption></figure>")
        for title, svg, caption in drawn
        if svg
    ]
    if bars := timelines(rows):
        sections.append(_section("What trained when", _TIMELINE_NOTE, bars))
    return sections


def _section(title: str, note: str, content: str) -> str:
    lead = f'<p class="note">{note}</p>\n' if note else ""
    return f"<section><h2>{title}</h2>\n{lead}{content}</section>"


_FOREST_NOTE = (
    "Difference between a variant and its reference on the validation text, with the 95 % interval over seeds; one "
    "seed has no interval. Hollow diamonds: the paper's figure, where it has one."
)
_PAPER_NOTE = "What the paper has a figure for, and nothing else: our effect with its 95 % interval, and the paper's."
_CURVES_NOTE = (
    "Means over seeds; bands are 95 % intervals over seeds, absent for one seed. One line of panels per model size "
    "(layers × width), with the baseline in grey in each. A dashed line marks a freeze boundary. The vertical axes "
    "leave out the steep first 15 % of the run; neighbouring records are averaged where there are more than 60."
)
_TRADEOFF_NOTE = (
    "Lower left is better. Bytes of the real file against the loss of what it holds; of a study whose runs were not "
    "packed, predicted bytes and the trained weights. A weight that was trained and then frozen is stored like any "
    "other; one drawn from the base seed costs nothing. Bars: 95 % intervals over seeds."
)
_TIMELINE_NOTE = (
    "Variants with the same timeline share a panel, and module groups that behave alike share a line. Frozen: trained "
    "or drawn, then constant and stored. Seeded: drawn from the base seed, never trained, not stored."
)
