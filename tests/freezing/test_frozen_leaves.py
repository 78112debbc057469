"""Law 1: a frozen leaf keeps its bits. Law 2: to the trainable leaves a frozen leaf is a constant.

Every optimizer runs once compiled; Hypothesis then draws the bits of frozen weights and of their gradients.
"""

import functools

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import freezejax

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS = 5
RULES = [("frozen/.*", False), (".*", True)]
SHAPES = {"frozen": {"w": (4, 3), "b": (3,)}, "live": {"w": (3, 4), "b": (4,)}}
MASK = {"frozen": {"w": False, "b": False}, "live": {"w": True, "b": True}}
FROZEN_SIZE = 4 * 3 + 3
# -0.0, a quiet and a signalling NaN with payload, infinity, the two ends of the subnormal numbers.
SPECIAL = np.array([0x80000000, 0x7FC12345, 0xFF800001, 0x7F800000, 0x00000001, 0x807FFFFF], np.uint32)

any_bits = hnp.arrays(np.uint32, FROZEN_SIZE)


def draw(seed, shape=()):
    key = jax.random.key(seed)
    names = iter(range(4))
    return jax.tree.map(
        lambda size: jax.random.normal(jax.random.fold_in(key, next(names)), (*shape, *size)),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def from_bits(bits):
    values = jnp.asarray(bits.view(np.float32))
    return {"w": values[..., :12].reshape(*bits.shape[:-1], 4, 3), "b": values[..., 12:]}


def bits_of(tree):
    return jax.tree.map(lambda x: np.asarray(x).view(np.uint32), tree)


def survives_addition(bits):
    """`bits` without what no addition keeps: CPUs flush subnormal numbers and quieten signalling NaNs."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    lost = (exponent == 0) & (fraction != 0) | (exponent == 0xFF) & (fraction != 0) & (fraction < 0x400000)
    return np.where(lost, np.uint32(0x80000000), bits)


def scanned(update, init, apply, half=lambda tree: tree):
    def run(params, grads_by_step):
        def step(carry, grads):
            params, state = carry
            updates, state = update(half(grads), state, half(params))
            params = apply(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, init(half(params))), grads_by_step)[1]

    return run


@functools.cache
def trajectories(optimizer):
    """Compiled: initial trees and gradients by step -> parameters after each step, by way of freezing."""
    tx = optimizer.make()
    static = freezejax.freeze(tx, MASK)
    # Two entries: XLA would fold the mask of a single one into a constant.
    schedule = freezejax.FreezeSchedule([(0, RULES), (STEPS, [(".*", True)])])
    traced = freezejax.scheduled_freeze(tx, schedule)
    halves = scanned(static.update, static.init, freezejax.apply_updates, lambda t: freezejax.partition(t, MASK)[0])
    scheduled = scanned(traced.update, traced.init, freezejax.apply_updates)
    full = scanned(static.update, static.init, optax.apply_updates)
    added = scanned(traced.update, traced.init, optax.apply_updates)
    alone = scanned(tx.update, tx.init, freezejax.apply_updates)

    def run(params, tamed, grads):
        exact = {"halves": halves(params, grads), "scheduled": scheduled(params, grads)}
        by_addition = {"full": full(tamed, grads), "scheduled, added": added(tamed, grads)}
        return exact, by_addition, alone({"live": params["live"]}, {"live": grads["live"]})

    return jax.jit(run)


def run(optimizer, weight_bits, grad_bits, seed=0):
    """-> (start, trajectory) by way of freezing, and the trajectory of the trainable leaves alone."""
    params, grads = draw(seed), draw(seed + 1, (STEPS,))
    params["frozen"] = from_bits(weight_bits)
    tamed = params | {"frozen": from_bits(survives_addition(weight_bits))}
    grads["frozen"] = from_bits(np.broadcast_to(grad_bits, (STEPS, FROZEN_SIZE)))
    exact, by_addition, alone = trajectories(optimizer)(params, tamed, grads)
    ways = {way: (params, trajectory) for way, trajectory in exact.items()}
    return ways | {way: (tamed, trajectory) for way, trajectory in by_addition.items()}, alone


def assert_laws(optimizer, weight_bits, grad_bits):
    ways, alone = run(optimizer, weight_bits, grad_bits)
    for start, trajectory in ways.values():
        expected = jax.tree.map(lambda x: np.broadcast_to(x, (STEPS, *x.shape)), bits_of(start["frozen"]))
        chex.assert_trees_all_equal(bits_of(trajectory["frozen"]), expected)
        chex.assert_trees_all_close(trajectory["live"], alone["live"], rtol=2e-5, atol=2e-6)


@settings(max_examples=5)
@given(weight_bits=any_bits, grad_bits=any_bits)
def test_frozen_keeps_its_bits_and_is_a_constant_to_the_rest(optimizer, weight_bits, grad_bits):
    assert_laws(optimizer, weight_bits, grad_bits)


def test_the_special_values(optimizer):
    assert_laws(optimizer, np.resize(SPECIAL, FROZEN_SIZE), np.resize(SPECIAL[::-1], FROZEN_SIZE))


def test_trainable_leaves_do_move(optimizer):
    nothing = np.zeros(FROZEN_SIZE, np.uint32)
    ways, _ = run(optimizer, nothing, nothing)
    for start, trajectory in ways.values():
        for before, after in zip(*map(jax.tree.leaves, (start["live"], trajectory["live"])), strict=True):
            assert not np.array_equal(before, after[-1])


def test_eager_steps_move_trainable_leaves_bit_for_bit_as_alone():
    tx = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05, weight_decay=0.1))
    params, grads = draw(0), draw(1)
    frozen = freezejax.freeze(tx, MASK)
    updates, _ = frozen.update(grads, frozen.init(params), params)
    live, live_grads = params["live"], grads["live"]
    alone, _ = tx.update(live_grads, tx.init(live), live)
    chex.assert_trees_all_equal(bits_of(updates["live"]), bits_of(alone))


# What people write instead, each shown to break the law that the tests above hold.


def one_step(tx, params, grads, state=None):
    updates, state = tx.update(grads, tx.init(params) if state is None else state, params)
    return optax.apply_updates(params, updates), state


def test_counterpart_zeroing_before_adamw_still_decays():
    params, grads = draw(0), draw(1)
    zeroed = optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK))
    after, _ = one_step(optax.chain(zeroed, optax.adamw(0.1, weight_decay=0.1)), params, grads)
    chex.assert_trees_all_close(after["frozen"], jax.tree.map(lambda x: x * 0.99, params["frozen"]), rtol=1e-5)


def test_counterpart_zero_gradients_with_live_moments_keep_moving():
    tx, params, grads = optax.adam(0.1), draw(0), draw(1)
    params, state = one_step(tx, params, grads)
    after, _ = one_step(tx, params, jax.tree.map(jnp.zeros_like, grads), state)
    assert np.all(np.abs(after["frozen"]["w"] - params["frozen"]["w"]) > 0.05)


def test_counterpart_masked_adds_raw_gradients():
    params, grads = draw(0), draw(1)
    after, _ = one_step(optax.masked(optax.adam(0.1), MASK), params, grads)
    chex.assert_trees_all_equal(after["frozen"], jax.tree.map(jnp.add, params["frozen"], grads["frozen"]))


def test_counterpart_set_to_zero_flips_negative_zero():
    params = {"w": jnp.float32([-0.0])}
    after, _ = one_step(optax.set_to_zero(), params, params)
    assert not np.signbit(after["w"]).any()
    assert np.signbit(one_step(freezejax.freeze(optax.sgd(1.0), {"w": False}), params, params)[0]["w"]).all()


def test_counterpart_clip_outside_sees_frozen_gradients():
    params, grads = draw(0), draw(1)
    outside = optax.chain(optax.clip_by_global_norm(0.1), freezejax.freeze(optax.sgd(1.0), MASK))
    inside = freezejax.freeze(optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0)), MASK)
    step = lambda tx: one_step(tx, params, grads)[0]["live"]["w"] - params["live"]["w"]  # noqa: E731
    assert np.all(np.abs(step(outside)) < np.abs(step(inside)) * 0.9)


def test_counterpart_adding_zero_changes_bits_that_apply_updates_keeps():
    params = {"w": jnp.float32([-0.0])}
    zero = {"w": jnp.float32([0.0])}
    assert not np.signbit(optax.apply_updates(params, zero)["w"]).any()
    assert np.signbit(freezejax.apply_updates(params, zero)["w"]).all()
