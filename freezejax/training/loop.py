"""The training loop: phases in order, one compiled step each, resumable at every step."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from freezejax.errors import UserError
from freezejax.masks import count_parameters
from freezejax.models import Model
from freezejax.partition import combine
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule
from freezejax.training import processes
from freezejax.training.adaptive import Decisions, Policy
from freezejax.training.batches import BatchSource
from freezejax.training.checkpoints import Checkpoints
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped, StopSignal
from freezejax.training.metrics import Record, Sink, phase_record
from freezejax.training.objectives.base import Objective
from freezejax.training.plan import RunPlan
from freezejax.training.prefix_cache.batches import phase_batches
from freezejax.training.programs.compiler import BackgroundCompiler, PhasePrograms
from freezejax.training.state import RunState, join


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its parameters (the EMA where there is one) and its pace."""

    params: PyTree  # on a mesh in shards, see `freezejax.training.processes.to_host`
    steps: int
    step_ms_median: float | None  # None where too few steps were timed (a run resumed near its end)
    schedule: FreezeSchedule | None = None  # what trained when, in steps; of a policy all that it decided
    # None of a run that was resumed. Of all steps, with waiting for programs and a policy's measures, without
    # evaluations, checkpoints and what came before the first; and without those, by the median step of each phase.
    seconds: float | None = None
    step_seconds: float | None = None


def train(
    model: Model,
    objective: Objective,
    batches: BatchSource,
    config: TrainConfig,
    schedule: FreezeSchedule,
    directory: Path,
    *,
    params: PyTree | None = None,
    policy: Policy | None = None,
    mesh: Mesh | None = None,
    sinks: Sequence[Sink] = (),
    stop: StopSignal | None = None,
) -> TrainResult:
    """Trains `model` through the phases of `schedule`, from the newest checkpoint if any.

    A run killed at any step and started again ends with the bits of an uninterrupted one: initial weights and dropout
    follow from `config.seed` and the step alone, and the order of the data from its source.

    Args:
      model: what to train.
      objective: what is minimized and what is evaluated, for instance `LanguageModelling`.
      batches: where batches come from, for instance `TokenBatches`.
      config: steps, batch, optimizer and so on.
      schedule: what trains from which step on; fractions are of `config.steps`.
      directory: where checkpoints go; with several processes one that all of them see. It belongs to one run: config,
        model and schedule must be those of its checkpoints, but for `freezejax.training.checkpoints.MAY_CHANGE`.
      params: weights to start from, in their own dtypes; they are copied. None = `model.init`.
      policy: what decides on the way what is frozen, see `freezejax.training.adaptive`; the schedule is then what
        trains until its first decision, one entry, and of what no group names for ever.
      mesh: devices to lay the run out over, see `freezejax.sharding`; None = the default device.
      sinks: where records go: one of every phase, when it begins, with what each rule catches; steps' every
        `config.log_every`, evaluations' every `config.eval_every` and at the end.
      stop: when it receives a signal the loop saves a checkpoint and raises.

    Raises:
      UserError: schedule, weights, batches or checkpoint do not fit; the directory belongs to another run.
      NonFinite: a loss, a norm or an evaluation is not finite; the last good checkpoint stays.
      Stopped: `stop` received a signal.
    """
    with Checkpoints(Path(directory) / "checkpoints") as checkpoints:
        plan = RunPlan(model, config, schedule, mesh, objective=objective, batch=batches.abstract, params=params)
        if policy is not None and (len(plan.phases) > 1 or config.restart_schedule):
            raise UserError("policy: give a schedule of one entry, and train.restart_schedule=false")
        run = _Run(plan, config, plan.key(), batches, Path(directory), checkpoints, sinks, stop or StopSignal())
        if policy is not None:
            policy.check(model.abstract_params())
            run.decisions = Decisions(policy, Path(directory), schedule.entries[0][1], plan.extend)
        compiler = BackgroundCompiler(plan.compile, plan.programs())
        try:
            with compiler, BackgroundCompiler(plan.transition, range(len(plan.phases))) as transitions:
                return run.through_all_phases(compiler, transitions, params)
        finally:
            for sink in sinks:
                sink.close()


@dataclasses.dataclass
class _Run:
    """One run while it goes; `train` is its only user."""

    plan: RunPlan
    config: TrainConfig
    key: jax.Array
    source: BatchSource
    directory: Path
    checkpoints: Checkpoints
    sinks: Sequence[Sink]
    stop: StopSignal
    decisions: Decisions | None = None  # of a policy
    pending: tuple[int, int, dict[str, jax.Array]] | None = None  # step, phase and metrics of the last step
    step_seconds: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # phase of each step, and its time
    clock: float = 0.0

    def start(self, params: PyTree | None) -> tuple[int, int, RunState]:
        """`(updates so far, phase of the last of them, state)`, from the newest checkpoint or afresh."""
        # As process 0 sees it: on a network's file system another may see a new file late.
        step = processes.broadcast_from_main(-1 if (found := self.checkpoints.latest()) is None else found)
        told = "" if self.decisions is None else self.decisions.policy.describe()
        processes.on_main(lambda: self.checkpoints.claim(self.plan, fresh=step < 0, policy=told))
        if step < 0:
            return 0, 0, self.plan.begin(params)
        if self.decisions is not None:
            self.decisions.resume(step)
        index = max(i for i, phase in enumerate(self.plan.phases) if phase.start < max(step, 1))
        state, position = self.checkpoints.restore(step, self.plan.abstract_state(index))
        self.source.set_state(position)
        return step, index, state

    def through_all_phases(
        self, programs: BackgroundCompiler, transitions: BackgroundCompiler, params: PyTree | None
    ) -> TrainResult:
        step, index, state = self.start(params)
        for sink in self.sinks:
            sink.begin(step)

        def prepare(now: int) -> None:
            programs.extend(self.plan.programs())  # with what a policy has added
            transitions.extend(range(len(self.plan.phases)))
            programs.prepare(now)
            for later in range(now + 1, len(self.plan.phases)):
                programs.prepare(later)
                transitions.prepare(later)

        now = index
        while now < len(self.plan.phases):
            prepare(now)
            if now > index:
                state = transitions.get(now)(state)
            of_phase = programs.get(now)
            if step <= self.plan.phases[now].start:  # a run resumed inside of a phase has told that before
                rules = self.plan.schedule.entries[now][1]
                self.record(phase_record(self.plan.abstract_params, self.plan.phases[now], rules))
            self.clock = self.clock or time.perf_counter()
            state = self.through_phase(of_phase, state, now, max(step, self.plan.phases[now].start), prepare)
            now += 1
        self.flush()
        self.record_evaluation(self.config.steps, state)
        every = [seconds for _, seconds in self.step_seconds]
        median = 1e3 * statistics.median_high(every) if len(every) >= 3 else None
        found = TrainResult(state.averaged(), self.config.steps, median, self.plan.schedule)
        if step > 0:
            return found
        by_phase = [[seconds for phase, seconds in self.step_seconds if phase == now] for now in range(now)]
        stepping = sum(len(times) * statistics.median_low(times) for times in by_phase)
        return dataclasses.replace(found, seconds=sum(every), step_seconds=stepping)

    def through_phase(
        self, programs: PhasePrograms, state: RunState, now: int, start: int, prepare: Callable[[int], None]
    ) -> RunState:
        """Runs the steps of a phase. Metrics are fetched one step late, so the device never waits.

        `prepare(now)` has the program of this phase, and those after it, compiled in the background.
        """
        step_state, frozen = state.split(self.plan.phases[now].mask)
        argument = self.plan.held(frozen)
        with phase_batches(self.source, programs, argument, self.config, self.directory) as batches:
            index = start
            while index < self.plan.phases[now].stop:
                rows = next(batches)
                self.plan.objective.check(rows)
                batch = self.plan.place(rows)
                step_state, metrics = programs.step(step_state, argument, self.key, np.int32(index), batch)
                self.flush()
                index = done = index + 1
                self.pending = (done, now, metrics)
                if self._is_due(done, self.config.eval_every):
                    self.flush()
                    self.record_evaluation(done, join(step_state, frozen, state.kept))
                if self.decisions is not None and self.decisions.is_due(done, self.config.steps):
                    self.decisions.take(done, combine(step_state.trainable, frozen), write=processes.is_main())
                    prepare(now)
                stop = self.asked_to_stop(done)
                if stop or self._is_due(done, self.config.checkpoint_every):
                    self.save(done, join(step_state, frozen, state.kept), step_state.trainable, batches.get_state())
                if stop:
                    raise Stopped(done, stop)
        return join(step_state, frozen, state.kept)

    def flush(self) -> None:
        """Fetches the metrics of the last step, checks them, and records them when due."""
        if self.pending is None:
            return
        step, now, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in metrics.items()}
        self.check_finite(step, values)
        seconds = time.perf_counter() - self.clock
        self.step_seconds.append((now, seconds))
        self.clock += seconds
        if step % self.config.log_every == 0 or step == self.config.steps:
            mask = self.plan.phases[now].mask
            share = count_parameters(self.plan.matrices, mask) / count_parameters(self.plan.matrices)
            where = {"step": step, "phase": now, "trainable_share": share}
            self.record({**where, "tokens_per_second": self.config.tokens_per_step / seconds, **values})

    def record_evaluation(self, step: int, state: RunState) -> None:
        figures = self.plan.objective.evaluate(state.averaged())
        self.check_finite(step, figures)
        if figures:
            self.record({"step": step, **figures})
        self.clock = time.perf_counter()

    def check_finite(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(step, name, value, self.checkpoints.latest())

    def record(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)

    def save(self, step: int, state: RunState, trainable: PyTree, position: dict[str, Any]) -> None:
        # A checkpoint is only ever made of finite steps and weights: the last update has no loss yet.
        self.flush()
        self.check_finite(step, {"a weight": 0.0 if processes.all_finite(trainable) else math.nan})
        self.checkpoints.save(step, state, position)
        self.clock = time.perf_counter()

    def asked_to_stop(self, step: int) -> int:
        """The signal that asked, once every process knows: with several they compare notes when metrics are logged."""
        if jax.process_count() > 1 and step % self.config.log_every:
            return 0
        return processes.largest(self.stop.received or 0)

    def _is_due(self, step: int, every: int) -> bool:
        """Whether to do what is done every so many steps (0 = never) before the last."""
        return every > 0 and step % every == 0 and step < self.config.steps
