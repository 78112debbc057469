"""A map as a leaf of the parameters: stored, drawn once or drawn again, the same numbers to the last bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import freezejax
from freezejax import RandomMap, UserError
from freezejax.paths import leaf_paths
from freezejax.weights import (
    MapWeight,
    as_matrices,
    check_seeds_frozen,
    count_seeded,
    hold,
    map_weights,
    release,
    with_shardings,
)
from freezejax.weights import random_map as implementation

ROOT = jax.random.key(4)
SQUARE, WIDE = (24, 24), (24, 40)


def tree(scale="fan_in"):
    names = {"a": SQUARE, "b": WIDE}
    weights = {name: MapWeight.create(RandomMap(shape, "normal", scale, name), ROOT) for name, shape in names.items()}
    return {**weights, "norm": jnp.ones(3)}


def outputs(params, dtype):
    """Result and gradient of `x` through both maps, in one program."""
    x = jnp.linspace(-1.0, 1.0, 6 * 24).reshape(6, 24).astype(dtype)

    def through(x):
        return params["b"](jnp.tanh(params["a"](x)))

    y, back = jax.vjp(through, x)
    return y, back(jnp.cos(y))[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drawn_per_layer_per_step_or_per_run_the_bits_are_the_same(dtype):
    run = jax.jit(outputs, static_argnums=1)
    layer, stored = run(tree("gain"), dtype), run(hold(tree("gain")), dtype)
    step = jax.jit(lambda params: outputs(hold(params), dtype))(tree("gain"))
    chex.assert_trees_all_equal(layer, step, stored)
    assert layer[0].dtype == layer[1].dtype == dtype


def test_counterpart_the_scale_on_the_other_side_rounds_differently(monkeypatch):
    """Left to autodiff, the gradient of a square map is scaled after the product, not before it."""
    plain = implementation.scaled_product.fun
    layer = outputs(tree(), "float32")
    monkeypatch.setattr("freezejax.weights.seeded.scaled_product", plain)
    assert not np.array_equal(layer[1], outputs(hold(tree()), "float32")[1])


def test_hold_and_release_are_inverses_and_touch_maps_alone():
    params = tree("gain")
    held = hold(params)
    chex.assert_trees_all_equal(release(held), params)
    assert leaf_paths(held) == ["a/root", "a/gain", "a/levels", "b/root", "b/gain", "b/levels", "norm"]
    assert leaf_paths(release(held)) == ["a/root", "a/gain", "b/root", "b/gain", "norm"]
    assert held["norm"] is params["norm"]
    np.testing.assert_array_equal(held["a"].levels, params["a"].map.levels(ROOT))


def test_half_of_a_partition_can_be_held():
    params = tree("gain")
    mask = freezejax.trainable_mask(params, [(".*/seed", False), (".*", True)])
    trainable, frozen = freezejax.partition(params, mask)
    assert leaf_paths(trainable) == ["a/gain", "b/gain", "norm"]
    chex.assert_trees_all_equal(freezejax.combine(trainable, hold(frozen)), hold(params))
    assert jax.tree.leaves(hold(trainable)) == jax.tree.leaves(trainable)  # no seed here, nothing to draw


def test_materialize_is_what_the_layer_multiplies_with():
    weight = MapWeight.create(RandomMap(WIDE, "normal", "gain", "w"), ROOT)
    weight = jax.tree.map(lambda leaf: leaf * 2 if leaf.dtype == jnp.float32 else leaf, weight)
    found = weight(jnp.eye(WIDE[0]))
    np.testing.assert_allclose(found, weight.materialize(), rtol=1e-6)
    np.testing.assert_allclose(found, 2 * weight.map.materialize(ROOT), rtol=1e-6)


def test_counts_and_shapes_are_those_of_the_matrices():
    params = tree("gain")
    assert [weight.map.name for weight in map_weights(params)] == ["a", "b"]
    assert count_seeded(params) == count_seeded(jax.eval_shape(lambda: params)) == 24 * 24 + 24 * 40
    assert [leaf.shape for leaf in jax.tree.leaves(as_matrices(params))] == [SQUARE, (24,), WIDE, (40,), (3,)]


def test_levels_that_are_trained_get_their_gradient():
    """The product's rule is that of the product for both factors, should someone train a map."""
    x, levels = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    found = jax.grad(lambda levels: jnp.sum(jnp.sin(implementation.scaled_product(x, levels, 0.3))))(levels)
    expected = jax.grad(lambda levels: jnp.sum(jnp.sin(x @ levels * 0.3)))(levels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_seed_cannot_train():
    params = tree("gain")
    check_seeds_frozen(params, freezejax.trainable_mask(params, [(".*/seed", False), (".*", True)]))
    with pytest.raises(UserError, match=r"leaf 'b/root' is a root seed and cannot train: let \('\.\*/root', False\)"):
        check_seeds_frozen(params, freezejax.trainable_mask(params, [("a/.*", False), (".*", True)]))


def test_shardings_go_to_the_maps_that_their_rules_name():
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(AxisType.Auto,))
    columns, rows = (NamedSharding(mesh, P(*axes)) for axes in ((None, "tensor"), ("tensor",)))
    params = {**tree("gain"), "c": MapWeight.create(RandomMap(WIDE, name="blocks/0/c"), ROOT)}
    placed = with_shardings(params, [("b", columns), ("[ab]", rows)])
    assert [weight.sharding for weight in map_weights(placed)] == [rows, columns, None]
    chex.assert_trees_all_equal(jax.tree.leaves(placed), jax.tree.leaves(params))
    assert jax.jit(hold)(placed)["b"].levels.sharding.is_equivalent_to(columns, 2)
    with pytest.raises(UserError, match="sharding rule 'blocks/c' matches no map; nearest: blocks/0/c"):
        with_shardings(params, [("blocks/c", rows)])


@pytest.mark.parametrize("weight", [tree()["a"], hold(tree()["a"])], ids=["drawn", "stored"])
def test_an_input_that_does_not_fit_is_refused_wherever_the_map_is(weight):
    for x, message in ((jnp.ones((2, 25)), "last axis must be 24"), (jnp.ones((2, 24), "int32"), "x is int32")):
        with pytest.raises(UserError, match=message):
            weight(x)


def test_a_leaf_is_made_from_a_threefry_key_alone():
    with pytest.raises(UserError, match="threefry2x32"):
        MapWeight.create(RandomMap(WIDE), jax.random.key(0, impl="rbg"))
