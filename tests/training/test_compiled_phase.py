"""Law 5 on the programs that the loop compiles for the real model: a frozen matrix costs no gradient."""

import re

import jax
import optax
import pytest

from freezejax import FreezeSchedule, freeze, models, partition
from freezejax.masks import count_parameters, invert
from freezejax.training.config import TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.plan import RunPlan
from freezejax.training.step import make_step

# No two sizes alike, so that a shape in a program names one matrix: gate and up are 64 x 96.
BATCH, SEQ, DIM, HIDDEN, VOCAB = 8, 128, 64, 96, 80
CONFIG = TrainConfig(steps=12, batch_size=BATCH, seq_len=SEQ)
GATE_UP = [(r"blocks/\d+/mlp/(gate|up)/kernel", False), (".*", True)]
FULL, PARTIAL = 0, 1  # phases


@pytest.fixture(scope="module")
def run():
    model = models.build(
        "geglu", vocab_size=VOCAB, num_layers=2, model_dim=DIM, num_heads=2, mlp_mult=HIDDEN / DIM, rope_dims=16
    )
    schedule = FreezeSchedule([(0, [(".*", True)]), (4, GATE_UP)])
    return RunPlan(model, CONFIG, schedule)


@pytest.fixture(scope="module")
def programs(run):
    return [run.lower(FULL).compile(), run.lower(PARTIAL).compile()]


@pytest.fixture(scope="module")
def frozen_params(run):
    return count_parameters(run.abstract_params, invert(run.phases[PARTIAL].mask))


def arguments(run, index):
    return run.arguments(index)


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def tree_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def matmuls(text, shape):
    return len(re.findall(rf"dot_general.*-> tensor<{shape}xf32>", text))


def lowered_text(run, index):
    phase = run.phases[index]
    step = make_step(LanguageModelling(run.model), freeze(run.optimizer(phase), phase.mask))
    return jax.jit(step).lower(*arguments(run, index)).as_text()


def optimizer_flops(run, index):
    phase = run.phases[index]
    tx, half = freeze(run.optimizer(phase), phase.mask), partition(run.abstract_params, phase.mask)[0]

    def update(grads, state, half):
        return tx.update(grads, state, half), optax.tree.norm(grads)

    return flops(jax.jit(update).lower(half, run.abstract_state(index).opt_state, half).compile())


def test_the_program_saves_the_gradient_matmuls_of_what_is_frozen(run, programs, frozen_params):
    assert frozen_params == 2 * 2 * DIM * HIDDEN
    full, partial = (flops(program) for program in programs)
    saved = 2 * BATCH * SEQ * frozen_params
    assert partial == pytest.approx(full - saved, rel=0.01)
    # What is left of the difference is the optimizer's.
    optimizer = optimizer_flops(run, FULL) - optimizer_flops(run, PARTIAL)
    assert full - partial - optimizer == pytest.approx(saved, rel=0.01)


def test_no_matmul_makes_a_gradient_of_the_frozen_shape(run, programs):
    shape = f"{DIM}x{HIDDEN}"
    assert matmuls(lowered_text(run, FULL), shape) == 4
    assert matmuls(lowered_text(run, PARTIAL), shape) == 0
    array = rf"f32\[({DIM},{HIDDEN}|{HIDDEN},{DIM})\]\S* (dot|custom-call)\("
    full, partial = (len(re.findall(array, program.as_text())) for program in programs)
    assert full - partial == 4


def test_no_moment_and_no_gradient_has_a_buffer(run, programs, frozen_params):
    for index, program in enumerate(programs):
        state, frozen = arguments(run, index)[:2]
        metrics = 3 * 4  # loss, norm, learning rate
        assert tree_bytes(program.out_info) == tree_bytes(state) + metrics
        memory = program.memory_analysis()
        assert memory.output_size_in_bytes == pytest.approx(tree_bytes(state) + metrics, rel=0.01)
        rest = 8 + 4 + 2 * BATCH * SEQ * 4  # key, step, tokens
        assert memory.argument_size_in_bytes == pytest.approx(tree_bytes(state) + tree_bytes(frozen) + rest, rel=0.01)
    full, partial = (tree_bytes(arguments(run, index)[0]) for index in (FULL, PARTIAL))
    assert full - partial == 3 * 4 * frozen_params  # a weight that is not returned, two moments that are not there
    adam = arguments(run, PARTIAL)[0].opt_state
    assert not [leaf for leaf in jax.tree.leaves(adam) if leaf.shape == (DIM, HIDDEN)]


def test_counterpart_a_clip_over_the_whole_gradient_saves_nothing(run, programs):
    """What people write: differentiate everything, clip, then freeze in the optimizer."""
    mask = run.phases[PARTIAL].mask
    inner = optax.multi_transform(
        {True: optax.adamw(1e-3), False: optax.set_to_zero()}, jax.tree.map(lambda trains: trains, mask)
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), inner)

    def step(params, state, key, batch):
        loss = LanguageModelling(run.model).loss
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, (_, _, key, _, batch) = run.abstract_params, arguments(run, FULL)
    naive = flops(jax.jit(step).lower(params, jax.eval_shape(tx.init, params), key, batch).compile())
    full, partial = (flops(program) for program in programs)
    assert naive > full - 0.1 * (full - partial)
