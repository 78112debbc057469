"""The study of what fine-tuning one type of module forgets: what each row trains, and how its tables are made."""

import json

import jax
import numpy as np
import pytest

from experiments import claims, freeze_except, parts
from experiments import puzzles as puzzle_sets
from experiments.bases import Base
from experiments.configs import freeze_except as configs
from experiments.engine import lock
from experiments.engine.study import run_study
from experiments.report import equal_terms, forgetting
from freezejax import UserError, models
from freezejax.data import ByteTokenizer, puzzles
from freezejax.paths import by_path
from freezejax.training.answers import make_scorer
from freezejax.training.checkpoints import load_params


def small(**changes):
    config = configs.get_config("tiny")
    config.model.num_layers, config.model.pattern, config.model.model_dim = 2, "M*", 16
    config.model.num_heads, config.model.num_kv_heads, config.model.head_dim = 2, 1, 8
    config.model.mamba_heads, config.model.mamba_head_dim, config.model.state_dim = 2, 8, 4
    config.types, config.pairs, config.mixed, config.few = "out_proj", "", 0.0, True
    config.puzzles.train, config.puzzles.tune, config.puzzles.test, config.puzzles.power = 6, 8, 2, 3
    config.puzzles.seen = 2
    config.train.steps, config.train.eval_every, config.train.optimizer.warmup_steps = 4, 4, 0
    config.tune.steps, config.data.eval_batch_size = 4, 8
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
    assert found["rows"][0]["moved"] == pytest.approx(float(wanted), rel=1e-4)


def test_a_row_is_read_on_the_line_between_the_base_and_where_it_ended(ran):
    """As far as the row that moved least: of that row itself where it ended."""
    folder, config = ran
    found = json.loads((folder / "forgetting.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    least, other = sorted(("out_proj", "all"), key=lambda name: rows[name]["moved"])
    assert rows[least]["equal"]["moved"] == {"share": 1.0, **rows[least]["loss"]["elsewhere"]}
    share = rows[other]["equal"]["moved"]["share"]
    assert share == pytest.approx(rows[least]["moved"] / rows[other]["moved"])
    base, end = (weights(*ran, name) for name in ("base", other))
    model = models.build(**freeze_except.make_study(config, 256).variants[0].model)
    test = freeze_except.puzzles_of(config)
    with jax.numpy_dtype_promotion("standard"):
        scorer = make_scorer(model, test.test, ByteTokenizer(), seq_len=64, batch_size=8)
        third = jax.tree.unflatten(
            jax.tree.structure(model.abstract_params()), [base[p] + (end[p] - base[p]) / 3 for p in base]
        )
        nats_N = scorer.nats(third)
    told = forgetting.read_items(forgetting.folder(folder, other, 0))
    np.testing.assert_allclose(told.losses_AxN[1], nats_N, rtol=1e-4)
    assert np.abs(told.losses_AxN[0] - nats_N).max() > 1e-3  # the counterpart


def test_the_tables_say_all_rows_and_the_source(ran):
    text = (ran[0] / "forgetting.md").read_text()
    assert text.count("| out_proj |") == text.count("| all |") == 4  # two of them claims
    found = json.loads((ran[0] / "forgetting.json").read_text())
    told, on_target, *_ = claims.claims_of(found)
    assert told.claim == "out_proj alone, overall: +0.0 points (450 samples of nine families)"
    assert (told.ours, told.verdict) == ("+0.0 ±9.8 points", "inconclusive")
    assert "on the target: +0.0 points (450" in on_target.claim
    assert found["items"] == 18
    assert list(found["rows"][0]["families"]) == list(puzzles.FAMILIES)
    assert all("<svg" in (ran[0] / f"{name}.svg").read_text() for name in ("forgetting", "forgetting_gain"))


def test_more_puzzles_are_scored_with_the_weights_that_rows_left(ran, monkeypatch):
    folder, config = ran
    found = json.loads((folder / "forgetting_power.json").read_text())
    assert found["items"] == 27
    assert [row["name"] for row in found["rows"]] == ["out_proj", "all"]  # not the rows that ask further
    run = folder / "runs/all/seed_0"
    both = [forgetting.read_items(run, f"{name}.json").scores_N.tolist() for name in ("items", "items_power")]
    for family in range(9):  # the first puzzles are those of the study
        assert both[0][2 * family : 2 * family + 2] == both[1][3 * family : 3 * family + 2]
    loaded = []
    load = lambda path, params: loaded.append(path.parent) or load_params(path, params)  # noqa: E731
    monkeypatch.setattr(freeze_except, "load_params", load)
    freeze_except.tell(folder, config)  # what is scored is not scored again
    assert not loaded
    told = json.loads((run / "items_power.json").read_text())
    (run / "items_power.json").write_text(json.dumps({**told, "params_sha256": "of other weights"}))
    freeze_except.tell(folder, config)
    assert loaded == [run]


def test_a_few_parameters_train_where_that_is_asked_for(ran):
    base, few = (weights(*ran, name) for name in ("base", "all_few"))
    moved = sum(int((np.asarray(base[path]) != np.asarray(few[path])).sum()) for path in base)
    found = json.loads((ran[0] / "forgetting.json").read_text())
    trained = {row["name"]: row["trained"] for row in found["rows"]}
    assert moved <= trained["all_few"]
    assert trained["all_few"] == pytest.approx(trained["out_proj"], rel=0.2)
    assert trained["all"] > 2 * trained["out_proj"]


def test_changes_are_paired_and_their_interval_is_that_of_agresti_and_min():
    one, rest = 100.0 * np.array([[1.0] * 6 + [-1.0] * 2]), np.zeros((1, 92))
    found = forgetting.paired(np.hstack([one, rest]), 100.0, range(100))
    assert found.mean == pytest.approx(4.0)
    # Half an item more in each of the four cells: 6.5 and 2.5 of 102 that change.
    theirs = 196 * np.sqrt((6.5 + 2.5) - (6.5 - 2.5) ** 2 / 102) / 102
    assert found.ci95 == pytest.approx(theirs, rel=2e-3)
    assert forgetting.paired(np.zeros((1, 100)), 100.0, range(100)).ci95 > 1.9  # never none
    lost = np.array([[-100.0] * 4 + [0.0] * 346])
    assert forgetting.paired(lost, 100.0, range(350)).high > 0  # 4 lost and 0 gained: p = 0.125


def test_an_interval_is_over_questions_and_over_seeds():
    changes = np.array([[100.0, 100.0, 0.0, 0.0]])
    alone, together = (forgetting.paired(changes, 100.0, [*of]).ci95 for of in ("abcd", "aabb"))
    assert together > 1.2 * alone
    apart = np.array([[-9.0] * 500, [1.0] * 500, [-1.0] * 500])
    assert forgetting.paired(apart, 0.0, range(500)).ci95 == pytest.approx(
        4.303 * np.std(apart[:, 0], ddof=1) / 3**0.5, rel=1e-3
    )
    assert forgetting.judged(forgetting.paired(apart, 0.0, range(500))._asdict(), forgetting.ACCURACY) == "noise"


def test_puzzles_that_ask_the_same_are_one_question_and_yours_are_told_apart():
    drawn = [puzzles.Puzzle("numerals", f"{i} -> I\n4 -> ", "IV") for i in (1, 2)]
    yours = [puzzles.Puzzle("sums", f"Q: {a}+{4 - a}?\nA:", "4") for a in (1, 2)]
    questions = puzzle_sets.items_of([*drawn, *yours], ["sums"]).questions
    assert [len(set(questions[:2])), len(set(questions[2:]))] == [1, 2]


def left(folder, name, moved, target, rest):
    """A run of two items, one of each kind, with losses at the end, at a third and at a ninth of the way."""
    losses = np.array([target, rest]).T
    forgetting.write_items(folder / "runs" / name / "seed_0", forgetting.Found(np.zeros(2), losses, moved))
    return {"name": name, "seeds": [0], "trainable_params": 1}


def test_rows_are_compared_where_all_have_gone_as_far(tmp_path):
    """Losses that are squares of the way are read between the points to a few per cent, not by straight lines."""
    rows = [
        left(tmp_path, "base", 0.0, [5.0], [2.0]),
        left(tmp_path, "far", 3.0, [2.0, 4.0, 4.7], [2.0 + 3**2, 2.0 + 1, 2.0 + 1 / 9]),
        left(tmp_path, "near", 2.0, [3.0, 4.5, 4.8], [2.5, 2.1, 2.0]),
        left(tmp_path, "far_longer", 9.0, [1.0, 2.0, 4.0], [9.0, 5.0, 3.0]),
        left(tmp_path, "near_few", 0.1, [5.0, 5.0, 5.0], [2.0, 2.0, 2.0]),
    ]
    for row in rows:
        (tmp_path / f"runs/{row['name']}/seed_0/metrics.jsonl").write_text("")
    items = forgetting.Items(["t", "r"], ["t"], forgetting.BITS)
    found = forgetting.measure(tmp_path, rows, items)
    equal_terms.add(found, tmp_path, rows, items, ["far", "near"])
    told = {row["name"]: row["equal"] for row in found["rows"]}
    assert told["near"]["moved"]["share"] == 1.0
    assert told["far"]["moved"]["share"] == pytest.approx(2 / 3)
    assert told["far"]["moved"]["mean"] == pytest.approx(4.0, rel=0.05)  # a straight line says 5
    assert told["far_longer"]["moved"]["share"] == pytest.approx(2 / 9)
    assert told["near_few"] == {"moved": None, "target": None}  # never so far, nor so low
    assert told["far"]["target"]["share"] == pytest.approx(2 / 3, abs=0.05)  # where the target's loss is 3


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
    mixed = puzzle_sets.mixed(found, 0.5, seed=0)
    assert mixed[:8] == found.tune
    assert len(mixed) == 16
    assert set(mixed[8:]) <= {puzzle for puzzle in found.train if puzzle.family not in found.target}
    assert puzzle_sets.mixed(found, 0.0, seed=0) == found.tune
    assert puzzle_sets.mixed(found, 0.5, seed=1) != mixed


def test_the_base_has_seen_a_little_of_the_target_and_nothing_that_is_asked_again():
    found = freeze_except.puzzles_of(small())
    seen = [puzzle for puzzle in found.train if puzzle.family in found.target]
    assert len(seen) == 4
    assert not {puzzle.prompt for puzzle in seen} & {puzzle.prompt for puzzle in found.tune + found.test}


def test_a_type_a_family_or_a_share_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no module type 'gate_proj'; this model has .*out_proj"):
        freeze_except.make_study(small(types="gate_proj"), 256)
    for change, message in (
        ({"puzzles": {"target": "cryptarithm"}}, "config.puzzles.target: there is no family 'cryptarithm'; nearest"),
        ({"mixed": 1.0}, "config.mixed=1.0: expected a share"),
        ({"mixed": 0.98}, r"config.puzzles: 42 puzzles to mix in \(config.mixed\), where 392 are needed"),
        ({"mixed": 0.01}, "config.mixed=0.01: of 8 puzzles of the target that is none"),
        ({"puzzles": {"tune": 7}}, "config.puzzles: 7 puzzles to target, where 8 are needed"),
        ({"puzzles": {"test": 0}}, "config.puzzles: 0 puzzles to test, where 1 are needed"),
        ({"puzzles": {"target": ",".join(puzzles.FAMILIES)}}, "there is nothing to forget"),
    ):
        with pytest.raises(UserError, match=message):
            run_study(freeze_except.make_study, small(**change), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_your_model_and_your_puzzles(ran, tmp_path):
    """The base is only scored: it keeps every bit; the families are those of the files."""
    folder, config = ran
    path = folder / "runs/base/seed_0/params"
    model = models.build(**freeze_except.make_study(config, 256).variants[0].model)
    params = load_params(path, model.abstract_params())
    models.save_pretrained(tmp_path / "model", model, params)
    mine = [puzzle._replace(family="mine") for puzzle in puzzles.draw("bits", 12)]
    others = puzzles.draw("units", 12)
    own = small(puzzles={"path": str(tmp_path)})
    for test, message in (
        (mine[8:], "there is nothing to forget"),
        ([*mine[7:], *others[8:]], "config.puzzles: 1 of test are of target, too; the first is"),
        ([*mine[8:], *others[8:]], None),
    ):
        for name, rows in (("train", others[:2]), ("target", mine[:8]), ("test", test)):
            puzzles.write_jsonl(tmp_path / f"{name}.jsonl", rows)
        puzzle_sets._drawn.cache_clear()
        if message:
            with pytest.raises(UserError, match=message):
                run_study(
                    lambda *a: freeze_except.make_study(*a, base=Base(tmp_path / "model", "")), own, tmp_path / "out"
                )
    assert not (tmp_path / "out").exists()
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        with lock.held:
            base = Base(tmp_path / "model", "")
            run_study(lambda *a: freeze_except.make_study(*a, base=base), own, tmp_path / "out")
    finally:
        jax.config.update("jax_numpy_dtype_promotion", "strict")
    after = load_params(tmp_path / "out/runs/base/seed_0/params", model.abstract_params())
    jax.tree.map(np.testing.assert_array_equal, after, params)
    freeze_except.tell(tmp_path / "out", own, base)
    told = json.loads((tmp_path / "out/forgetting.json").read_text())
    assert told["target"] == ["mine"]
    assert not any(row["claims"] for row in told["rows"])  # the source did not say it of these
    models.save_pretrained(tmp_path / "another", model, jax.tree.map(lambda leaf: leaf + 1, params))
    other = Base(tmp_path / "another", "")
    with pytest.raises(UserError, match="holds a study with base_fingerprint="):
        run_study(lambda *a: freeze_except.make_study(*a, base=other), own, tmp_path / "out")
