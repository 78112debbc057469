"""What every kind of weight has to keep; each clause raises an AssertionError for a weight that breaks it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from freezejax import artifact, combine, describe, freeze, partition, trainable_mask
from freezejax.roles import Role, is_weight, leaves
from freezejax.sharding import Layout, make_mesh
from freezejax.training.config import OptimizerConfig
from freezejax.training.objectives.base import Objective
from freezejax.training.optimizers import make_optimizer
from freezejax.training.step import StepState, make_step
from freezejax.weights import MapWeight, Site, draw_maps, linear

KEY, BASE_KEY = jax.random.key(5), jax.random.key(6)
SHAPE = (12, 20)
SITE = Site("blocks/0/mlp/up/kernel", KEY, BASE_KEY)


def plain(shape=SHAPE, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0]), jnp.float32)


def moved(tree):
    """Away from initial zeros and ones, so that every leaf matters."""

    def move(leaf):
        shift = 0.1 * np.cos(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
        return leaf + shift if leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(move, tree)


def check_product(weight):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, SHAPE[0])), jnp.float32)
    whole = np.asarray(weight.materialize(), np.float64)
    assert whole.shape == weight.shape == SHAPE
    shift = np.asarray(weight(jnp.zeros((1, SHAPE[0]))), np.float64)
    assert np.any(shift) == any(leaf.owner.shifts for leaf in leaves(weight))
    expected, size = np.asarray(x, np.float64) @ whole + shift, np.abs(whole).max() * SHAPE[0]
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)):
        for call in (weight, jax.jit(lambda x: weight(x))):
            found = call(x.astype(dtype))
            assert found.dtype == dtype
            np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=tolerance * size)


def check_roles(weight):
    static = {field.name for field in dataclasses.fields(weight) if field.metadata.get("static")}
    named = {field.name for field in dataclasses.fields(weight)} - static
    inner = {name for name in named if is_weight(getattr(weight, name))}
    assert set(weight.roles) <= named, "a role of no field"
    assert named - inner <= set(weight.roles), "a field without a role"
    for leaf in leaves(weight):
        assert isinstance(leaf.role, Role)
        assert leaf.role is not Role.SEED or leaf.value.dtype == jnp.uint32


def check_shapes_are_known_without_numbers(weight):
    abstract = jax.eval_shape(lambda: weight)
    assert abstract.shape == weight.shape


def check_init(make):
    """`make(site)`: the same bits from the same keys; another layer's weight is another, and changes none."""
    one, again, other = (make(site) for site in (SITE, SITE, SITE._replace(path="blocks/1/mlp/up/kernel")))
    assert bits(one) == bits(again)
    drawn = bits(one) != bits(make(SITE._replace(key=jax.random.key(7), base_key=jax.random.key(8))))
    if drawn and not np.array_equal(one.materialize(), plain()):
        assert not np.array_equal(one.materialize(), other.materialize()), "two layers share what they drew"


def check_trains(weight):
    """One step of AdamW with decay moves what may train, all of it; seeds and what is frozen keep their bits."""
    params = {"up": {"kernel": weight}, "down": {"kernel": plain(SHAPE[::-1])}}
    x = plain((8, SHAPE[0]), seed=2)  # enough rows for LoRA to merge

    class Squares(Objective):
        def loss(self, params, batch, key):
            hidden = jnp.tanh(linear(batch["x"], params["up"]["kernel"]))
            return jnp.mean(jnp.square(linear(hidden, params["down"]["kernel"]))), {}

    some_frozen = [(r"up/kernel(/base.*|/seed|/kernel|/left)?", False), (".*", True)]
    for decay, rules in ((0.0, [(".*", True)]), (0.1, some_frozen)):
        mask = trainable_mask(params, rules)
        tx = freeze(make_optimizer(OptimizerConfig(weight_decay=decay), lambda count: jnp.ones([])), mask)
        trainable, frozen = partition(params, mask)
        step = make_step(Squares(), tx)
        state = StepState(trainable, tx.init(params), None)
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            state, _ = step(state, frozen, jax.random.key(0), jnp.int32(0), {"x": x})
        before, after = bits(params), bits(combine(state.trainable, frozen))
        changed = {path for path in before if before[path] != after[path]}
        may_train = {leaf.path for leaf, trains in zip(leaves(params), jax.tree.leaves(mask), strict=True) if trains}
        assert changed == may_train
        assert not {leaf.path for leaf in leaves(params) if leaf.role.constant} & changed


def check_shards(weight):
    mesh, params = make_mesh(), {"up": {"kernel": weight}}
    rules = [("up/kernel", P("fsdp", "tensor"))]
    layout = Layout(mesh, jax.eval_shape(lambda: params), rules)
    x = plain((4, 2, SHAPE[0]), seed=3)
    found = jax.jit(lambda params: layout.at_use(params)["up"]["kernel"](x))(params)
    np.testing.assert_allclose(found, weight(x), atol=1e-5)
    wide = Layout(SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 2}), params, rules)
    for leaf in leaves(draw_maps(params)):
        if leaf.value.shape == SHAPE:  # the kernel, stored or drawn
            assert wide.spec(leaf) == P("fsdp", "tensor"), leaf.path
        elif leaf.role is not Role.DRAWN:
            assert wide.spec(leaf) == P(), leaf.path


def check_packs(weight, folder):
    params = {"up": {"kernel": weight}, "scale": jnp.ones(3)}
    wanted = artifact.quantize(params, "int6")
    saved = artifact.save(folder / "x.fjax", params, codec="int6", compressor="zlib")
    _, loaded, meta = artifact.load(folder / "x.fjax", like=jax.eval_shape(lambda: params))
    assert bits(loaded) == bits(wanted)
    stored = [leaf.path for leaf in leaves(params) if not leaf.role.constant]
    assert [tensor["path"] for tensor in meta["tensors"]] == stored
    assert saved.sizes["seed"] == 8 * any(leaf.role is Role.SEED for leaf in leaves(params))
    bits(draw_maps(loaded))


def check_described(weight):
    params = {"up": {"kernel": weight}}
    rows = describe(params, trainable_mask(params, [(".*", True)]), tx=optax.adam(1e-3)).phases[0][1]
    drawn = sum(int(np.prod(node.shape)) for node in seeded(weight))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(weight) if leaf.dtype == jnp.float32)
    assert rows[-1].parameters == numbers + drawn
    assert rows[-1].trainable_parameters == numbers
    assert rows[-1].gradient_bytes == 4 * numbers


def seeded(node):
    """Every random map in a weight, found by type and not by role."""
    nodes = jax.tree.leaves(node, is_leaf=lambda leaf: isinstance(leaf, MapWeight))
    return [leaf for leaf in nodes if isinstance(leaf, MapWeight)]


def bits(tree):
    return {leaf.path: np.asarray(leaf.value).tobytes() for leaf in leaves(tree)}


CLAUSES = {
    "product": check_product,
    "roles": check_roles,
    "shapes": check_shapes_are_known_without_numbers,
    "trains": check_trains,
    "shards": check_shards,
    "described": check_described,
}
