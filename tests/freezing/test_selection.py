"""Everything frozen but a type of module, and what each rule caught."""

import re

import jax
import numpy as np
import pytest

from freezejax import FreezeSchedule, UserError, describe, matches, models, module_types, only, trainable_mask
from freezejax.paths import by_path
from freezejax.schedules import Phase
from freezejax.training.metrics import phase_record

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
    with pytest.raises(UserError, match=r"no module type 'gate_proj'; this model has a_log, conv1d, .*v_proj"):
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
    assert [(m.leaves, m.parameters, m.rest) for m in found] == [
        (2, 4, ""),
        (3, 6, ""),
        (1, 4, ""),
        (5, 15, "the rest"),
    ]
    assert sum(m.parameters for m in found) == sum(leaf.size for leaf in jax.tree.leaves(PLAIN))
    assert [str(m) for m in found] == [
        "rule 'blocks/[01]/mlp/up' freezes mlp/up 2 of 5: blocks 0, 1",
        "rule 'blocks/.*/up' trains mlp/up 3 of 5: blocks 2 to 4",
        "rule 'head' freezes head",
        "rule '.*' trains the rest: 5 leaves",
    ]
    late = matches(PLAIN, [(".*", True), ("head", False)])
    assert str(late[1]) == "rule 'head' freezes nothing: earlier rules decide all that it matches"


def block():
    kernels = {name: {"kernel": np.ones((2, 2))} for name in "kovq"}
    return {"attn": kernels, "mlp": {name: np.ones(2) for name in ("down", "gate", "up")}}


THIRTY = {"blocks": {i: block() for i in range(30)}, "head": np.ones(4)}
TWO_OF_30 = [("blocks/[01]/attn/q/.*", False), (".*", True)]
SEEN = "rule 'blocks/[01]/attn/q/.*' freezes attn/q 2 of 30: blocks 0, 1"


def test_a_rule_that_catches_2_of_30_layers_is_seen_at_once_where_a_run_is_described_and_where_it_begins():
    schedule = FreezeSchedule([(0, [(".*", True)]), (5, TWO_OF_30)])
    first, second = str(describe(THIRTY, schedule, total_steps=9)).split("\n\n")
    assert second.splitlines()[-2:] == [SEEN, "rule '.*' trains the rest: 209 leaves"]
    assert "rule" not in first  # one rule decides everything: the table says so
    assert phase_record(THIRTY, Phase(5, 9, None), TWO_OF_30)["rules"][0] == SEEN


def test_every_rule_is_in_the_description_with_each_kind_and_its_blocks():
    rules = [*((f"blocks/{i}/mlp/up", False) for i in range(5)), ("blocks/[024]/.*", False), (".*", True)]
    *_, first, _, _, _, _, sixth, last = str(describe(PLAIN, FreezeSchedule([(0, rules)]), total_steps=9)).splitlines()
    assert first == "rule 'blocks/0/mlp/up' freezes mlp/up 1 of 5: blocks 0"
    assert sixth == "rule 'blocks/[024]/.*' freezes mlp/down 3 of 5: blocks 0, 2, 4"
    assert last == "rule '.*' trains the rest: 3 leaves"
    (whole, _) = matches(THIRTY, [("blocks/[0-9]/(attn|mlp)/.*", False), (".*", True)])
    names = "attn/k, attn/o, attn/q, attn/v and 3 more"
    assert str(whole).endswith(f"freezes {names} 10 of 30: blocks 0 to 9")
