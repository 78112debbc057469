"""The page of the sources' 69 rows: every row with its own figures, every figure of ours from the committed results."""

import json
import re
from pathlib import Path

import pytest

from experiments import sources
from experiments.report.source_rows import TABLES, Row
from freezejax.errors import UserError
from tests.models.test_pretrained import SHARED

ROOT = Path(__file__).parents[2]
# Of a row: what the tables beside it say of it, and what is no figure.
OTHER_FIELDS = {"name", "note", "trainable", "layers", "frozen"}


def tables_of_facts():
    path = SHARED / "facts" / "seed_tables.json"
    if not path.exists():
        pytest.skip("no seed_tables.json: set FREEZEJAX_SHARED to the folder that has facts/")
    facts = json.loads(path.read_text(encoding="utf-8"))
    of_each = [value for value in facts.values() if isinstance(value, dict)]
    return [rows for table in of_each for rows in table.values() if isinstance(rows, list)]


def test_every_row_of_the_sources_is_there_with_all_its_figures():
    facts = tables_of_facts()
    assert sum(map(len, facts)) == 69
    assert [len(table.rows) for table in TABLES] == [len(rows) for rows in facts]
    for table, rows in zip(TABLES, facts, strict=True):
        for ours, row in zip(table.rows, rows, strict=True):
            said = [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.]*\d)", ours.says)]
            figures = [value for field, value in row.items() if field not in OTHER_FIELDS]
            assert sorted(said) == sorted(map(float, figures)), (table.title, ours.name)


def test_the_committed_page_is_that_of_the_committed_results():
    page = (ROOT / "results" / "sources.md").read_text(encoding="utf-8")
    assert page.endswith(sources.as_markdown(ROOT / "results") + "\n")


def test_every_place_of_a_study_that_has_results_is_found():
    for table in TABLES:
        for row in table.rows:
            files = [re.split("[:#]", at)[0] for at in row.ours]
            there = [ROOT / "results" / (file if file.endswith(".json") else f"{file}/summary.json") for file in files]
            found = sources.beside(row, ROOT / "results")
            assert len(found) >= sum(path.is_file() for path in there), row.name
            assert all(ours.of for ours in found) == any(path.is_file() for path in there), row.name


def test_counterpart_a_variant_that_is_not_there_is_not_run():
    (ours,) = sources.beside(Row("a", "b", ("selective/fineweb:nobody",)), ROOT / "results")
    assert ours.figures == "not run"
    (ours,) = sources.beside(Row("a", "b", ()), ROOT / "results")
    assert ours.figures == "no row of ours"


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(UserError, match=r"--results=/no: no such folder"):
        sources.main("/no")
