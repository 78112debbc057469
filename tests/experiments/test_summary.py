"""summary.json from finished runs: every field of the schema, intervals over seeds, verdicts by rule."""

import json
from types import SimpleNamespace

import pytest

from experiments import summary
from experiments.configs.progressive import get_config
from experiments.statistics import interval
from experiments.variants import Contrast, Paper, Study, Variant
from freezejax.schedules import FreezeSchedule

FIELDS = {
    *("name", "seeds", "val_ce_mean", "val_ce_ci95", "val_bpb_mean", "val_bpb_ci95", "delta_pct"),
    *("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted", "artifact_bytes"),
    *("steps", "train_tokens", "step_ms_median", "tokens_per_second"),
}
SCHEDULE = FreezeSchedule([(0, [(".*", True)])])
PAPER = Paper("PR 1301", 4.1, -2.2, "-2.2%")
CORPUS = SimpleNamespace(
    source="a text", tokenizer=SimpleNamespace(name="bytes"), fingerprint="f" * 64, train=range(1000)
)
LOSSES = {"baseline": [4.0, 5.0, 6.0], "better": [3.9, 4.88, 5.83], "worse": [4.1, 5.1, 6.2], "same": [4.1, 4.9, 6.0]}


def put(workdir, name, seed, loss, **fields):
    directory = workdir / "runs" / name / f"seed_{seed}"
    directory.mkdir(parents=True)
    result = {
        **{"variant": name, "seed": seed, "model": {"model_dim": 8}, "tokenizer": "bytes"},
        **{"val_ce": loss, "val_bpb": loss / 2, "tokens": 50, "bytes": 70},
        **{"trainable_params": 5, "frozen_params": 3, "seeded_params": 2, "stored_bytes_predicted": 30},
        **{"artifact_bytes": 20 + seed, "params_sha256": f"{name}{seed}", "steps": 10, "train_tokens": 1280},
        **{"step_ms_median": 2.0 + seed, "phases": [], **fields},
    }
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": loss}) + "\n")


def config_of_three_seeds():
    config = get_config("tiny")
    config.seeds = 3
    return config


@pytest.fixture
def found(tmp_path):
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            put(tmp_path, name, seed, loss)
    variants = [Variant(name, {}, {}, SCHEDULE, paper=None if name == "baseline" else PAPER) for name in LOSSES]
    contrasts = [Contrast("better", "worse", "which?", PAPER), Contrast("same", "baseline", "any?")]
    written = summary.write(Study("s", variants, contrasts), config_of_three_seeds(), CORPUS, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == written
    return written


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}


def test_a_row_has_every_field_of_the_schema(found):
    assert {"experiment", "scale", "versions", "data", "rows"} <= found.keys()
    assert {"fingerprint", "tokens", "bytes"} <= found["data"].keys()
    for name, row in rows_of(found).items():
        assert row.keys() >= FIELDS
        assert ("verdict" in row) == ("paper" in row) == (name != "baseline")
        if "paper" in row:
            assert {"source", "value", "claim"} <= row["paper"].keys()


def test_means_intervals_and_pace(found):
    row = rows_of(found)["better"]
    assert row["seeds"] == [0, 1, 2]
    expected = interval(LOSSES["better"])
    assert (row["val_ce_mean"], row["val_ce_ci95"]) == pytest.approx((expected.mean, expected.ci95))
    assert row["val_bpb_mean"] == pytest.approx(expected.mean / 2)
    pct = [100 * (a - b) / b for a, b in zip(LOSSES["better"], LOSSES["baseline"], strict=True)]
    assert (row["delta_pct"], row["delta_pct_ci95"]) == pytest.approx(tuple(interval(pct)))
    assert row["step_ms_median"] == 3.0
    assert row["tokens_per_second"] == pytest.approx(128 / 3e-3)
    assert row["artifact_bytes"] == 21
    assert row["params_sha256"] == ["better0", "better1", "better2"]
    assert rows_of(found)["baseline"]["delta_pct"] == 0


def test_verdicts_follow_the_interval(found):
    rows = rows_of(found)
    assert [rows[name]["verdict"] for name in ("better", "worse", "same")] == [
        "reproduced",
        "not reproduced",
        "inconclusive",
    ]
    contrast, plain = found["contrasts"]
    assert contrast["verdict"] == "reproduced"
    assert contrast["effect_pct"] < 0
    assert "verdict" not in plain


def test_the_metrics_of_every_run_are_merged(found, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert {(line["variant"], line["seed"]) for line in lines} == {(name, seed) for name in LOSSES for seed in range(3)}


def test_an_unfinished_study_has_the_rows_it_has(tmp_path):
    put(tmp_path, "better", 0, 3.9, step_ms_median=None)
    variants = [Variant(name, {}, {}, SCHEDULE, paper=PAPER) for name in ("baseline", "better")]
    contrasts = [Contrast("better", "baseline", "?")]
    found = summary.write(Study("s", variants, contrasts), config_of_three_seeds(), CORPUS, tmp_path)
    (row,) = found["rows"]
    assert row["delta_pct"] is row["val_ce_ci95"] is row["step_ms_median"] is row["tokens_per_second"] is None
    assert "verdict" not in row
    assert found["contrasts"] == []
    assert found["data"]["tokens"] is None
    summary.print_table(found)


def test_seeds_that_only_one_side_has_are_not_paired(tmp_path):
    for seed, loss in enumerate(LOSSES["baseline"]):
        put(tmp_path, "baseline", seed, loss)
    put(tmp_path, "better", 2, 3.0)
    variants = [Variant(name, {}, {}, SCHEDULE, paper=PAPER) for name in ("baseline", "better")]
    found = summary.write(Study("s", variants), config_of_three_seeds(), CORPUS, tmp_path)
    row = rows_of(found)["better"]
    assert row["seeds"] == [2]
    assert row["delta_pct"] == pytest.approx(-50.0)
    assert row["verdict"] == "inconclusive"  # one seed shows no interval


def test_the_command_makes_the_study_again():
    config = get_config("cpu")
    start = "uv run python -m experiments.progressive --config=experiments/configs/progressive.py:cpu"
    assert summary.command(config) == f"{start} --workdir=DIR"
    config.freeze.at, config.data.path = 0.5, "two words"
    expected = f"{start} '--config.data.path=two words' --config.freeze.at=0.5 --workdir=DIR"
    assert summary.command(config) == expected


def test_a_config_of_the_users_own_has_a_command_too():
    config = get_config("tiny")
    config.scale = "mine"
    assert "--config=FILE.py:mine" in summary.command(config)
