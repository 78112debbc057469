"""Writes the effects and verdicts that pages quote anew from the committed summaries: none is copied by hand.

python -m experiments.quotes --pages=README.md,results/README.md
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.engine import cli
from experiments.report.quoted import QUOTES, Comparison
from freezejax.atomic import write_atomically
from freezejax.errors import UserError

_EFFECT = re.compile(r"[+-]\d+\.\d(\s)±\d+\.\d(\s?)%")
_VERDICT = re.compile(r"(?<=\| )(not reproduced|reproduced|inconclusive)(?= \|)")
# Between what is quoted as one: rows of tables, items of lists, paragraphs.
_BETWEEN = re.compile(r"(\n\n|\n(?=\||- ))")


def rewritten(text: str, results: Path) -> str:
    """A page whose effects and verdicts are those of the summaries under `results`.

    Raises:
        UserError: for a line that quotes an effect of which nobody knows the comparison, and for one that quotes more
            or fewer effects than comparisons.
    """
    return "".join(_block(block, results) if _EFFECT.search(block) else block for block in _BETWEEN.split(text))


def comparisons_of(block: str) -> list[Comparison]:
    """What a row, an item or a paragraph compares, by how it begins."""
    line = " ".join(block.split())
    found = [QUOTES[start] for start in QUOTES if line.startswith(start)]
    if len(found) != 1:
        raise UserError(
            f"{len(found)} comparisons are known for a line with an effect, where one would do: add how it begins to "
            f"experiments/report/quoted.py: {line[:100]}"
        )
    return list(found[0])


def _block(block: str, results: Path) -> str:
    items = [compared(results, *comparison) for comparison in comparisons_of(block)]
    if (count := len(_EFFECT.findall(block))) != len(items):
        raise UserError(
            f"a line quotes {count} effects, its comparisons are {len(items)}: {' '.join(block.split())[:100]}"
        )
    effects = (f"{item['effect_pct']:+.1f}\\1±{item['effect_pct_ci95']:.1f}\\2%" for item in items)
    verdicts = (item["verdict"] for item in items if "verdict" in item)
    return _each(_VERDICT, verdicts, _each(_EFFECT, effects, block))


def _each(pattern: re.Pattern[str], values: Iterable[str], text: str) -> str:
    """One value, a template, for each match; matches that are left when values end stay as they are."""
    given = iter(values)
    return pattern.sub(lambda match: match.expand(next(given, match[0])), text)


@functools.cache
def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file, and pages quote it: `bash results/make.sh` makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def compared(results: Path, study: str, text: str, variant: str | int, reference: str) -> Mapping[str, Any]:
    """A comparison with its effect, interval and verdict: a contrast, or a row against what it is judged by.

    Of the frontier: what stands of a cell (`text`) at a budget (`variant`) under a name (`reference`).
    """
    if study == "frontier":
        (at,) = (at for at in _read(results / study / text / "frontier.json")["budgets"] if at["budget"] == variant)
        effect = {**at, **at["places"]}[reference]
        return {"effect_pct": effect["pct"], "effect_pct_ci95": effect["ci95"]}
    found = _read(results / study / text / "summary.json")
    (row,) = (row for row in found["rows"] if row["name"] == variant)
    if reference == "baseline":
        return {**row, "effect_pct": row["delta_pct"], "effect_pct_ci95": row["delta_pct_ci95"]}
    if row.get("judged", {}).get("reference") == reference:
        return {**row, **row["judged"]}
    same: Callable[[Any], bool] = lambda item: (item["variant"], item["reference"]) == (variant, reference)  # noqa: E731
    return next(filter(same, found["contrasts"]))


def main(pages: Iterable[str], results: Path) -> None:
    """Writes the pages; each is left as it is where it cannot be written whole."""
    for page in map(Path, pages):
        if not page.is_file():
            raise UserError(f"--pages={page}: no such file")
        write_atomically(page, rewritten(page.read_text(encoding="utf-8"), results))


if __name__ == "__main__":
    flags.DEFINE_list("pages", ["README.md", "results/README.md"], "The pages that quote effects.")
    flags.DEFINE_string("results", "results", "The folder of the summaries.")
    cli.run(lambda: main(flags.FLAGS.pages, Path(flags.FLAGS.results)))
