"""summary.json from finished runs: every field of the schema, intervals over seeds, verdicts by rule."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.configs.progressive import get_config
from experiments.engine import summary
from experiments.engine.session import Finished
from experiments.engine.variants import Contrast, Paper, Run, Study, Variant
from experiments.engine.workdir import write_result
from experiments.report import page, tables
from experiments.report.curves import curves_of
from experiments.report.statistics import interval, paired_over_seeds
from experiments.report.table import html
from freezejax.schedules import FreezeSchedule

FIELDS = {
    *("name", "seeds", "base_seeds", "val_ce_mean", "val_ce_ci95", "val_bpb_mean", "val_bpb_ci95", "delta_pct"),
    *("packed_ce_mean", "packed_ce_ci95", "packed_bpb_mean", "packed_bpb_ci95", "training_seed_sd", "base_seed_sd"),
    *("trainable_params", "frozen_params", "seeded_params", "stored_bytes_predicted", "artifact_bytes"),
    *("steps", "train_tokens", "step_ms_median", "tokens_per_second"),
}
SCHEDULE = FreezeSchedule([(0, [(".*", True)])])
PAPER = [Paper("fineweb", "PR 1301", 4.1, -2.2, "-2.2%")]
CORPUS = SimpleNamespace(
    source="a text", tokenizer=SimpleNamespace(name="bytes"), fingerprint="f" * 64, train=range(1000)
)
LOSSES = {"baseline": [4.0, 5.0, 6.0], "better": [3.9, 4.88, 5.83], "worse": [4.1, 5.1, 6.2], "same": [4.1, 4.9, 6.0]}


def put(workdir, name, seed, loss, base_seed=0, **fields):
    directory = workdir / "runs" / name / Run(name, seed, base_seed).folder
    directory.mkdir(parents=True)
    result = {
        **{"variant": name, "seed": seed, "base_seed": base_seed, "model": {"model_dim": 8}, "tokenizer": "bytes"},
        **{"val_ce": loss, "val_bpb": loss / 2, "tokens": 50, "bytes": 70},
        **{"packed_ce": loss + 0.5, "packed_bpb": (loss + 0.5) / 2},
        **{"trainable_params": 5, "frozen_params": 3, "seeded_params": 2, "stored_bytes_predicted": 30},
        **{"artifact_bytes": 20 + seed, "params_sha256": f"{name}{seed}", "steps": 10, "train_tokens": 1280},
        **{"step_ms_median": 2.0 + seed, "phases": [], **fields},
    }
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 10, "loss": loss}) + "\n")
    write_result(directory, result)


def config_of_three_seeds():
    config = get_config("tiny")
    config.seeds = 3
    return config


def summarize(study, workdir, **config):
    finished = Finished(workdir)
    finished.read_all(study)
    values = config_of_three_seeds()
    values.paper = "fineweb" if any(item.papers for item in (*study.variants, *study.contrasts)) else "auto"
    values.update(config)
    return summary.summarize(study, values, CORPUS, finished)


@pytest.fixture
def found(tmp_path):
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            put(tmp_path, name, seed, loss)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=() if name == "baseline" else PAPER) for name in LOSSES]
    contrasts = [Contrast("better", "worse", "which?", PAPER), Contrast("same", "baseline", "any?")]
    return summarize(Study("s", variants, contrasts), tmp_path)


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


def study_of(*names, **fields):
    return Study("s", [Variant(name, {}, {}, SCHEDULE, **fields) for name in names])


def records_of(workdir, *names):
    finished = Finished(workdir)
    finished.read_all(study_of(*names))
    return list(finished.records(study_of(*names)))


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
        summary, "paired_over_seeds", lambda *sides, same_maps: paired_over_seeds(*sides, same_maps=False)
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


def same_bytes(workdir, capsys, control, model):
    """A study whose control's files have `control` bytes and those of the model `model`: summary, its renderings."""
    for name, size in (("baseline", 10), ("model", model), ("control", control)):
        for seed, loss in enumerate((3.0, 3.1, 3.2)):
            effect = {"model": 0.9, "control": 0.95}.get(name, 1.0)
            put(workdir, name, seed, loss * effect, artifact_bytes=size + seed)
    variants = [Variant(name, {}, {}, SCHEDULE, papers=PAPER) for name in ("baseline", "model")]
    variants.append(Variant("control", {}, {}, SCHEDULE, same_bytes_as="model", papers=PAPER))
    pairs = (("model", "control"), ("control", "model"), ("model", "baseline"))
    found = summarize(Study("s", variants, [Contrast(*pair, "?", PAPER) for pair in pairs]), workdir)
    tables.show(found)
    written = [capsys.readouterr().out, tables.as_markdown(found)]
    page.write(found, workdir)
    return found, [*written, (workdir / "report.html").read_text()]


@pytest.mark.parametrize(("size", "holds"), [(1000, True), (1019, True), (981, True), (1022, False), (978, False)])
def test_a_control_of_another_size_is_marked_everywhere_and_gets_no_verdict(tmp_path, capsys, size, holds):
    found, written = same_bytes(tmp_path, capsys, size, 1000)
    rows, (first, second, other) = rows_of(found), found["contrasts"]
    assert ("verdict" in rows["control"]) == ("verdict" in first) == ("verdict" in second) == holds
    assert rows["model"]["verdict"] == other["verdict"] == "reproduced"  # their sizes claim nothing
    assert "same_bytes" not in rows["model"].keys() | other.keys()
    expected = {"as": "model", "difference_pct": 100 * ((size + 1) / 1001 - 1), "holds": holds}
    assert rows["control"]["same_bytes"] == first["same_bytes"] == second["same_bytes"] == pytest.approx(expected)
    for text in written:
        assert ("sizes differ" in text.replace("Sizes differ:", "")) is not holds
        assert (f"{expected['difference_pct']:+.1f} %" in " ".join(text.split())) is not holds


def test_a_control_waits_for_what_it_is_to_match(tmp_path):
    for name in ("baseline", "control"):
        put(tmp_path, name, 0, 3.0)
    study = study_of("baseline", "model")
    control = Variant("control", {}, {}, SCHEDULE, same_bytes_as="model")
    found = summarize(Study("s", [*study.variants, control], [Contrast("control", "baseline", "?")]), tmp_path)
    assert "same_bytes" not in rows_of(found)["control"].keys() | found["contrasts"][0].keys()


def test_text_that_is_not_the_papers_gets_no_verdict(tmp_path):
    """Before, byte tokens of any text were judged against the paper's books."""
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            put(tmp_path, name, seed, loss)
    study = Study("s", study_of(*LOSSES, papers=PAPER).variants, [Contrast("better", "worse", "which?", PAPER)])
    for wanted, judged in (("auto", False), ("none", False), ("fineweb", True)):
        found = summarize(study, tmp_path, paper=wanted)
        for item in (*found["rows"], *found["contrasts"]):
            assert ("paper" in item) == ("verdict" in item) == judged
        assert found["paper_corpus"] == ("fineweb" if judged else "")
        assert ("reproduced" in tables.as_markdown(found)) == judged


def test_tables_on_a_terminal_fit_100_columns_and_keep_names_whole(tmp_path, capsys):
    names = ["baseline", "a" * 31, "b" * 37]
    for name in names:
        for seed, loss in enumerate((3.0, 3.1, 3.2)):
            put(tmp_path, name, seed, loss)
    contrasts = [Contrast(names[1], names[2], "?", PAPER), Contrast(names[2], names[0], "?", PAPER)]
    tables.show(summarize(Study("s", study_of(*names, papers=PAPER).variants, contrasts), tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = next(line for line in lines if line.startswith("variant"))
    assert "paper" in first  # what the paper has comes first
    assert all(any(line.startswith(name) for line in lines) for name in names)
    assert any(names[1] in line and names[2] in line for line in lines)


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
