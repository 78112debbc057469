"""No function over trees calls a tree. Optax calls masks and labels that are callable, and a module is both."""

import dataclasses

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

import freezejax
from freezejax import FreezeSchedule
from freezejax.guard import fields
from freezejax.masks import count_parameters, intersection, invert, union
from freezejax.paths import leaf_paths

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS = 4


class Module(eqx.Module):
    w: jax.Array
    inner: "Module | None"
    b: jax.Array

    def __call__(self, *_):
        raise RuntimeError("called")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    w: jax.Array
    b: jax.Array

    def __call__(self, *_):
        raise RuntimeError("called")


class NnxNet(nnx.Module):
    def __init__(self):
        self.w, self.b = nnx.Param(jnp.full((3, 2), 0.5)), nnx.Param(jnp.ones(2))

    def __call__(self, *_):
        raise RuntimeError("called")


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="b")(nn.Dense(2, name="w")(x))


def module():
    w = jnp.arange(6.0).reshape(3, 2) / 7
    return Module(w, Module(w + 1, None, jnp.ones(2)), jnp.float32([-0.0, 1.0]))


TREES = {
    "equinox module": module,
    "equinox layers": lambda: eqx.filter(eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0)), eqx.is_array),
    "dataclass": lambda: Record(jnp.ones((2, 3)), jnp.ones(2)),
    "nnx module": NnxNet,
    "nnx state": lambda: nnx.state(NnxNet(), nnx.Param),
    "linen variables": lambda: LinenNet().init(jax.random.key(0), jnp.ones((1, 2))),
    "a module in a dict": lambda: {"net": module()},
}
OPTIMIZERS = {
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    # Both label or mask the tree that they are shown.
    "muon": lambda: contrib.muon(0.1),
    "masked decay": lambda: optax.adamw(0.1, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)),
}
FROZEN = [(".*(b|bias)(/.*)?", False), (".*", True)]


@pytest.fixture(params=TREES)
def tree(request):
    return TREES[request.param]()


@pytest.fixture(params=OPTIMIZERS)
def tx(request):
    return OPTIMIZERS[request.param]()


def loss(params):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(params))


def assert_frozen_kept(before, after, mask):
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for trains, old, new in zip(*map(jax.tree.leaves, (mask, before, after)), strict=True):
        assert (np.asarray(old).tobytes() == np.asarray(new).tobytes()) != trains


def test_trees_are_what_the_tests_take_them_for():
    names = [name for name, make in TREES.items() if callable(make())]
    assert names == ["equinox module", "equinox layers", "dataclass", "nnx module"]


def test_a_callable_tree_is_shown_as_the_dict_of_its_fields(tree):
    shown = fields(tree)
    assert not callable(shown)
    # nnx.Optimizer shows a state of variables at init, and one of their values, without the "/value", at update.
    end = "/value" if isinstance(tree, nnx.State) else ""
    assert leaf_paths(shown) == [path.removesuffix(end) for path in leaf_paths(tree)]
    assert all(a is b for a, b in zip(jax.tree.leaves(shown), jax.tree.leaves(tree), strict=True))


def test_masks_halves_and_counts(tree):
    mask = freezejax.trainable_mask(tree, FROZEN)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    assert all(jax.tree.leaves(union(mask, invert(mask))))
    assert not any(jax.tree.leaves(intersection(mask, invert(mask))))
    halves = freezejax.partition(tree, mask)
    chex.assert_trees_all_equal(freezejax.combine(*halves), tree)
    parts = count_parameters(tree, mask) + count_parameters(tree, invert(mask))
    assert 0 < count_parameters(tree, mask) < parts == count_parameters(tree)
    ((_, rows),) = freezejax.describe(tree, mask, tx=optax.adam(0.1)).phases
    assert rows[-1].state_bytes == 8 * count_parameters(tree, mask)


def test_describe_reads_the_state_of_every_optimizer(tree, tx):
    mask = freezejax.trainable_mask(tree, FROZEN)
    ((_, rows),) = freezejax.describe(tree, mask, tx=tx).phases
    state, bare = (
        jax.eval_shape(freezejax.freeze(tx, trains).init, tree)
        for trains in (mask, jax.tree.map(lambda _: False, mask))
    )
    counted, shared = (sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(some)) for some in (state, bare))
    assert rows[-1].state_bytes == counted - shared > 0


def static_steps(tx, params, whole):
    """`whole`: gradients of all leaves, as any optax loop has them; else of the trainable half."""
    mask = freezejax.trainable_mask(params, FROZEN)
    frozen = freezejax.freeze(tx, mask)

    def step(params, state):
        grads = jax.grad(loss)(params) if whole else freezejax.value_and_grad(loss, mask)(params)[1]
        shown = params if whole else freezejax.partition(params, mask)[0]
        updates, state = frozen.update(grads, state, shown)
        return freezejax.apply_updates(params, updates), state

    state = frozen.init(params)
    for _ in range(STEPS):
        params, state = jax.jit(step)(params, state)
    return params


@pytest.mark.parametrize(("name", "whole"), [("adamw", True), ("muon", False), ("masked decay", True)])
def test_static_freezing(tree, name, whole):
    mask = freezejax.trainable_mask(tree, FROZEN)
    assert_frozen_kept(tree, static_steps(OPTIMIZERS[name](), tree, whole), mask)


@pytest.mark.parametrize(("name", "on_thaw"), [("adamw", "keep"), ("muon", "restart")])
def test_schedules_static_and_traced(tree, name, on_thaw):
    """Freeze and thaw again, over phases with `migrate` and step by step in one program."""
    tx, everything = OPTIMIZERS[name](), [(".*", True)]
    schedule = FreezeSchedule([(0, everything), (1, FROZEN), (3, everything)])
    scheduled = freezejax.scheduled_freeze(tx, schedule, on_thaw=on_thaw)

    @jax.jit
    def step(params, state):
        updates, state = scheduled.update(jax.grad(loss)(params), state, params)
        return freezejax.apply_updates(params, updates), state

    traced, state = tree, scheduled.init(tree)
    for _ in range(STEPS):
        traced, state = step(traced, state)

    params, state, kept, old = tree, None, {}, None
    for start, stop, mask in schedule.phases(tree, STEPS):
        frozen = freezejax.freeze(tx, mask)
        if state is None:
            state = frozen.init(params)
        else:
            state, kept = freezejax.migrate(state, old, mask, tx=tx, params=params, on_thaw=on_thaw, kept=kept)
        old = mask
        for _ in range(start, stop):
            grads = freezejax.value_and_grad(loss, mask)(params)[1]
            updates, state = frozen.update(grads, state, freezejax.partition(params, mask)[0])
            params = freezejax.apply_updates(params, updates)
    chex.assert_trees_all_close(jax.tree.leaves(params), jax.tree.leaves(traced), rtol=1e-4, atol=1e-5)


def test_layer_by_layer_and_mask_at():
    params = TREES["equinox layers"]()
    schedule = freezejax.layer_by_layer(params, [1], pattern=r"layers/(\d+)/.*")
    later = jax.jit(lambda step: schedule.mask_at(params, step))(jnp.int32(1))
    assert [bool(leaf) for leaf in jax.tree.leaves(later)] == [False, False, True, True]


def test_the_same_updates_as_of_the_dict_of_its_fields(tx):
    """An independent way: parameters that never were a module."""
    plain = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    moved = static_steps(tx, Record(**plain), whole=False)
    chex.assert_trees_all_equal({"w": moved.w, "b": moved.b}, static_steps(tx, plain, whole=False))
