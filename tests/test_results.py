"""Committed results: tables and README quote them as they are, and their verdicts follow from the rule."""

import importlib
import json
import re
from pathlib import Path

import pytest

from experiments.markdown import tables
from experiments.report.statistics import Interval, verdict
from freezejax import models

ROOT = Path(__file__).parents[1]
STUDIES = ("progressive", "selective")
SUMMARIES = [path for name in STUDIES for path in sorted(ROOT.glob(f"results/{name}/*/summary.json"))]


@pytest.fixture(params=SUMMARIES, ids=[f"{path.parts[-3]}-{path.parts[-2]}" for path in SUMMARIES])
def path(request):
    return request.param


@pytest.fixture
def found(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def study(found):
    """The study that a summary is of, as the tree has it now."""
    config = importlib.import_module(f"experiments.configs.{found['experiment']}").get_config(found["scale"])
    vocab_size = found["rows"][0]["model"]["vocab_size"]
    return importlib.import_module(f"experiments.{found['experiment']}").make_study(config, vocab_size)


def test_tables_are_those_of_the_summary(path, found):
    assert path.with_name("tables.md").read_text(encoding="utf-8") == tables(found) + "\n"


def test_effects_in_the_readme_are_those_of_the_tables():
    effect = r"[+-]\d+\.\d ±\d+\.\d ?%"
    quoted = re.findall(effect, (ROOT / "README.md").read_text(encoding="utf-8"))
    known = "".join(path.with_name("tables.md").read_text(encoding="utf-8") for path in SUMMARIES)
    # Figures of an earlier version of two variants, as the README says beside them.
    superseded = {"-2.5 ±2.4 %", "-0.7 ±1.2 %"}
    missing = {text for text in quoted if text.replace(" %", "%") not in known} - superseded
    assert len(quoted) > 20
    assert not missing


def test_verdicts_follow_from_the_intervals(found, study):
    judged = [item for item in [*found["rows"], *found["contrasts"]] if "paper" in item]
    assert len(judged) == sum(item.paper is not None for item in [*study.variants, *study.contrasts])
    for item in judged:
        item_or_reference = item.get("judged", item)  # the paper's reference need not be the study's baseline
        ours = "delta_pct" if "delta_pct" in item_or_reference else "effect_pct"
        effect = Interval(item_or_reference[ours], item_or_reference[f"{ours}_ci95"])
        assert item["verdict"] == verdict(effect, item["paper"]["delta_pct"])


def test_every_variant_and_seed_is_there(found, study):
    assert [row["name"] for row in found["rows"]] == [variant.name for variant in study.variants]
    for row, variant in zip(found["rows"], study.variants, strict=True):
        assert row["seeds"] == [0, 1, 2]
        assert row.get("base_seeds", [0]) == ([0, 1] if variant.base_seeds else [0])
        assert models.build(**row["model"]).config == models.build(**variant.model).config
        assert row["steps"] == variant.train["steps"]
        assert len(row["phases"]) == len(variant.schedule.entries)


def test_maps_stand_where_the_study_has_them(found, study):
    if "packed_bpb_mean" not in found["rows"][0]:
        pytest.skip("of a version whose random weights were no part of the model")
    for row, variant in zip(found["rows"], study.variants, strict=True):
        assert row["model"].get("weights") == variant.model.get("weights")
