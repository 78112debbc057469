"""summary.json from finished runs: every field of the schema, intervals over seeds, verdicts by rule."""

from pathlib import Path

import pytest

from experiments.configs import parameter_golf
from experiments.configs.progressive import get_config
from experiments.engine import summary
from experiments.engine.variants import Contrast, Run, Study, Variant
from experiments.engine.workdir import Finished
from experiments.report import tables
from experiments.report.statistics import interval
from tests.experiments.made_results import (
    CORPUS,
    LOSSES,
    PAPER,
    SCHEDULE,
    config_of_three_seeds,
    put,
    records_of,
    rows_of,
    study_of,
    summarize,
)

FIELDS = {
    *("name", "seeds", "base_seeds", "val_ce_mean", "val_ce_ci95", "val_bpb_mean", "val_bpb_ci95", "delta_pct"),
    *("packed_ce_mean", "packed_ce_ci95", "packed_bpb_mean", "packed_bpb_ci95", "training_seed_sd", "base_seed_sd"),
    *("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted", "artifact_bytes"),
    *("steps", "train_tokens", "step_ms_median", "tokens_per_second"),
}


@pytest.fixture
def found(tmp_path):
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            put(tmp_path, name, seed, loss)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=() if name == "baseline" else PAPER) for name in LOSSES]
    contrasts = [Contrast("better", "worse", "which?", PAPER), Contrast("same", "baseline", "any?")]
    return summarize(Study("s", variants, contrasts), tmp_path)


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
    packed = interval([loss + 0.5 for loss in LOSSES["better"]])
    assert (row["packed_ce_mean"], row["packed_ce_ci95"]) == pytest.approx(tuple(packed))
    assert (row["packed_bpb_mean"], row["packed_bpb_ci95"]) == pytest.approx((packed.mean / 2, packed.ci95 / 2))


def test_verdicts_follow_the_interval(found):
    rows = rows_of(found)
    assert [rows[name]["verdict"] for name in ("better", "worse", "same")] == [
        "reproduced",
        "not reproduced",
        "inconclusive",
    ]
    contrast, plain = found["contrasts"]
    pct = [100 * (a - b) / (b + 0.5) for a, b in zip(LOSSES["better"], LOSSES["worse"], strict=True)]
    assert (contrast["packed_effect_pct"], contrast["packed_effect_pct_ci95"]) == pytest.approx(tuple(interval(pct)))
    assert contrast["verdict"] == "reproduced"
    assert contrast["effect_pct"] < 0
    assert "verdict" not in plain


def test_the_metrics_of_every_run_are_merged(found, tmp_path):
    lines = records_of(tmp_path, *LOSSES)
    assert len(lines) == 12
    assert [(line["variant"], line["seed"]) for line in lines] == [(name, seed) for name in LOSSES for seed in range(3)]


def test_each_result_is_read_once(tmp_path, monkeypatch):
    """Written after every run, a summary of n runs read n (n + 1) / 2 results before."""
    reads, study = [], study_of("before", "now")
    put(tmp_path, "before", 0, 2.0)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read_bytes(path))[1])
    finished = Finished(tmp_path)
    finished.read_all(study)
    for seed in range(8):
        put(tmp_path, "now", seed, 2.0)
        finished.add(Run("now", seed).directory(tmp_path))
        rows = summary.summarize(study, config_of_three_seeds(), CORPUS, finished)["rows"]
        assert rows[1]["seeds"] == list(range(seed + 1))
    assert len([path for path in reads if path.name == "result.json"]) == 9


def test_the_mesh_of_every_run_is_kept(tmp_path):
    meshes = [{}, {"data": 2, "fsdp": 4, "tensor": 1}]
    for seed, mesh in enumerate(meshes):
        put(tmp_path, "baseline", seed, 2.0, mesh=mesh)
    put(tmp_path, "baseline", 2, 2.0)  # of a version that did not keep it
    (row,) = summarize(study_of("baseline"), tmp_path)["rows"]
    assert row["meshes"] == [*meshes, None]


def test_an_unfinished_study_has_the_rows_it_has(tmp_path):
    put(tmp_path, "better", 0, 3.9, step_ms_median=None)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=PAPER) for name in ("baseline", "better")]
    contrasts = [Contrast("better", "baseline", "?")]
    found = summarize(Study("s", variants, contrasts), tmp_path)
    (row,) = found["rows"]
    assert row["delta_pct"] is row["val_ce_ci95"] is row["step_ms_median"] is row["tokens_per_second"] is None
    assert "verdict" not in row
    assert found["contrasts"] == []
    assert found["data"]["tokens"] is None
    tables.show(found)


def test_seeds_that_only_one_side_has_are_not_paired(tmp_path):
    for seed, loss in enumerate(LOSSES["baseline"]):
        put(tmp_path, "baseline", seed, loss)
    put(tmp_path, "better", 2, 3.0)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=PAPER) for name in ("baseline", "better")]
    found = summarize(Study("s", variants), tmp_path)
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


def test_a_study_whose_config_has_another_name_has_a_command_too():
    config = parameter_golf.get_config("best_tiny")
    config.train.steps = 5
    start = "uv run python -m experiments.golf --config=experiments/configs/parameter_golf.py:best_tiny"
    assert summary.command(config) == f"{start} --config.train.steps=5 --workdir=DIR"


def test_a_config_of_the_users_own_has_a_command_too():
    config = get_config("tiny")
    config.scale = "mine"
    assert "--config=FILE.py:mine" in summary.command(config)
