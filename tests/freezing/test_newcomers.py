"""What a newcomer tries first works, or ends in one line that says what to write."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

import freezejax
from freezejax import UserError, models
from freezejax.paths import by_path

TRAIN_ALL = {"up": True, "down": True}
UP_FROZEN = {"up": False, "down": True}


@pytest.fixture(autouse=True)
def jax_as_a_user_has_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def arrays():
    return {"up": jnp.linspace(-1, 1, 12).reshape(3, 4), "down": jnp.ones((4, 2))}


class Net(nnx.Module):
    def __init__(self):
        self.up, self.down = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


X = jnp.linspace(-1, 1, 12).reshape(3, 4)


def loss_of(net):
    return jnp.mean((net(X) - 1) ** 2)


@nnx.jit
def nnx_step(net, optimizer):
    optimizer.update(net, nnx.grad(loss_of)(net))


def as_they_are(state):
    return state


RULES = [("up/.*", False), (".*", True)]
TX = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1))


@pytest.mark.parametrize("show", [as_they_are, nnx.to_pure_dict, nnx.as_pure])
def test_nnx_optimizer_takes_a_mask_of_the_state_or_of_its_values(show):
    net = Net()
    start = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    mask = freezejax.trainable_mask(show(nnx.state(net, nnx.Param)), RULES)
    optimizer = nnx.Optimizer(net, freezejax.freeze(TX, mask), wrt=nnx.Param)
    for _ in range(3):
        nnx_step(net, optimizer)
    # An independent run: plain dicts, the frozen half a constant.
    graph, _ = nnx.split(net)
    trained, tx = start, freezejax.freeze(TX, freezejax.trainable_mask(start, RULES))
    state = tx.init(trained)
    for _ in range(3):
        grads = jax.grad(lambda params: loss_of(nnx.merge(graph, params)))(trained)
        updates, state = tx.update(grads, state, trained)
        trained = freezejax.apply_updates(trained, updates)
    found = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    for name in ("kernel", "bias"):
        assert np.array_equal(found["up"][name], start["up"][name])
        assert not np.array_equal(found["down"][name], start["down"][name])
        np.testing.assert_allclose(found["down"][name], trained["down"][name], rtol=1e-5)


def test_nnx_optimizer_across_a_boundary():
    net = Net()
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    every, some = (freezejax.trainable_mask(params, rules) for rules in ([(".*", True)], RULES))
    optimizer = nnx.Optimizer(net, freezejax.freeze(TX, every), wrt=nnx.Param)
    nnx_step(net, optimizer)
    before = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    state, _ = freezejax.migrate(nnx.as_pure(optimizer.opt_state), every, some, tx=TX, params=before)
    optimizer = nnx.Optimizer(net, freezejax.freeze(TX, some), wrt=nnx.Param)
    nnx.update(optimizer.opt_state, nnx.state(state))
    nnx_step(net, optimizer)
    after = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    assert np.array_equal(after["up"]["kernel"], before["up"]["kernel"])
    assert not np.array_equal(after["down"]["kernel"], before["down"]["kernel"])
    counts = [x for x in jax.tree.leaves(nnx.as_pure(optimizer.opt_state)) if x.ndim == 0]
    assert [int(count) for count in counts] == [2]  # the count of Adam went on


def test_nnx_optimizer_with_a_scheduled_freeze():
    net = Net()
    schedule = freezejax.FreezeSchedule([(0, [(".*", True)]), (1, RULES)])
    optimizer = nnx.Optimizer(net, freezejax.scheduled_freeze(optax.adam(0.1), schedule), wrt=nnx.Param)
    nnx_step(net, optimizer)
    before = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    nnx_step(net, optimizer)
    after = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    assert np.array_equal(after["up"]["kernel"], before["up"]["kernel"])
    assert not np.array_equal(after["down"]["kernel"], before["down"]["kernel"])


OPTIMIZERS = {
    "adamw": optax.adamw(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1),
    "muon": optax.contrib.muon(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("old", "new"), [(TRAIN_ALL, UP_FROZEN), (UP_FROZEN, TRAIN_ALL)])
@pytest.mark.parametrize("half", [True, False])
def test_a_forgotten_migrate_is_named(name, old, new, half):
    params, tx = arrays(), OPTIMIZERS[name]
    state = freezejax.freeze(tx, old).init(params)
    shown = freezejax.partition(params, new)[0] if half else params
    with pytest.raises(UserError, match=r"made under another mask.*freezejax\.migrate"):
        jax.jit(freezejax.freeze(tx, new).update)(shown, state, shown)


def test_another_mistake_keeps_its_own_error():
    params, tx = arrays(), freezejax.freeze(optax.adam(0.1), UP_FROZEN)
    with pytest.raises(ValueError, match="down") as caught:
        tx.update({"up": params["up"]}, tx.init(params), params)
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("half", [True, False])
def test_a_gradient_of_another_mask_is_named(name, half):
    """Plain SGD has no state to miss: it left the weight where it was, without a word."""
    params, tx = arrays(), {**OPTIMIZERS, "sgd": optax.sgd(0.1)}[name]
    tx, grads = freezejax.freeze(tx, TRAIN_ALL), freezejax.partition(params, UP_FROZEN)[0]
    shown = grads if half else params
    with pytest.raises(
        UserError, match=r"^freeze: leaf 'up' trains, but the gradient holds nothing there; .* the mask of freeze$"
    ):
        tx.update(grads, tx.init(params), shown)


def test_parameters_of_another_mask_are_named():
    params, tx = arrays(), freezejax.freeze(optax.adamw(0.1), TRAIN_ALL)
    with pytest.raises(UserError, match="leaf 'up' trains, but params hold nothing there; "):
        tx.update(params, tx.init(params), freezejax.partition(params, UP_FROZEN)[0])


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_what_orbax_makes_of_templates_is_as_the_quickstart_says(tmp_path):
    params = arrays()
    whole, some = (freezejax.freeze(optax.adam(0.1), mask) for mask in (TRAIN_ALL, UP_FROZEN))
    for name, tx in [("whole", whole), ("some", some)]:
        _, state = tx.update(params, tx.init(params), params)
        ocp.save(tmp_path / name, state)
    dropped = ocp.load(tmp_path / "whole", some.init(params))
    some.update(params, dropped, params)
    assert not any(path.endswith("/up") for path in by_path(dropped))
    with pytest.raises(UserError, match=r"freezejax\.migrate"):
        whole.update(params, ocp.load(tmp_path / "some", whole.init(params)), params)
    with pytest.raises(UserError, match="the optimizer state is a dict"):
        some.update(params, ocp.load(tmp_path / "some"), params)


def test_a_state_loaded_without_a_template_is_named():
    params, tx = arrays(), freezejax.freeze(optax.adam(0.1), UP_FROZEN)
    moments = {"count": jnp.int32(0), "mu": {"down": params["down"]}, "nu": {"down": params["down"]}}
    state = {"inner_states": {"frozen": {"inner_state": None}, "trainable": {"inner_state": [moments, None]}}}
    with pytest.raises(UserError, match=r"state is a dict; load .*freeze\(tx, mask\)\.init\(params\) as its template$"):
        tx.update(params, state, params)


ADAM, SCHEDULE = optax.adam(0.1), freezejax.FreezeSchedule([(0, [(".*", True)])])
NO_MASKS = {
    "rules": (lambda: freezejax.freeze(ADAM, RULES), "mask leaf '0/0' is str.*make a mask with trainable_mask"),
    "swapped": (lambda: freezejax.freeze(UP_FROZEN, ADAM), r"swapped: freeze\(tx, mask\)"),
    "schedule": (lambda: freezejax.freeze(ADAM, SCHEDULE), r"mask is FreezeSchedule.*schedule\.phases\(params"),
    "numbers": (lambda: freezejax.freeze(ADAM, {"up": 1, "down": 0}), "mask leaf 'down' is int.*trainable_mask"),
    "arrays": (lambda: freezejax.freeze(ADAM, arrays()), "mask leaf 'down' is ArrayImpl.*trainable_mask"),
    "traced": (
        lambda: jax.jit(lambda now: freezejax.partition(arrays(), {"up": now, "down": now}))(True),
        "mask leaf 'down' is .*Tracer.*scheduled_freeze",
    ),
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_given_for_a_mask_is_named(name):
    call, told = NO_MASKS[name]
    with pytest.raises(UserError, match=told):
        call()


def migrated(state=None, tx=ADAM, params=None):
    state = freezejax.freeze(ADAM, TRAIN_ALL).init(arrays()) if state is None else state
    return freezejax.migrate(state, TRAIN_ALL, UP_FROZEN, tx=tx, params=params or arrays())


NOT_MIGRATED = {
    "other tx": (
        lambda: migrated(tx=optax.sgd(0.1, momentum=0.9)),
        r"not a state of freeze\(tx, old_mask\): leaf 'inner_states/trainable/.*' is in one alone; pass the tx",
    ),
    "a tx with more state": (
        lambda: migrated(tx=optax.chain(ADAM, optax.sgd(0.1, momentum=0.9))),
        "is in one alone; pass the tx and the mask that it was made with",
    ),
    "half": (
        lambda: migrated(params=freezejax.partition(arrays(), UP_FROZEN)[0]),
        r"params hold nothing at leaf 'up'; give all, combine\(trainable, frozen\)",
    ),
    "bare": (lambda: migrated(ADAM.init(arrays())), r"not a state of .*: it is one of tx itself; make it with freeze"),
    "frozen": (lambda: migrated(tx=freezejax.freeze(ADAM, UP_FROZEN)), "tx is frozen already; pass the optimizer that"),
    "frozen before": (lambda: migrated(tx=freezejax.freeze(ADAM, TRAIN_ALL)), "tx is frozen already"),
}


@pytest.mark.parametrize("name", NOT_MIGRATED)
def test_migrate_names_the_argument_that_does_not_fit(name):
    call, told = NOT_MIGRATED[name]
    with pytest.raises(UserError, match=told):
        call()


def loss(params, x):
    return jnp.mean((x @ params["up"] @ params["down"] - 1) ** 2)


def test_pairs_of_gradient_and_update_that_fit():
    """Half gradients with freezejax.apply_updates, or halves all through; whole ones with optax's and flax's, too."""
    params, x = arrays(), jnp.ones((2, 3))
    tx = freezejax.freeze(optax.adam(0.1), UP_FROZEN)
    half, frozen = freezejax.partition(params, UP_FROZEN)
    _, grads = freezejax.value_and_grad(loss, UP_FROZEN)(params, x)
    updates, _ = tx.update(grads, tx.init(params), half)
    found = [freezejax.apply_updates(params, updates), freezejax.combine(optax.apply_updates(half, updates), frozen)]
    found.append(eqx.apply_updates(params, updates))
    of_half = TrainState.create(apply_fn=None, params=half, tx=tx).apply_gradients(grads=grads).params
    found.append(freezejax.combine(of_half, frozen))
    whole = jax.grad(loss)(params, x)
    updates, _ = tx.update(whole, tx.init(params), params)
    found += [optax.apply_updates(params, updates), eqx.apply_updates(params, updates)]
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    found.append(state.apply_gradients(grads=whole).params)
    for one in found:
        assert np.array_equal(one["up"], params["up"])
        assert not np.array_equal(one["down"], params["down"])
        np.testing.assert_allclose(one["down"], found[0]["down"], rtol=1e-6)
    with pytest.raises(TypeError, match="NoneType"):
        state.apply_gradients(grads=grads)


def test_a_function_among_the_leaves_is_named():
    model = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
    with pytest.raises(UserError, match=r"leaf 'activation' is a function.*eqx\.partition"):
        freezejax.trainable_mask(model, [(".*", True)])


def test_describe_refuses_the_mask_of_another_tree():
    with pytest.raises(UserError, match="mask leaf 'down' is not in the tree; nearest: up"):
        freezejax.describe({"up": jnp.ones(2), "down": None}, TRAIN_ALL)


def test_a_rule_that_comes_too_late_is_named():
    with pytest.raises(UserError, match=r"rule \('up', False\) decides nothing.*\('\.\*', True\)"):
        freezejax.trainable_mask(arrays(), [(".*", True), ("up", False)])


@pytest.mark.parametrize(
    "rules",
    [
        [("up", False), ("down", False), (".*", True)],  # a last word that has nothing left to say
        [(".*", True), ("up", True)],  # says what holds
        [("up", False), ("up|down", True)],
    ],
)
def test_rules_that_decide_nothing_but_contradict_nothing_are_fine(rules):
    freezejax.trainable_mask(arrays(), rules)


def test_a_later_event_of_groups_may_overrule_all_of_an_earlier_one():
    schedule = freezejax.by_groups({"all": "up|down", "one": "up"}, [(0, {"one": False}), (5, {"all": True})])
    assert [phase.mask for phase in schedule.phases(arrays(), 9)] == [UP_FROZEN, TRAIN_ALL]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({}, r"weights\[0\]: kind is missing: expected one of map, lowbit, .*, each$"),
        ({"kind": "lora", "rank": 385}, r"rank=385 must be at most 384, the larger side of the kernel"),
    ],
)
def test_a_kind_that_is_missing_and_a_rank_that_is_too_large_are_named(rule, told):
    with pytest.raises(UserError, match=told):
        models.build("geglu", num_layers=1, weights=[{"pattern": ".*/up/kernel", **rule}])
