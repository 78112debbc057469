"""The next phase is compiled ahead, equal phases share a program, and an error comes out where it is waited for."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freezejax import FreezeSchedule, models
from freezejax.training.config import TrainConfig
from freezejax.training.metrics import JsonLines, read_json_lines
from freezejax.training.plan import RunPlan
from freezejax.training.programs.compiler import BackgroundCompiler, compiler_options
from tests.training.conftest import EVERYTHING


def test_the_next_phase_is_compiled_while_this_one_runs():
    begun, go_on = threading.Event(), threading.Event()

    def compile_phase(index):
        if index == 1:
            begun.set()
            assert go_on.wait(10)
        return index, threading.current_thread().name

    with BackgroundCompiler(compile_phase, [{"w": True}, {"w": False}]) as programs:
        assert programs.get(0)[0] == 0
        programs.prepare(1)
        assert begun.wait(10)  # nobody has asked for it yet
        go_on.set()
        index, thread = programs.get(1)
    assert index == 1
    assert thread.startswith("compile")


def test_equal_masks_share_one_program_and_no_phase_is_compiled_twice():
    compiled = []
    masks = [{"w": True}, {"w": False}, {"w": True}, {"w": False}]
    with BackgroundCompiler(lambda index: compiled.append(index) or index, masks) as programs:
        for index in (0, 1, 2, 3, 0):
            programs.prepare(index + 1)
            assert programs.get(index) == index % 2
    assert sorted(compiled) == [0, 1]


def test_an_error_surfaces_where_the_program_is_wanted():
    def compile_phase(index):
        if index == 1:
            raise ValueError("no such phase")
        return index

    with BackgroundCompiler(compile_phase, ["a", "b"]) as programs:
        programs.prepare(1)
        assert programs.get(0) == 0
        with pytest.raises(ValueError, match="no such phase"):
            programs.get(1)


def test_leaving_drops_what_was_not_begun():
    compiled = []
    with BackgroundCompiler(lambda index: compiled.append(index), ["a", "b", "c"]) as programs:
        programs.prepare(0)
        programs.prepare(9)  # there is no such phase
    assert compiled in ([], [0])


def test_a_run_that_thaws_compiles_three_programs_for_four_phases(run, entries, tmp_path, monkeypatch):
    compiled, lower = [], RunPlan.lower

    def noted(self, index):
        compiled.append(index)
        return lower(self, index)

    monkeypatch.setattr(RunPlan, "lower", noted)
    run(tmp_path / "shared", entries["thaw"])
    assert sorted(compiled) == [0, 1, 3]
    compiled.clear()
    # With a restarted optimizer the two whole phases read the learning rate at another offset.
    run(tmp_path / "apart", entries["thaw"], restart_optimizer=True)
    assert sorted(compiled) == [0, 1, 2, 3]


@pytest.mark.parametrize("stop_at", [4, 6])  # at the end of the first phase, inside of the second
def test_each_phase_begins_with_what_its_rules_catch_once_though_the_run_is_resumed(run, entries, stop_at, tmp_path):
    part = [(0, EVERYTHING), (4, [("blocks/0/mlp/.*/kernel", False), *EVERYTHING])]
    sink = JsonLines(tmp_path / "metrics.jsonl")
    assert run(tmp_path, part, stop_at=stop_at, sinks=[sink], model={"num_layers": 2})[0] is None
    run(tmp_path, part, sinks=[sink], model={"num_layers": 2})
    first, second = (record for record in read_json_lines(sink.path) if "rules" in record)
    assert first == {"step": 1, "rules": ["rule '.*' trains everything: 16 leaves"]}
    assert second["step"] == 5
    assert second["rules"][0] == ("rule 'blocks/0/mlp/.*/kernel' freezes mlp/down, mlp/gate, mlp/up 1 of 2: blocks 0")


def test_a_phase_in_which_nothing_trains_changes_nothing(run, entries, tmp_path):
    seen = []
    keep = lambda params: seen.append(jax.tree.map(np.array, params)) or {"val_ce": 0.0}  # noqa: E731
    found, recorder = run(tmp_path, entries["all frozen"], evaluate=keep, eval_every=6)
    first, last = seen
    assert jax.tree.all(jax.tree.map(np.array_equal, first, last))
    assert [r["trainable_share"] for r in recorder.records if "loss" in r] == [1.0] * 6 + [0.0] * 6
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found.params, last))


def test_later_phases_have_run_once_before_their_boundary(monkeypatch):
    """On a CPU the first run of a program sets its matmuls up; counterpart: on another backend none is run ahead."""
    ran = []

    class Noted:
        def __init__(self, compiled):
            self.compiled = compiled

        def __call__(self, *arguments):
            ran.append(jax.tree.map(jnp.shape, arguments[4]))
            return self.compiled(*arguments)

    schedule = FreezeSchedule([(0, [(".*", True)]), (2, [(".*/up/kernel", False), (".*", True)])])
    model = models.build("geglu", vocab_size=16, num_layers=1, model_dim=16, num_heads=1)
    plan = RunPlan(model, TrainConfig(steps=4, batch_size=2, seq_len=8), schedule)
    lower = plan.lower
    monkeypatch.setattr(plan, "lower", lambda index: SimpleNamespace(compile=lambda _: Noted(lower(index).compile())))
    plan.compile(0)
    assert ran == []
    plan.compile(1)
    assert ran == [{"inputs": (2, 8), "targets": (2, 8)}]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plan.compile(1)
    assert len(ran) == 1


@pytest.fixture
def all_optimizations():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_a_cpu_compiles_at_llvms_first_level(monkeypatch, all_optimizations):
    """Counterparts: on another backend, or where optimizations are off as a whole, nothing is asked for."""
    told, compile_ = [], jax.stages.Lowered.compile
    noted = lambda self, options=None: told.append(options) or compile_(self)  # noqa: E731
    monkeypatch.setattr(jax.stages.Lowered, "compile", noted)
    model = models.build("geglu", vocab_size=16, num_layers=2, model_dim=16, num_heads=1)
    schedule = FreezeSchedule([(0, [("tok_emb/.*|blocks/0/.*", False), (".*", True)])])
    plan = RunPlan(model, TrainConfig(steps=2, batch_size=2, seq_len=8, prefix_cache="memory"), schedule)
    plan.compile(0)
    assert told == 2 * [{"xla_backend_optimization_level": 1}]  # the step and its prefix
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}
    monkeypatch.undo()
    jax.config.update("jax_disable_most_optimizations", True)
    assert compiler_options() == {}


class Compiles:
    """A sink that notes what the main thread has compiled by the start and by each record; it may compile, too."""

    def __init__(self, own=False):
        self.own, self.count, self.seen = own, 0, []

    def note(self, event, seconds, **_):
        main = threading.current_thread() is threading.main_thread()
        self.count += main and event == "/jax/core/compile/backend_compile_duration"

    def begin(self, step):
        self.seen.append(self.count)

    def write(self, record):
        if self.own:
            float(jnp.cos(jnp.ones(len(self.seen) + 1)).sum())
        self.seen.append(self.count)

    def close(self):
        pass


@pytest.mark.parametrize("own", [False, True], ids=["the loop", "counterpart"])
def test_the_loop_compiles_nothing_beside_its_programs(own, run, entries, tmp_path):
    """XLA compiles one program after the other: the loop would wait for what is compiled in the background."""
    sink = Compiles(own)
    jax.clear_caches()  # what earlier tests compiled
    jax.monitoring.register_event_duration_secs_listener(sink.note)
    try:
        run(tmp_path, entries["thaw"], sinks=[sink], ema_decay=0.9)
    finally:
        jax.monitoring.unregister_event_duration_listener(sink.note)
    assert len(sink.seen) == 1 + 4 + 12  # the start, phases, steps
    assert sink.seen[0] > 0  # the state
    assert (sink.seen[-1] > sink.seen[0]) == own
