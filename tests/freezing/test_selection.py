"""Everything frozen but a type of module, and what each rule caught."""

import re

import jax
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError, describe, matches, models, module_types, only, trainable_mask
from freezejax.paths import by_path

HYBRID = models.build(
    "nemotron_h", vocab_size=16, num_layers=8, pattern="ME*-", model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8,
    mamba_heads=2, mamba_head_dim=8, mamba_groups=1, state_dim=4, mlp_width=16, experts=4, expert_choices=1,
    expert_width=8, shared_expert_width=8,
).abstract_params()  # fmt: skip
PLAIN = {"blocks": {i: {"mlp": {"up": np.ones(2), "down": np.ones(3)}} for i in range(5)}, "head": np.ones(4)}
# The rows of the source, and what of a hybrid model each of them is.
ROWS = {
    "shared_experts": r"blocks/\d/mixer/shared_experts/(up|down)_proj/kernel",
    "out_proj": r"blocks/\d/mixer/out_proj/kernel",
    "lm_head": r"lm_head/kernel",
    "v_proj": r"blocks/\d/mixer/v_proj/kernel",
    "q_proj": r"blocks/\d/mixer/q_proj/kernel",
    "down_proj": r"blocks/\d/mixer/(experts/|shared_experts/)?down_proj/kernel",
    "up_proj": r"blocks/\d/mixer/(experts/|shared_experts/)?up_proj/kernel",
    "in_proj": r"blocks/\d/mixer/in_proj/kernel",
    "o_proj": r"blocks/\d/mixer/o_proj/kernel",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_type_trains_wherever_it_stands_and_nothing_else(name):
    mask = by_path(trainable_mask(HYBRID, only(HYBRID, name)))
    assert {path for path, trains in mask.items() if trains} == {p for p in mask if re.fullmatch(ROWS[name], p)}
    assert any(mask.values())
    assert name in module_types(HYBRID)


def test_several_types_in_a_text_or_a_list():
    for types in ("q_proj, v_proj", ["q_proj", "v_proj"]):
        mask = by_path(trainable_mask(HYBRID, only(HYBRID, types)))
        assert {path.split("/")[-2] for path, trains in mask.items() if trains} == {"q_proj", "v_proj"}


def test_a_type_that_the_model_lacks_is_told_with_those_that_it_has():
    with pytest.raises(UserError, match=r"no module type 'gate_proj'; this model has a_log, balance, .*v_proj"):
        only(HYBRID, "gate_proj")
    with pytest.raises(UserError, match="no module type '3'"):
        only(HYBRID, "3")
    with pytest.raises(UserError, match="no module type 'out_pro'"):  # no part of a name counts
        only(HYBRID, "out_pro")


def test_a_type_in_which_nothing_learns_is_told_with_those_that_do():
    with pytest.raises(
        UserError, match="nothing learns in module type 'balance'; types that do: a_log, conv1d"
    ) as told:
        only(HYBRID, "v_proj, balance")
    assert "balance" not in str(told.value).partition("do:")[2]


def test_a_rule_for_one_expert_of_many_in_one_leaf_is_told_the_kind_that_takes_them_apart():
    stack = "blocks/1/mixer/experts/down_proj/kernel"
    for rule in (f"{stack}/3", ".*/experts/3/.*", ".*/experts/.*/kernel/[23]", ".*/down_proj/kernel/3/.*"):
        with pytest.raises(UserError, match=f"no leaf; '{stack}' is one leaf of 4 matrices: with kind 'each'"):
            trainable_mask(HYBRID, [(rule, True), (".*", False)])
    for rule in (f"{stack}/4", ".*/mlp/.*"):
        with pytest.raises(UserError, match="matches no leaf; nearest"):
            trainable_mask(HYBRID, [(rule, True), (".*", False)])


def test_every_leaf_is_decided_by_one_rule():
    rules = [("blocks/[01]/mlp/up", False), ("blocks/.*/up", True), ("head", False), (".*", True)]
    found = matches(PLAIN, rules)
    assert [(m.leaves, m.alike, m.parameters) for m in found] == [(2, 5, 4), (3, 5, 6), (1, 1, 4), (5, 5, 15)]
    assert sum(m.parameters for m in found) == sum(leaf.size for leaf in jax.tree.leaves(PLAIN))


def test_a_rule_that_catches_a_part_of_the_layers_is_seen_in_the_description():
    part = FreezeSchedule([(0, [(".*", True)]), (5, [("blocks/[01]/mlp/up", False), (".*", True)])])
    line = "rule 'blocks/[01]/mlp/up' freezes 2 of 5 leaves of its kind"
    assert str(describe(PLAIN, part, total_steps=9)).splitlines()[-1] == line
    whole = FreezeSchedule([(0, [("blocks/.*/up", False), (".*", True)])])
    assert "of its kind" not in str(describe(PLAIN, whole, total_steps=9))  # the counterpart
    many = [(f"blocks/{i}/mlp/up", False) for i in range(5)]
    told = str(describe(PLAIN, FreezeSchedule([(0, [*many, (".*", True)])]), total_steps=9)).splitlines()
    assert told[-1] == "and 2 more rules like this"
