"""Law 4: `combine` undoes `partition` on any pytree, and what does not fit is named."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given

import freezejax
from freezejax import apply_updates, combine, freeze, migrate, partition, trainable_mask
from freezejax.masks import invert
from freezejax.paths import leaf_paths
from tests.freezing.strategies import trees, trees_and_masks, vectors


@given(trees_and_masks(trees(vectors)))
def test_combine_undoes_partition(tree_and_mask):
    tree, mask = tree_and_mask
    halves = partition(tree, mask)
    for whole in (combine(*halves), combine(*reversed(halves))):
        assert jax.tree.structure(whole) == jax.tree.structure(tree)
        assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tree), strict=True))


@given(trees_and_masks(trees(vectors)))
def test_halves_hold_each_leaf_once(tree_and_mask):
    tree, mask = tree_and_mask
    trainable, frozen = partition(tree, mask)
    trains = [path for path, m in zip(leaf_paths(tree), jax.tree.leaves(mask), strict=True) if m]
    assert leaf_paths(trainable) == trains
    assert sorted(leaf_paths(trainable) + leaf_paths(frozen)) == sorted(leaf_paths(tree))


@given(trees_and_masks(trees(vectors)))
def test_inverting_the_mask_swaps_the_halves(tree_and_mask):
    tree, mask = tree_and_mask
    chex.assert_trees_all_equal(partition(tree, mask), partition(tree, invert(mask))[::-1])


@given(trees_and_masks(trees(vectors)))
def test_partition_of_a_half_by_the_whole_mask_is_that_half(tree_and_mask):
    tree, mask = tree_and_mask
    trainable, _ = partition(tree, mask)
    chex.assert_trees_all_equal(partition(trainable, mask)[0], trainable)


@given(trees_and_masks(trees(vectors)))
def test_value_and_grad_is_the_trainable_half_of_the_whole_gradient(tree_and_mask):
    tree, mask = tree_and_mask

    def loss(params):
        return sum((jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(params)), start=jnp.float32(0))

    value, grads = freezejax.value_and_grad(loss, mask)(tree)
    expected_value, expected = jax.value_and_grad(loss)(tree)
    chex.assert_trees_all_equal((value, grads), (expected_value, partition(expected, mask)[0]))


def test_value_and_grad_passes_aux_and_arguments_and_takes_integers_in_the_frozen_half():
    params = {"w": jnp.float32(3), "table": jnp.arange(2)}
    loss = lambda p, x, *, shift: (p["w"] * x + shift, p["table"])  # noqa: E731
    gradient = freezejax.value_and_grad(loss, {"w": True, "table": False}, has_aux=True)
    (value, aux), grads = gradient(params, 2.0, shift=1.0)
    assert (float(value), aux.tolist(), float(grads["w"]), grads["table"]) == (7.0, [0, 1], 2.0, None)


@given(trees_and_masks(trees(vectors)))
def test_apply_updates_moves_the_trainable_half_only(tree_and_mask):
    tree, mask = tree_and_mask
    updates, _ = partition(jax.tree.map(lambda leaf: jnp.ones_like(leaf), tree), mask)
    moved = jax.tree.map(lambda m, leaf: leaf + 1 if m else leaf, mask, tree)
    chex.assert_trees_all_equal(apply_updates(tree, updates), moved)


def test_apply_updates_keeps_the_dtype():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    with jax.numpy_dtype_promotion("standard"):
        assert apply_updates(params, {"w": jnp.ones(2, jnp.float32)})["w"].dtype == jnp.bfloat16


PARAMS = {"mlp": {"gate": jnp.ones(2), "down": jnp.ones(3)}, "head": jnp.ones(1)}
MASK = {"mlp": {"gate": False, "down": True}, "head": True}
SGD = optax.sgd(1.0)


def traced_mask(function):
    whole = lambda flag: function({"mlp": {"gate": flag, "down": True}, "head": True})  # noqa: E731
    return lambda: jax.jit(whole)(True)


def wrong_migration():
    state = freeze(optax.lion(1.0), MASK).init(PARAMS)
    return migrate(state, invert(MASK), MASK, tx=optax.lion(1.0), params=PARAMS)


def keep_without_kept(kept):
    """Trains, freezes the gate, thaws it: -> the momentum of the gate."""
    everything, tx = jax.tree.map(lambda _: True, MASK), optax.sgd(1.0, momentum=0.9)
    _, state = freeze(tx, everything).update(PARAMS, freeze(tx, everything).init(PARAMS), PARAMS)
    state, held = migrate(state, everything, MASK, tx=tx, params=PARAMS, on_thaw="keep", kept={})
    kept = held if kept == "what was kept" else kept
    state, _ = migrate(state, MASK, everything, tx=tx, params=PARAMS, on_thaw="keep", kept=kept)
    return state.inner_states["trainable"].inner_state[0].trace["mlp"]["gate"].tolist()


def test_keep_gives_back_what_was_kept_or_starts_afresh_where_nothing_was():
    assert keep_without_kept("what was kept") == [1.0, 1.0]
    assert keep_without_kept({}) == [0.0, 0.0]


def test_keep_needs_nothing_kept_where_nothing_thaws():
    state = freeze(SGD, MASK).init(PARAMS)
    frozen = jax.tree.map(lambda _: False, MASK)
    assert migrate(state, MASK, frozen, tx=SGD, params=PARAMS, on_thaw="keep")[1] == {}


SCHEDULE = freezejax.FreezeSchedule([(0, [(".*", True)])])
ERRORS = {
    "traced mask, partition": (
        traced_mask(lambda m: partition(PARAMS, m)),
        "'mlp/gate' is .*Tracer.*scheduled_freeze",
    ),
    "traced mask, freeze": (
        traced_mask(lambda m: freeze(SGD, m).init(PARAMS)),
        "'mlp/gate' is .*scheduled_freeze",
    ),
    "array mask": (
        lambda: partition({"w": 1}, {"w": jnp.array(True)}),
        "'w' is ArrayImpl, not a Python bool",
    ),
    "leaf without mask": (
        lambda: partition(PARAMS, {"mlp": {"gate": True, "down": True}}),
        "no leaf 'head'; nearest: ",
    ),
    "mask without leaf": (
        lambda: partition({"mlp": {"gate": 1}}, {"mlp": {"gate": True, "gat": True}}),
        "'mlp/gat' is not in the tree; nearest: mlp/gate",
    ),
    "list for tuple": (lambda: partition((1, 2), [True, False]), "other containers"),
    "'0' for 0": (lambda: partition({0: 1}, {"0": True}), "other containers"),
    "freeze, misfit at init": (lambda: freeze(SGD, {"w": True}).init({"v": 1.0}), "no leaf 'v'; nearest: w"),
    "value_and_grad, misfit": (
        lambda: freezejax.value_and_grad(lambda p: 0.0, {"w": True})({"v": 1.0}),
        "no leaf 'v'; nearest: w",
    ),
    "two whole trees": (lambda: combine(PARAMS, PARAMS), "both halves hold leaf 'head'"),
    "wrong old mask": (wrong_migration, "not a state of freeze.*pass the tx and the mask that it was made with"),
    "on_thaw of scheduled_freeze": (
        lambda: freezejax.scheduled_freeze(SGD, SCHEDULE, on_thaw="restrat"),
        "'restrat'; use 'restart' or 'keep'",
    ),
    "on_thaw of migrate": (
        lambda: migrate(SGD.init(PARAMS), MASK, MASK, tx=SGD, params=PARAMS, on_thaw="restrat"),
        "'restrat'; use 'restart' or 'keep'",
    ),
    "keep without what was kept": (
        lambda: keep_without_kept(None),
        r"leaf 'mlp/gate' thaws with on_thaw='keep', but kept is not given: pass the second value .* or kept=\{\}",
    ),
    "two leaves of one path": (
        lambda: trainable_mask({"a/b": 1, "a": {"b": 1}}, [(".*", True)]),
        "'a/b' names two leaves",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, check_refused):
    check_refused(*ERRORS[name])
