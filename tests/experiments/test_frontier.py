"""The frontier: equal trials and bytes, a search on one half of the text, a verdict on the other with other seeds."""

import collections
import json
import re

import jax
import numpy as np
import pytest

from experiments import frontier, ways
from experiments import fronts as fronts_command
from experiments.configs.frontier import get_config
from experiments.engine import matching
from experiments.engine.results import packing
from experiments.engine.study import load_corpus, run_study
from experiments.engine.variants import Evaluators, half_of_validation
from experiments.report import fronts, sides
from freezejax import artifact, models, roles
from freezejax.errors import UserError
from freezejax.training.evaluation import make_evaluator


def test_every_way_has_as_many_trials_and_each_of_them_every_rate():
    config = get_config("cpu")
    found = list(ways.trials(config))
    counts = collections.Counter((trial.budget, trial.way.name) for trial in found)
    assert set(counts.values()) == {4}
    assert len(counts) == 3 * 10
    rates = collections.defaultdict(set)
    for trial in found:
        rates[trial.budget, trial.way.name].add(trial.options["rate"])
    assert all(tried == {4.0, 8.0, 12.0} for tried in rates.values())
    assert [trial.options for trial in ways.trials(config)] == [trial.options for trial in found]


@pytest.mark.filterwarnings("ignore:weights. what is trained beside")  # a rank that is too high is a trial, too
@pytest.mark.parametrize("stack", ["tiny", "tiny_golf"])
def test_models_have_the_bytes_of_the_budget_and_maps_where_their_way_says(stack):
    config = get_config(stack)
    for trial in ways.trials(config):
        model = ways.model_of(trial, config, 256)
        shapes = models.build(**model).abstract_params()
        size = artifact.predict_size(shapes, model=model, **packing(config)).gaussian
        assert abs(size / trial.budget - 1) < 0.06, trial.name
        inside = {leaf.path for leaf in roles.leaves(shapes) if leaf.role is roles.Role.SEED}
        kernels = {re.match(r"blocks/\d+/(.*)/kernel", path)[1] for path in inside}
        wanted = [k for k in ways.KERNELS[model["family"]] if trial.way.seeded and re.fullmatch(trial.way.seeded, k)]
        assert kernels == set(wanted), trial.name
        assert model["num_layers"] == trial.options["layers"] * trial.options["uses"]


def test_a_way_that_cannot_be_so_small_is_told_with_its_trial():
    config = get_config("tiny")
    config.budgets = (3_000,)
    with pytest.raises(UserError, match=r"3kB_narrow_0: no model of 2 layers and 2 heads fits into 3,000 bytes"):
        frontier.search(config, 256)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two ways, one trial each, through the command's own main."""
    config = get_config("tiny")
    config.train.steps, config.train.seq_len, config.train.batch_size = 6, 64, 2
    config.budgets, config.variants, config.seeds, config.data.val_sequences = (45_000,), "", 2, 0
    config.data.eval_batch_size = 64
    folder = tmp_path_factory.mktemp("frontier") / "run"
    two = [way for way in ways.ways() if way.name in ("narrow", "gate_up")]
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax's Adam, in the threads that compile too
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.setattr(ways, "ways", lambda: two)
            run_study(frontier.search, config, folder / "search")
            found = json.loads((folder / "search" / "summary.json").read_text())
            best = frontier.choose(config, 256, found)
            run_study(lambda config, _: frontier.report(best, config), config, folder / "report")
            fronts.write(
                folder, frontier.conclude(config, best, "", json.loads((folder / "report/summary.json").read_text()))
            )
            corpus = load_corpus(config)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)
    return folder, config, corpus


def results(folder):
    found = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/result.json")]
    return {(result["variant"], result["seed"], result["base_seed"]): result for result in found}


def test_what_is_reported_was_trained_with_other_seeds_and_scored_on_other_text(workdir):
    folder, _, corpus = workdir
    searched, reported = results(folder / "search"), results(folder / "report")
    assert {(seed, base) for _, seed, base in searched} == {(0, 0)}
    assert {(seed, base) for _, seed, base in reported} == {(100, 100), (101, 101)}
    middle = len(corpus.val) // 2
    for results_of, half in ((searched, corpus.val[:middle]), (reported, corpus.val[middle:])):
        (variant, seed, base), result = next(iter(results_of.items()))
        stage = "search" if results_of is searched else "report"
        name = f"seed_{seed}" + f"_base_{base}" * (base > 0)
        apply, params, _ = artifact.load(folder / stage / "runs" / variant / name / "model.fjax")
        score = make_evaluator(
            apply, half, corpus.tokenizer.byte_table(), batch_size=64, seq_len=64, compute_dtype="float32"
        )(params)
        assert result["packed_bpb"] == pytest.approx(score.val_bpb, abs=1e-6)


def test_the_verdict_is_that_of_the_packed_files_at_equal_bytes_and_at_equal_flops(workdir):
    folder, config, _ = workdir
    (at,) = json.loads((folder / "frontier.json").read_text())["budgets"]
    reported = results(folder / "report")
    frozen, trained = at["winners"][sides.FROZEN], at["winners"][sides.TRAINED]
    pct = [100 * (reported[frozen, s, s]["packed_bpb"] / reported[trained, s, s]["packed_bpb"] - 1) for s in (100, 101)]
    assert at["effect"]["pct"] == pytest.approx(np.mean(pct))
    longer = [point for point in at["points"] if "_for_" in point["name"]]
    flops = {point["name"]: point["train_flops"] for point in at["points"]}
    assert len(longer) == 1
    other = trained if longer[0]["side"] == sides.FROZEN else frozen
    assert flops[longer[0]["name"]] == pytest.approx(flops[other], rel=0.5 / config.train.steps)
    assert flops[frozen] != flops[trained]
    assert at["effect_at_flops"]["pct"] != at["effect"]["pct"]
    assert at["places"] == {"gate_up": at["effect"]}
    assert at["over_narrow"] == {sides.FROZEN: at["effect"], sides.TRAINED: {"pct": 0.0, "ci95": 0.0}}


def test_the_best_trial_of_a_way_is_chosen_by_its_file_alone(monkeypatch):
    config = get_config("tiny")
    two = [way for way in ways.ways() if way.name in ("narrow", "qk")]
    monkeypatch.setattr(ways, "ways", lambda: two)
    config.trials = 2
    rows = []
    for trial in ways.trials(config):
        packed = 3.0 - (trial.number == 1) * (trial.way.name != "qk")
        model = ways.model_of(trial, config, 256)
        row = {"name": trial.name, "model": model, "packed_bpb_mean": packed, "val_bpb_mean": -packed}
        rows.append({**row, "artifact_bytes": 50_000})
    chosen = frontier.choose(config, 256, {"rows": rows})
    assert {one.trial.way.name: one.trial.number for one in chosen} == {"narrow": 1, "qk": 0}
    for one in chosen:  # its file took 50 kB of the 60 kB that were predicted: the next one is to be larger
        assert abs(matching.file_bytes(one.model, **packing(config)) / 72_000 - 1) < 0.06
    for one in frontier.choose(config, 512, {"rows": rows}):  # judged on a text of another vocabulary
        assert one.model["vocab_size"] == 512
        assert abs(matching.file_bytes(one.model, **packing(config)) / 72_000 - 1) < 0.06


def test_a_choice_on_one_text_is_judged_on_another(workdir, tmp_path, command):
    """Nothing is searched: the winners and narrow of the other text are what will run, at this text's vocabulary."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Seven stars shone, and one did not. " * 400)
    asked = {
        "train.steps": 6,
        "train.seq_len": 64,
        "budgets": "(45000,)",
        "search": workdir[0] / "search" / "summary.json",
        "data.path": tmp_path / "text",
        "data.tokenizer": "bpe:300",
    }
    ended = command(
        "experiments.frontier",
        "--config=experiments/configs/frontier.py:tiny",
        "--dry_run",
        f"--workdir={tmp_path / 'run'}",
        *(f"--config.{field}={value}" for field, value in asked.items()),
    )
    assert ended.code == 0, ended.err
    names = set(re.findall(r"^45kB_\w+", ended.out, re.MULTILINE))
    assert {name.partition("_for_")[0] for name in names} == {"45kB_narrow_0", "45kB_gate_up_0"}
    assert len(names) == 3  # one of them for as many FLOPs as the other
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"name": "45kB_narrow_0", "model": {}}]}', "golf", "none"])
def test_what_is_no_search_is_told(text, workdir, tmp_path):
    config, path = workdir[1].copy_and_resolve_references(), tmp_path / "search.json"
    config.search = str(path)
    if text == "golf":  # of another family
        text, config.model.family = (workdir[0] / "search" / "summary.json").read_text(), "parameter_golf"
    if text != "none":
        path.write_text(text)
    with pytest.raises(UserError, match=r"config.search=.*: (not the summary of a search over|no such file)"):
        frontier._of_another_text(config)


def test_a_search_without_one_side_is_told():
    with pytest.raises(UserError, match="the search has no finished trial of random maps at 60,000 bytes"):
        frontier.winners([frontier.Chosen(next(ways.trials(get_config("tiny"))), {}, 1.0, 1)], 60_000)


def test_halves_of_the_validation_text_share_nothing(workdir):
    _, config, corpus = workdir
    first, second = (half_of_validation(index)(config, corpus).corpus.val for index in (0, 1))
    assert len(first) + len(second) == len(corpus.val)
    assert np.array_equal(np.concatenate([first[:], second[:]]), corpus.val[:])
    assert isinstance(half_of_validation(0)(config, corpus), Evaluators)


def test_the_picture_and_the_tables_of_several_cells(workdir, tmp_path, capsys):
    cell = str(workdir[0] / "frontier.json")
    fronts_command.main([cell, cell], None)
    told = capsys.readouterr().out
    assert told.count("## geglu with adamw") == 2
    assert "| 45kB" in told
    assert "| gate_up |" in told
    fronts_command.main([cell, cell], str(tmp_path / "new" / "fronts.svg"))
    drawn = (tmp_path / "new" / "fronts.svg").read_text()
    assert drawn.startswith("<svg")
    assert "random maps" in drawn
    other = tmp_path / "other.json"
    other.write_text("{}")
    for wrong, line in (([], "--cells is missing"), (["/no.json"], "no such file"), ([str(other)], "not a frontier")):
        with pytest.raises(UserError, match=line):
            fronts_command.main(wrong, None)


def test_fit_file_reaches_its_bytes_from_either_side():
    codec = {"codec": "int6", "compressor": "brotli"}
    for start in (32, 512):
        model = {"family": "geglu", "num_layers": 2, "num_heads": 2, "mlp_mult": 2.0, "model_dim": start}
        fitted = matching.fit_file(model, 100_000, **codec)
        size = artifact.predict_size(models.build(**fitted).abstract_params(), model=fitted, **codec).gaussian
        assert abs(size / 100_000 - 1) < 0.01


def test_fit_file_leaves_a_hidden_width_that_costs_nothing_near_what_was_asked_for():
    maps = [matching.random_map(r"blocks/\d+/mlp/.*/kernel")]
    model = {"family": "geglu", "num_layers": 2, "num_heads": 2, "mlp_mult": 2.0, "model_dim": 64, "weights": maps}
    fitted = matching.fit_file(model, 100_000, codec="int6", compressor="brotli")
    assert 1.0 <= fitted["mlp_mult"] <= 3.0
