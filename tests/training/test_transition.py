"""A boundary crossed by a prepared program: the same bits, and nothing that is passed on is copied."""

import jax
import jax.numpy as jnp
import pytest

from freezejax import FreezeSchedule
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan
from freezejax.training.state import next_phase

CASES = {
    "restart": {},
    "keep, ema": {"on_thaw": "keep", "ema_decay": 0.9},
    "muon, restarted": {"optimizer": {"name": "muon"}, "restart_optimizer": True, "ema_decay": 0.5},
}


def plan_of(build, entries, case):
    config = TrainConfig.from_mapping({"steps": 12, "batch_size": 4, "seq_len": 16, **CASES[case]})
    return RunPlan(build(), config, FreezeSchedule(entries["thaw"]))


def kinds(tree):
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("case", CASES)
def test_every_boundary_is_crossed_with_the_bits_of_cross(case, build, entries):
    plan = plan_of(build, entries, case)
    state = plan.begin()
    for index in range(1, len(plan.phases)):
        state = jax.tree.map(lambda leaf: leaf + jnp.ones([], leaf.dtype), state)
        old, new = plan.phases[index - 1 : index + 1]
        wanted = next_phase(state, old, new, plan.optimizer(new), plan.config)
        transition = plan.transition(index)
        found = transition(state)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        assert kinds(found) == kinds(wanted)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, found, wanted))
        before = {id(leaf) for leaf in jax.tree.leaves(state)}
        made = [leaf for leaf in jax.tree.leaves(found) if id(leaf) not in before]
        assert len(made) == transition.computed
        assert jax.tree.all(jax.tree.map(lambda a, b: a is b, found.params, state.params))
        state = found


def test_only_what_thaws_is_made(build, entries):
    plan = plan_of(build, entries, "restart")
    moments_of_gate_and_up = 2 * 2
    assert [plan.transition(index).computed for index in (1, 2, 3)] == [0, moments_of_gate_and_up, 0]


def test_counterpart_a_jitted_transition_copies_the_parameters(build, entries):
    plan = plan_of(build, entries, "restart")
    state, (old, new) = plan.begin(), plan.phases[:2]
    found = jax.jit(lambda state: next_phase(state, old, new, plan.optimizer(new), plan.config))(state)
    pointers = [{leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree.params)} for tree in (state, found)]
    assert pointers[0].isdisjoint(pointers[1])
