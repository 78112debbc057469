"""The page of the papers' figures: each stands once, beside ours, as the summaries have it."""

import json
import re
from pathlib import Path

import pytest

from experiments import claims
from experiments.report import claimed
from experiments.report.statistics import Interval
from freezejax.errors import UserError

ROOT = Path(__file__).parents[2]
PAPER = {"source": "paper 9", "claim": "-1.0% against the baseline", "value": None, "delta_pct": -1.0}


def summary(rows=(), contrasts=()):
    data = {"source": "texts/books"}
    baseline = {"name": "baseline", "delta_pct": 0.0, "delta_pct_ci95": 0.0}
    return {"experiment": "study", "data": data, "rows": [baseline, *rows], "contrasts": [*contrasts]}


def row(**more):
    return {"name": "frozen", "delta_pct": -2.0, "delta_pct_ci95": 0.5, "paper": PAPER, "verdict": "reproduced", **more}


def test_a_row_is_against_the_baseline_or_the_papers_own_reference():
    (plain,) = claims.claims_of(summary([row()]))
    assert (plain.ours, plain.verdict) == ("-2.0 ±0.5 %", "reproduced")
    assert plain.measured == "frozen against baseline (study, texts/books)"
    judged = {"reference": "dropout", "effect_pct": 3.0, "effect_pct_ci95": None}
    (other,) = claims.claims_of(summary([row(judged=judged)]))
    assert (other.ours, other.measured) == ("+3.0 %", "frozen against dropout (study, texts/books)")


def test_a_contrast_that_says_the_same_as_a_row_stands_once():
    same = {"variant": "frozen", "reference": "baseline", "effect_pct": -2.0, "effect_pct_ci95": 0.5, "paper": PAPER}
    assert len(list(claims.claims_of(summary([row()], [same])))) == 1
    assert len(list(claims.claims_of(summary([row()], [{**same, "reference": "other"}])))) == 2


def test_a_figure_without_a_verdict_is_counted_as_such():
    control = row()
    del control["verdict"]  # a control that missed its bytes
    assert claims.as_markdown([summary([control, row(name="more")])]).startswith(
        "2 figures: 1 reproduced, 1 not judged."
    )


def test_the_committed_page_is_that_of_the_committed_summaries():
    page = (ROOT / "results" / "claims.md").read_text(encoding="utf-8")
    paths = re.search(r"--summaries=(\S+)", page)[1].split(",")
    names = ("*/*/summary.json", "**/claims.json", "**/forgetting_power.json")
    files = [path for name in names for path in ROOT.glob(f"results/{name}")]
    assert sorted(paths) == sorted(str(path.relative_to(ROOT)) for path in files)
    found = [json.loads((ROOT / path).read_text(encoding="utf-8")) for path in paths]
    assert page.endswith(claims.as_markdown(found) + "\n")


def test_figures_that_are_no_comparison_stand_with_the_others(tmp_path):
    made = claimed.of_figure("paper 9", "PR", 4.26, Interval(4.4, 0.5), "all")
    claimed.write(tmp_path / "claims.json", [made])
    found = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert list(claims.claims_of(found)) == [made]
    assert made[1:4] == ("PR: 4.26", "4.40 ±0.50", "other")
    assert claims.as_markdown([found, summary([row()])]).startswith("2 figures: 1 other, 1 reproduced.")


@pytest.mark.parametrize(("paths", "line"), [([], "--summaries is missing"), (["/no.json"], "no such file")])
def test_bad_input_is_told(paths, line):
    with pytest.raises(UserError, match=line):
        claims.main(paths)


def test_another_json_file_is_told(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"not the summary.json of a study"):
        claims.main([str(tmp_path / "a.json")])
