"""Law 4: rules cover every leaf, the first match wins, masks obey Boolean algebra, errors name names."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezejax import UserError, trainable_mask
from freezejax.masks import count_parameters, intersection, invert, masks_of, union
from freezejax.paths import leaf_paths

PARAMS = {
    "blocks": {n: {"mlp": {"gate": np.zeros((2, 3)), "down": np.zeros((3, 2))}, "norm": np.zeros(2)} for n in range(3)},
    "head": [np.zeros(4), np.zeros(())],
    # One name begins the other: a rule must match the whole path.
    "norm": np.zeros(1),
    "norm_out": np.zeros(1),
}
PATHS = leaf_paths(PARAMS)
PATTERNS = [
    ".*",
    "blocks/.*",
    "blocks/1/.*",
    ".*/gate",
    ".*norm",
    "norm",
    "head/[01]",
    *map(re.escape, PATHS[:3]),
]

masks = st.lists(st.booleans(), min_size=len(PATHS), max_size=len(PATHS)).map(
    lambda bits: jax.tree.unflatten(jax.tree.structure(PARAMS), bits)
)
rule_lists = st.lists(st.tuples(st.sampled_from(PATTERNS), st.booleans()), max_size=5)


@given(masks, masks, masks)
def test_boolean_algebra(a, b, c):
    everything, nothing = union(a, invert(a)), intersection(a, invert(a))
    assert all(jax.tree.leaves(everything))
    assert not any(jax.tree.leaves(nothing))
    assert invert(invert(a)) == a
    assert invert(union(a, b)) == intersection(invert(a), invert(b))
    assert invert(intersection(a, b)) == union(invert(a), invert(b))
    assert union(a, b) == union(b, a)
    assert intersection(a, union(b, c)) == union(intersection(a, b), intersection(a, c))
    assert union(a, nothing) == a == intersection(a, everything)


@given(masks)
def test_trainable_and_frozen_parameters_add_up(mask):
    parts = count_parameters(PARAMS, mask) + count_parameters(PARAMS, invert(mask))
    assert parts == count_parameters(PARAMS) == 3 * (6 + 6 + 2) + 4 + 1 + 2


@given(rule_lists, st.booleans())
def test_first_match_wins(rules, otherwise):
    (mask,) = masks_of(PARAMS, [[*rules, (".*", otherwise)]], overruled=True)
    for path, trains in zip(PATHS, jax.tree.leaves(mask), strict=True):
        assert trains is next((t for p, t in rules if re.fullmatch(p, path)), otherwise)


def too_late(rules):
    """Whether the rules before one have decided all of its leaves otherwise; one of all leaves may have no say."""
    for at, (pattern, trains) in enumerate(rules):
        found = [path for path in PATHS if re.fullmatch(pattern, path)]
        before = [next((t for p, t in rules[:at] if re.fullmatch(p, path)), trains) for path in found]
        if found != PATHS and trains not in before:
            return True
    return False


@given(rule_lists, st.booleans())
def test_a_rule_that_contradicts_and_decides_nothing_raises_and_no_other_does(rules, otherwise):
    rules = [*rules, (".*", otherwise)]
    if too_late(rules):
        with pytest.raises(UserError, match="decides nothing"):
            trainable_mask(PARAMS, rules)
    else:
        trainable_mask(PARAMS, rules)


@given(rule_lists)
def test_an_uncovered_leaf_raises_and_is_named(rules):
    bare = [path for path in PATHS if not any(re.fullmatch(p, path) for p, _ in rules)]
    if bare:
        with pytest.raises(UserError, match=f"leaf '({'|'.join(map(re.escape, bare))})' is covered by no rule"):
            masks_of(PARAMS, [rules], overruled=True)
    else:
        masks_of(PARAMS, [rules], overruled=True)


@given(masks)
def test_one_rule_per_leaf_gives_any_mask(mask):
    rules = [(re.escape(path), trains) for path, trains in zip(PATHS, jax.tree.leaves(mask), strict=True)]
    assert trainable_mask(PARAMS, rules) == mask


def test_only_the_structure_is_read():
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda x: x.astype(np.float32), PARAMS))
    assert trainable_mask(shapes, [(".*", True)]) == jax.tree.map(lambda _: True, PARAMS)
    assert trainable_mask(np.zeros(2), [(".*", False)]) is False
    assert trainable_mask({}, []) == {}


ERRORS = {
    "matches nothing": ([(".*/gte", True), (".*", True)], "rule '.*/gte' matches no leaf; nearest: .*gate"),
    "only part of a path": ([("gate", False), (".*", True)], "rule 'gate' matches no leaf; nearest: "),
    "nothing at all": ([], "covered by no rule; there are none"),
    "bad regex": ([("mlp/(gate", True)], r"'mlp/\(gate' is not a regular expression: missing \)"),
    "not a bool": ([(".*", "frozen")], r"rule \('.*', 'frozen'\): write \(pattern, True\)"),
    "a bare pattern": ([".*"], r"rule '.*': write \(pattern, True\)"),
    "three things": ([(".*", True, 1)], r"write \(pattern, True\)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_culprit(name, check_refused):
    rules, message = ERRORS[name]
    check_refused(lambda: trainable_mask(PARAMS, rules), message)
