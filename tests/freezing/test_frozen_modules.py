"""A frozen layer computes the same bits before and after training, its BatchNorm and dropout included."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import freezejax
from freezejax import UserError, frozen_modules

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS, FEATURES = 20, 4
BATCHES = 3 * jax.random.normal(jax.random.key(0), (STEPS, 8, FEATURES)) + jnp.arange(float(STEPS))[:, None, None]
FIXED = jax.random.normal(jax.random.key(1), (8, FEATURES))
RULES = [("stem/.*", False), (".*", True)]


class Found(NamedTuple):
    """Before and after training: what the stem gives for FIXED within a training step, and in evaluation."""

    in_training: tuple[jax.Array, jax.Array]
    in_evaluation: tuple[jax.Array, jax.Array]
    head: tuple[jax.Array, jax.Array]  # the first statistic of the head


def optimize(params, others, loss):
    """`loss(params, others, x, key) -> (scalar, others)`. -> parameters and the rest after STEPS steps."""
    mask = freezejax.trainable_mask(params, RULES)
    gradient, tx = freezejax.value_and_grad(loss, mask, has_aux=True), freezejax.freeze(optax.adamw(0.05), mask)

    def step(carry, batch):
        params, others, state = carry
        (_, others), grads = gradient(params, others, *batch)
        updates, state = tx.update(grads, state, freezejax.partition(params, mask)[0])
        return (freezejax.apply_updates(params, updates), others, state), None

    keys = jax.random.split(jax.random.key(2), STEPS)
    (params, others, _), _ = jax.lax.scan(step, (params, others, tx.init(params)), (BATCHES, keys))
    return params, others


class LinenPart(nn.Module):
    @nn.compact
    def __call__(self, x, still):
        x = nn.BatchNorm(use_running_average=still, momentum=0.9, name="norm")(nn.Dense(FEATURES, name="dense")(x))
        return nn.Dropout(0.5, deterministic=still)(x)


class LinenNet(nn.Module):
    frozen: Callable[[str], bool]

    @nn.compact
    def __call__(self, x, train):
        x = LinenPart(name="stem")(x, not train or self.frozen("stem"))
        return LinenPart(name="head")(x, not train or self.frozen("head"))


def linen(frozen):
    net = LinenNet(frozen)
    variables = net.init({"params": jax.random.key(3), "dropout": jax.random.key(4)}, FIXED, True)

    def loss(params, stats, x, key):
        out, changed = net.apply(
            {"params": params, "batch_stats": stats}, x, True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(out - 1.0)), changed["batch_stats"]

    def stem(params, stats, train, seed):
        variables = {"params": params["stem"], "batch_stats": stats["stem"]}
        rngs = {"dropout": jax.random.key(seed)}
        return LinenPart().apply(variables, FIXED, not train or frozen("stem"), rngs=rngs, mutable=["batch_stats"])[0]

    start = (variables["params"], variables["batch_stats"])
    return start, optimize(*start, loss), stem, lambda stats: stats["head"]["norm"]["mean"]


class NnxPart(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = nnx.BatchNorm(FEATURES, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.dropout(self.norm(self.dense(x)), rngs=rngs)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.stem, self.head = NnxPart(rngs), NnxPart(rngs)


def nnx_(frozen):
    model = NnxNet(nnx.Rngs(0))
    for path, module in list(nnx.iter_modules(model)):
        if frozen(path):
            module.eval()
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    params, stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def loss(params, stats, x, key):
        model = nnx.merge(graph, params, stats)
        rngs = nnx.Rngs(dropout=key)
        out = model.head(model.stem(x, rngs), rngs)
        return jnp.mean(jnp.square(out - 1.0)), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    def stem(params, stats, train, seed):
        model = nnx.merge(graph, params, stats)
        if not train:
            model.eval()
        return model.stem(FIXED, nnx.Rngs(dropout=seed))

    return (params, stats), optimize(params, stats, loss), stem, lambda stats: stats["head"]["norm"]["mean"]


class EquinoxPart(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.dense = eqx.nn.Linear(FEATURES, FEATURES, key=key)
        self.norm = eqx.nn.BatchNorm(FEATURES, axis_name="batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x_BxF, state, key):
        def one(x, key, state):
            x, state = self.norm(self.dense(x), state)
            return self.dropout(x, key=key), state

        keys = jax.random.split(key, len(x_BxF))
        return jax.vmap(one, axis_name="batch", in_axes=(0, 0, None), out_axes=(0, None))(x_BxF, keys, state)


class EquinoxNet(eqx.Module):
    stem: EquinoxPart
    head: EquinoxPart

    def __init__(self, key):
        one, other = jax.random.split(key)
        self.stem, self.head = EquinoxPart(one), EquinoxPart(other)


def equinox(frozen):
    model, statistics = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(5))
    for name in ("stem", "head"):
        if frozen(name):
            model = eqx.tree_at(lambda m, name=name: getattr(m, name), model, replace_fn=eqx.nn.inference_mode)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, state, x, key):
        model = eqx.combine(params, static)
        one, other = jax.random.split(key)
        hidden, state = model.stem(x, state, one)
        out, state = model.head(hidden, state, other)
        return jnp.mean(jnp.square(out - 1.0)), state

    def stem(params, state, train, seed):
        model = eqx.combine(params, static)
        model = model if train else eqx.nn.inference_mode(model)
        return model.stem(FIXED, state, jax.random.key(seed))[0]

    def mean_of_head(state):
        return state.get(model.head.norm.batch_state_index)[0]

    return (params, statistics), optimize(params, statistics, loss), stem, mean_of_head


FRAMEWORKS = {"linen": linen, "nnx": nnx_, "equinox": equinox}
MASK = {"stem": {"dense": False, "norm": False}, "head": {"dense": True, "norm": True}}


def run(framework, frozen):
    before, after, stem, mean_of_head = FRAMEWORKS[framework](frozen)
    return Found(
        (stem(*before, True, 6), stem(*after, True, 7)),
        (stem(*before, False, 6), stem(*after, False, 7)),
        (mean_of_head(before[1]), mean_of_head(after[1])),
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frozen_layer_computes_the_same_bits_after_training(framework):
    found = run(framework, frozen_modules(MASK))
    for before, after in (found.in_training, found.in_evaluation):
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    assert not np.any(np.equal(*found.head))  # what trains goes on with its statistics


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_counterpart_a_mask_alone_leaves_statistics_and_dropout_alive(framework):
    found = run(framework, lambda path: False)
    for before, after in (found.in_training, found.in_evaluation):
        assert not np.allclose(before, after, atol=0.1)


PATHS = {
    "stem": True,
    "stem/dense": True,
    "stem/dropout": True,
    "stem/block/dropout": True,
    "head": False,
    "head/dropout": False,
    "half": False,
    "half/w": True,
    "": False,
}
MIXED = MASK | {"half": {"w": False, "b": True}}


@pytest.mark.parametrize("path", PATHS)
def test_a_module_is_frozen_when_nothing_in_it_trains(path):
    frozen = frozen_modules(MIXED)
    assert frozen(path) is frozen(tuple(path.split("/")) if path else ()) is PATHS[path]
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in path.split("/")) if path else ()
    assert frozen(keys) is PATHS[path]


def test_a_walk_over_modules_may_name_one_without_parameters_at_the_top():
    assert frozen_modules(MASK)(("dropout",)) is False
    assert frozen_modules({"stem": False})(("dropout",)) is True
    assert frozen_modules({"layers": [False, True]})(("layers", 0)) is True


def test_every_module_of_a_walk_by_nnx():
    frozen = frozen_modules(MASK)
    found = {"/".join(map(str, path)) for path, _ in nnx.iter_modules(NnxNet(nnx.Rngs(0))) if frozen(path)}
    assert found == {"stem", "stem/dense", "stem/norm", "stem/dropout"}


def test_a_misspelt_module_is_named():
    with pytest.raises(UserError, match="the mask has no module 'stme'; nearest: stem"):
        frozen_modules(MASK)("stme")
    with pytest.raises(UserError, match="not a Python bool"):
        frozen_modules({"w": jnp.array(True)})


def test_bools_of_any_kind_and_a_bare_mask():
    assert frozen_modules({"a": np.bool_(False)})("a") is True
    assert frozen_modules(False)("") is True
    chex.assert_equal(frozen_modules(True)(("anything",)), False)
