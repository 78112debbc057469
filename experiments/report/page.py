"""report.html: a study's summary as one self-contained page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from experiments.report.table import DASH
from experiments.report.tables import contrasts_as_html, figures_of, notes, rows_as_html
from experiments.report.timeline import timelines
from freezejax.data.atomic import write_atomically
from freezejax.training.metrics import read_json_lines

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<title>$title</title>
<style>
:root { --page: #fff; --ink: #1c2126; --muted: #68717a; --grid: #e3e6e9; --soft: #f4f6f7;
  --ours: #2b6cb0; --trainable: #2a7f62; --frozen: #5b7fb5; --seeded: #b8732a; --bad: #a83a32;
  --c0: #1f77b4; --c1: #c95f02; --c2: #2a8a3e; --c3: #b3282d; --c4: #7d55b0; --c5: #855a4b;
  --c6: #bd4c95; --c7: #7b7b12; --c8: #0d8a98; --c9: #3f51b5; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --ink: #e3e7ea; --muted: #98a2ab;
  --grid: #30373d; --soft: #1d2227; --ours: #74aee8; --trainable: #58b892; --frozen: #84a6dc;
  --seeded: #dfa05a; --bad: #ee8078;
  --c0: #5aaeea; --c1: #f29b4c; --c2: #69c47a; --c3: #f07f81; --c4: #b798e2; --c5: #c39d90;
  --c6: #e88fc8; --c7: #c6c653; --c8: #55c9d6; --c9: #93a1f0; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--grid); }
p { margin: .4rem 0; max-width: 52rem; }
.note, figcaption { color: var(--muted); font-size: .85rem; max-width: 52rem; }
code { font: .92em ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; border-radius: 4px; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem; }
dl.facts dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; margin-top: .5rem; }
th, td { padding: .28rem .5rem; text-align: left; border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
td:first-child, th:first-child { padding-left: 0; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td .below { display: block; color: var(--muted); font-size: .9em; }
.verdict { white-space: nowrap; color: var(--muted); }
.verdict.reproduced { color: var(--trainable); font-weight: 600; }
.verdict.not-reproduced, .verdict.sizes-differ { color: var(--bad); font-weight: 600; }
figure { margin: .6rem 0 0; overflow-x: auto; }
svg { width: 100%; min-width: 680px; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.timeline { margin: 1rem 0 1.6rem; font-size: .85rem; }
.timeline dl { display: grid; grid-template-columns: minmax(9rem, 20rem) 1fr; gap: .25rem 1rem;
  align-items: center; margin: .4rem 0; }
.bar { display: flex; position: relative; min-height: 1.3rem; line-height: 1.3rem; }
.bar span { padding: 0 .4rem; color: #fff; overflow: hidden; white-space: nowrap; min-width: 2px;
  box-sizing: border-box; border-right: 1px solid var(--page); font-size: .78rem; }
@media (prefers-color-scheme: dark) { .bar span { color: #0e1114; } }
.bar .trainable { background: var(--trainable); }
.bar .frozen { background: var(--frozen); }
.bar .seeded { background: var(--seeded); }
.bar .part { background: repeating-linear-gradient(135deg, var(--trainable) 0 12px, var(--frozen) 12px 16px); }
.bar .total { background: var(--soft); color: var(--ink); }
.bar .tick { color: var(--muted); padding: 0; border: 0; }
.bar .last { color: var(--muted); position: absolute; right: 0; padding: 0; border: 0; }
</style>
</head>
<body>
$body
</body>
</html>
""")


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
    sections = [_section("Variants", note, rows_as_html(found) + marks)]
    if found["contrasts"]:
        note = (
            f"Relative difference in validation {first.label}, paired by seed; negative is lower. Packed: the "
            f"same in {last.label} of the packed files. A verdict judges the sign alone: reproduced where the 95 % "
            "interval lies wholly on the paper's side of zero, not reproduced where wholly on the other side, else "
            "inconclusive. One seed has no interval. Sizes differ: the two were to be packed into files of the same "
            "size, and were not."
        )
        sections.append(_section("Contrasts", note, contrasts_as_html(found)))
    return sections


def _figures(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    from experiments.report import curves, plots  # matplotlib is slow to import, and only the end of a study draws

    rows, figures = found["rows"], figures_of(found)
    drawn = [
        ("Effects of the contrasts", plots.forest(found["contrasts"], figures[0]), _FOREST_NOTE),
        ("Against the paper", plots.against_paper(rows, figures[0]), _PAPER_NOTE),
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
_PAPER_NOTE = "Difference to the baseline, the first row: ours with its 95 % interval, and the paper's."
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
