"""Rows of one array that train: the others keep every bit, under any optimizer that works element by element."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax import contrib

import freezejax
from freezejax import FreezeSchedule, UserError, describe, join_rows, rows, trainable_mask
from freezejax.paths import leaf_paths

pytestmark = pytest.mark.usefixtures("optax_promotion")

STEPS, VOCABULARY, NEW = 5, 6, slice(-2, None)
ONLY_NEW = [("embed/rest", False), (".*", True)]
# -0.0, a quiet NaN with payload, infinity, a subnormal number.
SPECIAL = np.array([0x80000000, 0x7FC12345, 0x7F800000, 0x00000001], np.uint32).view(np.float32)


def params():
    embed = np.random.default_rng(0).normal(size=(VOCABULARY, 4)).astype(np.float32)
    embed[0] = SPECIAL
    return {"embed": embed, "head": np.ones((4, 3), np.float32)}


def loss(params, tokens):
    hidden = jnp.tanh(join_rows(params)["embed"][tokens])
    return jnp.mean(jnp.square(hidden @ params["head"] - 0.3))


TOKENS = jnp.array([[1, 4, 5], [5, 2, 3], [1, 4, 4], [2, 2, 5], [3, 1, 4]])


def bits(array):
    return np.asarray(array).view(np.uint32)


def train(tx, split, rules=ONLY_NEW, steps=STEPS):
    mask = trainable_mask(split, rules)
    frozen, gradient = freezejax.freeze(tx, mask), freezejax.value_and_grad(loss, mask)

    @jax.jit
    def step(params, state, tokens):
        _, grads = gradient(params, tokens)
        updates, state = frozen.update(grads, state, freezejax.partition(params, mask)[0])
        return freezejax.apply_updates(params, updates), state

    state = frozen.init(split)
    for tokens in TOKENS[:steps]:
        split, state = step(split, state, tokens)
    return split


@given(st.lists(st.booleans(), min_size=2, max_size=9).filter(lambda chosen: 0 < sum(chosen) < len(chosen)), st.data())
def test_join_rows_undoes_rows(chosen, data):
    axis, count = data.draw(st.integers(0, 2)), len(chosen)
    shape = [2, 2, 2]
    shape[axis] = count
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    which = data.draw(st.sampled_from([np.array(chosen), np.flatnonzero(chosen).tolist()]))
    split = rows({"w": array}, [("w", which)], axis=axis)
    np.testing.assert_array_equal(split["w"].rows, np.compress(chosen, array, axis))
    np.testing.assert_array_equal(split["w"].rest, np.compress(np.logical_not(chosen), array, axis))
    assert np.asarray(join_rows(split)["w"]).tobytes() == array.tobytes()
    assert np.asarray(jax.jit(join_rows)(split)["w"]).tobytes() == array.tobytes()


def test_the_other_rows_keep_every_bit_and_the_new_ones_move(optimizer):
    start = params()
    if optimizer.name == "muon":
        with pytest.raises(UserError, match="multiplies 'embed' as a matrix"):
            train(optimizer.make(), rows(start, [("embed", NEW)]))
        return
    after = join_rows(train(optimizer.make(), rows(start, [("embed", NEW)])))["embed"]
    np.testing.assert_array_equal(bits(after)[:-2], bits(start["embed"])[:-2])
    assert np.all(np.asarray(after)[-2:] != start["embed"][-2:])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_rows_move_as_in_an_array_whose_other_gradients_are_zero(decay):
    """Independently of freezejax: the whole array in AdamW after a clip, the other rows set back after each step."""
    tx = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(0.05, weight_decay=decay))
    start = params()
    start["embed"][0] = 0.0
    whole = jax.tree.map(jnp.asarray, start)
    state = tx.init(whole)
    for tokens in TOKENS:
        grads = jax.grad(loss)(whole, tokens)
        grads["embed"] = grads["embed"].at[:-2].set(0.0)
        updates, state = tx.update(grads, state, whole)
        whole = optax.apply_updates(whole, updates)
        whole["embed"] = whole["embed"].at[:-2].set(start["embed"][:-2])
    found = join_rows(train(tx, rows(start, [("embed", NEW)])))
    chex.assert_trees_all_close(found, whole, rtol=1e-5, atol=1e-6)


def test_counterpart_without_rows_decay_and_momentum_move_every_row():
    after = train(optax.adamw(0.05, weight_decay=0.1), params(), [(".*", True)])["embed"]
    assert not np.any(np.asarray(after)[1:] == params()["embed"][1:])


def test_a_schedule_thaws_the_rest_static_and_traced():
    tx, split = optax.adamw(0.05), rows(params() | {"embed": np.ones((VOCABULARY, 4), np.float32)}, [("embed", NEW)])
    schedule = FreezeSchedule([(0, ONLY_NEW), (2, [(".*", True)])])
    scheduled = freezejax.scheduled_freeze(tx, schedule)

    @jax.jit
    def step(params, state, tokens):
        updates, state = scheduled.update(jax.grad(loss)(params, tokens), state, params)
        return freezejax.apply_updates(params, updates), state

    traced, state = split, scheduled.init(split)
    for at, tokens in enumerate(TOKENS):
        before = traced["embed"].rest
        traced, state = step(traced, state, tokens)
        assert np.array_equal(traced["embed"].rest, before) == (at < 2)
    first, second = schedule.phases(split, STEPS)
    frozen, thawed = freezejax.freeze(tx, first.mask), freezejax.freeze(tx, second.mask)
    found, state = split, frozen.init(split)
    for at, tokens in enumerate(TOKENS):
        if at == second.start:
            state, _ = freezejax.migrate(state, first.mask, second.mask, tx=tx, params=found)
        phase, transform = (first, frozen) if at < second.start else (second, thawed)
        grads = freezejax.value_and_grad(loss, phase.mask)(found, tokens)[1]
        updates, state = transform.update(grads, state, freezejax.partition(found, phase.mask)[0])
        found = freezejax.apply_updates(found, updates)
    chex.assert_trees_all_close(found, traced, rtol=1e-4, atol=1e-6)


def test_describe_states_what_the_rows_cost():
    split = rows(params(), [("embed", NEW)])
    (((_, table)),) = describe(split, trainable_mask(split, ONLY_NEW)).phases
    by_group = {row.group: row for row in table}
    new, rest, total = by_group["embed/rows"], by_group["embed/rest"], by_group["total"]
    assert (new.parameters, new.weight_bytes, new.gradient_bytes, new.state_bytes) == (8, 32, 32, 64)
    assert (rest.parameters, rest.weight_bytes, rest.gradient_bytes, rest.state_bytes) == (16, 64, 0, 0)
    assert (total.parameters, total.trainable_parameters) == (24 + 12, 8 + 12)


def test_the_gradient_and_the_state_hold_nothing_for_the_other_rows():
    split = rows(params(), [("embed", NEW)])
    mask = trainable_mask(split, ONLY_NEW)
    _, grads = freezejax.value_and_grad(loss, mask)(split, TOKENS[0])
    assert leaf_paths(grads) == ["embed/rows", "head"]
    state = freezejax.freeze(optax.sgd(0.1, momentum=0.9), mask).init(split)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 4 + 4 * 3


MIXING = {
    "muon": lambda: contrib.muon(0.02),
    "muon after a clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), contrib.muon(0.02)),
    "accumulated muon": lambda: optax.MultiSteps(contrib.muon(0.02), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("way", ["static", "scheduled"])
def test_an_optimizer_that_mixes_rows_is_refused(name, way):
    split = rows({"embed": np.ones((VOCABULARY, 4), np.float32), "head": np.ones((4, 3), np.float32)}, [("embed", NEW)])
    mask, tx = trainable_mask(split, ONLY_NEW), MIXING[name]()
    frozen = (
        freezejax.freeze(tx, mask)
        if way == "static"
        else freezejax.scheduled_freeze(tx, FreezeSchedule([(0, ONLY_NEW)]))
    )
    with pytest.raises(UserError, match="multiplies 'embed' as a matrix"):
        frozen.update(split, frozen.init(split), split)


def test_muon_of_other_leaves_goes_with_rows():
    """As it is used: Adam for the embedding, Muon for the matrices of the blocks."""
    labels = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: "muon" if path[0].key == "head" else "adam", tree
    )
    tx = optax.multi_transform({"muon": contrib.muon(0.02), "adam": optax.adam(0.1)}, labels)
    start = params()
    after = join_rows(train(tx, rows(start, [("embed", NEW)])))["embed"]
    np.testing.assert_array_equal(bits(after)[:-2], bits(start["embed"])[:-2])
    # What is frozen as a whole is not refused either.
    split = rows(start, [("embed", NEW)])
    train(contrib.muon(0.02), split, [("embed/.*", False), (".*", True)], steps=1)


ERRORS = {
    "no match": (lambda: rows(params(), [("embd", NEW)]), "rows: 'embd' matches no leaf; nearest: embed"),
    "no axis": (lambda: rows(params(), [("embed", NEW)], axis=2), r"'embed' of shape \(6, 4\) has no axis 2"),
    "beyond": (lambda: rows(params(), [("embed", [6])]), r"\[6\] is no index into the 6 rows of leaf 'embed'"),
    "words": (lambda: rows(params(), [("embed", "new")]), "'new' is no index into the 6 rows"),
    "none": (lambda: rows(params(), [("embed", slice(0, 0))]), "none of the 6 rows of leaf 'embed' are named"),
    "all": (lambda: rows(params(), [("embed", slice(None))]), "all of the 6 rows of leaf 'embed' are named"),
    "old name": (
        lambda: trainable_mask(rows(params(), [("embed", NEW)]), [("embed", False), (".*", True)]),
        "rule 'embed' matches no leaf; nearest: embed/rows, embed/rest",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, check_refused):
    check_refused(*ERRORS[name])


def test_half_of_a_partition_is_refused():
    split = rows(params(), [("embed", NEW)])
    half, _ = freezejax.partition(split, trainable_mask(split, ONLY_NEW))
    with pytest.raises(UserError, match="half of 'embed' is missing; combine the halves first"):
        join_rows(half)
