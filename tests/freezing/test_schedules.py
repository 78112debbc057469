"""`phases` and `mask_at` are two views of one schedule; builders and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import FreezeSchedule, UserError, by_groups, layer_by_layer, scheduled_freeze
from freezejax.paths import leaf_paths

PARAMS = {"blocks": {n: {"gate": np.zeros(2), "down": np.zeros(2)} for n in range(3)}, "head": np.zeros(1)}
TOTAL = 30
ALL = [(".*", True)]
NONE = [(".*", False)]
RULES = [ALL, NONE, [(".*/gate", False), (".*", True)], [("blocks/[01]/.*", False), (".*", True)]]
GROUPS = {"gate": ".*/gate", "low": "blocks/0/.*", "head": "head"}

steps = st.integers(1, TOTAL - 1)
fractions = st.sampled_from([0.11, 0.25, 1 / 3, 0.5, 0.9])


@st.composite
def schedules(draw):
    """Steps or fractions, in any number; those that collide in a run of TOTAL steps are dropped."""
    starts = draw(st.lists(st.one_of(steps, fractions), max_size=5))
    by_step = {round(at * TOTAL) if isinstance(at, float) else at: at for at in starts}
    later = [(by_step[step], draw(st.sampled_from(RULES))) for step in sorted(by_step)]
    return FreezeSchedule([(0, draw(st.sampled_from(RULES))), *later])


@given(schedules())
def test_phases_and_mask_at_agree_at_every_step(schedule):
    phases, resolved = schedule.phases(PARAMS, TOTAL), schedule.resolve(TOTAL)
    assert [phase.start for phase in phases][1:] == [phase.stop for phase in phases][:-1]
    assert (phases[0].start, phases[-1].stop) == (0, TOTAL)
    traced = jax.vmap(lambda step: resolved.mask_at(PARAMS, step))(jnp.arange(TOTAL))
    for start, stop, mask in phases:
        for step in (start, (start + stop) // 2, stop - 1):
            assert jax.tree.map(lambda leaf, at=step: bool(leaf[at]), traced) == mask
    assert jax.tree.map(bool, resolved.mask_at(PARAMS, TOTAL + 100)) == phases[-1].mask


@given(schedules())
def test_resolving_twice_changes_nothing(schedule):
    resolved = schedule.resolve(TOTAL)
    assert resolved.resolved
    assert resolved.resolve(TOTAL) == resolved
    assert hash(resolved) == hash(resolved.resolve(TOTAL))


def test_mask_at_is_the_same_in_eager_and_jit_for_static_and_traced_steps():
    schedule = FreezeSchedule([(0, ALL), (3, RULES[2]), (7, ALL)])
    compiled = jax.jit(lambda step: schedule.mask_at(PARAMS, step))
    for step in range(9):
        expected = jax.tree.map(bool, schedule.mask_at(PARAMS, step))
        assert jax.tree.map(bool, compiled(step)) == jax.tree.map(bool, compiled(np.int64(step))) == expected
        assert expected["blocks"][0] == {"gate": not 3 <= step < 7, "down": True}


events = st.lists(
    st.tuples(steps, st.dictionaries(st.sampled_from(list(GROUPS)), st.booleans(), min_size=1, max_size=1)),
    max_size=5,
    unique_by=lambda event: event[0],
).map(lambda found: sorted(found, key=lambda event: event[0]))


@given(events)
def test_by_groups_the_latest_event_that_names_a_leaf_wins(events):
    members = {
        "gate": [p for p in leaf_paths(PARAMS) if p.endswith("gate")],
        "low": [p for p in leaf_paths(PARAMS) if p.startswith("blocks/0/")],
        "head": ["head"],
    }
    state = dict.fromkeys(leaf_paths(PARAMS), True)
    expected = {0: dict(state)}
    for start, changes in events:
        for group, trains in changes.items():
            state |= dict.fromkeys(members[group], trains)
        expected[start] = dict(state)
    for phase in by_groups(GROUPS, events).phases(PARAMS, TOTAL):
        flat = dict(zip(leaf_paths(PARAMS), jax.tree.leaves(phase.mask), strict=True))
        assert flat == expected[phase.start]


@pytest.mark.parametrize("order", [1, -1])
def test_an_event_that_sends_one_leaf_both_ways_is_refused(order):
    """The order of a dict, which a config file need not keep, decides nothing."""
    schedule = by_groups(GROUPS, [(0, {"head": False}), (0.5, dict([("gate", False), ("low", True)][::order]))])
    message = "one of the groups 'gate' and 'low' and thaws the other, and leaf 'blocks/0/gate' is in both"
    for use in (
        lambda: schedule.phases(PARAMS, TOTAL),
        lambda: schedule.resolve(TOTAL).mask_at(PARAMS, 3),
        lambda: scheduled_freeze(optax.sgd(0.1), schedule.resolve(TOTAL)).init(PARAMS),
    ):
        with pytest.raises(UserError, match=message):
            use()


def test_groups_that_overlap_and_agree_or_disagree_apart_are_no_error():
    agreeing = by_groups(GROUPS, [(5, {"gate": False, "low": False}), (9, {"gate": False, "head": True})])
    assert len(agreeing.phases(PARAMS, TOTAL)) == 3
    apart = by_groups(GROUPS, [(5, {"gate": False}), (9, {"low": True})]).phases(PARAMS, TOTAL)[-1].mask
    assert apart["blocks"][0] == {"gate": True, "down": True}
    assert apart["blocks"][1] == {"gate": False, "down": True}


def test_by_groups_can_begin_frozen():
    first, second = by_groups(GROUPS, [(0, {"head": False}), (0.5, {"head": True})]).phases(PARAMS, 10)
    assert (first.mask["head"], second.start, second.mask["head"]) == (False, 5, True)


@pytest.mark.parametrize(("order", "frozen_first"), [("bottom", [0, 1, 2]), ("top", [2, 1, 0])])
def test_layer_by_layer(order, frozen_first):
    phases = layer_by_layer(PARAMS, [0.25, 0.5, 0.75], order=order).phases(PARAMS, 40)
    assert [phase.start for phase in phases] == [0, 10, 20, 30]
    for count, phase in enumerate(phases):
        for layer in range(3):
            trains = layer not in frozen_first[:count]
            assert phase.mask["blocks"][layer] == {"gate": trains, "down": trains}
        assert phase.mask["head"]


def test_layers_are_ordered_by_number_not_by_name():
    params = {"blocks": {str(n): {"w": 0.0} for n in range(12)}}
    phase = layer_by_layer(params, [1, 2, 3]).phases(params, 4)[-1]
    assert [n for n in range(12) if not phase.mask["blocks"][str(n)]["w"]] == [0, 1, 2]


def test_a_start_may_be_a_number_of_numpy():
    for at, begin in [(np.float32(0.5), 15), (np.float64(0.5), 15), (np.int64(7), 7)]:
        assert start(at)().phases(PARAMS, TOTAL)[1].start == begin


def start(at):
    return lambda: FreezeSchedule([(0, ALL), (at, NONE)])


FRACTIONS = FreezeSchedule([(0, ALL), (0.5, NONE)])
ERRORS = {
    "first start": (lambda: FreezeSchedule([(5, ALL)]), "first entry must start at step 0"),
    "no entries": (lambda: FreezeSchedule([]), "first entry must start at step 0"),
    "not entries": (lambda: FreezeSchedule([5]), r"\[5\]: each is \(start, "),
    "not rules": (lambda: FreezeSchedule([(0, ".*")]), r"rule '\.': write \(pattern, True\)"),
    "overlap": (
        lambda: FreezeSchedule([(0, ALL), (9, NONE), (4, ALL)]),
        "overlap: an entry starts at 4 after one at 9",
    ),
    "the same step": (start(0), "overlap: an entry starts at 0 after one at 0"),
    "overlap once resolved": (
        lambda: FreezeSchedule([(0, ALL), (0.5, NONE), (4, ALL)]).phases(PARAMS, 10),
        r"overlap in a run of 10 steps: an entry starts at 4 after one at 0.5 \(rounds to step 5\)",
    ),
    "a fraction of no step": (
        lambda: start(0.001)().resolve(30),
        r"an entry starts at 0.001 \(rounds to step 0\) after one at 0; starts must increase",
    ),
    "a fraction of all steps": (
        lambda: start(0.999)().resolve(30),
        r"start 0.999 \(rounds to step 30\) lies beyond the run of 30 steps",
    ),
    "fractions overlap": (
        lambda: FreezeSchedule([(0, ALL), (0.5, NONE), (10, ALL), (0.3, ALL)]),
        "overlap: an entry starts at 0.3 after one at 0.5",
    ),
    "steps among fractions overlap": (
        lambda: FreezeSchedule([(0, ALL), (9, NONE), (0.5, ALL), (4, ALL)]),
        "overlap: an entry starts at 4 after one at 9",
    ),
    "fraction above one": (start(1.5), r"fraction 1.5 lies outside \(0, 1\); write a step as an int"),
    "fraction one": (start(1.0), "fraction 1.0 lies outside"),
    "negative": (start(-3), "step -3 is negative"),
    "bool": (start(True), "start True is neither a step"),
    "word": (start("half"), "start 'half' is neither a step"),
    "beyond the run": (lambda: start(50)().resolve(50), "start 50 lies beyond the run of 50 steps; .* 49"),
    "no steps": (lambda: FRACTIONS.resolve(0), "total_steps=0 is not a positive number"),
    "half a step": (lambda: FRACTIONS.resolve(2.5), "total_steps=2.5 is not a positive number"),
    "unresolved mask_at": (
        lambda: FRACTIONS.mask_at(PARAMS, 3),
        r"call schedule.resolve\(total_steps\) first",
    ),
    "unresolved scheduled_freeze": (
        lambda: scheduled_freeze(None, FRACTIONS),
        r"call schedule.resolve\(total_steps\)",
    ),
    "unknown group": (
        lambda: by_groups(GROUPS, [(3, {"gat": False})]),
        "no group is named 'gat'; nearest: gate",
    ),
    "unknown order": (lambda: layer_by_layer(PARAMS, [3], order="up"), "order='up'; use 'bottom' or 'top'"),
    "too many layers": (lambda: layer_by_layer(PARAMS, [1, 2, 3, 4]), "4 starts for 3 layers"),
    "no such layers": (
        lambda: layer_by_layer(PARAMS, [1], pattern=r"layers/(\d+)/.*"),
        "matches no leaf; nearest: blocks/",
    ),
    "no layer number": (
        lambda: layer_by_layer(PARAMS, [1], pattern="blocks/.*"),
        "capture the layer number in its first group; it does not in leaf 'blocks/0/down'",
    ),
    "rule of a later phase": (
        lambda: FreezeSchedule([(0, ALL), (3, [("hed", False), (".*", True)])]).phases(PARAMS, 9),
        "rule 'hed' matches no leaf; nearest: head",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, check_refused):
    check_refused(*ERRORS[name])
