"""Policies in a study: what they decide stands in the result, and speed is told at equal loss and at equal time."""

import functools
import json

import jax
import pytest

from experiments import adaptive
from experiments.bases import Base
from experiments.configs.adaptive import get_config
from experiments.engine import lock
from experiments.engine.study import run_study
from freezejax.errors import UserError
from freezejax.training.adaptive import FILE


def run(seconds, loss, seed=0):
    return {"seed": seed, "seconds": seconds, "step_seconds": seconds and seconds / 2, "val_ce": loss}


FULL = [{"runs": [run(10.0, 2.0), run(20.0, 9.0, 1)]}, {"runs": [run(5.0, 3.0), run(10.0, 9.5, 1)]}]


def test_speed_is_the_time_that_training_everything_takes_to_the_same_loss():
    speed, loss = adaptive._against(run(3.0, 2.5), FULL, "seconds")
    assert speed == pytest.approx(7.5 / 3.0)  # half way between the two lengths
    assert loss == pytest.approx(100 * (2.5 / 3.0 - 1))  # no shorter one was run: the nearest
    speed, loss = adaptive._against(run(8.0, 2.0), FULL, "seconds")
    assert speed == pytest.approx(10 / 8)
    assert loss == pytest.approx(100 * (2.0 / 2.4 - 1))
    assert adaptive._against(run(8.0, 2.0), FULL, "step_seconds")[0] == pytest.approx(5 / 4)
    assert adaptive._against({**run(8.0, 2.0), "seconds": None}, FULL, "seconds") is None  # a run that was resumed


def test_the_claim_is_judged_by_the_interval_alone():
    rows = [{"name": f"scratch_none_{pct}", **each} for pct, each in zip((100, 60), FULL, strict=True)]

    def told(*seconds):
        runs = [run(time, loss, seed) for seed, (time, loss) in enumerate(zip(seconds, (2.0, 9.0), strict=True))]
        return adaptive.findings({"rows": [*rows, {"name": "scratch_low_participation", "runs": runs}]})[0]

    assert "3.33 +- 0.00 times as fast at equal loss" in told(3.0, 6.0)
    assert told(3.0, 6.0).count("as fast: reproduced") == 2
    assert told(9.0, 18.0).count("as fast: not reproduced") == 2
    assert told(3.0, 19.0).count("as fast: inconclusive") == 2
    assert adaptive.findings({"rows": rows[:1]}) == []
    assert (
        told(3.0, None)
        == "scratch_low_participation: not judged, 1 of 2 seeds have no time to compare, as after a stop."
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    config, folder = get_config("tiny"), tmp_path_factory.mktemp("adaptive")
    config.ways, config.lengths, config.variants = "scratch", (50,), "scratch_none_50,scratch_low_participation"
    config.train.steps, config.train.batch_size, config.train.seq_len, config.every = 8, 2, 16, 2
    config.base.model.model_dim, config.data.val_sequences, config.participation.share = 32, 8, 0.5
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    try:
        with pytest.MonkeyPatch.context() as patch, lock.held:
            patch.setenv("FREEZEJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
            run_study(functools.partial(adaptive.make_study, base=Base(None, "")), config, folder)
    finally:
        jax.config.update("jax_numpy_dtype_promotion", before)
    return folder


def test_what_a_policy_decided_is_in_the_result_and_every_run_has_its_time(ran):
    found = json.loads((ran / "summary.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert rows.keys() == {"scratch_none_100", "scratch_none_50", "scratch_low_participation"}
    row = rows["scratch_low_participation"]
    assert [(phase["start"], phase["stop"]) for phase in row["phases"]] == [(0, 4), (4, 6), (6, 8)]
    shares = [phase["trainable"]["total"] for phase in row["phases"]]
    assert shares[0] == 1.0 > shares[1] > shares[2]
    assert row["frozen_params"] > 0
    decisions = (ran / "runs" / "scratch_low_participation" / "seed_0" / FILE).read_text().splitlines()
    assert len(json.loads(decisions[-1])["frozen"]) == 6  # 80 % of 8 matrices
    assert rows["scratch_none_50"]["steps"] == 4
    for row in rows.values():
        (one,) = row["runs"]
        assert 0 < one["step_seconds"] < 2 * one["seconds"]
        assert one["val_ce"] == row["val_ce_mean"]
    assert any("scratch_low_participation against training everything" in text for text in found["findings"])


def test_every_way_has_the_same_variants_and_starts_where_it_says():
    config = get_config("cpu")
    study = adaptive.make_study(config, 256, Base(None, ""))
    of_way = {way: [v for v in study.variants if v.name.startswith(way)] for way in adaptive.WAYS}
    names = {way: [v.name.removeprefix(way) for v in of_way[way]] for way in of_way}
    assert names["scratch"] == names["tuning"]
    assert len(names["scratch"]) == 4 + 2 + 5
    assert all(v.start is None for v in of_way["scratch"])
    assert all(v.start is not None for v in of_way["tuning"])
    assert {v.name.removeprefix("scratch_") for v in of_way["scratch"] if v.policy} == set(adaptive.POLICIES)
    assert len(contrasts := study.contrasts) == 14
    assert {c.reference for c in contrasts} == {"scratch_none_100", "tuning_none_100"}


def test_an_unknown_policy_is_told():
    config = get_config("tiny")
    config.policies = "gradient,fischer"
    with pytest.raises(UserError, match=r"config.policies: there is no policy 'fischer'; nearest: fisher"):
        adaptive.make_study(config, 256, Base(None, ""))
