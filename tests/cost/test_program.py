"""FLOPs are read off the jaxpr: of any model, loops with all their rounds, frozen kernels without a dW."""

import jax
import jax.numpy as jnp
import optax
import pytest

from freezejax import freeze
from freezejax.cost.flops import matmul_flops, other_flops
from freezejax.cost.memory import temporary_bytes
from freezejax.cost.program import trace
from freezejax.training.objectives.base import Objective
from freezejax.training.step import StepState, make_step

TOKENS, WIDTH, HIDDEN, LAYERS = 96, 48, 80, 3


def toy(params, x):
    """A model of no family here: tanh layers with a skip, and attention to a memory of learned keys."""
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    weights = jax.nn.softmax(x @ params["keys"].T, axis=-1)
    return weights @ params["keys"]


class Regression(Objective):
    """Of the toy's output."""

    def loss(self, params, batch, key):
        return jnp.mean(jnp.square(toy(params, batch["x"]) - batch["y"])), {}


def toy_params():
    shape = jax.ShapeDtypeStruct
    layer = {"up": shape((WIDTH, HIDDEN), jnp.float32), "down": shape((HIDDEN, WIDTH), jnp.float32)}
    return {"layers": [dict(layer) for _ in range(LAYERS)], "keys": shape((64, WIDTH), jnp.float32)}


def toy_step(trains, tx):
    """The step that the library makes of it, and its arguments."""
    params = toy_params()
    mask = jax.tree_util.tree_map_with_path(lambda path, _: trains(jax.tree_util.keystr(path)), params)
    half = jax.tree.map(lambda leaf, on: leaf if on else None, params, mask)
    rest = jax.tree.map(lambda leaf, on: None if on else leaf, params, mask)
    tx = freeze(tx, mask)
    state = StepState(half, jax.eval_shape(tx.init, half), None)
    rows = jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32)
    key, index = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    return make_step(Regression(), tx), (state, rest, key, index, {"x": rows, "y": rows})


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "sgd": optax.sgd(1e-3, momentum=0.9),
    "muon": optax.contrib.muon(1e-3),  # the loop of Newton-Schulz is unrolled, and fused over its rounds
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("trains", [lambda path: True, lambda path: "up" not in path], ids=["all", "up frozen"])
def test_a_model_of_no_family_is_predicted(trains, optimizer):
    step, arguments = toy_step(trains, optimizer)
    program, compiled = trace(step, *arguments), jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    costs, sizes = compiled.cost_analysis(), compiled.memory_analysis()
    assert matmul_flops(program) + other_flops(program) == pytest.approx(costs["flops"], rel=0.01)
    assert sum(array.size * array.itemsize for array in program.read) == sizes.argument_size_in_bytes
    assert temporary_bytes(program) == pytest.approx(sizes.temp_size_in_bytes, rel=0.15)


def test_a_frozen_kernel_has_no_gradient_of_its_own():
    all_train, up_frozen = (
        matmul_flops(trace(step, *arguments))
        for step, arguments in (
            toy_step(lambda path: True, optax.sgd(1.0)),
            toy_step(lambda path: "up" not in path, optax.sgd(1.0)),
        )
    )
    # And nothing trains below the first layer's second kernel, which needs no dX then.
    assert all_train - up_frozen == (LAYERS + 1) * 2 * TOKENS * WIDTH * HIDDEN


def test_nothing_below_the_lowest_trainable_leaf_has_a_backward_pass():
    step, arguments = toy_step(lambda path: "keys" in path, optax.sgd(1.0))
    per_layer, keys = 4 * TOKENS * WIDTH * HIDDEN, 2 * TOKENS * WIDTH * 64
    # Forward everything; of the softmax's two products dV, dP, and dK.
    assert matmul_flops(trace(step, *arguments)) == LAYERS * per_layer + keys * (2 + 3)


@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
def test_a_scan_is_counted_with_all_its_rounds(remat):
    rounds, width = 7, 16

    def loss(w, x):
        def layer(x, _):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, None, length=rounds)[0])

    x, w = jnp.ones((5, width)), jnp.ones((width, width))
    once = 2 * 5 * width * width
    # Forward, dX and dW in every round; with remat the forward product again.
    assert matmul_flops(trace(jax.grad(loss), w, x)) == rounds * once * (4 if remat else 3)


def test_an_unrolled_scan_is_its_rounds_one_after_another():
    def rounds(unroll):
        def add(total, row):
            return total + row, total * row

        return trace(lambda x, rows: jax.lax.scan(add, x, rows, unroll=unroll), jnp.ones(2), jnp.ones((3, 2)))

    names = [equation.primitive for equation in rounds(True).equations]
    assert names.count("add") == names.count("mul") == names.count("slice") == 3
    assert names.count("concatenate") == 1
    assert [array.shape for array in rounds(True).outputs] == [(2,), (3, 2)]
    assert [equation.primitive for equation in rounds(1).equations] == ["scan"]


def test_what_the_step_does_not_read_is_no_argument():
    program = trace(lambda x, unused: jax.jit(lambda a, b: a + 0 * 1)(x, unused), jnp.ones(3), jnp.ones(5))
    assert [array.shape for array in program.read] == [(3,)]


def test_a_convolution_is_a_matmul():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = jax.jit(conv).lower(x, kernel).compile().cost_analysis()["flops"]
    assert matmul_flops(trace(conv, x, kernel)) == found
