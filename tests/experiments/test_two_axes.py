"""A variant with maps has two axes of seeds: of training, and of the maps."""

import pytest

from experiments.engine import summary
from experiments.engine.variants import Contrast, Study, Variant
from experiments.report import tables
from experiments.report.curves import curves_of
from experiments.report.statistics import interval, paired_over_seeds
from experiments.report.table import html
from tests.experiments.made_results import SCHEDULE, put, records_of, rows_of, summarize

# Losses of a variant with maps, by (training seed, base seed), and what pairs with it.
MAPS = {"model_dim": 8, "weights": [{"pattern": ".*", "kind": "map"}]}
TWO_AXES = {(0, 0): 4.0, (0, 1): 6.0, (1, 0): 5.0, (1, 1): 9.0}


@pytest.fixture
def two_axes(tmp_path):
    for (seed, base_seed), loss in TWO_AXES.items():
        put(tmp_path, "seeded", seed, loss, base_seed, model=MAPS)
    for seed, loss in enumerate((4.0, 5.0)):
        put(tmp_path, "baseline", seed, loss)
        put(tmp_path, "twin", seed, loss / 2, model=MAPS)
    names = ("baseline", "seeded", "twin")
    variants = [Variant(name, {}, {}, SCHEDULE, base_seeds=name == "seeded") for name in names]
    contrasts = [Contrast("seeded", "baseline", "?"), Contrast("seeded", "twin", "?")]
    return summarize(Study("s", variants, contrasts), tmp_path), tmp_path


def test_two_axes_of_seeds_by_hand(two_axes):
    """Means over base seeds are 5 and 7; deviations are 1, 1 (base 0), 3, 3 (base 1) and 2, 2, 4, 4."""
    row = rows_of(two_axes[0])["seeded"]
    assert (row["seeds"], row["base_seeds"]) == ([0, 1], [0, 1])
    assert (row["val_ce_mean"], row["val_ce_ci95"]) == pytest.approx(tuple(interval([5.0, 7.0])))
    assert row["training_seed_sd"] == pytest.approx(((0.5 + 4.5) / 2) ** 0.5 / 2)  # of bits, half the loss
    assert row["base_seed_sd"] == pytest.approx(((2.0 + 8.0) / 2) ** 0.5 / 2)
    assert row["params_sha256"] == ["seeded0", "seeded0", "seeded1", "seeded1"]
    baseline = rows_of(two_axes[0])["baseline"]
    assert baseline["base_seed_sd"] is None
    assert baseline["training_seed_sd"] == pytest.approx(0.5**0.5 / 2)


def test_effects_average_over_base_seeds_or_keep_to_the_same_one(two_axes):
    against_baseline, against_twin = two_axes[0]["contrasts"]
    expected = interval([100 * (5 - 4) / 4, 100 * (7 - 5) / 5])
    assert (against_baseline["effect_pct"], against_baseline["effect_pct_ci95"]) == pytest.approx(tuple(expected))
    assert (rows_of(two_axes[0])["seeded"]["delta_pct"]) == pytest.approx(expected.mean)
    # The twin has the maps of base seed 0 alone.
    assert (against_twin["effect_pct"], against_twin["effect_pct_ci95"]) == pytest.approx((100.0, 0.0))


def test_counterpart_averaged_over_all_base_seeds_the_twin_looks_worse(two_axes, monkeypatch):
    found, workdir = two_axes
    monkeypatch.setattr(
        summary.statistics, "paired_over_seeds", lambda *sides, same_maps: paired_over_seeds(*sides, same_maps=False)
    )
    variants = [Variant(row["name"], {}, {}, SCHEDULE) for row in found["rows"]]
    contrasts = [Contrast("seeded", "twin", "?")]
    again = summarize(Study("s", variants, contrasts), workdir)
    assert again["contrasts"][0]["effect_pct"] != pytest.approx(100.0)


def test_metrics_of_two_base_seeds_are_told_apart_and_make_one_curve(two_axes):
    lines = records_of(two_axes[1], "baseline", "seeded", "twin")
    assert {(line["seed"], line["base_seed"]) for line in lines if line["variant"] == "seeded"} == set(TWO_AXES)
    curve = curves_of(lines, "loss")["seeded"]
    assert (curve.mean[0], curve.ci95[0]) == pytest.approx(tuple(interval([5.0, 7.0])))


def test_tables_have_packed_figures_only_where_the_summary_has(two_axes):
    found = two_axes[0]
    text = tables.as_markdown(found)
    assert "| packed bits/byte |" in text
    assert "| packed effect |" in text
    assert "Made before runs were packed" not in text
    for item in (*found["rows"], *found["contrasts"]):
        for field in [name for name in item if name.startswith("packed")]:
            del item[field]
    text = tables.as_markdown(found)
    assert "Made before runs were packed" in text
    assert "packed" not in text.partition("Made before")[0]
    assert "packed" not in html(tables.row_columns(found), found["rows"]) + html(
        tables.CONTRAST_COLUMNS, found["contrasts"]
    )
