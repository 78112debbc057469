"""Laws 1 to 3 on any tree, mask, schedule and optimizer chain that Hypothesis draws.

Every operation runs by itself: a jitted step would compile anew for each tree.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import freezejax
from freezejax.paths import leaf_paths
from tests.freezing.strategies import optimizer_of, optimizers, trees_and_masks, trees_and_schedules, weight_trees

pytestmark = pytest.mark.usefixtures("optax_promotion", "one_by_one")

STEPS = 3  # of a static phase
SCHEDULED_STEPS = 6


@pytest.fixture(scope="module")
def one_by_one():
    with jax.disable_jit():
        yield


def loss(params):
    """The gradient of each leaf depends on all of them."""
    leaves = jax.tree.leaves(params)
    total = sum((jnp.sum(jnp.sin(leaf)) for leaf in leaves), start=jnp.float32(1))
    return jnp.square(total) + sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), start=jnp.float32(0))


def halves(tx, params, mask):
    """As the training loop does: nothing but the trainable half is differentiated."""
    gradient, tx = freezejax.value_and_grad(loss, mask), freezejax.freeze(tx, mask)
    state = tx.init(params)
    for _ in range(STEPS):
        _, grads = gradient(params)
        updates, state = tx.update(grads, state, freezejax.partition(params, mask)[0])
        params = freezejax.apply_updates(params, updates)
    return params


def whole(tx, params):
    """As any optax loop does, which knows nothing of freezing."""
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def schedule_of(mask, params):
    rules = [(path, trains) for path, trains in zip(leaf_paths(params), jax.tree.leaves(mask), strict=True)]
    return freezejax.FreezeSchedule([(0, rules), (STEPS, [(".*", True)])])


def by_every_way(tx, params, mask):
    scheduled = freezejax.scheduled_freeze(tx, schedule_of(mask, params))
    return [halves(tx, params, mask), whole(freezejax.freeze(tx, mask), params), whole(scheduled, params)]


def assert_frozen_keep_their_bits(before, after, mask):
    for trains, old, new in zip(*map(jax.tree.leaves, (mask, before, after)), strict=True):
        assert (np.asarray(new).tobytes() == old.tobytes()) != trains


def as_if_constant(tx, params, mask):
    """Without freezejax: the trainable leaves are the parameters, the frozen ones numbers in the loss."""
    leaves, structure = jax.tree.flatten(params)
    trains = jax.tree.leaves(mask)
    live = [leaf for leaf, m in zip(leaves, trains, strict=True) if m]

    def loss_of_live(live):
        moving = iter(live)
        return loss([next(moving) if m else leaf for leaf, m in zip(leaves, trains, strict=True)])

    state = tx.init(live)
    for _ in range(STEPS):
        updates, state = tx.update(jax.grad(loss_of_live)(live), state, live)
        live = optax.apply_updates(live, updates)
    moving = iter(live)
    return jax.tree.unflatten(structure, [next(moving) if m else leaf for leaf, m in zip(leaves, trains, strict=True)])


def assert_close(one, other):
    chex.assert_trees_all_close(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=8)
@given(trees_and_masks(weight_trees), optimizers)
def test_law_1_frozen_leaves_keep_their_bits(tree_and_mask, tx):
    tree, mask = tree_and_mask
    for after in by_every_way(tx, tree, mask):
        assert_frozen_keep_their_bits(tree, after, mask)


@settings(max_examples=8)
@given(trees_and_masks(weight_trees), optimizers)
def test_law_2_trainable_leaves_move_as_if_the_frozen_were_constants(tree_and_mask, tx):
    tree, mask = tree_and_mask
    expected = as_if_constant(tx, tree, mask)
    for after in by_every_way(tx, tree, mask):
        assert_close(after, expected)


def static_phases(tx, params, schedule, on_thaw, boundary=freezejax.migrate):
    """-> parameters after every step."""
    state, kept, old_mask, trajectory = None, {}, None, []
    for start, stop, mask in schedule.phases(params, SCHEDULED_STEPS):
        frozen = freezejax.freeze(tx, mask)
        if state is None:
            state = frozen.init(params)
        else:
            state, kept = boundary(state, old_mask, mask, tx=tx, params=params, on_thaw=on_thaw, kept=kept)
        old_mask = mask
        for _ in range(start, stop):
            _, grads = freezejax.value_and_grad(loss, mask)(params)
            updates, state = frozen.update(grads, state, freezejax.partition(params, mask)[0])
            params = freezejax.apply_updates(params, updates)
            trajectory.append(params)
    return trajectory


def scheduled_steps(tx, params, schedule, on_thaw):
    tx, trajectory = freezejax.scheduled_freeze(tx, schedule, on_thaw=on_thaw), []
    state = tx.init(params)
    for _ in range(SCHEDULED_STEPS):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = freezejax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory


@settings(max_examples=8)
@given(trees_and_schedules(SCHEDULED_STEPS), optimizers, st.sampled_from(["restart", "keep"]))
def test_law_3_static_phases_equal_the_scheduled_mask(tree_and_schedule, tx, on_thaw):
    tree, schedule = tree_and_schedule
    phases = static_phases(tx, tree, schedule, on_thaw)
    assert_close(phases, scheduled_steps(tx, tree, schedule, on_thaw))


# Switched off, each to show that the laws above would notice.

TREE = {"a": [np.float32([-0.0, 1.0]), np.float32([[0.5, -1.0, 2.0]])], "b": {3: np.float32([0.3, 0.2])}}
MASK = {"a": [False, True], "b": {3: True}}


def test_counterpart_law_1_zeroed_gradients_still_decay():
    zeroed = optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK))
    after = whole(optax.chain(zeroed, optimizer_of("adamw", "none")), TREE)
    with pytest.raises(AssertionError):
        assert_frozen_keep_their_bits(TREE, after, MASK)


def test_counterpart_law_2_a_clip_outside_sees_the_frozen():
    inner = optimizer_of("sgd momentum", "none")
    outside = optax.chain(optax.clip_by_global_norm(0.1), freezejax.freeze(inner, MASK))
    with pytest.raises(AssertionError):
        assert_close(whole(outside, TREE), as_if_constant(optimizer_of("sgd momentum", "before"), TREE, MASK))


@pytest.mark.parametrize("on_thaw", ["restart", "keep"])
def test_counterpart_law_3_a_new_optimizer_at_the_boundary(on_thaw):
    def forget(_, old_mask, mask, *, tx, params, on_thaw, kept):
        return freezejax.freeze(tx, mask).init(params), kept

    everything, tx = [(".*", True)], optimizer_of("adamw", "none")
    schedule = freezejax.FreezeSchedule([(0, everything), (2, [("a/0", False), *everything]), (4, everything)])
    forgotten = static_phases(tx, TREE, schedule, on_thaw, boundary=forget)
    with pytest.raises(AssertionError):
        assert_close(forgotten, scheduled_steps(tx, TREE, schedule, on_thaw))
