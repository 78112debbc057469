"""Thousands of leaves take one pass. Work is counted, not timed: patterns tried, leaves shown to an optimizer."""

import difflib
import re

import jax
import numpy as np
import optax
import pytest
from optax import contrib

import freezejax
from freezejax import FreezeSchedule, guard, masks, paths
from freezejax.guard import state_owners
from freezejax.masks import check_static

LAYERS = 60
PARAMS = {f"layer{i}": {name: np.zeros((2, 2), np.float32) for name in "qkvog"} for i in range(LAYERS)}
LEAVES = 5 * LAYERS
RULES = [(r"layer\d+/[qk]", False), (".*", True)]
MASK = freezejax.trainable_mask(PARAMS, RULES)


class Counted:
    """A compiled pattern that counts what it is tried on."""

    def __init__(self, pattern, tries):
        self.compiled, self.pattern, self.tries = re.compile(pattern), pattern, tries

    def fullmatch(self, path):
        self.tries.append(path)
        return self.compiled.fullmatch(path)


@pytest.fixture
def tries(monkeypatch):
    found = []
    monkeypatch.setattr(masks, "compile_pattern", lambda pattern: Counted(pattern, found))
    return found


class Path(str):
    """A leaf path that counts how often it is compared with another."""

    compared = 0

    def __eq__(self, other):
        Path.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.fixture
def comparisons(monkeypatch):
    """Comparisons of leaf paths, and no search for the nearest names unless something is wrong."""
    monkeypatch.setattr(paths, "path_string", lambda path, spelt=paths.path_string: Path(spelt(path)))
    monkeypatch.setattr(masks, "path_string", paths.path_string)

    def never(*_, **__):
        raise AssertionError("searched for near names though nothing is wrong")

    monkeypatch.setattr(difflib, "get_close_matches", never)
    Path.compared = 0
    return lambda: Path.compared


def test_each_pattern_is_tried_once_on_each_leaf(tries):
    freezejax.trainable_mask(PARAMS, RULES)
    assert len(tries) == 2 * LEAVES


def test_phases_of_a_schedule_share_the_work(tries):
    schedule = FreezeSchedule([(0, [(".*", True)]), *((step, RULES) for step in range(1, 20))])
    phases = schedule.phases(PARAMS, 30)
    assert len(phases) == 20
    assert len(tries) == 2 * LEAVES
    schedule.mask_at(PARAMS, 3)
    assert len(tries) == 4 * LEAVES


def test_one_rule_per_leaf_is_looked_up(tries):
    every = freezejax.paths.leaf_paths(PARAMS)
    mask = freezejax.trainable_mask(PARAMS, [(re.escape(path), path.endswith("q")) for path in every])
    assert sum(jax.tree.leaves(mask)) == LAYERS
    assert not tries


def test_a_layer_more_each_step(tries):
    schedule = freezejax.layer_by_layer(PARAMS, list(range(1, LAYERS)), pattern=r"layer(\d+)/.*")
    last = schedule.phases(PARAMS, 2 * LAYERS)[-1].mask
    assert sum(jax.tree.leaves(last)) == 5
    assert len(tries) == LEAVES  # ".*", of the first entry: layers are looked up by the names of their leaves


@pytest.mark.parametrize(
    "use",
    [
        lambda: freezejax.trainable_mask(PARAMS, RULES),
        lambda: check_static(MASK, PARAMS),
        lambda: check_static(MASK, freezejax.partition(PARAMS, MASK)[0]),
        lambda: freezejax.combine(*freezejax.partition(PARAMS, MASK)),
        lambda: freezejax.describe(PARAMS, MASK),
        lambda: freezejax.tie(PARAMS, [(r"layer\d+/q", "layer0/q")]),
        lambda: freezejax.frozen_modules(MASK),
        lambda: freezejax.layer_by_layer(PARAMS, [1, 2, 3], pattern=r"layer(\d+)/.*").phases(PARAMS, 9),
    ],
    ids=["mask", "check", "check a half", "halves", "describe", "tie", "modules", "layers"],
)
def test_paths_are_looked_up_not_searched_for(use, comparisons):
    use()
    assert comparisons() < 12 * LEAVES


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(0.1),
    "muon": lambda: contrib.muon(0.1),
    "adafactor": lambda: optax.adafactor(0.1, momentum=0.9),
    "ema in a chain": lambda: optax.chain(optax.ema(0.9), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_owners_of_a_state_need_no_second_state(name, monkeypatch):
    tx, shown = OPTIMIZERS[name](), []

    def init(params):
        shown.extend(jax.tree.leaves(params))
        return tx.init(params)

    state = tx.init(PARAMS)
    fast = state_owners(optax.GradientTransformation(init, tx.update), PARAMS, state)
    assert not shown
    monkeypatch.setattr(guard, "_by_path", lambda *_: None)
    assert fast == state_owners(tx, PARAMS, state)


AMBIGUOUS = {
    # The numbers of the state's own tuples are those of the leaves.
    "a list": [np.zeros(2), np.ones((2, 2))],
    "lists in a tuple": ([np.zeros(2), np.ones(2)], np.ones(2)),
    "one name twice": {"w": {"w": np.zeros(2)}, "v": np.ones(2)},
    "names of the state": {"mu": np.zeros(2), "nu": np.ones(2), "count": np.ones(3)},
    "a bare array": np.zeros(2),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_owners_are_right_where_names_coincide(name, optimizer, monkeypatch):
    params, tx = jax.tree.map(lambda x: x.astype(np.float32), AMBIGUOUS[name]), optimizer.make()
    state = tx.init(params)
    found = state_owners(tx, params, state)
    monkeypatch.setattr(guard, "_by_path", lambda *_: None)
    assert found == state_owners(tx, params, state)
    assert {owner for owner in found if owner is not None} <= set(range(len(jax.tree.leaves(params))))


def test_a_state_hung_directly_into_a_tuple():
    """No name of a state class lies between the numbers of the tuple and those of the leaves."""
    tx = optax.GradientTransformation(lambda params: (params, (params,)), lambda u, s, p=None: (u, s))
    params = [np.zeros(2), [np.ones(2), np.ones(2)]]
    assert state_owners(tx, params, tx.init(params)) == [0, 1, 2] * 2
