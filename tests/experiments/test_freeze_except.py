"""The study of what fine-tuning one type of module forgets: what each row trains, and how its tables are made."""

import json

import jax
import numpy as np
import pytest

from experiments import claims, freeze_except, parts
from experiments.bases import Base
from experiments.configs import freeze_except as configs
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.report import forgetting
from freezejax import UserError, models
from freezejax.data import puzzles
from freezejax.paths import by_path
from freezejax.training.checkpoints import load_params


def small(**changes):
    config = configs.get_config("tiny")
    config.model.num_layers, config.model.pattern, config.model.model_dim = 2, "M*", 16
    config.model.num_heads, config.model.num_kv_heads, config.model.head_dim = 2, 1, 8
    config.model.mamba_heads, config.model.mamba_head_dim, config.model.state_dim = 2, 8, 4
    config.types, config.pairs, config.mixed, config.few = "out_proj", "", 0.0, True
    config.puzzles.train, config.puzzles.tune, config.puzzles.test, config.puzzles.power = 6, 8, 2, 3
    config.train.steps, config.train.eval_every, config.train.optimizer.warmup_steps = 4, 4, 0
    config.tune.steps, config.tune.eval_every, config.data.eval_batch_size = 4, 2, 8
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a small study, and its config."""
    folder, config = tmp_path_factory.mktemp("freeze_except"), small()
    with lock.held, pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        jax.config.update("jax_numpy_dtype_promotion", "standard")  # in the threads that compile, too
        try:
            run_study(freeze_except.make_study, config, folder)
        finally:
            jax.config.update("jax_numpy_dtype_promotion", "strict")
    freeze_except.tell(folder, config)
    return folder, config


def weights(folder, config, name):
    (variant,) = (v for v in freeze_except.make_study(config, 256).variants if v.name == name)
    model = models.build(**variant.model)
    return by_path(load_params(folder / "runs" / name / "seed_0" / "params", model.abstract_params()))


def test_a_row_changes_its_type_and_no_other_bit(ran):
    base, row, everything = (weights(*ran, name) for name in ("base", "out_proj", "all"))
    for path, before in base.items():
        assert np.array_equal(before, row[path]) == ("out_proj" not in path), path
    changed = [path for path in base if not np.array_equal(base[path], everything[path])]
    assert len(changed) > len(base) / 2  # the counterpart


def test_what_moved_is_the_distance_from_the_base(ran):
    base, row = (weights(*ran, name) for name in ("base", "out_proj"))
    wanted = np.sqrt(sum(np.square(np.asarray(base[p]) - np.asarray(row[p])).sum() for p in base))
    found = json.loads((ran[0] / "forgetting.json").read_text())
    assert found["rows"][0]["curve"][-1]["moved"] == pytest.approx(float(wanted), rel=1e-4)
    assert [point["step"] for point in found["rows"][0]["curve"]] == [0, 2, 4]
    assert found["rows"][0]["curve"][0]["moved"] == 0.0


def test_the_tables_say_all_rows_and_the_source(ran):
    text = (ran[0] / "forgetting.md").read_text()
    assert text.count("| out_proj |") == text.count("| all |") == 2
    found = json.loads((ran[0] / "forgetting.json").read_text())
    assert found["rows"][0]["claim"]["points"] == 0.0
    (told, _) = claims.claims_of(found)
    assert told.claim == "out_proj alone fine-tuned: +0.0 points over 450 samples of nine families"
    assert (told.ours, told.verdict) == ("+0.0 ±16.7 points", "inconclusive")
    assert found["items"] == 18
    assert list(found["rows"][0]["families"]) == list(puzzles.FAMILIES)
    assert all("<svg" in (ran[0] / f"{name}.svg").read_text() for name in ("forgetting", "forgetting_gain"))


def test_more_puzzles_are_scored_with_the_weights_that_rows_left(ran, monkeypatch):
    folder, config = ran
    found = json.loads((folder / "forgetting_power.json").read_text())
    assert found["items"] == 27
    assert [row["name"] for row in found["rows"]] == ["out_proj", "all"]  # not the rows that ask further
    both = [json.loads((folder / f"runs/all/seed_0/{name}.json").read_text()) for name in ("items", "items_power")]
    for family in range(9):  # the first puzzles are those of the study
        assert both[0][2 * family : 2 * family + 2] == both[1][3 * family : 3 * family + 2]
    monkeypatch.setattr(freeze_except, "load_params", None)
    freeze_except.tell(folder, config)  # what is scored is not scored again


def test_a_few_parameters_train_where_that_is_asked_for(ran):
    base, few = (weights(*ran, name) for name in ("base", "all_few"))
    moved = sum(int((np.asarray(base[path]) != np.asarray(few[path])).sum()) for path in base)
    found = json.loads((ran[0] / "forgetting.json").read_text())
    trained = {row["name"]: row["trained"] for row in found["rows"]}
    assert moved <= trained["all_few"]
    assert trained["all_few"] == pytest.approx(trained["out_proj"], rel=0.2)
    assert trained["all"] > 2 * trained["out_proj"]


def test_changes_are_paired_and_their_interval_is_mcnemars():
    changes = 100 * np.array([1.0] * 6 + [-1.0] * 2 + [0.0] * 92)
    found = forgetting.paired(changes, 100.0)
    assert found.mean == pytest.approx(4.0)
    assert found.ci95 == pytest.approx(196 * np.sqrt(6 + 2 - (6 - 2) ** 2 / 100) / 100, rel=1e-6)
    assert forgetting.paired(np.zeros(100), 100.0).ci95 == 3.0  # never none


def curve(*points):
    return [dict(zip(("moved", "target_ce", "rest_ce"), point, strict=True)) for point in points]


def test_rows_are_compared_where_all_have_gone_as_far():
    rows = [
        {"name": "far", "curve": curve((1.0, 4.0, 2.0), (3.0, 2.0, 4.0))},
        {"name": "near", "curve": curve((1.0, 5.0, 2.1), (2.0, 3.0, 2.2))},
    ]
    for axis in ("moved", "target_ce"):
        forgetting._at_equal(rows, axis)
    assert rows[0]["at_equal_moved"] == {"at": 2.0, "rest_ce": 3.0}
    assert rows[1]["at_equal_moved"] == {"at": 2.0, "rest_ce": 2.2}
    assert rows[0]["at_equal_target_ce"] == {"at": 3.0, "rest_ce": 3.0}


def test_rows_of_the_source_and_those_that_ask_further():
    found = [part.name for part in parts.parts(configs.get_config("cpu"))]
    assert set(freeze_except.CLAIMS.points) <= set(found)
    for name in ("shared_experts_and_out_proj", "out_proj_longer", "q_proj_rate_10", "all_mixed", "all_few"):
        assert name in found
    study = freeze_except.make_study(configs.get_config("cpu"), 256)
    steps = {variant.name: variant.train["steps"] for variant in study.variants}
    assert (steps["out_proj"], steps["out_proj_longer"]) == (50, 200)


def test_a_share_of_the_others_is_mixed_in_and_the_target_stays_whole():
    found = freeze_except.puzzles_of(small())
    mixed = freeze_except._mixed(found, 0.5, seed=0)
    assert mixed[:8] == found.tune
    assert len(mixed) == 16
    assert set(mixed[8:]) <= set(found.train)
    assert freeze_except._mixed(found, 0.0, seed=0) == found.tune
    assert freeze_except._mixed(found, 0.5, seed=1) != mixed


def test_a_type_a_family_or_a_share_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no module type 'gate_proj'; this model has .*out_proj"):
        freeze_except.make_study(small(types="gate_proj"), 256)
    for change, message in (
        ({"puzzles": {"target": "cryptarithm"}}, "config.puzzles.target: there is no family 'cryptarithm'; nearest"),
        ({"mixed": 1.0}, "config.mixed=1.0: expected a share"),
    ):
        with pytest.raises(UserError, match=message):
            run_study(freeze_except.make_study, small(**change), tmp_path)


def test_your_model_and_your_puzzles(ran, tmp_path):
    """The base is only scored: it keeps every bit; the families are those of the files."""
    folder, config = ran
    path = folder / "runs/base/seed_0/params"
    model = models.build(**freeze_except.make_study(config, 256).variants[0].model)
    params = load_params(path, model.abstract_params())
    models.save_pretrained(tmp_path / "model", model, params)
    mine = [puzzle._replace(family="mine") for puzzle in puzzles.draw("bits", 12)]
    others = puzzles.draw("units", 12)
    for name, rows in (("train", others[:8]), ("target", mine[:8]), ("test", mine[8:])):
        puzzles.write_jsonl(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(UserError, match=r"no family but those of target\.jsonl: there is nothing to forget"):
        run_study(freeze_except.make_study, small(puzzles={"path": str(tmp_path)}), tmp_path / "out")
    puzzles.write_jsonl(tmp_path / "test.jsonl", [*mine[8:], *others[8:]])
    freeze_except._drawn.cache_clear()
    own = small(puzzles={"path": str(tmp_path)})
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        with lock.held:
            base = Base(tmp_path / "model", "")
            run_study(lambda *a: freeze_except.make_study(*a, base=base), own, tmp_path / "out")
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    after = load_params(tmp_path / "out/runs/base/seed_0/params", model.abstract_params())
    jax.tree.map(np.testing.assert_array_equal, after, params)
    freeze_except.tell(tmp_path / "out", own)
    assert json.loads((tmp_path / "out/forgetting.json").read_text())["target"] == ["mine"]
