"""`RandomMap.apply` is a product with the map that `materialize` gives, in value and in gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import RandomMap, UserError
from freezejax.weights import random_map as implementation

KEY = jax.random.key(11)
SHAPES = [(24, 40), (40, 24), (32, 32)]


def inputs(shape, *leading):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((*leading, shape[0])), jnp.float32)
    return x, jnp.asarray(rng.standard_normal((*leading, shape[1])), jnp.float32)


def value_and_gradient(function, x, grad):
    """`(function(x), gradient of x for an output gradient)`, from one compiled program, as float64."""
    both = jax.jit(lambda x, grad: (lambda y, back: (y, back(grad)[0]))(*jax.vjp(function, x)))
    return [np.asarray(array.astype(jnp.float32), np.float64) for array in both(x, grad.astype(x.dtype))]


@pytest.mark.parametrize(("shape", "scale"), [(SHAPES[0], "fan_in"), (SHAPES[1], 0.37), (SHAPES[2], "fan_in")])
def test_product_and_gradient_are_those_of_the_stored_matrix(shape, scale):
    random_map = RandomMap(shape, "normal", scale, "w")
    w = np.asarray(random_map.materialize(KEY), np.float64)
    x, grad = inputs(shape, 6)
    y, dx = value_and_gradient(lambda x: random_map.apply(x, KEY), x, grad)
    size = np.abs(w).max() * math.sqrt(max(shape))
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ w, atol=1e-5 * size)
    np.testing.assert_allclose(dx, np.asarray(grad, np.float64) @ w.T, atol=1e-5 * size)


def test_every_distribution_applies(distribution):
    random_map = RandomMap((8, 24), distribution, name="w")
    x, _ = inputs(random_map.shape, 3)
    np.testing.assert_allclose(random_map.apply(x, KEY), x @ random_map.materialize(KEY), atol=1e-5)


def rounding_of_bfloat16(shape):
    """Largest relative error of product and gradient in bfloat16, in units of its rounding, 2**-8."""
    random_map = RandomMap(shape, "uniform", name="w")
    w = np.asarray(random_map.materialize(KEY), np.float64)
    x, grad = (array.astype(jnp.bfloat16) for array in inputs(shape, 16))
    y, dx = value_and_gradient(lambda x: random_map.apply(x, KEY), x, grad)
    wide_x, wide_grad = (np.asarray(array.astype(jnp.float32), np.float64) for array in (x, grad))
    errors = [np.abs(y / (wide_x @ w) - 1).max(), np.abs(dx / (wide_grad @ w.T) - 1).max()]
    return max(errors) * 2**8


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_rounds_the_result_and_nothing_else(shape):
    """Half a unit in the last place of 8 bits, and a little for the sum in float32."""
    assert rounding_of_bfloat16(shape) < 1.01


def test_counterpart_a_scale_rounded_into_the_weights_costs_more(monkeypatch):
    def rounded(x, levels, step):
        return jnp.matmul(x, (levels * jnp.float32(step)).astype(x.dtype))

    monkeypatch.setattr(implementation, "scaled_product", rounded)
    assert rounding_of_bfloat16((24, 40)) > 2


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (1, 2, 0), (2, 1, 2, 2)])
def test_leading_axes(leading):
    random_map = RandomMap((8, 16), "rademacher", name="w")
    x, grad = inputs(random_map.shape, *leading)
    y, back = jax.vjp(lambda x: random_map.apply(x, KEY), x)
    assert (y.shape, back(grad)[0].shape) == ((*leading, 16), (*leading, 8))
    flat = random_map.apply(x.reshape(-1, 8), KEY)
    np.testing.assert_array_equal(y.reshape(-1, 16), flat)


def test_vmap_over_inputs_and_over_base_keys():
    random_map = RandomMap((8, 16), "normal", name="w")
    x, _ = inputs(random_map.shape, 3, 4)
    keys = jax.random.split(KEY, 3)
    over_inputs = jax.jit(jax.vmap(random_map.apply, in_axes=(0, None)))(x, KEY)
    np.testing.assert_allclose(over_inputs, random_map.apply(x, KEY), atol=1e-6)
    loss = lambda x, key: jnp.sum(jnp.sin(random_map.apply(x, key)))  # noqa: E731
    ensemble = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(x, keys)
    one = jax.jit(jax.grad(loss))
    for found, key in zip(ensemble, keys, strict=True):
        np.testing.assert_allclose(found, one(x, key), atol=1e-5)


@pytest.mark.parametrize(("scale", "std"), [("fan_in", 0.25), ("none", 1), (None, 1), (0.5, 0.5), (np.float32(3), 3)])
def test_scale_is_the_standard_deviation_of_a_weight(scale, std):
    random_map = RandomMap((16, 64), "rademacher", scale, "w")
    assert np.array_equal(np.abs(random_map.materialize(KEY)), np.full((16, 64), std, np.float32))


def test_a_map_is_a_value():
    one, other = (RandomMap(shape, "normal", name="w") for shape in ([4, 8], (np.int64(4), 8)))
    assert one == other
    assert hash(one) == hash(other)
    assert one != RandomMap((4, 8), "normal", name="v")


def test_maps_of_one_name_shape_and_key_are_one_map():
    unnamed, named = RandomMap((4, 8)).materialize(KEY), RandomMap((4, 8), name="up").materialize(KEY)
    assert np.array_equal(unnamed, RandomMap((4, 8)).materialize(KEY))
    assert not np.array_equal(unnamed, named)


def test_portable_says_which_maps_an_artifact_may_hold():
    named = {name: RandomMap((2, 2), name).portable for name in ("normal", "hadamard", "normal_f32", "orthogonal_qr")}
    assert named == {"normal": True, "hadamard": True, "normal_f32": False, "orthogonal_qr": False}


MAP = RandomMap((4, 8), name="blocks/0/mlp/up/kernel")
X = jnp.ones((2, 4))
THREEFRY = r"need a threefry2x32 key, jax.random.key\(seed, impl='threefry2x32'\), not "
ERRORS = {
    "old-style key": (
        lambda: MAP.materialize(jax.random.PRNGKey(7)),
        THREEFRY + r"an old-style key: write jax.random.key\(7\) for jax.random.PRNGKey\(7\)",
    ),
    "old-style key, traced": (lambda: jax.jit(MAP.materialize)(jax.random.PRNGKey(7)), THREEFRY + "an old-style key"),
    "an array of words": (lambda: MAP.materialize(jnp.zeros(3, jnp.uint32)), THREEFRY + r"uint32\[3\]"),
    "integer for a key": (lambda: MAP.apply(X, 0), THREEFRY + "int"),
    "rbg key": (lambda: MAP.materialize(jax.random.key(0, impl="rbg")), THREEFRY + r"key<rbg>\[\]"),
    "several keys": (lambda: MAP.apply(X, jax.random.split(KEY)), THREEFRY + r"key<fry>\[2\]"),
    "input of another size": (lambda: MAP.apply(X.T, KEY), r"kernel': x has shape \(4, 2\), its last axis must be 4"),
    "integer input": (lambda: MAP.apply(X.astype("int32"), KEY), "kernel': x is int32, not floating point"),
    "scalar input": (lambda: MAP.apply(jnp.float32(1), KEY), r"x has shape \(\)"),
    "misspelt distribution": (lambda: RandomMap((4, 8), "rademaker"), "no distribution 'rademaker'; nearest: radem"),
    "number for a distribution": (lambda: RandomMap((4, 8), 3), "no distribution 3; nearest: "),
    "list for a distribution": (lambda: RandomMap((4, 8), ["normal"]), r"no distribution \['normal'\]; nearest: "),
    "number for a name": (lambda: RandomMap((4, 8), name=3), "random map 3: the name must be a string"),
}
SIZES = [(4,), (4, 8, 2), (0, 8), (4, -8), (4, 8.0), ("4", 8), (True, 8), 4, "ab", None]
SCALES = ["fanin", 0, -1.0, math.nan, math.inf, 1e-40, 1e40, True, [1.0], {}, np.ones(2)]
for size in SIZES:
    ERRORS[f"shape {size}"] = (lambda size=size: RandomMap(size), r"shape=.* must be \(in, out\), two integers")
for scale in SCALES:
    ERRORS[f"scale {scale}"] = (lambda scale=scale: RandomMap((4, 8), scale=scale), "scale=.* must be 'fan_in', 'none'")


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_clear_line(name, check_refused):
    check_refused(*ERRORS[name])


def test_the_generator_that_depends_on_the_mesh_is_refused():
    with jax.threefry_partitionable(False), pytest.raises(UserError, match="jax_threefry_partitionable=True"):
        MAP.materialize(KEY)
