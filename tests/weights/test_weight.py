"""A map as a leaf of the parameters: stored, drawn once or drawn again, the same numbers to the last bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import freezejax
from freezejax import RandomMap, UserError
from freezejax.paths import leaf_paths
from freezejax.sharding import Layout, make_mesh
from freezejax.weights import GainWeight, MapWeight, as_matrices, count_seeded, draw_maps, drop_maps, maps_of
from freezejax.weights import random_map as implementation

BASE = jax.random.key(4)
SQUARE, WIDE = (24, 24), (24, 40)


def tree(*, gain=False):
    names = {"a": SQUARE, "b": WIDE}
    maps = {name: MapWeight.create(RandomMap(shape, "normal", name=name), BASE) for name, shape in names.items()}
    if gain:
        maps = {name: GainWeight(weight, jnp.ones(weight.shape[1])) for name, weight in maps.items()}
    return {**maps, "norm": jnp.ones(3)}


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
    layer, stored = run(tree(gain=True), dtype), run(draw_maps(tree(gain=True)), dtype)
    step = jax.jit(lambda params: outputs(draw_maps(params), dtype))(tree(gain=True))
    chex.assert_trees_all_equal(layer, step, stored)
    assert layer[0].dtype == layer[1].dtype == dtype


def test_counterpart_the_scale_on_the_other_side_rounds_differently(monkeypatch):
    """Left to autodiff, the gradient of a square map is scaled after the product, not before it."""
    plain = implementation.scaled_product.fun
    layer = outputs(tree(), "float32")
    monkeypatch.setattr("freezejax.weights.seeded.scaled_product", plain)
    assert not np.array_equal(layer[1], outputs(draw_maps(tree()), "float32")[1])


PATHS = ["a/base/seed", "a/gain", "b/base/seed", "b/gain", "norm"]


def test_draw_and_drop_are_inverses_and_touch_maps_alone():
    params = tree(gain=True)
    held = draw_maps(params)
    chex.assert_trees_all_equal(drop_maps(held), params)
    assert leaf_paths(held) == [*PATHS[:1], "a/base/levels", *PATHS[1:3], "b/base/levels", *PATHS[3:]]
    assert leaf_paths(drop_maps(held)) == PATHS
    assert held["norm"] is params["norm"]
    np.testing.assert_array_equal(held["a"].base.levels, params["a"].base.map.levels(BASE))


def test_half_of_a_partition_can_be_drawn():
    params = tree(gain=True)
    trainable, frozen = freezejax.partition(params, freezejax.trainable_mask(params, [(".*", True)]))
    assert leaf_paths(trainable) == ["a/gain", "b/gain", "norm"]
    chex.assert_trees_all_equal(freezejax.combine(trainable, draw_maps(frozen)), draw_maps(params))
    assert jax.tree.leaves(draw_maps(trainable)) == jax.tree.leaves(trainable)  # no seed here, nothing to draw


def test_materialize_is_what_the_layer_multiplies_with():
    weight = GainWeight(MapWeight.create(RandomMap(WIDE, name="w"), BASE), jnp.full(40, 2.0))
    found = weight(jnp.eye(WIDE[0]))
    np.testing.assert_allclose(found, weight.materialize(), rtol=1e-6)
    np.testing.assert_allclose(found, 2 * weight.base.map.materialize(BASE), rtol=1e-6)


def test_a_gain_scales_features_and_gets_its_gradient():
    """Against the product with the matrix that it materializes."""
    random_map = RandomMap((8, 16), "rademacher", name="w")
    x, grad = (jnp.cos(jnp.arange(float(size))).reshape(2, 3, -1) for size in (6 * 8, 6 * 16))
    gain = jnp.linspace(0.5, 2.0, 16)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.03)):
        mapped = lambda x, gain: GainWeight(MapWeight.create(random_map, BASE), gain)(x)  # noqa: E731
        y, back = jax.vjp(mapped, x.astype(dtype), gain)
        dense = lambda x, gain: x @ (random_map.materialize(BASE) * gain[None])  # noqa: E731
        expected, expected_back = jax.vjp(dense, x, gain)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=4 * tolerance)
        for found, wanted in zip(back(grad.astype(dtype)), expected_back(grad), strict=True):
            np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=8 * tolerance)


def test_counts_and_shapes_are_those_of_the_matrices():
    params = tree(gain=True)
    assert [weight.map.name for weight in maps_of(params)] == ["a", "b"]
    assert count_seeded(params) == count_seeded(jax.eval_shape(lambda: params)) == 24 * 24 + 24 * 40
    assert [leaf.shape for leaf in jax.tree.leaves(as_matrices(params))] == [SQUARE, (24,), WIDE, (40,), (3,)]


def test_levels_that_are_trained_get_their_gradient():
    """The product's rule is that of the product for both factors, should someone train a map."""
    x, levels = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    found = jax.grad(lambda levels: jnp.sum(jnp.sin(implementation.scaled_product(x, levels, 0.3))))(levels)
    expected = jax.grad(lambda levels: jnp.sum(jnp.sin(x @ levels * 0.3)))(levels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_seed_never_trains_whatever_the_rules_say():
    mask = freezejax.trainable_mask(tree(gain=True), [(".*", True)])
    trains = dict(zip(leaf_paths(mask), jax.tree.leaves(mask), strict=True))
    assert trains == {path: not path.endswith("/seed") for path in PATHS}
    drawn = freezejax.trainable_mask(draw_maps(tree()), [(".*", True)])
    assert jax.tree.leaves(drawn) == [False, False, False, False, True]  # nor does what was drawn from one


def test_a_layout_tells_each_map_which_shard_to_draw():
    mesh, params = make_mesh(), {"up": {"kernel": tree()["b"]}, "out": {"kernel": tree(gain=True)["a"]}}
    layout = Layout(mesh, params, [("up/kernel", P("fsdp", "tensor")), ("out/kernel", P("tensor", "fsdp"))])
    columns, rows = (NamedSharding(mesh, P(*axes)) for axes in ((None, "tensor"), ("tensor", None)))
    placed = layout.placed(params)
    assert {weight.map.name: weight.sharding for weight in maps_of(placed)} == {"a": rows, "b": columns}
    chex.assert_trees_all_equal(jax.tree.leaves(placed), jax.tree.leaves(params))
    assert jax.jit(draw_maps)(placed)["up"]["kernel"].levels.sharding.is_equivalent_to(columns, 2)


@pytest.mark.parametrize("weight", [tree()["a"], draw_maps(tree()["a"])], ids=["drawn", "stored"])
def test_an_input_that_does_not_fit_is_refused_wherever_the_map_is(weight):
    for x, message in ((jnp.ones((2, 25)), "last axis must be 24"), (jnp.ones((2, 24), "int32"), "x is int32")):
        with pytest.raises(UserError, match=message):
            weight(x)


def test_a_leaf_is_made_from_a_threefry_key_alone():
    with pytest.raises(UserError, match="threefry2x32"):
        MapWeight.create(RandomMap(WIDE), jax.random.key(0, impl="rbg"))
