"""A student learns from a teacher that is no part of its step: the formula, the program, the bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import FreezeSchedule, artifact, models
from freezejax.training.batches import TokenBatches
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import Stopped
from freezejax.training.loop import train
from freezejax.training.objectives.distillation import Distillation, TeacherBatches
from freezejax.training.plan import RunPlan
from freezejax.training.prefix_cache.store import ActivationCache
from freezejax.training.state import fingerprint
from tests.training.conftest import Recorder

STUDENT = models.build("geglu", vocab_size=61, num_layers=1, model_dim=16, num_heads=1)
# Another architecture; 44 is a side that nothing of the student has.
TEACHER = {"family": "parameter_golf", "vocab_size": 61, "num_layers": 2, "model_dim": 44, "num_heads": 2}
KEY = jax.random.key(0)
CONFIG = TrainConfig(steps=6, batch_size=4, seq_len=16, log_every=1, accumulation=2)
SCHEDULE = FreezeSchedule([(0, [(".*", True)]), (3, [(".*/up/kernel", False), (".*", True)])])
TOKENS = np.random.default_rng(0).integers(0, 61, 11 * 16 + 1).astype(np.uint16)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """`(apply, params)` from a file."""
    path = tmp_path_factory.mktemp("teacher") / "x.fjax"
    artifact.save(path, models.build(**TEACHER, num_kv_heads=1).init(KEY), model={**TEACHER, "num_kv_heads": 1})
    return artifact.load(path)[:2]


def batches(teacher, **options):
    return TeacherBatches(TokenBatches(TOKENS, CONFIG), *teacher, 61, **options)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(("temperature", "share"), [(2.0, 0.5), (1.0, 1.0), (5.0, 0.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_the_formula(teacher, temperature, share, weighted):
    objective, params = Distillation(STUDENT, temperature=temperature, share=share), STUDENT.init(KEY)
    batch = next(batches(teacher))
    weights = np.random.default_rng(1).random((4, 16)).astype(np.float32) if weighted else np.ones((4, 16), np.float32)
    if weighted:
        batch = {**batch, "weights": weights}
    found, metrics = objective.loss(params, objective.prepare(batch), KEY)
    logits = np.asarray(STUDENT.apply(params, batch["inputs"]), np.float64)
    wanted, student = (log_softmax(np.asarray(x, np.float64) / temperature) for x in (batch["teacher"], logits))
    nll = -np.take_along_axis(log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
    ce = np.average(nll, weights=weights)
    kl = np.average(np.sum(np.exp(wanted) * (wanted - student), -1), weights=weights)
    assert metrics == pytest.approx({"cross_entropy": ce, "divergence": kl}, rel=1e-4, abs=1e-6)
    assert found == pytest.approx((1 - share) * ce + share * temperature**2 * kl, rel=1e-4)


def test_a_student_that_is_its_teacher_is_at_no_distance():
    params = STUDENT.init(KEY)
    objective = Distillation(STUDENT, share=1.0)
    batch = next(batches((STUDENT.apply, params)))
    value, grads = jax.value_and_grad(lambda p: objective.loss(p, batch, KEY)[0])(params)
    assert abs(value) < 1e-6
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) < 1e-5


def plan_of(source):
    return RunPlan(STUDENT, CONFIG, SCHEDULE, objective=Distillation(STUDENT), batch=source.abstract)


def test_the_step_holds_nothing_of_the_teacher(teacher):
    """No gradient, no state, no parameter, no product: no array of the compiled step has one of its sides."""
    found = plan_of(batches(teacher))
    text = found.lower(0).compile().as_text()
    assert "[44" not in text
    assert ",44" not in text
    assert "61]" in text
    # Counterpart: a teacher inside the loss is in the step.
    apply, params = teacher

    class Inside(Distillation):
        def loss(self, student, batch, key):
            return super().loss(student, {**batch, "teacher": apply(params, batch["inputs"])}, key)

    inside = RunPlan(STUDENT, CONFIG, SCHEDULE, objective=Inside(STUDENT), batch=TokenBatches(TOKENS, CONFIG).abstract)
    assert ",44" in inside.lower(0).compile().as_text()


def go(teacher, directory, *, stop_at=None, cache=None):
    recorder, source = Recorder(stop_at), batches(teacher, cache=cache)
    found = train(
        STUDENT, Distillation(STUDENT), source, CONFIG, SCHEDULE, directory, sinks=[recorder], stop=recorder.stop
    )
    source.close(remove=False)
    return fingerprint(found.params), recorder.losses(), source


def row():
    return {"teacher": jax.ShapeDtypeStruct((16, 61), jnp.float32)}["teacher"]


def test_a_stopped_run_ends_with_the_same_bits_and_a_kept_teacher_with_the_same_too(teacher, tmp_path):
    whole, losses, source = go(teacher, tmp_path / "whole")
    assert source.runs == CONFIG.steps
    with pytest.raises(Stopped):
        go(teacher, tmp_path / "parts", stop_at=4)
    again, rest, _ = go(teacher, tmp_path / "parts")
    assert (again, rest) == (whole, losses[4:])
    cache = ActivationCache(row(), 11, 2**30)
    kept, same, source = go(teacher, tmp_path / "kept", cache=cache)
    assert (kept, same) == (whole, losses)
    assert source.reused > 0
    other = jax.tree.map(lambda leaf: leaf * 1.1, teacher[1])
    assert go((teacher[0], other), tmp_path / "other")[0] != whole


def test_logits_left_on_disk_count_for_the_same_teacher_alone(teacher, tmp_path):
    def windows_reused(params, rounds):
        source = batches((teacher[0], params))
        source.keep("disk", 1.0, tmp_path / "kept")
        for _ in range(rounds):
            next(source)
        source.close(remove=False)
        return source.reused

    assert windows_reused(teacher[1], 2) == 0
    assert windows_reused(teacher[1], 1) == 4
    assert windows_reused(jax.tree.map(lambda leaf: leaf * 1.1, teacher[1]), 1) == 0
    assert (tmp_path / "kept").exists()  # begun anew, not given up after a look at what was there


BAD = {
    "vocabulary": (
        lambda teacher: TeacherBatches(TokenBatches(TOKENS, CONFIG), *teacher, 64),
        "the teacher has a vocabulary of 61 tokens, the student of 64",
    ),
    "temperature": (
        lambda _: Distillation(STUDENT, temperature=0.0),
        "temperature=0.0 must be a finite number",
    ),
    "share": (lambda _: Distillation(STUDENT, share=1.5), "share=1.5 must be a number from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_told(name, teacher, check_refused):
    call, message = BAD[name]
    check_refused(lambda: call(teacher), message)
