"""The benchmark runs at a toy size, and the pages quote the committed figures word for word."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import layers, lowering, random_maps, roofline, tables
from freezejax import UserError


@pytest.fixture(scope="module")
def committed():
    return json.loads(random_maps.RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def quick():
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        return json.loads(json.dumps(random_maps.measure(random_maps.QUICK)))


def test_a_quick_run_measures_what_the_committed_one_holds(quick, committed):
    assert list(quick) == list(committed)
    for name, write in tables.TABLES.items():
        assert write(quick), name
    assert {row["name"] for row in quick["layer"]["float32"]} == {"stored", *quick["settings"]["distributions"]}
    for row in quick["tokens"]:
        assert 0 < row["ms_min"] <= row["ms_median"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_a_lowered_step_draws_each_map_in_both_passes_and_holds_none(quick):
    for row in quick["lowering"]:
        assert row["draws"] == 2 * row["maps"]
        assert row["seed_arguments"] == row["maps"]
        assert row["map_arguments"] == row["map_constants"] == 0


def test_counterpart_a_step_that_closes_over_a_map_holds_a_constant():
    w = jnp.arange(12.0).reshape(3, 4)
    text = jax.jit(lambda x: x @ w).lower(jnp.ones((2, 3))).as_text()
    assert lowering.constants(text) == [12]


def test_memory_is_saved_where_maps_are_drawn_in_each_pass(committed):
    for program in {row["program"] for row in committed["memory"]}:
        rows = {row["form"]: row for row in committed["memory"] if row["program"] == program}
        assert rows["per_layer"]["argument_bytes"] < rows["once"]["argument_bytes"]
        assert rows["per_step"]["saved_share"] < 0.1


@pytest.mark.parametrize("page", random_maps.PAGES, ids=lambda page: page.name)
def test_pages_quote_the_committed_figures(page, committed):
    text = page.read_text(encoding="utf-8")
    assert committed["settings"] == json.loads(json.dumps(vars(random_maps.Settings())))
    assert tables.fill(text, committed) == text
    changed = json.loads(json.dumps(committed).replace('"temporary_bytes": ', '"temporary_bytes": 1'))
    assert tables.fill(text, changed) != text


def test_the_estimate_in_the_committed_figures_is_that_of_the_code(committed):
    assert committed["h100_estimate"]["picoseconds"] == pytest.approx(roofline.picoseconds())


def test_a_page_with_an_unknown_table_is_an_error(committed):
    with pytest.raises(UserError, match="no table 'layre'; there are machine, layer"):
        tables.fill("<!-- table: layre -->\n<!-- end -->", committed)


def test_break_even_is_the_least_count_from_which_on_all_are_within_the_limit():
    ratios = {16: 1.0, 64: 1.3, 256: 1.04, 1024: 1.01}
    rows = [{"name": "a", "tokens": tokens, "ratio": ratio} for tokens, ratio in ratios.items()]
    assert layers.break_even(rows, 1.05) == {"a": 256}
    assert layers.break_even(rows, 1.005) == {"a": None}
