"""Each program of a run is traced once; what would trace it again is refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from freezejax import FreezeSchedule
from freezejax.data import ByteTable
from freezejax.training.config import TrainConfig
from freezejax.training.evaluation import make_evaluator
from freezejax.training.plan import RunPlan
from freezejax.training.programs.tracing import (
    OneTrace,
    Program,
    RetraceError,
    changes,
    count_traces,
    describe_arguments,
    traced,
)


@pytest.fixture(scope="module")
def evaluator(build, tokens):
    table = ByteTable(np.ones(61, np.int64), np.zeros(61, bool), np.zeros(61, bool))
    return lambda: make_evaluator(build().apply, tokens[:500], table, batch_size=4, seq_len=16)


def test_a_whole_run_traces_each_program_once(run, entries, evaluator, tmp_path):
    """Four phases, two of them with the same mask, and evaluations in each of them."""
    score = evaluator()
    with count_traces() as traces:
        run(tmp_path, entries["thaw"], evaluate=lambda params: score(params)._asdict(), eval_every=2)
    steps = {f"step of phase {index}": 1 for index in (0, 1, 3)}
    assert dict(traces) == {**steps, "evaluation": 1}


def test_a_prefix_is_traced_once_too(run, tmp_path):
    frozen = [("tok_emb/.*|blocks/.*", False), (".*", True)]
    with count_traces() as traces:
        run(tmp_path, [(0, [(".*", True)]), (3, frozen)], prefix_cache="memory", steps=6)
    assert dict(traces) == {"step of phase 0": 1, "step of phase 1": 1, "prefix of phase 1": 1}


def test_a_resumed_run_traces_only_what_it_still_runs(run, entries, tmp_path):
    run(tmp_path, entries["later"], stop_at=6)
    with count_traces() as traces:
        run(tmp_path, entries["later"])
    assert dict(traces) == {"step of phase 1": 1}


@pytest.fixture(scope="module")
def step(build, entries):
    """The program of a phase and arguments for it."""
    config = TrainConfig(steps=12, batch_size=4, seq_len=16)
    plan = RunPlan(build(), config, FreezeSchedule(entries["start"]))

    def arguments():
        state, frozen = plan.begin().split(plan.phases[0].mask)
        batch = {name: np.zeros((4, 16), np.int32) for name in ("inputs", "targets")}
        return [state, frozen, plan.key(), np.int32(0), batch]

    return plan.compile(0).step, arguments


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda batch: {**batch, "inputs": batch["inputs"][:3]}, "batch/inputs: int32[4,16] -> int32[3,16]"),
        (lambda batch: {**batch, "targets": np.float32(batch["targets"])}, "batch/targets: int32[4,16] -> float32"),
        (lambda batch: {"inputs": batch["inputs"]}, "batch/targets: int32[4,16] -> absent"),
        (lambda batch: {**batch, "index": np.arange(4)}, "batch/index: absent -> int64[4]"),
    ],
)
def test_the_step_refuses_another_batch_and_names_it(change, told, step):
    program, arguments = step
    program(*arguments())
    others = arguments()
    others[4] = change(others[4])
    with pytest.raises(RetraceError, match=r"^step of phase 0: called with other arguments .*" + re.escape(told)):
        program(*others)


def test_an_error_that_is_not_about_arguments_is_left_alone():
    def fails(*_):
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match=r"^out of memory$"):
        Program(fails, lambda x: x, (jnp.ones(2),), "double")(jnp.ones(2))


def on(spec):
    mesh = jax.make_mesh((1,), ("data",))
    return jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({"x": np.ones(4)}, {"x": np.ones(5)}, "tree/x: float64[4] -> float64[5]"),
        ({"x": np.ones(4, np.int32)}, {"x": np.ones(4, np.float32)}, "tree/x: int32[4] -> float32[4]"),
        ({"x": np.float32(1)}, {"x": 1.0}, "tree/x: float32[] -> weak float32[] (a Python float)"),
        ({"x": jnp.asarray(1.0)}, {"x": jnp.float32(1)}, "tree/x: weak float32[] -> float32[]"),
        ({"x": np.ones(4)}, {"y": np.ones(4)}, "tree/x: float64[4] -> absent; tree/y: absent -> float64[4]"),
        ({"x": (1, 2)}, {"x": [1, 2]}, "tree (tree): PyTreeDef({'x': (*, *)}) -> PyTreeDef({'x': [*, *]})"),
        ({"x": on(["data"])}, {"x": on([])}, "spec=P('data',)"),
    ],
)
def test_each_kind_of_retrace_is_refused_and_named(first, second, told):
    total = OneTrace(lambda tree: sum(jnp.sum(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)), "total")
    with count_traces() as traces:
        total(first)
        total(first)
        with pytest.raises(RetraceError, match=re.escape(told)):
            total(second)
    assert dict(traces) == {"total": 1}


def test_a_static_value_is_named():
    power = OneTrace(lambda x, exponent: x**exponent, "power", static_argnums=(1,))
    power(jnp.ones(2), 2)
    with pytest.raises(RetraceError, match="exponent: static 2 -> static 3"):
        power(jnp.ones(2), 3)


def test_a_numpy_array_where_a_jax_array_was_is_no_retrace():
    with count_traces() as traces:
        double = OneTrace(lambda x: 2 * x, "double")
        assert (double(jnp.ones(2)) == double(np.ones(2, np.float32))).all()
    assert dict(traces) == {"double": 1}


@pytest.mark.parametrize(
    ("first", "second"),
    [(np.zeros((4, 16), np.int32), np.zeros((3, 16), np.int32)), (np.int32(1), 1)],
    ids=["shape", "weak type"],
)
def test_counterpart_jit_alone_traces_again_in_silence(first, second):
    with count_traces() as traces:
        score = jax.jit(traced(jnp.sum, "score"))
        score(first)
        score(second)
    assert dict(traces) == {"score": 2}


def test_evaluating_another_model_is_refused(evaluator, build):
    score = evaluator()
    score(build().init(jax.random.key(0)))
    wider = build(mlp_mult=3).init(jax.random.key(0))
    with pytest.raises(
        RetraceError, match=r"^evaluation: .*params/blocks/0/mlp/down/kernel: float32\[32,16\] -> float32\[48,16\]"
    ):
        score(wider)


def test_a_long_list_of_changes_is_cut():
    before, now = ({f"x{i}": f"int32[{size}]" for i in range(9)} for size in (1, 2))
    assert str(RetraceError("step", changes(before, now))).endswith("x2: int32[1] -> int32[2]; and 6 more")


def test_what_a_tree_holds_statically_is_told_near_the_difference():
    before, now = (describe_arguments(({"a" * 300: 1, name: 1},), ["x"]) for name in ("b", "c"))
    (line,) = changes({"x (tree)": before["x (tree)"]}, {"x (tree)": now["x (tree)"]})
    assert len(line) < 260
    assert "'b'" in line
    assert "'c'" in line
