"""Runs that differ in their schedule alone may train together: same figures, one program; weights kept if asked."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from experiments.configs.progressive import get_config
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.engine.variants import Contrast, Study, Variant
from freezejax.schedules import FreezeSchedule
from freezejax.training.programs.tracing import count_traces

PARTS = {"all": [], "attn": ["attn"], "mlp": ["mlp"], "both": ["attn", "mlp"]}


def make_study(config, vocab_size):
    model = {"family": "geglu", "vocab_size": vocab_size, "num_layers": 1, "model_dim": 32, "num_heads": 2}
    train = {**config.train.to_dict(), "steps": 12, "batch_size": 4, "seq_len": 16, "log_every": 5}
    rules = {name: [*((f".*/{part}/.*", False) for part in parts), (".*", True)] for name, parts in PARTS.items()}
    variants = [Variant(name, model, train, FreezeSchedule([(0, rule)])) for name, rule in rules.items()]
    longer = dataclasses.replace(variants[0], name="longer", train={**train, "steps": 14})
    question = Contrast("both", "all", "do they cost more together?", less=["attn", "mlp"])
    return Study("toy", [*variants, longer], [question], files=False, sweep=config.sweep)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The study with runs one by one, and with three at a time; what was traced."""
    before, found = jax.config.jax_numpy_dtype_promotion, dict[Any, Any]()
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            for sweep in (None, 3):
                config = get_config("tiny")
                config.experiment, config.seeds, config.sweep = "toy", 2, sweep
                config.data.val_sequences = 32
                folder = tmp_path_factory.mktemp("toy") / "run"
                with count_traces() as traces, lock.held:
                    run_study(make_study, config, folder)
                found[sweep] = folder, traces
            (removed,) = found[3][0].glob("runs/mlp/seed_1/result.json")
            removed.unlink()
            with count_traces() as traces, lock.held:
                run_study(make_study, config, found[3][0])
            found["again"] = found[3][0], traces
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)
    return found


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_figures_are_those_of_runs_of_their_own(folders):
    alone, together = (summary(folders[sweep][0]) for sweep in (None, 3))
    for one, other in zip(alone["rows"], together["rows"], strict=True):
        assert one["val_ce_mean"] == pytest.approx(other["val_ce_mean"], abs=1e-4)
        assert one["phases"] == other["phases"]
        assert one["seeds"] == other["seeds"] == [0, 1]
    assert len({row["val_ce_mean"] for row in together["rows"]}) == 5
    lines = [json.loads(line) for line in (folders[3][0] / "metrics.jsonl").read_text().splitlines()]
    mine = [line for line in lines if line["variant"] == "attn" and line["seed"] == 1]
    assert [line["step"] for line in mine] == [1, 5, 10, 12, 12]
    assert 0 < mine[1]["trainable_share"] < 1
    assert mine[0]["rules"][0].startswith("rule '.*/attn/.*' freezes attn/")
    apart = [json.loads(line) for line in (folders[None][0] / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "rules" in line] == [line for line in apart if "rules" in line]


def test_what_differs_in_its_schedule_alone_has_one_program_per_seed(folders):
    (_, alone), (_, together) = folders[None], folders[3]
    assert (alone["sweep"], together["sweep"]) == (0, 2)
    assert alone["step of phase 0"] == 10
    assert together["step of phase 0"] == 2  # the longer one, which is like no other


def test_a_run_that_is_missing_is_made_again_and_no_other(folders):
    folder, traces = folders["again"]
    assert traces == {"step of phase 0": 1} or traces["sweep"] == 0
    assert len(list(folder.glob("runs/*/*/result.json"))) == 10


def test_no_weights_and_no_files_are_left_and_nothing_is_told_of_them(folders):
    folder, _ = folders[3]
    assert {path.name for path in folder.glob("runs/*/*/*")} == {"metrics.jsonl", "result.json"}
    found = summary(folder)
    assert found["files"] is False
    for item in (*found["rows"], *found["contrasts"]):
        assert not [field for field in item if "packed" in field or field == "artifact_bytes"]
    assert "before runs were packed" not in (folder / "report.html").read_text()


def test_an_interaction_is_what_the_parts_cost_together_beyond_their_sum(folders):
    folder, _ = folders[3]
    ce = {
        (path.parent.parent.name, path.parent.name): json.loads(path.read_text())["val_ce"]
        for path in folder.glob("runs/*/*/result.json")
    }
    each = []
    for seed in ("seed_0", "seed_1"):
        cost = {name: 100 * (ce[name, seed] / ce["all", seed] - 1) for name in PARTS}
        each.append(cost["both"] - cost["attn"] - cost["mlp"])
    (contrast,) = summary(folder)["contrasts"]
    assert contrast["effect_pct"] == pytest.approx(np.mean(each))
    assert contrast["less"] == ["attn", "mlp"]
    assert "all, less 2 alone" in (folder / "report.html").read_text()
