"""A sweep gives the numbers of `train` under each schedule alone, from one program, however many run at a time."""

import signal
from typing import Any

import chex
import jax
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError
from freezejax.paths import by_path
from freezejax.training import sweep as implementation
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped, StopSignal
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.programs.tracing import count_traces
from freezejax.training.sweep import sweep
from tests.training import sweep_program
from tests.training.conftest import Evaluated

NAMES = ["never", "start", "later", "thaw", "all frozen"]
TOLERANCE = 2e-4  # of weights after 12 steps of Adam at 3e-3, against `train`
MAPS = [{"pattern": r".*/mlp/up/kernel", "kind": "map"}, {"pattern": r".*/mlp/up/kernel", "kind": "lora", "rank": 2}]
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AdamW": ({}, {}),
    "Muon, parts": ({}, {"optimizer": {"name": "muon", "learning_rate": 5e-3}, "accumulation": 2}),
    "maps drawn once, moments kept, dropout": (
        {"dropout": 0.3, "weights": MAPS},
        {"draw_maps": "once", "on_thaw": "keep"},
    ),
    "maps drawn per step": ({"weights": MAPS}, {"draw_maps": "per_step"}),
}


def settings(**fields):
    fields = {"steps": 12, "batch_size": 4, "seq_len": 16, "log_every": 1, **fields}
    return TrainConfig.from_mapping({**fields, "optimizer": {"learning_rate": 3e-3, **fields.get("optimizer", {})}})


@pytest.fixture
def swept(build, tokens, entries):
    def go(model=None, schedules=None, *, score=None, stop=None, width=0, params=None, **fields):
        built, config = build(**(model or {})), settings(**fields)
        chosen = schedules or [FreezeSchedule(entries[name]) for name in NAMES]
        objective = Evaluated(built, config.compute_dtype, score)
        batches = TokenBatches(tokens, config)
        return list(sweep(built, objective, batches, config, chosen, width=width, stop=stop, params=params))

    return go


@pytest.mark.parametrize("name", SETUPS)
def test_each_result_is_that_of_a_run_of_its_own(name, swept, run, entries, tmp_path):
    model, fields = SETUPS[name]
    found = swept(model, width=2, **fields)
    assert [each.index for each in found] == list(range(len(NAMES)))
    fields = {**fields, "optimizer": {"learning_rate": 3e-3, **fields.get("optimizer", {})}}
    for each, schedule in zip(found, NAMES, strict=True):
        alone, recorder = run(tmp_path / schedule, entries[schedule], model=model, **fields)
        chex.assert_trees_all_close(each.params, alone.params, atol=TOLERANCE)
        np.testing.assert_allclose([r["loss"] for r in each.records if "loss" in r], recorder.losses(), atol=1e-4)


def test_counterpart_the_mask_of_another_step_is_seen(swept, monkeypatch):
    first = swept()
    original = implementation._OneOf.select
    monkeypatch.setattr(implementation._OneOf, "select", lambda self, masks, step: original(self, masks, step + 2))
    late = swept()
    names = dict(zip(NAMES, range(5), strict=True))
    for name in ("later", "thaw", "all frozen"):
        one, other = (jax.tree.leaves(found[names[name]].params) for found in (first, late))
        assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) > 5 * TOLERANCE
    chex.assert_trees_all_equal(first[names["never"]].params, late[names["never"]].params)


def test_however_many_at_a_time_the_numbers_are_the_same_and_the_program_is_one(swept):
    with count_traces() as traces:
        one = swept(width=1)
    assert traces["sweep"] == 1
    for width in (2, 5, 9):
        other = swept(width=width)
        assert [each.index for each in other] == list(range(5))
        for a, b in zip(one, other, strict=True):
            chex.assert_trees_all_close(a.params, b.params, atol=TOLERANCE)


def test_what_is_frozen_throughout_keeps_its_bits_and_what_none_trains_is_held_once(swept, build, tokens):
    attention, mlp = [(r".*/attn/.*", False), (r".*emb.*", False)], [(r".*/mlp/.*", False), (r".*emb.*", False)]
    schedules = [FreezeSchedule([(0, [*rules, (".*", True)])]) for rules in (attention, mlp)]
    start = build().init(jax.random.key(3))
    for each, frozen in zip(swept(schedules=schedules, params=start), ("attn", "mlp"), strict=True):
        before, after = by_path(start), by_path(each.params)
        kept = {path for path in before if np.array_equal(before[path], after[path])}
        assert kept == {path for path in before if f"/{frozen}/" in path or "emb" in path}
    config = settings()
    group = implementation._Group(
        build(),
        LanguageModelling(build(), "float32"),
        TokenBatches(tokens, config),
        config,
        schedules,
        None,
        jax.devices()[:1],
    )
    assert "emb" not in "".join(by_path(group.half))
    assert "emb" in "".join(by_path(group.frozen))


def test_each_is_evaluated_and_recorded_when_due(swept):
    found = swept(score=lambda params: {"val_ce": float(np.abs(params["tok_emb"]["embedding"]).sum())}, log_every=5)
    for each in found:
        assert [record["step"] for record in each.records] == [5, 10, 12, 12]
        assert each.records[-1]["val_ce"] == np.abs(each.params["tok_emb"]["embedding"]).sum()
        assert all("grad_norm" not in record for record in each.records)


def test_a_signal_stops_it_and_a_number_that_is_none_is_told(swept):
    with pytest.raises(Stopped, match="after step 1"):
        swept(stop=StopSignal(signal.SIGTERM))
    with pytest.raises(NonFinite, match="step 12: schedule 0: val_ce is nan"):
        swept(score=lambda params: {"val_ce": float("nan")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ema_decay": 0.9}, "train.ema_decay=0.9: a sweep has none"),
        ({"restart_schedule": True}, "train.restart_schedule=True: a sweep has none"),
        ({"restart_optimizer": True}, "train.restart_optimizer=True: a sweep has none"),
        ({"prefix_cache": "memory"}, "train.prefix_cache='memory': a sweep has none; give 'off'"),
    ],
)
def test_what_a_sweep_does_not_do_is_refused(swept, fields, message):
    with pytest.raises(UserError, match=message):
        swept(**fields)


def test_as_many_run_at_a_time_as_fit(swept, build, tokens, entries, monkeypatch):
    config, made = settings(), list[int]()
    schedules = [FreezeSchedule(entries[name]) for name in NAMES]
    group = implementation._Group(
        build(),
        LanguageModelling(build(), "float32"),
        TokenBatches(tokens, config),
        config,
        schedules,
        None,
        jax.devices()[:1],
    )
    assert group.fitting(0) == 1  # on a CPU
    assert group.fitting(4) == 4

    def compile_nothing(width):
        made.append(width)
        return width

    monkeypatch.setattr(group, "compile", compile_nothing)
    monkeypatch.setattr(implementation, "_bytes", lambda width: width * 100)
    monkeypatch.setattr(implementation, "_limit", lambda device: 250)
    monkeypatch.setattr(implementation, "_on_cpu", lambda device: False)
    assert group.fitting(0) == 2
    assert made == [5, 3, 2]


def test_eight_devices_share_nine_schedules(run_alone):
    found = run_alone(sweep_program)
    assert found["devices"] == 8
    assert found["indices"] == [*range(9)]  # two groups of eight, filled up
    assert found["largest difference"] < TOLERANCE < found["change"]
