"""Law 11: predicted FLOPs and bytes are those of the compiled program.

A grid of models and masks, compiled for one CPU device and for 8 simulated ones. FREEZEJAX_WHOLE_COST_GRID=1 takes the
whole grid, some 100 programs.
"""

import functools
import math
import re

import jax
import pytest

from freezejax import FreezeSchedule, cost, models
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from tests.cost import grid, mesh_program

ONE_DEVICE = {case.name: case for case in grid.one_device()}
MESHES = {case.name: case for case in grid.meshes()}


@functools.cache
def compiled(name):
    case = ONE_DEVICE[name]
    return case.sizes(case.lower().compile())


@pytest.fixture(scope="module")
def compiled_for_8(run_alone):
    return run_alone(mesh_program)


def check(predicted, found):
    assert predicted.argument_bytes == found["argument_bytes"]
    assert predicted.flops == pytest.approx(found["flops"], rel=0.01)
    assert predicted.activation_bytes == pytest.approx(found["activation_bytes"], rel=0.15)


@pytest.mark.parametrize("name", ONE_DEVICE)
def test_prediction_is_what_xla_says(name):
    check(ONE_DEVICE[name].as_xla_counts(), compiled(name))


@pytest.mark.parametrize("name", MESHES)
def test_prediction_is_what_xla_says_of_8_devices(name, compiled_for_8):
    check(MESHES[name].as_xla_counts(), compiled_for_8[name])


@pytest.mark.parametrize("name", MESHES)
def test_collectives_are_those_of_the_partitioned_program(name, compiled_for_8):
    predicted, sent = MESHES[name].predicted().collective_bytes, compiled_for_8[name]["sent"]
    scalars = 2048
    assert predicted["all-gather"] == pytest.approx(sent.get("all-gather", 0), abs=scalars)
    # XLA's CPU compiler has no reduce-scatter: it all-reduces and keeps a part, which sends twice as much.
    reduced = predicted["all-reduce"] + 2 * predicted["reduce-scatter"]
    assert reduced == pytest.approx(sent["all-reduce"] + 2 * sent.get("reduce-scatter", 0), abs=scalars)


def test_the_matmuls_of_a_hybrid_are_those_of_the_compiled_program():
    """Its other FLOPs are not held to the law; those of its experts' loops are compared with one round each."""
    case = grid.Case("hybrid", grid.HYBRID, {}, grid.ALL)
    program, predicted = case.lower().compile(), case.as_xla_counts()
    assert predicted.argument_bytes == case.sizes(program)["argument_bytes"]
    assert predicted.matmul_flops == pytest.approx(matmuls_in(program.as_text()), rel=0.002)
    assert predicted.flops == pytest.approx(case.sizes(program)["flops"], rel=0.03)
    # With all rounds: one per block of 128 rows, of which there is one more for each expert.
    blocks, rounds = 4 * 128 * 2 // 128 + 4, case.predicted().matmul_flops - predicted.matmul_flops
    assert rounds == (blocks - 1) * 6 * 2 * 128 * 112 * 48


def matmuls_in(text):
    """FLOPs of the matmuls that are written in a compiled program."""
    shapes = dict(re.findall(r"%([\w.\-]+) = \w+\[([\d,]*)\]", text))
    dots = re.findall(r" = \w+\[([\d,]*)\]\S* dot\(%?([\w.\-]+), .*?lhs_contracting_dims=\{(\d+)\}", text)
    size = lambda dims: [int(n) for n in dims.split(",")]  # noqa: E731
    return sum(2 * math.prod(size(out)) * size(shapes[left])[int(axis)] for out, left, axis in dots)


def test_matmuls_are_nearly_all_and_the_rest_is_not_nothing():
    predicted, found = ONE_DEVICE["geglu, nothing frozen"].predicted(), compiled("geglu, nothing frozen")
    assert 0.9 * found["flops"] < predicted.matmul_flops < 0.98 * found["flops"]


def test_microbatches_are_all_counted():
    # XLA counts the body of a loop once, so the loop is compared with the program without one.
    whole = ONE_DEVICE["geglu, nothing frozen"]
    parts = whole._replace(train={**whole.train, "accumulation": 2})
    assert parts.predicted().matmul_flops == whole.predicted().matmul_flops
    assert parts.predicted().activation_bytes < 0.8 * whole.predicted().activation_bytes
    assert parts.sizes(parts.lower().compile())["activation_bytes"] == pytest.approx(
        parts.predicted().activation_bytes, rel=0.15
    )


def test_every_phase_of_a_schedule_is_that_of_the_plan():
    schedule = FreezeSchedule([(0, grid.ALL), (4, grid.GATE_UP), (7, grid.prefix(1))])
    model, config = models.build(**{**grid.GEGLU, "num_layers": 2}), TrainConfig(steps=9, batch_size=2, seq_len=32)
    found = cost.predict(model, config, schedule).phases
    assert [(phase.start, phase.stop) for phase in found] == [(0, 4), (4, 7), (7, 9)]
    plan = RunPlan(model, config, schedule)
    for index, phase in enumerate(found):
        state = plan.abstract_state(index)
        half, _ = state.split(plan.phases[index].mask)
        assert phase.parameter_bytes == nbytes(state.params)
        assert phase.gradient_bytes == nbytes(half.trainable)
        assert phase.optimizer_bytes == nbytes(half.opt_state)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
