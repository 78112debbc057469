"""Policies that decide on the way what is frozen: replayed as a plain schedule, and resumed, with the same bits."""

import dataclasses
import functools
import itertools
import json
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError
from freezejax.analysis import plasticity
from freezejax.paths import by_path
from freezejax.training import loop
from freezejax.training.adaptive import FILE, Decisions, Policy
from freezejax.training.batches import TokenBatches
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.interrupts import Stopped
from freezejax.training.loop import train
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.policies import Fisher, GradientNorm, LowParticipation, Plasticity, each_matrix
from freezejax.training.programs.compiler import BackgroundCompiler
from tests.training.conftest import Recorder

STEPS, EVERY = 12, 2
BLOCKS = {"0": "blocks/0/.*", "1": "blocks/1/.*"}
MATRICES = [f"blocks/{i}/{name}/kernel" for i in range(2) for name in ("attn/qkv", "attn/out", "mlp/gate", "mlp/up")]


@pytest.fixture(scope="module")
def model(build):
    return build(num_layers=2)


@pytest.fixture(scope="module")
def policies(model, tokens):
    probe = {
        "inputs": tokens[:64].reshape(4, 16).astype(np.int32),
        "targets": tokens[1:65].reshape(4, 16).astype(np.int32),
    }
    objective = LanguageModelling(model, "float32")
    groups = each_matrix(MATRICES)
    return {
        "gradient": GradientNorm(EVERY, groups, objective, probe, threshold=0.95, thaw=0.99),
        "fisher": Fisher(EVERY, groups, objective, probe, threshold=0.95),
        "plasticity": Plasticity(EVERY, BLOCKS, model, probe["inputs"], threshold=0.8, thaw=0.9),
        "participation": LowParticipation(EVERY, groups, share=0.25, most=0.75),
    }


@pytest.fixture(scope="module")
def go(model, tokens):
    def run(directory, policy=None, schedule=None, *, stop_at=None, **fields):
        optimizer = OptimizerConfig(learning_rate=1e-2)
        config = TrainConfig(steps=STEPS, batch_size=4, seq_len=16, log_every=1, optimizer=optimizer, **fields)
        recorder = Recorder(stop_at)
        entries = schedule or FreezeSchedule([(0, [(".*", True)])])
        objective, batches = LanguageModelling(model, "float32"), TokenBatches(tokens, config)
        arguments = (model, objective, batches, config, entries, directory)
        try:
            return train(*arguments, policy=policy, sinks=[recorder], stop=recorder.stop), recorder
        except Stopped:
            return None, recorder

    return run


@pytest.fixture(scope="module")
def wholes(policies, go, tmp_path_factory):
    """`wholes(name) -> (result, recorder, directory)` of a run with a policy that nothing interrupts; made once."""

    @functools.cache
    def whole(name):
        directory = tmp_path_factory.mktemp(name)
        return *go(directory, policies[name]), directory

    return whole


def decisions(directory):
    return [json.loads(line) for line in (directory / FILE).read_text().splitlines()]


@pytest.mark.parametrize("name", ["gradient", "fisher", "plasticity", "participation"])
def test_what_a_policy_decides_is_a_plain_schedule_with_the_same_bits(name, wholes, go, tmp_path):
    found, _, directory = wholes(name)
    taken = decisions(directory)
    assert [decision["step"] for decision in taken] == [2, 4, 6, 8]
    assert any(decision["frozen"] for decision in taken)
    starts = [start for start, _ in found.schedule.entries]
    now, wanted = [], [0]
    for decision in taken:
        if decision["frozen"] != now:
            now = decision["frozen"]
            wanted.append(decision["step"] + EVERY)  # one window later
    assert starts == wanted
    assert len(starts) > 1
    replayed, _ = go(tmp_path, schedule=found.schedule)
    chex.assert_trees_all_equal(found.params, replayed.params)


def test_counterpart_without_a_policy_the_bits_are_others(wholes, go, tmp_path):
    free, _ = go(tmp_path)
    for name in ("gradient", "plasticity", "participation"):
        pairs = zip(*map(jax.tree.leaves, (wholes(name)[0].params, free.params)), strict=True)
        assert any(not np.array_equal(*pair) for pair in pairs)


# Inside of a window, at its end, and where decisions have come into force.
STOPS = [("participation", 3), ("participation", 4), ("participation", 7), ("gradient", 4), ("plasticity", 7)]


@pytest.mark.parametrize(("name", "stop_at"), STOPS)
def test_a_stopped_run_decides_as_the_whole_one(name, stop_at, policies, wholes, go, tmp_path):
    whole, recorder, directory = wholes(name)
    broken, before = go(tmp_path / "broken", policies[name], stop_at=stop_at)
    assert broken is None
    resumed, after = go(tmp_path / "broken", policies[name])
    chex.assert_trees_all_equal(whole.params, resumed.params)
    assert decisions(directory) == decisions(tmp_path / "broken")
    assert resumed.schedule == whole.schedule
    assert before.losses() + after.losses() == recorder.losses()


def test_decisions_after_the_checkpoint_of_a_killed_run_are_void(policies, wholes, go, tmp_path):
    whole, *_ = wholes("participation")
    go(tmp_path / "killed", policies["participation"], stop_at=3)
    file = tmp_path / "killed" / FILE
    file.write_text(file.read_text() + json.dumps({"step": 4, "measured": {}, "frozen": MATRICES}) + "\n")
    resumed, _ = go(tmp_path / "killed", policies["participation"])
    chex.assert_trees_all_equal(whole.params, resumed.params)


@dataclasses.dataclass(frozen=True)
class Scripted(Policy):
    """Decides what it is told to, and keeps a leaf of every boundary."""

    script: tuple[frozenset[str], ...] = ()
    seen: list[np.ndarray] = dataclasses.field(default_factory=list, repr=False)

    def measure(self, params, before):
        self.seen.append(np.array(params["blocks"][0]["mlp"]["up"]["kernel"]))
        return {}, None

    def frozen(self, history, now):
        return self.script[len(history) - 1]


def test_the_program_of_a_new_mask_is_asked_for_before_the_boundary_and_a_thawed_group_moves_again(
    go, tmp_path, monkeypatch
):
    events, threads = [], []
    prepare, through, lower = BackgroundCompiler.prepare, loop._Run.through_phase, RunPlan.lower

    def noted_prepare(self, index):
        if not isinstance(self._masks, range) and index < len(self._masks):  # programs, not transitions
            events.append(("asked for", index))
        return prepare(self, index)

    def noted_phase(self, programs, state, now, *rest):
        events.append(("begins", now))
        found = through(self, programs, state, now, *rest)
        events.append(("ends", now))
        return found

    def noted_lower(self, index):
        threads.append((index, threading.current_thread().name.split("_")[0]))
        return lower(self, index)

    monkeypatch.setattr(BackgroundCompiler, "prepare", noted_prepare)
    monkeypatch.setattr(loop._Run, "through_phase", noted_phase)
    monkeypatch.setattr(RunPlan, "lower", noted_lower)
    first, none = frozenset({"0"}), frozenset[str]()
    policy = Scripted(EVERY, BLOCKS, (first, first, none, none))
    found, recorder = go(tmp_path, policy)
    assert [start for start, _ in found.schedule.entries] == [0, 4, 8]
    assert threads == [(0, "compile"), (1, "compile")]  # the third mask is the first again
    for phase in (1, 2):
        assert events.index(("asked for", phase)) < events.index(("ends", phase - 1))
    shares = [record["trainable_share"] for record in recorder.records if "loss" in record]
    assert shares[:4] == shares[8:] == [1.0] * 4
    assert max(shares[4:8]) < 1.0
    at_2, at_4, at_6, at_8 = policy.seen
    assert not np.array_equal(at_2, at_4)
    assert np.array_equal(at_4, at_6)
    assert np.array_equal(at_4, at_8)
    assert not np.array_equal(at_8, found.params["blocks"][0]["mlp"]["up"]["kernel"])  # thawed
    caught = [record["rules"][0] for record in recorder.records if "rules" in record]
    assert "1 of 2: blocks 0" in caught[1]
    assert "everything" in caught[2]


def test_a_frozen_matrix_keeps_its_bits_until_it_thaws(wholes):
    _, recorder, directory = wholes("participation")
    order = [decision["frozen"] for decision in decisions(directory)]
    assert [len(frozen) for frozen in order] == [2, 4, 6, 6]
    assert all(set(a) <= set(b) for a, b in itertools.pairwise(order))
    shares = [record["trainable_share"] for record in recorder.records if "loss" in record]
    assert shares[:4] == [1.0] * 4
    assert shares[4] > shares[6] > shares[8] == shares[11]
    measured = decisions(directory)[0]["measured"]
    assert order[0] == sorted(sorted(measured, key=measured.get)[:2])  # fewest dimensions first


def history(*values):
    return [{"step": 2 * (i + 1), "measured": each} for i, each in enumerate(values)]


def test_a_threshold_freezes_and_another_thaws(policies):
    policy = policies["gradient"]
    first, low, middle, high = (
        {"a": 1.0, "b": 2.0},
        {"a": 0.8, "b": 1.96},
        {"a": 0.97, "b": 1.96},
        {"a": 1.1, "b": 1.96},
    )
    assert policy.frozen(history(first), frozenset()) == frozenset()
    assert policy.frozen(history(first, low), frozenset()) == {"a"}
    assert policy.frozen(history(first, middle), frozenset()) == frozenset()
    assert policy.frozen(history(first, middle), frozenset({"a"})) == {"a"}  # between the two it stays as it is
    assert policy.frozen(history(first, high), frozenset({"a"})) == frozenset()


def test_plasticity_is_that_of_what_the_blocks_give_out(policies, model):
    policy, (one, other) = policies["plasticity"], (model.init(jax.random.key(seed)) for seed in (1, 2))
    first, kept = policy.measure(one, [])
    found, _ = policy.measure(other, [json.loads(json.dumps({"step": 2, "measured": first, "kept": kept}))])
    streams = [model.apply(params, policy.tokens_BxT, taps=[0, 1])[1] for params in (one, other)]
    for block in (0, 1):
        wanted = plasticity(*(jax.tree.leaves(of_model[block])[-1] for of_model in streams))
        assert found[str(block)] == pytest.approx(float(wanted), rel=1e-3)
    assert policy.measure(one, [{"step": 2, "measured": first, "kept": kept}])[0] == {"0": 0.0, "1": 0.0}


def test_blocks_freeze_from_the_bottom_up(policies):
    policy = policies["plasticity"]
    still, moving = {"0": 1.0, "1": 0.1}, {"0": 0.1, "1": 0.1}
    start = [{}, {"0": 1.0, "1": 1.0}]
    assert policy.frozen(history(*start, still), frozenset()) == frozenset()  # block 0 still learns below it
    assert policy.frozen(history(*start, moving), frozenset()) == {"0", "1"}


def test_the_gradient_measured_is_that_of_the_loss(policies, model):
    policy, params = policies["gradient"], model.init(jax.random.key(1))
    found, _ = policy.measure(params, [])
    loss = lambda params: policy.objective.loss(params, policy.probe, jax.random.key(0))[0]  # noqa: E731
    grads = by_path(jax.grad(loss)(params))
    for kernel in MATRICES:
        assert found[kernel] == pytest.approx(float(jnp.linalg.norm(grads[kernel])), rel=1e-4)


def test_the_fisher_information_measured_is_that_of_each_example_by_itself(policies, model):
    policy, params = policies["fisher"], model.init(jax.random.key(1))
    found, _ = policy.measure(params, [])
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], policy.probe) for i in range(4)]
    loss = lambda params, row: policy.objective.loss(params, row, jax.random.key(0))[0]  # noqa: E731
    grads = [by_path(jax.grad(loss)(params, row)) for row in rows]
    for kernel in MATRICES:
        wanted = np.mean([float(jnp.sum(jnp.square(of_row[kernel]))) for of_row in grads])
        assert found[kernel] == pytest.approx(wanted, rel=1e-4)
        assert found[kernel] > 1.01 * policies["gradient"].measure(params, [])[0][kernel] ** 2  # what cancels there


def test_what_the_schedule_freezes_and_no_group_names_stays_frozen(policies, go, tmp_path):
    frozen = [("tok_emb/.*", False), (".*", True)]
    found, _ = go(tmp_path, policies["participation"], FreezeSchedule([(0, frozen)]))
    assert decisions(tmp_path)[-1]["frozen"]  # it did decide
    assert all([*map(tuple, rules)][-2:] == frozen for _, rules in found.schedule.entries)
    for start, _, mask in found.schedule.phases(found.params, STEPS):
        assert not by_path(mask)["tok_emb/embedding"], start


@pytest.mark.parametrize(
    ("name", "pattern"), [("gradient", "blocks/9/.*"), ("participation", r"blocks/0/ln1/scale"), ("gradient", "seeds")]
)
def test_a_group_of_which_nothing_can_be_measured_is_refused_before_the_first_step(
    name, pattern, policies, go, tmp_path
):
    policy = dataclasses.replace(policies[name], groups={"one": pattern})
    with pytest.raises(UserError, match=r"policy: group 'one': .* names nothing that"):
        go(tmp_path, policy)


def test_another_policy_or_a_schedule_of_its_own_is_refused(policies, go, tmp_path):
    go(tmp_path, policies["participation"], stop_at=5)
    with pytest.raises(UserError, match="another run: the policy is LowParticipation"):
        go(tmp_path, policies["gradient"])
    two = FreezeSchedule([(0, [(".*", True)]), (3, [(".*", False)])])
    with pytest.raises(UserError, match="policy: give a schedule of one entry"):
        go(tmp_path / "x", policies["gradient"], schedule=two)
    with pytest.raises(UserError, match="restart_schedule=false"):
        go(tmp_path / "y", policies["gradient"], restart_schedule=True)
    with pytest.raises(UserError, match="every=0 and 1 groups"):
        LowParticipation(0, {"a": "b"})
    with pytest.raises(UserError, match="give 2 or more"):
        Plasticity(2, BLOCKS, None, np.zeros((1, 8), np.int32))


def test_counterpart_a_decision_that_depends_on_when_it_is_taken_is_seen(policies, wholes, go, tmp_path, monkeypatch):
    """As if the measure were of the steps since the process began: then a resumed run decides otherwise."""
    whole, *_ = wholes("participation")
    monkeypatch.setattr(Decisions, "resume", lambda self, step: None)
    go(tmp_path / "broken", policies["participation"], stop_at=7)
    try:
        resumed, _ = go(tmp_path / "broken", policies["participation"])
    except UserError:  # a checkpoint of another phase
        return
    assert any(
        not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (whole.params, resumed.params)), strict=True)
    )
