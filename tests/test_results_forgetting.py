"""Committed results of `freeze_except` and `domains`: tables are those of their figures, verdicts those of the rule."""

import functools
import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import freeze_except, parts
from experiments.report import forgotten
from experiments.report.statistics import Interval, verdict
from experiments.report.tables import as_markdown

ROOT = Path(__file__).parents[1]
STUDIES = ("freeze_except", "domains")
FOLDERS = [path.parent for name in STUDIES for path in sorted(ROOT.glob(f"results/{name}/*/forgetting.json"))]


@functools.cache
def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=FOLDERS, ids=[f"{folder.parts[-2]}-{folder.parts[-1]}" for folder in FOLDERS])
def folder(request):
    return request.param


@pytest.fixture
def found(folder):
    return read(folder / "forgetting.json")


def test_both_studies_are_there():
    assert {folder.parts[-2] for folder in FOLDERS} == set(STUDIES)


def test_tables_are_those_of_the_figures(folder):
    assert (folder / "tables.md").read_text(encoding="utf-8") == as_markdown(read(folder / "summary.json")) + "\n"
    for path in folder.glob("forgetting*.json"):
        assert path.with_suffix(".md").read_text(encoding="utf-8") == forgotten.as_markdown(read(path))


def test_every_row_of_the_config_as_the_tree_has_it_is_there(folder, found):
    summary = read(folder / "summary.json")
    config = importlib.import_module(f"experiments.configs.{folder.parts[-2]}").get_config(summary["scale"])
    names = [part.name for part in parts.parts(ConfigDict(config))]
    few = {name for name in names if name.endswith("_few")}  # but of the type that is the smallest
    told = [row["name"] for row in found["rows"]]
    assert told == [row["name"] for row in summary["rows"]][1:]
    assert set(names) - few <= set(told) <= set(names)
    assert len(few - set(told)) == bool(few)
    assert found["seeds"] == list(range(config.seeds))


def test_verdicts_follow_from_the_intervals(folder):
    noise = freeze_except.CLAIMS.noise
    for path in folder.glob("forgetting*.json"):
        claims = [(row, claim) for row in read(path)["rows"] for claim in row["claims"]]
        assert bool(claims) == (folder.parts[-2] == "freeze_except")
        for row, claim in claims:
            here = Interval(**row["change" if claim["what"] == "overall" else "gain"])
            points = claim["points"] if abs(claim["points"]) > noise else 0.0
            assert claim["verdict"] == verdict(here, points), (row["name"], claim["what"])


def test_the_base_knows_its_families_and_hardly_the_target():
    """What the study is about: at least 60 % of all families, less than 20 % of what is fine-tuned on."""
    base = read(ROOT / "results" / "freeze_except" / "puzzles" / "forgetting.json")["base"]
    assert base["all"] >= 60
    assert base["target"] < 20
