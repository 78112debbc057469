"""Committed results: the README quotes them as they are, and their verdicts follow from the rule."""

import json
from pathlib import Path

import pytest

from experiments.configs.progressive import get_config
from experiments.markdown import tables
from experiments.progressive import make_study
from experiments.statistics import Interval, verdict
from freezejax import models

ROOT = Path(__file__).parents[1]
SUMMARIES = sorted(ROOT.glob("results/*/*/summary.json"))


@pytest.fixture(params=SUMMARIES, ids=[path.parent.name for path in SUMMARIES])
def found(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_readme_quotes_the_tables_word_for_word(found):
    assert tables(found) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_verdicts_follow_from_the_intervals(found):
    judged = [item for item in [*found["rows"], *found["contrasts"]] if "paper" in item]
    assert judged
    for item in judged:
        ours = "delta_pct" if "delta_pct" in item else "effect_pct"
        effect = Interval(item[ours], item[f"{ours}_ci95"])
        assert item["verdict"] == verdict(effect, item["paper"]["delta_pct"])


def test_every_variant_and_seed_is_there(found):
    config = get_config(found["scale"])
    vocab_size = found["rows"][0]["model"]["vocab_size"]
    variants = make_study(config, vocab_size).variants
    assert [row["name"] for row in found["rows"]] == [variant.name for variant in variants]
    for row, variant in zip(found["rows"], variants, strict=True):
        assert row["seeds"] == [0, 1, 2]
        assert models.build(**row["model"]).config == models.build(**variant.model).config
        assert row["steps"] == variant.train["steps"]
        assert len(row["phases"]) == len(variant.schedule.entries)
