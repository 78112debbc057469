"""Committed results: the README quotes them as they are, and their verdicts follow from the rule."""

import importlib
import json
from pathlib import Path

import pytest

from experiments.markdown import tables
from experiments.statistics import Interval, verdict
from freezejax import models

ROOT = Path(__file__).parents[1]
STUDIES = ("progressive", "selective")
SUMMARIES = [path for name in STUDIES for path in sorted(ROOT.glob(f"results/{name}/*/summary.json"))]


@pytest.fixture(params=SUMMARIES, ids=[f"{path.parts[-3]}-{path.parts[-2]}" for path in SUMMARIES])
def found(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture
def study(found):
    """The study that a summary is of, as the tree has it now."""
    config = importlib.import_module(f"experiments.configs.{found['experiment']}").get_config(found["scale"])
    vocab_size = found["rows"][0]["model"]["vocab_size"]
    return importlib.import_module(f"experiments.{found['experiment']}").make_study(config, vocab_size)


def test_readme_quotes_the_tables_word_for_word(found):
    assert tables(found) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_verdicts_follow_from_the_intervals(found, study):
    judged = [item for item in [*found["rows"], *found["contrasts"]] if "paper" in item]
    assert len(judged) == sum(item.paper is not None for item in [*study.variants, *study.contrasts])
    for item in judged:
        ours = "delta_pct" if "delta_pct" in item else "effect_pct"
        effect = Interval(item[ours], item[f"{ours}_ci95"])
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
        for field in ("maps", "lora"):
            assert row["model"].get(field) == variant.model.get(field)
