"""Law 7: a map is no residual, no constant, no early buffer. Read off closures, programs and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import RandomMap, freeze, models, partition, trainable_mask
from freezejax.paths import named_key
from freezejax.training.config import OptimizerConfig, TrainConfig
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.optimizers import make_optimizer
from freezejax.training.step import StepState, make_step
from freezejax.weights import MapWeight, draw_maps
from freezejax.weights import random_map as implementation
from tests.weights.programs import largest_constant, memory

LAYERS, DIM, HIDDEN, TOKENS = 8, 256, 512, 16
MAP_SIZE, MAPS_BYTES = DIM * HIDDEN, 4 * LAYERS * DIM * HIDDEN
MAPS = [RandomMap((DIM, HIDDEN), name=f"blocks/{i}/up/kernel") for i in range(LAYERS)]
KEY = jax.random.key(7)
X = jnp.ones((TOKENS, DIM))


def naive(x, key, random_map):
    """What people write."""
    return x @ (jax.random.normal(named_key(key, random_map.name), random_map.shape) / jnp.sqrt(jnp.float32(DIM)))


def mapped(x, key, random_map):
    return random_map.apply(x, key)


def loss(layer, x, key, maps=MAPS):
    for random_map in maps:
        gate, up = jnp.split(jnp.tanh(layer(x, key, random_map)), 2, axis=-1)
        x = x + gate * up
    return jnp.sum(x * x)


def gradient(layer, maps=MAPS):
    return jax.value_and_grad(lambda x, key: loss(layer, x, key, maps))


def residuals(layer):
    """Everything that the forward pass keeps for the backward pass."""
    _, backward = jax.vjp(lambda x: layer(x, KEY, MAPS[0]), X)
    return jax.tree.leaves(backward)


def test_nothing_but_the_seed_is_kept_for_the_backward_pass():
    assert [(leaf.shape, leaf.dtype) for leaf in residuals(mapped)] == [((2,), jnp.uint32)]


def test_counterpart_the_naive_layer_keeps_its_map():
    assert [leaf.size for leaf in residuals(naive)] == [MAP_SIZE]


@pytest.fixture(scope="module")
def stored():
    """Bytes of arguments and temporaries where the maps are arguments."""
    held = [draw_maps(MapWeight.create(random_map, KEY)) for random_map in MAPS]
    by_name = lambda x, held, random_map: held[MAPS.index(random_map)](x)  # noqa: E731
    arguments, temporaries = memory(gradient(by_name), X, held)
    assert arguments >= MAPS_BYTES
    return arguments + temporaries


def share_saved(layer, stored):
    return (stored - sum(memory(gradient(layer), X, KEY))) / MAPS_BYTES


def test_unrolled_layers_save_four_fifths_of_the_maps_memory(stored):
    assert share_saved(mapped, stored) > 0.8


def drawn_in_each_layer(x, key, random_map):
    """Without the custom rule: autodiff keeps every map."""
    return implementation.scaled_product(x, random_map.levels(key), random_map.step)


def test_counterparts_save_nothing(stored, monkeypatch):
    assert share_saved(naive, stored) < 0.1
    assert share_saved(drawn_in_each_layer, stored) < 0.1

    def without_barriers(x, random_map, sharding, seed):
        return random_map.levels(jax.random.wrap_key_data(seed, impl="threefry2x32"), sharding)

    monkeypatch.setattr(implementation, "_levels_after", without_barriers)
    assert share_saved(mapped, stored) < 0.1


def test_no_map_is_a_constant_and_the_seed_is_an_argument():
    one = [MAPS[0]]
    lowered = jax.jit(gradient(mapped, one)).lower(X, KEY)
    compiled = lowered.compile()
    assert largest_constant(lowered.as_text()) == largest_constant(compiled.as_text()) == 256  # the table of quantiles
    # One program for every base seed.
    for key in (KEY, jax.random.key(8)):
        np.testing.assert_allclose(compiled(X, key)[0], loss(mapped, X, key, one), rtol=1e-5)
    assert float(compiled(X, KEY)[0]) != float(compiled(X, jax.random.key(8))[0])


def test_counterpart_a_map_closed_over_is_a_constant():
    w = MAPS[0].materialize(KEY)
    lowered = jax.jit(lambda x: x @ w).lower(X)
    assert largest_constant(lowered.as_text()) == largest_constant(lowered.compile().as_text()) == MAP_SIZE


def test_counterpart_a_key_closed_over_makes_a_program_for_one_seed():
    closed = jax.jit(lambda x: MAPS[0].apply(x, KEY)).lower(X)
    assert "tensor<2xui32>" not in closed.as_text().split("func.func public @main(")[1].split("->")[0]


WIDTH = 96
MAPS_RULE = [{"pattern": r"blocks/\d+/mlp/(gate|up)/kernel", "kind": "map"}]
CONFIG = TrainConfig(steps=4, batch_size=2, seq_len=16, optimizer=OptimizerConfig(clip=1.0))


def training_step(weights):
    """`(step, its abstract arguments)` of a small model whose gate and up are maps."""
    model = models.build("geglu", num_layers=2, model_dim=48, num_heads=3, vocab_size=61, mlp_mult=2, weights=weights)
    params = jax.eval_shape(model.init, KEY)
    mask = trainable_mask(params, [(".*", True)])
    tx = freeze(make_optimizer(CONFIG.optimizer, lambda count: jnp.ones([])), mask)
    half, frozen = partition(params, mask)
    state = StepState(half, jax.eval_shape(tx.init, half), None)
    sequence = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    batch = {"inputs": sequence, "targets": sequence}
    arguments = state, frozen, KEY, jax.ShapeDtypeStruct((), jnp.int32), batch
    return make_step(LanguageModelling(model, CONFIG.compute_dtype), tx), arguments


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_training_step_for_an_accelerator_draws_its_maps(platform):
    def lowered(weights):
        step, arguments = training_step(weights)
        with jax.numpy_dtype_promotion("standard"):
            return jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    text = lowered(MAPS_RULE)
    assert largest_constant(text) == 256  # the table of quantiles
    assert text.count("call @threefry2x32") >= 2 * 2 * 2  # gate and up of two layers, forward and backward
    assert f"tensor<48x{WIDTH}xf32>" in text
    assert f"tensor<48x{WIDTH}xf32>" not in text.split("func.func public @main(")[1].split(" -> ")[0]
    assert "threefry" not in lowered(())
