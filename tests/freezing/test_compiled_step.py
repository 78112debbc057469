"""Law 5: what is frozen costs no matmul, no buffer and no optimizer state. Read off the compiled program."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import freezejax

pytestmark = pytest.mark.usefixtures("optax_promotion")

# No two sizes alike, so that a shape in the program text names one matmul.
BATCH, INPUT, HIDDEN, OUTPUT = 128, 53, 89, 61
PARAMS = {
    "up": {"kernel": jnp.ones((INPUT, HIDDEN)), "bias": jnp.ones(HIDDEN)},
    "down": {"kernel": jnp.ones((HIDDEN, OUTPUT)), "bias": jnp.ones(OUTPUT)},
}
X_BxI = jnp.ones((BATCH, INPUT))
DW_FLOPS = {"up": 2 * BATCH * INPUT * HIDDEN, "down": 2 * BATCH * HIDDEN * OUTPUT}
DW_SHAPES = {"up": (INPUT, HIDDEN), "down": (HIDDEN, OUTPUT)}
DX_HIDDEN_FLOPS = 2 * BATCH * HIDDEN * OUTPUT
TANH_FLOPS = 5 * BATCH * HIDDEN
EVERYTHING = [(".*", True)]
CASES = {
    "up kernel": ([("up/kernel", False), *EVERYTHING], ["up"], DW_FLOPS["up"]),
    "down kernel": ([("down/kernel", False), *EVERYTHING], ["down"], DW_FLOPS["down"]),
    "kernels": ([(".*/kernel", False), *EVERYTHING], ["up", "down"], sum(DW_FLOPS.values())),
    # Below the lowest trainable leaf nothing is propagated either: no matmul, no derivative of tanh.
    "up": ([("up/.*", False), *EVERYTHING], ["up"], DW_FLOPS["up"] + DX_HIDDEN_FLOPS + TANH_FLOPS),
}


def loss(params, x_BxI):
    hidden_BxH = jnp.tanh(x_BxI @ params["up"]["kernel"] + params["up"]["bias"][None])
    return jnp.mean(jnp.square(hidden_BxH @ params["down"]["kernel"] + params["down"]["bias"][None]))


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def matmuls_of_shape(function, shape, *args):
    text = jax.jit(function).lower(*args).as_text()
    one, other = ("x".join(map(str, sizes)) for sizes in (shape, shape[::-1]))
    return len(re.findall(rf"dot_general.*-> tensor<(?:{one}|{other})xf32>", text))


def tree_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("case", CASES)
def test_gradient_matmuls_of_frozen_kernels_are_not_compiled(case):
    rules, layers, saved = CASES[case]
    frozen = freezejax.value_and_grad(loss, freezejax.trainable_mask(PARAMS, rules))
    full_flops = flops(jax.value_and_grad(loss), PARAMS, X_BxI)
    assert flops(frozen, PARAMS, X_BxI) == pytest.approx(full_flops - saved, rel=0.01)
    for layer in DW_SHAPES:
        expected = 0 if layer in layers else 1
        assert matmuls_of_shape(frozen, DW_SHAPES[layer], PARAMS, X_BxI) == expected
        assert matmuls_of_shape(jax.value_and_grad(loss), DW_SHAPES[layer], PARAMS, X_BxI) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_has_no_buffer_for_frozen_leaves(case):
    mask = freezejax.trainable_mask(PARAMS, CASES[case][0])
    compiled = jax.jit(freezejax.value_and_grad(loss, mask)).lower(PARAMS, X_BxI).compile()
    sizes = jax.tree.leaves(compiled.out_info)
    trainable, _ = freezejax.partition(PARAMS, mask)
    assert len(sizes) == 1 + len(jax.tree.leaves(trainable))
    assert tree_bytes(sizes) == 4 + tree_bytes(trainable)


@pytest.mark.parametrize("whole_tree", [True, False])
def test_the_optimizer_has_no_state_for_frozen_leaves(whole_tree):
    mask = freezejax.trainable_mask(PARAMS, [("up/.*", False), *EVERYTHING])
    trainable, _ = freezejax.partition(PARAMS, mask)
    state = freezejax.freeze(optax.adam(0.1), mask).init(PARAMS if whole_tree else trainable)
    assert len(jax.tree.leaves(state)) == 1 + 2 * 2
    assert tree_bytes(state) == 4 + 2 * tree_bytes(trainable)


def test_a_whole_step_with_clip_and_logged_norm_saves_the_same():
    mask = freezejax.trainable_mask(PARAMS, CASES["kernels"][0])
    tx = freezejax.freeze(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), mask)

    def step(params, state, x_BxI):
        _, grads = freezejax.value_and_grad(loss, mask)(params, x_BxI)
        norm = optax.tree.norm(grads)
        updates, state = tx.update(grads, state, freezejax.partition(params, mask)[0])
        return freezejax.apply_updates(params, updates), state, norm

    saved = flops(whole_gradient_step(mask), PARAMS, X_BxI) - flops(step, PARAMS, tx.init(PARAMS), X_BxI)
    assert saved > 0.99 * sum(DW_FLOPS.values())


def whole_gradient_step(mask):
    """What people write: differentiate everything, freeze in the optimizer, log a norm."""
    tx = freezejax.freeze(optax.sgd(0.1), mask)

    def step(params, x_BxI):
        grads = jax.grad(loss)(params, x_BxI)
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), optax.tree.norm(grads)

    return step


def test_counterpart_one_norm_of_the_whole_gradient_brings_every_matmul_back():
    mask = freezejax.trainable_mask(PARAMS, CASES["kernels"][0])
    logged = whole_gradient_step(mask)
    silent = lambda params, x_BxI: logged(params, x_BxI)[0]  # noqa: E731
    difference = flops(logged, PARAMS, X_BxI) - flops(silent, PARAMS, X_BxI)
    assert difference > 0.99 * sum(DW_FLOPS.values())


def test_counterpart_the_traced_mask_saves_nothing():
    # Two entries: with a single one XLA sees a constant mask and drops the matmuls after all.
    schedule = freezejax.FreezeSchedule([(0, EVERYTHING), (3, CASES["kernels"][0])])
    tx = freezejax.scheduled_freeze(optax.sgd(0.1), schedule)

    def step(params, state, x_BxI):
        updates, state = tx.update(jax.grad(loss)(params, x_BxI), state, params)
        return optax.apply_updates(params, updates), state

    full = flops(jax.value_and_grad(loss), PARAMS, X_BxI)
    assert flops(step, PARAMS, tx.init(PARAMS), X_BxI) > 0.99 * full
