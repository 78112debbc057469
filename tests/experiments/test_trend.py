"""The straight line through the gains of a front: its value and its interval by the formulas of textbooks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments import fronts as fronts_command
from experiments.report import sides, trend
from freezejax.errors import UserError

SIZES = (100_000, 300_000, 1_000_000)


@given(st.floats(-5, 5), st.floats(-2, 2), st.integers(2_000_000, 32_000_000))
def test_effects_on_a_line_go_on_along_it(first, slope, size):
    points = [trend.Point(at, first + slope * np.log(at / SIZES[0]), 0.0, 3) for at in SIZES]
    found = trend.extrapolate(points, size)
    assert found.mean == pytest.approx(first + slope * np.log(size / SIZES[0]), abs=1e-8)
    assert found.ci95 == pytest.approx(0.0, abs=1e-12)


@given(st.lists(st.floats(0.1, 3), min_size=3, max_size=3), st.sampled_from([3, 5]))
def test_the_interval_is_that_of_a_mean_response(halves, seeds):
    points = [trend.Point(size, 1.0, half, seeds) for size, half in zip(SIZES, halves, strict=True)]
    x = np.log(SIZES)
    of_mean = np.asarray(halves) / stats.t.ppf(0.975, seeds - 1)
    error = np.sqrt(np.mean(of_mean**2))
    at = np.sqrt(1 / 3 + (np.log(16e6) - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    expected = stats.t.ppf(0.975, 3 * (seeds - 1)) * error * at
    assert trend.extrapolate(points, 16_000_000).ci95 == pytest.approx(expected)


def cell(ci95):
    effect = {sides.FROZEN: {"pct": -2.0, "ci95": ci95}, sides.TRAINED: {"pct": 0.0, "ci95": 0.0}}
    budgets = [{"budget": size, "over_narrow": effect, "points": [{"seeds": 3}]} for size in SIZES]
    return {"family": "geglu", "optimizer": "adamw", "source": "books", "tokenizer": "bytes", "budgets": budgets}


def test_the_prediction_stands_on_what_is_known_of_narrow_models(tmp_path, capsys):
    path = tmp_path / "frontier.json"
    path.write_text(json.dumps(cell(0.5)))
    fronts_command.main([str(path)], None, 16_000_000, 1.2)
    told = capsys.readouterr().out
    assert "| random maps | -2.0 ±" in told
    assert "| 1.1760 ±" in told  # 2 % below 1.2
    assert "| all trained | +0.0 ±0.0 % | 1.2000 ±0.0000 |" in told
    with pytest.raises(UserError, match="--at and --narrow_bpb belong together"):
        fronts_command.main([str(path)], None, 16_000_000)


def test_one_budget_has_no_trend():
    with pytest.raises(UserError, match="a trend needs fronts of two budgets or more"):
        trend.extrapolate([trend.Point(1_000, 1.0, 0.5, 3)], 10_000)


def test_one_seed_predicts_without_an_interval():
    (frozen, _) = trend.lines([cell(None)], 16_000_000, 1.2)
    assert frozen["bpb"].mean == pytest.approx(1.176)
    assert frozen["bpb"].ci95 is None
