"""A loss that is not finite stops the run, names the step, and leaves only good checkpoints."""

import contextlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax.training import plan
from freezejax.training.interrupts import NonFinite
from freezejax.training.metrics import JsonLines, read_json_lines


def saved_steps(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal())


def test_a_loss_made_nan_stops_at_its_step(run, entries, tmp_path, monkeypatch):
    real = plan.make_step

    def poisoned(*args, **kwargs):
        step = real(*args, **kwargs)

        def until_seven(state, frozen, key, index, batch):
            state, metrics = step(state, frozen, key, index, batch)
            return state, {**metrics, "loss": jnp.where(index == 6, jnp.nan, metrics["loss"])}

        return until_seven

    with monkeypatch.context() as patch:
        patch.setattr(plan, "make_step", poisoned)
        with pytest.raises(NonFinite, match=r"step 7: loss is nan; the checkpoint of step 6 is kept"):
            run(tmp_path, entries["later"], checkpoint_every=2)
    assert saved_steps(tmp_path) == [4, 6]
    found, recorder = run(tmp_path, entries["later"], checkpoint_every=2)
    assert recorder.begun == [6]
    assert all(map(math.isfinite, recorder.losses()))
    assert found.steps == 12


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("rate", [1e9, 1e30, 3e38])
def test_a_mad_learning_rate_leaves_no_checkpoint_that_is_not_finite(rate, run, entries, restored, tmp_path):
    fields = {"checkpoint_every": 1, "optimizer": {"learning_rate": rate, "schedule": "constant", "clip": 0.0}}
    with contextlib.suppress(NonFinite) if rate == 1e9 else pytest.raises(NonFinite, match="Lower the learning rate"):
        run(tmp_path, entries["later"], **fields)  # the norms of the model may hold 1e9
    for step in saved_steps(tmp_path):
        for leaf in jax.tree.leaves(restored(tmp_path, step)):
            assert np.isfinite(np.asarray(leaf)).all()


@pytest.fixture
def restored():
    from orbax.checkpoint import v1 as ocp

    def load(directory, step):
        with ocp.training.Checkpointer(directory / "checkpoints") as checkpointer:
            return checkpointer.load(step)

    return load


def test_an_evaluation_that_is_not_finite_stops_too(run, entries, tmp_path):
    figures = iter([{"val_ce": 1.0}, {"val_ce": float("inf")}])
    with pytest.raises(NonFinite, match=r"step 8: val_ce is inf; no checkpoint was saved yet"):
        run(tmp_path, entries["later"], evaluate=lambda params: next(figures), eval_every=4)


def test_stop_beats_nothing_not_finite(run, entries, tmp_path, monkeypatch):
    """A stop asked for in the step that goes wrong saves nothing."""
    real = plan.make_step

    def poisoned(*args, **kwargs):
        step = real(*args, **kwargs)

        def bad(*arguments):
            state, metrics = step(*arguments)
            return state, {**metrics, "grad_norm": metrics["grad_norm"] * jnp.inf}

        return bad

    monkeypatch.setattr(plan, "make_step", poisoned)
    with pytest.raises(NonFinite, match="grad_norm"):
        run(tmp_path, entries["later"], stop_at=1)
    assert saved_steps(tmp_path) == []


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_resuming_drops_the_records_beyond_the_checkpoint_and_a_torn_line(tmp_path):
    sink = JsonLines(tmp_path / "run" / "metrics.jsonl")
    sink.begin(0)
    for step in (1, 2, 3, 4):
        sink.write({"step": step, "loss": 1.0 / step})
    sink.write({"step": 4, "val_ce": 2.0})
    sink.close()
    with sink.path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in read_json_lines(sink.path)] == [1, 2, 3, 4, 4]
    sink.begin(3)
    sink.write({"step": 4, "loss": 9.0})
    sink.close()
    assert [record["step"] for record in lines(sink.path)] == [1, 2, 3, 4]
    assert lines(sink.path)[-1]["loss"] == 9.0
    sink.begin(0)
    sink.close()
    assert lines(sink.path) == []
    assert [path.name for path in sink.path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("stop_at", [2, 8])
def test_a_resumed_run_records_every_step_once(stop_at, run, entries, tmp_path):
    """Stopped after `stop_at` of 12 updates, then killed once: its file runs on beyond the checkpoint."""
    sink = JsonLines(tmp_path / "metrics.jsonl")
    fields = {"checkpoint_every": 3, "sinks": [sink], "eval_every": 6, "evaluate": lambda params: {"val_ce": 1.0}}
    found, _ = run(tmp_path, entries["later"], stop_at=stop_at, **fields)
    assert found is None
    assert [record["step"] for record in lines(sink.path) if "loss" in record] == list(range(1, stop_at + 1))
    with sink.path.open("a") as file:
        file.write(json.dumps({"step": stop_at + 1, "loss": -1.0}) + '\n{"step": 9, "lo')
    found, recorder = run(tmp_path, entries["later"], **fields)
    assert (found.steps, recorder.begun) == (12, [stop_at])
    training = [record for record in lines(sink.path) if "loss" in record]
    assert [record["step"] for record in training] == list(range(1, 13))
    assert [record["step"] for record in lines(sink.path) if "val_ce" in record] == [6, 12]
    _, whole = run(tmp_path / "whole", entries["later"])
    assert [record["loss"] for record in training] == whole.losses()
