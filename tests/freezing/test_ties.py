"""A tied leaf is one leaf to everything, and gives back the same array at both places."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import freezejax
from freezejax import FreezeSchedule, UserError, tie, trainable_mask, untie
from freezejax.masks import count_parameters
from freezejax.paths import leaf_paths

pytestmark = pytest.mark.usefixtures("optax_promotion")

HALF = [("embed", False), (".*", True)]
TOKENS = jnp.array([0, 3, 1])


def table():
    return jnp.arange(8.0).reshape(4, 2) / 5


def shared():
    embed = table()
    return {"embed": embed, "head": embed, "scale": jnp.float32(0.5)}


def loss(params):
    hidden = params["embed"][TOKENS] * params["scale"]
    return jnp.mean(jnp.square(hidden @ params["head"].T - 1.0))


def test_tied_leaves_are_counted_masked_and_stored_once():
    tied = tie(shared())
    assert leaf_paths(tied) == ["embed", "scale"]
    assert count_parameters(tied) == 8 + 1
    mask = trainable_mask(tied, [("embed", True), ("scale", False)])
    state = freezejax.freeze(optax.adam(0.1), mask).init(tied)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * 8 + 1
    ((_, rows),) = freezejax.describe(tied, mask).phases
    total = rows[-1]
    assert (total.leaves, total.parameters, total.weight_bytes, total.state_bytes) == (2, 9, 36, 64)
    chex.assert_trees_all_equal(freezejax.combine(*freezejax.partition(tied, mask)), tied)


def test_untie_gives_back_the_same_array_at_both_places():
    whole = untie(tie(shared()))
    assert whole["embed"] is whole["head"]
    chex.assert_trees_all_equal(whole, shared())


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients_of_both_uses_add_up(jit):
    params = shared()
    grads = jit(jax.grad(lambda tied: loss(untie(tied))))(tie(params))
    apart = jax.grad(loss)(params)
    assert leaf_paths(grads) == ["embed", "scale"]
    chex.assert_trees_all_close(grads["embed"], apart["embed"] + apart["head"], rtol=1e-6)
    for leaf in (apart["embed"], apart["head"]):
        assert not np.allclose(grads["embed"], leaf)


def test_training_over_phases_and_in_one_scan():
    """Frozen first, thawed at 2: the embedding that stands at two places moves as one."""
    tx, params = optax.adamw(0.1), tie(shared())
    schedule = FreezeSchedule([(0, HALF), (2, [(".*", True)])])
    scheduled = freezejax.scheduled_freeze(tx, schedule)

    @jax.jit
    def step(params, state):
        updates, state = scheduled.update(jax.grad(lambda tied: loss(untie(tied)))(params), state, params)
        return freezejax.apply_updates(params, updates), state

    state, seen = scheduled.init(params), [params]
    for _ in range(4):
        params, state = step(params, state)
        seen.append(params)
    assert [np.array_equal(p["embed"], table()) for p in seen] == [True, True, True, False, False]
    assert untie(params)["head"] is untie(params)["embed"]


def test_equal_copies_are_tied_by_rules():
    params = {"a": {"w": table()}, "b": {"w": table()}, "c": {"w": table()}}
    assert leaf_paths(tie(params)) == ["a/w", "b/w", "c/w"]
    tied = tie(params, [("[bc]/w", "a/w")])
    assert leaf_paths(tied) == ["a/w"]
    chex.assert_trees_all_equal(untie(tied), params)
    shapes = jax.eval_shape(lambda: tie(params, [("[bc]/w", "a/w")]))
    assert leaf_paths(shapes) == ["a/w"]
    assert jax.tree.structure(untie(shapes)) == jax.tree.structure(params)


def test_a_tied_embedding_of_which_some_rows_train():
    split = freezejax.rows(tie(shared()), [("embed", slice(-1, None))])
    whole = untie(freezejax.join_rows(split))
    chex.assert_trees_all_equal(whole, shared())
    assert whole["embed"] is whole["head"]


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
@pytest.mark.parametrize(
    "use",
    [
        lambda params: trainable_mask(params, HALF),
        lambda params: FreezeSchedule([(0, [(".*", True)]), (3, HALF)]).phases(params, 9),
        lambda params: FreezeSchedule([(0, [(".*", True)]), (3, HALF)]).mask_at(params, 1),
        lambda params: freezejax.scheduled_freeze(optax.sgd(0.1), FreezeSchedule([(0, HALF)])).init(params),
        lambda params: freezejax.describe(params, FreezeSchedule([(0, HALF)]), total_steps=2),
    ],
    ids=["mask", "phases", "mask_at", "scheduled_freeze", "describe"],
)
def test_rules_that_split_one_array_are_refused(make, use):
    embed = make(np.ones((4, 2), np.float32))
    with pytest.raises(UserError, match=r"'embed' and 'head' are one array, but only 'head' trains: .*freezejax.tie"):
        use({"embed": embed, "head": embed})


def test_what_is_not_one_array_is_not_refused():
    copies = {"embed": table(), "head": table()}
    assert trainable_mask(copies, HALF) == {"embed": False, "head": True}
    assert trainable_mask(shared(), [(".*", True)]) == {"embed": True, "head": True, "scale": True}
    number = 1.0
    assert trainable_mask({"embed": number, "head": number}, HALF) == {"embed": False, "head": True}


def test_one_gradient_at_two_leaves_is_no_tie():
    """The gradient of a sum is one array for both terms; the weights are two all the same."""
    params, gradient = {"embed": table(), "head": table() + 1}, table() + 2
    grads = {"embed": gradient, "head": gradient}
    tx = freezejax.scheduled_freeze(optax.sgd(0.1), FreezeSchedule([(0, HALF)]))
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not np.any(updates["embed"])
    assert np.all(updates["head"])


ERRORS = {
    "no such leaf": (lambda: tie(shared(), [("head", "embd")]), "tie: there is no leaf 'embd'; nearest: embed"),
    "no match": (lambda: tie(shared(), [("hed", "embed")]), "tie: 'hed' matches no leaf; nearest: head"),
    "shapes": (
        lambda: tie(shared(), [("scale", "embed")]),
        r"'scale' is float32\[\] and 'embed' is float32\[4, 2\]; they cannot be one",
    ),
    "values": (
        lambda: tie({"a": table(), "b": table() + 1}, [("b", "a")]),
        "'b' and 'a' hold different values, ",
    ),
    "in a chain": (
        lambda: tie({"a": table(), "b": table(), "c": table()}, [("b", "a"), ("c", "b")]),
        "'c' is tied to 'b', which is tied to 'a'; tie both to one leaf",
    ),
    "half a tree": (
        lambda: untie(freezejax.partition(tie(shared()), {**tie(shared()), "embed": False, "scale": True})[0]),
        "leaf 'head' is tied to 'embed', which is missing: untie whole parameters",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, check_refused):
    check_refused(*ERRORS[name])
