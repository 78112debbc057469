"""Law 9: a run stopped at any step and started again ends with the bits of an uninterrupted one."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freezejax.training import batches
from freezejax.training.checkpoints import Checkpoints
from freezejax.training.state import fingerprint

# Phases of "thaw" begin at 4, 7 and 9: stops before, at and after a boundary, and after the last step.
STOPS = {
    "ema, dropout, accumulation": (3, 4, 5, 12),
    "muon, state kept for the thaw": (4, 8, 9),
    "schedule and optimizer restart": (1, 4, 10),
}
CASES = {
    "ema, dropout, accumulation": {
        "ema_decay": 0.9,
        "accumulation": 2,
        "model": {"dropout": 0.2},
        "on_thaw": "restart",
    },
    "muon, state kept for the thaw": {"optimizer": {"name": "muon", "learning_rate": 0.02}, "on_thaw": "keep"},
    "schedule and optimizer restart": {
        "restart_schedule": True,
        "restart_optimizer": True,
        "optimizer": {"schedule": "linear_warmdown", "warmup_steps": 1, "warmdown_steps": 2},
        "ema_decay": 0.5,
        "compute_dtype": "bfloat16",
    },
}


@pytest.fixture(scope="module")
def uninterrupted(run, entries, tmp_path_factory):
    """Fingerprint and losses of each case, run once."""
    known = {}

    def of(case):
        if case not in known:
            found, recorder = run(tmp_path_factory.mktemp("whole"), entries["thaw"], **CASES[case])
            known[case] = fingerprint(found.params), recorder.losses()
        return known[case]

    return of


def run_with_stops(run, directory, schedule, stops, **fields):
    losses = []
    for stop_at in stops:
        found, recorder = run(directory, schedule, stop_at=stop_at, **fields)
        assert found is None
        assert not list(directory.rglob("*.orbax-checkpoint-tmp*"))
        losses += recorder.losses()
    found, recorder = run(directory, schedule, **fields)
    assert recorder.begun == [stops[-1]]
    return fingerprint(found.params), losses + recorder.losses()


@pytest.mark.parametrize("case", CASES)
def test_stops_around_every_boundary(case, run, entries, uninterrupted, tmp_path):
    again = run_with_stops(run, tmp_path, entries["thaw"], STOPS[case], **CASES[case])
    assert again == uninterrupted(case)


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.sets(st.integers(1, 12), min_size=1, max_size=2).map(sorted))
def test_stops_anywhere(run, entries, uninterrupted, tmp_path_factory, stops):
    case = "ema, dropout, accumulation"
    again = run_with_stops(run, tmp_path_factory.mktemp("stops"), entries["thaw"], stops, **CASES[case])
    assert again == uninterrupted(case)


def test_stop_where_everything_is_frozen(run, entries, tmp_path):
    whole, _ = run(tmp_path / "whole", entries["all frozen"])
    again, _ = run_with_stops(run, tmp_path / "parts", entries["all frozen"], (6, 9))
    assert again == fingerprint(whole.params)


def test_a_kill_loses_the_steps_since_the_checkpoint_and_nothing_else(run, entries, tmp_path, monkeypatch):
    """A kill between checkpoints: the run goes on from the older one, through the same boundary."""
    fields = {"checkpoint_every": 3, "optimizer": {"name": "adamw"}}
    whole, recorder = run(tmp_path / "whole", entries["later"], **fields)
    kept = Checkpoints.save

    def dies_at_six(self, step, state, data_state):
        if step == 6:
            raise KeyboardInterrupt
        kept(self, step, state, data_state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies_at_six)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", entries["later"], **fields)
    found, resumed = run(tmp_path / "killed", entries["later"], **fields)
    assert resumed.begun == [3]
    assert resumed.losses() == recorder.losses()[3:]
    assert fingerprint(found.params) == fingerprint(whole.params)


def test_counterpart_without_the_data_position_the_run_differs(run, entries, uninterrupted, tmp_path, monkeypatch):
    case = "ema, dropout, accumulation"
    run(tmp_path, entries["thaw"], stop_at=5, **CASES[case])
    make = batches.train_iterator

    class Forgetful:
        def __init__(self, *args, **kwargs):
            self.batches = make(*args, **kwargs)

        def __next__(self):
            return next(self.batches)

        def get_state(self):
            return self.batches.get_state()

        def set_state(self, state):
            pass

    monkeypatch.setattr(batches, "train_iterator", Forgetful)
    found, _ = run(tmp_path, entries["thaw"], **CASES[case])
    assert fingerprint(found.params) != uninterrupted(case)[0]


@pytest.mark.parametrize("lost", ["opt_state", "ema"])
def test_counterpart_with_a_fresh_part_of_the_state_the_run_differs(
    lost, run, entries, uninterrupted, tmp_path, monkeypatch
):
    case = "ema, dropout, accumulation"
    run(tmp_path, entries["thaw"], stop_at=5, **CASES[case])
    restore = Checkpoints.restore

    def forgetful(self, step, abstract):
        state, position = restore(self, step, abstract)
        return state._replace(**{lost: jax.tree.map(jnp.zeros_like, getattr(state, lost))}), position

    monkeypatch.setattr(Checkpoints, "restore", forgetful)
    found, _ = run(tmp_path, entries["thaw"], **CASES[case])
    assert fingerprint(found.params) != uninterrupted(case)[0]


def test_counterpart_another_seed_differs(run, entries, tmp_path: Path):
    found = [run(tmp_path / str(seed), entries["later"], seed=seed)[0] for seed in (0, 1)]
    assert fingerprint(found[0].params) != fingerprint(found[1].params)
