"""The loop knows no cross entropy: an objective written here alone trains, checkpoints, resumes and is evaluated."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from freezejax import FreezeSchedule, combine, freeze, partition
from freezejax.errors import UserError
from freezejax.paths import leaf_paths
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped
from freezejax.training.loop import train
from freezejax.training.objectives.base import Objective
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.state import fingerprint
from freezejax.training.step import StepState, make_step
from tests.training.conftest import Recorder

ALL, GATE_UP = [(".*", True)], [(r"blocks/\d+/mlp/(gate|up)/kernel", False), (".*", True)]
FIELDS = {"steps": 10, "batch_size": 4, "seq_len": 8, "accumulation": 2, "log_every": 1, "eval_every": 5}
CONFIG = TrainConfig.from_mapping({**FIELDS, "ema_decay": 0.5, "optimizer": {"learning_rate": 5e-3}})


class Regression(Objective):
    """The mean logit of a sequence is to be the number that comes with it."""

    def __init__(self, model):
        self.model = model

    def loss(self, params, batch, key):
        logits = self.model.apply(params, batch["inputs"], dropout_key=key)
        error = jnp.mean(logits, axis=(1, 2)) - batch["goal"]
        return jnp.mean(error**2), {"bias": jnp.mean(error), "worst": jnp.max(jnp.abs(error))}

    def evaluate(self, params):
        logits = self.model.apply(params, jnp.arange(8)[None])
        return {"held_out": float(jnp.mean(logits)), "goal": 0.5}


class Numbers:
    """Sequences [4, 8] and a float32 [4] for each, from the position alone."""

    def __init__(self):
        rows = {"inputs": ((4, 8), jnp.int32), "goal": ((4,), jnp.float32)}
        self.abstract = {name: jax.ShapeDtypeStruct(*row) for name, row in rows.items()}
        self.at = 0

    def __next__(self):
        noise = np.random.default_rng(self.at)
        self.at += 1
        return {"inputs": noise.integers(0, 61, (4, 8), np.int32), "goal": 0.4 + noise.random(4, np.float32) / 5}

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def regress(build, directory, stop_at=None, **more):
    model, recorder = build(dropout=0.1), Recorder(stop_at)
    schedule = FreezeSchedule([(0, ALL), (4, GATE_UP)])
    arguments = (model, Regression(model), Numbers(), CONFIG, schedule, directory)
    try:
        return train(*arguments, sinks=[recorder], stop=recorder.stop, **more), recorder
    except Stopped:
        return None, recorder


def test_an_objective_of_ones_own_trains_resumes_and_is_evaluated(build, tmp_path):
    whole, recorder = regress(build, tmp_path / "whole")
    losses, evaluations = ([r for r in recorder.records if name in r] for name in ("loss", "held_out"))
    assert [record["step"] for record in losses] == list(range(1, 11))
    assert all({"bias", "worst", "grad_norm", "learning_rate"} <= record.keys() for record in losses)
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert [(record["step"], record["goal"]) for record in evaluations] == [(5, 0.5), (10, 0.5)]
    for stop_at in (3, 8):  # in both phases
        assert regress(build, tmp_path / "parts", stop_at)[0] is None
    found, resumed = regress(build, tmp_path / "parts")
    assert resumed.begun == [8]
    assert fingerprint(found.params) == fingerprint(whole.params)
    assert resumed.losses() == recorder.losses()[8:]


def test_a_metric_is_the_mean_over_microbatches(build):
    model = build()
    params, batch = model.init(jax.random.key(0)), next(Numbers())
    parts = step_of(Regression(model), params, batch, 2)
    errors = np.asarray(model.apply(params, batch["inputs"])).mean(axis=(1, 2)) - batch["goal"]
    worst = np.abs(errors).reshape(2, 2).max(axis=1).mean()
    assert float(parts["worst"]) == pytest.approx(worst, rel=1e-5)
    assert float(parts["bias"]) == pytest.approx(errors.mean(), rel=1e-4)


def step_of(objective, params, batch, parts):
    """Metrics of one step in which everything trains."""

    mask = jax.tree.map(lambda _: True, params)
    tx = freeze(optax.sgd(1.0), mask)
    half, frozen = partition(params, mask)
    step = jax.jit(make_step(objective, tx, accumulation=parts))
    state, metrics = step(StepState(half, tx.init(half), None), frozen, jax.random.key(0), 0, batch)
    return {**metrics, "params": combine(state.trainable, frozen)}


def test_a_metric_with_a_name_of_the_steps_own_is_refused(build):
    class Clash(Regression):
        def loss(self, params, batch, key):
            loss, _ = super().loss(params, batch, key)
            return loss, {"grad_norm": loss}

    model = build()
    with pytest.raises(UserError, match="Clash: a metric is named 'grad_norm'"):
        step_of(Clash(model), model.init(jax.random.key(0)), next(Numbers()), 1)


def test_batches_of_another_size_are_refused_by_name(build):
    model = build()
    few = {**Numbers().abstract, "goal": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(UserError, match=r"batch: 'goal' has the shape \(3,\): expected train.batch_size=4 rows"):
        RunPlan(model, CONFIG, FreezeSchedule([(0, ALL)]), objective=Regression(model), batch=few)


# Target weights.


def weighted_batch():
    noise = np.random.default_rng(0)
    tokens = noise.integers(0, 61, (4, 9), np.int32)
    weights = (noise.random((4, 8)) * np.array([[5.0], [1.0], [0.0], [0.1]])).astype(np.float32)
    weights[:, ::3] = 0.0
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def by_hand(model, params, batch):
    logits = model.apply(params, batch["inputs"])
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * batch["weights"]) / batch["weights"].sum()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_is_the_weighted_mean_over_the_whole_batch(build, parts):
    """Rows of very different weight in different microbatches; counterpart: the mean of the microbatches' own means."""
    model, batch = build(), weighted_batch()
    params = model.init(jax.random.key(0))
    expected, gradient = jax.value_and_grad(lambda p: by_hand(model, p, batch))(params)
    found = step_of(LanguageModelling(model), params, batch, parts)
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-5)
    for one, start, slope in zip(*map(jax.tree.leaves, (found["params"], params, gradient)), strict=True):
        np.testing.assert_allclose(one, start - slope, atol=2e-6)
    if parts == 2:
        halves = [by_hand(model, params, jax.tree.map(lambda x, i=i: x[i : i + 2], batch)) for i in (0, 2)]
        assert abs(float(np.mean(halves)) - float(expected)) > 1e-3


def test_weights_of_one_change_nothing_and_weightless_targets_may_be_anything(build):
    model, batch = build(), weighted_batch()
    params = model.init(jax.random.key(0))
    plain = {name: batch[name] for name in ("inputs", "targets")}
    ones = {**plain, "weights": np.full((4, 8), 3.0, np.float32)}
    found = [step_of(LanguageModelling(model), params, b, 2) for b in (plain, ones)]
    assert float(found[0]["loss"]) == pytest.approx(float(found[1]["loss"]), rel=1e-6)
    strange = {**batch, "targets": np.where(batch["weights"] > 0, batch["targets"], 10_000)}
    known, other = (step_of(LanguageModelling(model), params, b, 2) for b in (batch, strange))
    assert float(known["loss"]) == float(other["loss"])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(other["params"]))
    nothing = {**batch, "weights": np.zeros((4, 8), np.float32)}
    assert float(step_of(LanguageModelling(model), params, nothing, 1)["loss"]) == 0.0


def test_a_source_may_weigh_the_targets_of_a_text(build, tokens, tmp_path):
    """The loop, the plan and the checkpoint take the entry as it comes."""

    class Weighted(TokenBatches):
        def __init__(self, *args):
            super().__init__(*args)
            self.abstract = {**self.abstract, "weights": jax.ShapeDtypeStruct((4, 8), jnp.float32)}

        def __next__(self):
            batch = super().__next__()
            return {**batch, "weights": (batch["targets"] % 2).astype(np.float32)}

    model = build()
    found = []
    for number, source in enumerate((Weighted, TokenBatches)):
        arguments = (model, LanguageModelling(model), source(tokens, CONFIG), CONFIG, FreezeSchedule([(0, ALL)]))
        found.append(train(*arguments, tmp_path / str(number)).params)
    assert fingerprint(found[0]) != fingerprint(found[1])


# Given weights.


def test_a_run_starts_from_given_weights_and_leaves_them_alone(run, entries, build, tmp_path):
    own = build().init(jax.random.key(0))
    given = jax.tree.map(np.asarray, own)
    fresh, _ = run(tmp_path / "fresh", entries["later"])
    same, _ = run(tmp_path / "same", entries["later"], params=own)
    assert fingerprint(same.params) == fingerprint(fresh.params)
    assert fingerprint(own) == fingerprint(given)  # not donated
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), own)
    found, _ = run(tmp_path / "bfloat16", entries["later"], params=half)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(jnp.bfloat16)}
    stopped, _ = run(tmp_path / "parts", entries["later"], params=half, stop_at=6)
    again, recorder = run(tmp_path / "parts", entries["later"], params=half)
    assert (stopped, recorder.begun) == (None, [6])
    assert fingerprint(again.params) == fingerprint(found.params)


def change(params, path, leaf):
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    return jax.tree.unflatten(
        jax.tree.structure(params), [leaf(x) if p == path else x for p, x in zip(paths, leaves, strict=True)]
    )


MISFITS = {
    r"the parameters have no leaf 'tok_emb/embedding'; nearest: .*": lambda p: {
        k: v for k, v in p.items() if k != "tok_emb"
    },
    r"the model has no place for leaf 'head/kernel'; nearest: .*": lambda p: {**p, "head": {"kernel": jnp.ones(2)}},
    r"leaf 'blocks/0/mlp/up/kernel' is float32\[32, 16\]; the model's is float32\[16, 32\]": lambda p: change(
        p, "blocks/0/mlp/up/kernel", jnp.transpose
    ),
    r"leaf 'ln_f/scale' is int32\[16\]; the model's is float32\[16\]": lambda p: change(p, "ln_f/scale", jnp.int32),
}


@pytest.mark.parametrize("message", MISFITS)
def test_weights_that_do_not_fit_are_refused_in_one_line(message, run, entries, build, tmp_path):
    params = MISFITS[message](build().init(jax.random.key(0)))
    with pytest.raises(UserError, match=f"^{message}$"):
        run(tmp_path, entries["never"], params=params)


def test_the_first_loss_is_that_of_the_given_weights(run, entries, build, tmp_path):
    trained, recorder = run(tmp_path / "first", entries["never"], stop_at=None)
    _, again = run(tmp_path / "second", entries["never"], params=trained.params)
    assert again.losses()[0] < 0.99 * recorder.losses()[0]
    assert not any(itertools.starmap(lambda a, b: a == b, zip(again.losses(), recorder.losses(), strict=True)))
