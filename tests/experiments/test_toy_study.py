"""A study is one file: its variants, its contrasts, and what it compares. The engine and the report know none of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.progressive import get_config
from experiments.engine.study import run_study
from experiments.engine.tasks import weights_of
from experiments.engine.variants import Contrast, Evaluators, Figure, Paper, Study, Variant, select
from freezejax import artifact, data
from freezejax.schedules import FreezeSchedule

ERRORS = Figure("errors", "wrong tokens", "%")


class Errors(Evaluators):
    """Share of next tokens that are not the most probable one."""

    def make(self, apply, train, layout):
        length = train.seq_len
        tokens = np.asarray(self.corpus.val[: 64 * length + 1]).astype(np.int32)
        inputs, targets = tokens[:-1].reshape(64, length), tokens[1:].reshape(64, length)

        def evaluate(params):
            best = jnp.argmax(apply(params, inputs, compute_dtype=jnp.float32), axis=-1)
            return {"val_errors": 100.0 * float(jnp.mean(best != targets))}

        return evaluate


def make_study(config, vocab_size):
    model = {"family": "geglu", "vocab_size": vocab_size, "num_layers": 1, "model_dim": 32, "num_heads": 2}
    whole, frozen = [(".*", True)], [("blocks/.*", False), (".*", True)]
    train = {**config.train.to_dict(), "steps": 40, "batch_size": 8, "seq_len": 16, "eval_every": 20}
    baseline = Variant("all_trained", model, train, FreezeSchedule([(0, whole)]))
    paper = Paper("toys", "a toy's paper", None, +5.0, "frozen blocks lose")
    control = dataclasses.replace(
        baseline,
        name="blocks_frozen",
        schedule=FreezeSchedule([(0, whole), (4, frozen)]),
        same_bytes_as="all_trained",
        papers=[paper],
    )
    still = {**train, "steps": 1, "optimizer": {"learning_rate": 1e-30}}
    after = dataclasses.replace(
        baseline, name="went_on", train=still, start=weights_of("all_trained"), needs=["all_trained"]
    )
    question = Contrast("blocks_frozen", "all_trained", "what do frozen blocks cost?", [paper])
    return Study("toy", [baseline, control, after], [question], figures=[ERRORS], evaluators=Errors)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config = get_config("tiny")
    config.experiment, config.seeds, config.paper = "toy", 2, "toys"
    folder = tmp_path_factory.mktemp("toy") / "run"
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for optax's Adam, in the threads that compile too
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            run_study(make_study, config, folder)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)
    return folder


def results(workdir):
    found = [json.loads(path.read_text()) for path in workdir.glob("runs/*/*/result.json")]
    return {(result["variant"], result["seed"]): result for result in found}


def test_its_own_figure_goes_from_the_evaluation_to_the_effect(workdir):
    found, runs = json.loads((workdir / "summary.json").read_text()), results(workdir)
    assert len(runs) == 6
    assert found["figures"] == [ERRORS._asdict()]
    pct = []
    for seed in (0, 1):
        ours, theirs = (runs[name, seed]["val_errors"] for name in ("blocks_frozen", "all_trained"))
        assert 0 < ours <= 100
        assert ours != theirs
        pct.append(100 * (ours - theirs) / theirs)
    (contrast,), rows = found["contrasts"], {row["name"]: row for row in found["rows"]}
    assert contrast["effect_pct"] == rows["blocks_frozen"]["delta_pct"] == pytest.approx(np.mean(pct))
    assert contrast["packed_effect_pct"] is not None
    assert rows["all_trained"]["val_errors_mean"] == pytest.approx(
        np.mean([runs["all_trained", seed]["val_errors"] for seed in (0, 1)])
    )
    assert not any("_ce" in field or "_bpb" in field for field in rows["all_trained"])


def test_the_papers_claim_about_it_gets_a_verdict_and_the_control_its_bytes(workdir):
    found = json.loads((workdir / "summary.json").read_text())
    (contrast,) = found["contrasts"]
    assert contrast["paper"]["claim"] == "frozen blocks lose"
    assert contrast["verdict"] in ("reproduced", "not reproduced", "inconclusive")
    assert contrast["same_bytes"]["as"] == "all_trained"
    assert contrast["same_bytes"]["holds"]


def test_a_run_goes_on_from_the_weights_of_another_of_its_seed(workdir):
    runs = results(workdir)
    for seed in (0, 1):
        assert runs["went_on", seed]["val_errors"] == runs["all_trained", seed]["val_errors"]
    assert runs["went_on", 0]["val_errors"] != runs["went_on", 1]["val_errors"]


def test_a_variant_brings_what_it_needs():
    names = [variant.name for variant in select(make_study(get_config("tiny"), 256), "went_on").variants]
    assert names == ["all_trained", "went_on"]
    study = make_study(get_config("tiny"), 256)
    study = dataclasses.replace(study, variants=[study.variants[1], study.variants[0], study.variants[2]])
    assert [variant.name for variant in select(study, "went_on").variants] == [
        "blocks_frozen",
        "all_trained",
        "went_on",
    ]


def test_the_packed_file_is_scored_with_it(workdir, tmp_path):
    path = workdir / "runs" / "blocks_frozen" / "seed_0"
    result = json.loads((path / "result.json").read_text())
    apply, params, _ = artifact.load(path / "model.fjax")
    config, corpus = get_config("tiny"), data.load(cache_dir=str(tmp_path))
    evaluate = Errors(config, corpus).of(result["model"], apply, {**config.train.to_dict(), "seq_len": 16})
    assert evaluate(params) == {"val_errors": result["packed_errors"]}


def test_the_report_and_the_curves_speak_of_it(workdir):
    report = (workdir / "report.html").read_text()
    assert "wrong tokens, %" in report
    assert "bits/byte" not in report
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {record["step"] for record in records if "val_errors" in record} == {1, 20, 40}
    assert {(record["variant"], record["seed"]) for record in records} == set(results(workdir))
