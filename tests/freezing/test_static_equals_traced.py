"""Law 3: static phases and the step-dependent mask give the same training trajectory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import freezejax

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS = 9
LEAVES = ("down/kernel", "up/bias", "up/kernel")
INPUTS = jax.random.normal(jax.random.key(0), (STEPS, 5, 4))
EVERYTHING = [(".*", True)]
FREEZE_UP = [("up/.*", False), (".*", True)]
THERE_AND_BACK = freezejax.FreezeSchedule(
    [
        (0, FREEZE_UP),
        (2, EVERYTHING),
        (4, FREEZE_UP),
        (5, [("down/.*", False), (".*", True)]),
        (7, EVERYTHING),
    ]
)


def draw(seed):
    up, bias, down = jax.random.split(jax.random.key(seed), 3)
    return {
        "up": {"kernel": jax.random.normal(up, (4, 3)), "bias": jax.random.normal(bias, (3,))},
        "down": {"kernel": jax.random.normal(down, (3, 2))},
    }


def loss(params, x_BxI):
    hidden_BxH = jnp.tanh(x_BxI @ params["up"]["kernel"] + params["up"]["bias"][None])
    return jnp.mean(jnp.square(hidden_BxH @ params["down"]["kernel"] - 1.0))


@functools.cache
def step_of(make, flat_mask):
    """The jitted step of a static phase and its optimizer; `flat_mask` goes with LEAVES."""
    mask = {"down": {"kernel": flat_mask[0]}, "up": {"bias": flat_mask[1], "kernel": flat_mask[2]}}
    gradient, tx = freezejax.value_and_grad(loss, mask), freezejax.freeze(make(), mask)

    def step(params, state, x_BxI):
        _, grads = gradient(params, x_BxI)
        updates, state = tx.update(grads, state, freezejax.partition(params, mask)[0])
        return freezejax.apply_updates(params, updates), state

    return jax.jit(step), tx


def static(make, schedule, params, on_thaw="restart", boundary=freezejax.migrate):
    """The loop of a training run over static phases. -> parameters after each step, stacked."""
    state, kept, old_mask, trajectory = None, {}, None, []
    for start, stop, mask in schedule.phases(params, STEPS):
        step, tx = step_of(make, tuple(jax.tree.leaves(mask)))
        if state is None:
            state = tx.init(freezejax.partition(params, mask)[0])
        else:
            options = {"tx": make(), "params": params, "on_thaw": on_thaw, "kept": kept}
            state, kept = boundary(state, old_mask, mask, **options)
        old_mask = mask
        for at in range(start, stop):
            params, state = step(params, state, INPUTS[at])
            trajectory.append(params)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trajectory)


def traced(make, schedule, params, on_thaw="restart"):
    """The same as one `lax.scan` with one program for all phases."""
    tx = freezejax.scheduled_freeze(make(), schedule, on_thaw=on_thaw)

    def step(carry, x_BxI):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x_BxI), state, params)
        params = freezejax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), INPUTS)[1]


def one_jit(make, schedule, params, on_thaw="restart"):
    return jax.jit(lambda params: traced(make, schedule, params, on_thaw))(params)


def assert_same(one, other):
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=2e-6)


def assert_frozen_still(schedule, params, trajectory):
    before = jax.tree.map(lambda first, later: np.concatenate([first[None], later]), params, trajectory)
    for start, stop, mask in schedule.phases(params, STEPS):
        for trains, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(before), strict=True):
            for step in range(start, stop):
                assert np.array_equal(leaf[step], leaf[step + 1]) != trains


def differs(one, other):
    return any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


@st.composite
def schedules(draw):
    starts = [0, *sorted(draw(st.sets(st.integers(1, STEPS - 1), min_size=2, max_size=4)))]
    trainable = st.sampled_from([(True, True, True), (True, False, False), (False, True, True), (False,) * 3])
    return freezejax.FreezeSchedule([(at, list(zip(LEAVES, draw(trainable), strict=True))) for at in starts])


def adamw():
    return optax.adamw(0.05, weight_decay=0.1)


@settings(max_examples=2)
@given(schedule=schedules(), on_thaw=st.sampled_from(["restart", "keep"]), seed=st.integers(0, 9))
def test_random_schedules(optimizer, schedule, on_thaw, seed):
    params = draw(seed)
    phases = static(optimizer.make, schedule, params, on_thaw)
    assert_same(phases, one_jit(optimizer.make, schedule, params, on_thaw))


@settings(max_examples=5)
@given(schedule=schedules(), on_thaw=st.sampled_from(["restart", "keep"]))
def test_more_random_schedules(schedule, on_thaw):
    params = draw(1)
    phases = static(adamw, schedule, params, on_thaw)
    assert_same(phases, one_jit(adamw, schedule, params, on_thaw))


@pytest.mark.parametrize("on_thaw", ["restart", "keep"])
def test_vmap_over_initial_parameters(optimizer, on_thaw):
    """Freeze, thaw and freeze again, in one program for a stack of runs."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), draw(4), draw(5))
    sweep = jax.vmap(lambda params: traced(optimizer.make, THERE_AND_BACK, params, on_thaw))
    swept = jax.jit(sweep)(stacked)
    for index in range(2):
        params, trajectory = jax.tree.map(lambda leaf, at=index: leaf[at], (stacked, swept))
        assert_same(static(optimizer.make, THERE_AND_BACK, params, on_thaw), trajectory)


def test_vmap_over_learning_rates():
    rates, params = jnp.float32([0.3, 0.01]), draw(3)
    sweep = jax.vmap(lambda rate: traced(lambda: optax.adamw(rate), THERE_AND_BACK, params))
    swept = jax.jit(sweep)(rates)
    for index, rate in enumerate(rates):
        alone = static(lambda rate=rate: optax.adamw(rate), THERE_AND_BACK, params)
        assert_same(alone, jax.tree.map(lambda leaf, at=index: leaf[at], swept))


def test_vmap_over_freeze_steps():
    """`mask_at` takes a traced step, so runs that freeze at other steps are swept by shifting it."""
    schedule = freezejax.FreezeSchedule([(0, EVERYTHING), (3, FREEZE_UP)])
    masks = jax.vmap(lambda shift: schedule.mask_at(draw(0), 2 + shift))(jnp.arange(3))
    assert masks["up"]["kernel"].tolist() == [True, False, False]


@pytest.mark.parametrize("on_thaw", ["restart", "keep"])
def test_frozen_between_the_boundaries_and_moving_otherwise(on_thaw):
    params = draw(1)
    assert_frozen_still(THERE_AND_BACK, params, static(adamw, THERE_AND_BACK, params, on_thaw))
    assert_frozen_still(THERE_AND_BACK, params, one_jit(adamw, THERE_AND_BACK, params, on_thaw))


def momentum():
    return optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9))


def test_eager_equals_jit():
    params = draw(2)
    jitted = static(momentum, THERE_AND_BACK, params)
    with jax.disable_jit():
        assert_same(jitted, static(momentum, THERE_AND_BACK, params))
        assert_same(jitted, traced(momentum, THERE_AND_BACK, params))


def test_one_jitted_step_called_in_a_loop():
    params, tx = draw(2), freezejax.scheduled_freeze(adamw(), THERE_AND_BACK)
    expected, state = one_jit(adamw, THERE_AND_BACK, params), tx.init(params)
    step = jax.jit(lambda params, state, x: tx.update(jax.grad(loss)(params, x), state, params))
    for x_BxI in INPUTS:
        updates, state = step(params, state, x_BxI)
        params = optax.apply_updates(params, updates)
    assert_same(jax.tree.map(lambda leaf: leaf[-1], expected), params)
    assert step._cache_size() == 1


def test_a_boundary_inside_jit():
    def boundary(state, old_mask, mask, *, tx, params, on_thaw, kept):
        def migrate(state, params, kept):
            options = {"tx": tx, "params": params, "on_thaw": on_thaw, "kept": kept}
            return freezejax.migrate(state, old_mask, mask, **options)

        return jax.jit(migrate)(state, params, kept)

    params = draw(6)
    eager = static(adamw, THERE_AND_BACK, params, "keep")
    chex.assert_trees_all_equal(eager, static(adamw, THERE_AND_BACK, params, "keep", boundary))


def test_the_step_count_runs_on_and_state_of_the_frozen_is_gone():
    tx, params = optax.adam(0.1), draw(0)
    schedule = freezejax.FreezeSchedule([(0, EVERYTHING), (3, FREEZE_UP)])
    all_on, up_off = (phase.mask for phase in schedule.phases(params, STEPS))
    state = freezejax.freeze(tx, all_on).init(params)
    for _ in range(3):
        _, state = freezejax.freeze(tx, all_on).update(params, state, params)
    before = state.inner_states["trainable"].inner_state[0]
    for on_thaw, held in (("restart", 0), ("keep", 4)):
        new, kept = freezejax.migrate(state, all_on, up_off, tx=tx, params=params, on_thaw=on_thaw)
        after = new.inner_states["trainable"].inner_state[0]
        assert (int(after.count), len(jax.tree.leaves(after.mu)), len(kept)) == (3, 1, held)
        chex.assert_trees_all_equal(after.mu["down"], before.mu["down"])


# Switched off, each to show that the tests above would notice.


def test_counterpart_a_new_optimizer_at_the_boundary_differs():
    def forget(_, old_mask, mask, *, tx, params, on_thaw, kept):
        return freezejax.freeze(tx, mask).init(params), kept

    params = draw(1)
    forgotten = static(adamw, THERE_AND_BACK, params, boundary=forget)
    assert differs(static(adamw, THERE_AND_BACK, params), forgotten)


@pytest.mark.parametrize("run", [static, one_jit])
def test_counterpart_keep_differs_from_restart(run):
    params = draw(1)
    restarted = run(adamw, THERE_AND_BACK, params, "restart")
    assert differs(run(adamw, THERE_AND_BACK, params, "keep"), restarted)


def test_counterpart_add_noise_depends_on_the_number_of_leaves():
    """The exception that `scheduled_freeze` names: `add_noise` splits its key by that number."""

    def noisy():
        return optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1))

    params = draw(1)
    assert differs(static(noisy, THERE_AND_BACK, params), one_jit(noisy, THERE_AND_BACK, params))
