"""The training loop: phases in order, one compiled step each, resumable at every step."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from freezejax.data import Tokens
from freezejax.masks import count_parameters
from freezejax.models import Model
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.training import processes
from freezejax.training.batches import Batches
from freezejax.training.checkpoints import Checkpoints
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped, StopSignal
from freezejax.training.metrics import Record, Sink
from freezejax.training.phases import BackgroundCompiler, PhasePrograms
from freezejax.training.plan import RunPlan
from freezejax.training.prefix import phase_batches
from freezejax.training.state import RunState, join
from freezejax.training.step import StepState

Evaluate = Callable[[PyTree], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves: its parameters (the EMA where there is one) and its pace.

    >>> TrainResult({}, 10, None).step_ms_median is None
    True
    """

    params: PyTree
    steps: int
    step_ms_median: float | None  # None where too few steps were timed (a run resumed near its end)


def train(
    model: Model,
    tokens: Tokens,
    config: TrainConfig,
    schedule: FreezeSchedule,
    directory: Path,
    *,
    mesh: Mesh | None = None,
    evaluate: Evaluate | None = None,
    sinks: Sequence[Sink] = (),
    stop: StopSignal | None = None,
) -> TrainResult:
    """Trains `model` on `tokens` through the phases of `schedule`, from the newest checkpoint if any.

    A run killed at any step and started again ends with the bits of an uninterrupted one: initial
    weights, data order and dropout follow from `config.seed` and the step alone.

    Args:
      model: what to train.
      tokens: 1-D training tokens.
      config: steps, batch, optimizer and so on.
      schedule: what trains from which step on; fractions are of `config.steps`.
      directory: where checkpoints go; with several processes one that all of them see.
      mesh: devices to lay the run out over, see `freezejax.sharding`; None = the default device.
      evaluate: parameters -> figures to record, every `config.eval_every` steps and at the end.
      sinks: where records go.
      stop: when it receives a signal the loop saves a checkpoint and raises.

    Raises:
      UserError: schedule, data or checkpoint do not fit.
      NonFinite: a loss, a norm or an evaluation is not finite; the last good checkpoint stays.
      Stopped: `stop` received a signal.
    """
    with Checkpoints(Path(directory) / "checkpoints") as checkpoints:
        plan = RunPlan(model, config, schedule, mesh)
        run = _Run(plan, tokens, Path(directory), checkpoints, evaluate, sinks, stop or StopSignal())
        keys = [(phase.mask, plan.count_offset(phase)) for phase in plan.phases]
        compiler, boundaries = BackgroundCompiler(plan.compile, keys), range(len(keys))
        try:
            with compiler as programs, BackgroundCompiler(plan.crossing, boundaries) as crossings:
                return run.through_all_phases(programs, crossings)
        finally:
            for sink in sinks:
                sink.close()


class _Run:
    """The moving parts of one run; `train` is its only user."""

    def __init__(
        self,
        plan: RunPlan,
        tokens: Tokens,
        directory: Path,
        checkpoints: Checkpoints,
        evaluate: Evaluate | None,
        sinks: Sequence[Sink],
        stop: StopSignal,
    ) -> None:
        self.plan, self.config, self.phases, self.directory = plan, plan.config, plan.phases, directory
        self.checkpoints, self.evaluate, self.sinks, self.stop = checkpoints, evaluate, sinks, stop
        self.key = plan.key()
        self.data = Batches(tokens, self.config, plan.layout)
        self.pending: tuple[int, Phase, dict[str, jax.Array]] | None = None
        self.step_seconds: list[float] = []
        self.clock = 0.0

    def start(self) -> tuple[int, int, RunState]:
        """`(updates so far, phase of the last of them, state)`, from the newest checkpoint or afresh."""
        plan = self.plan
        # As process 0 sees it: on a network's file system another may see a new file late.
        step = processes.agree(-1 if (found := self.checkpoints.latest()) is None else found)
        if step < 0:
            return 0, 0, plan.begin()
        index = max(i for i, phase in enumerate(self.phases) if phase.start < max(step, 1))
        state, position = self.checkpoints.restore(step, plan.abstract_state(index))
        self.data.set_state(position)
        return step, index, state

    def through_all_phases(self, programs: BackgroundCompiler, crossings: BackgroundCompiler) -> TrainResult:
        step, index, state = self.start()
        for sink in self.sinks:
            sink.begin(step)
        for now in range(index, len(self.phases)):
            if now > index:
                state = crossings.get(now)(state)
            of_phase = programs.get(now)
            for later in range(now + 1, len(self.phases)):
                programs.prepare(later)
                crossings.prepare(later)
            self.clock = self.clock or time.perf_counter()
            state = self.through_phase(of_phase, state, self.phases[now], max(step, self.phases[now].start))
        self.settle()
        self.record_evaluation(self.config.steps, state)
        seconds = sorted(self.step_seconds)
        median = 1e3 * seconds[len(seconds) // 2] if len(seconds) >= 3 else None
        return TrainResult(processes.to_host(state.averaged(), self.plan.mesh), self.config.steps, median)

    def through_phase(self, programs: PhasePrograms, state: RunState, phase: Phase, start: int) -> RunState:
        """Runs the steps of a phase. Metrics are fetched one step late, so the device never waits."""
        moving, frozen = state.split(phase.mask)
        kept = state.kept
        argument = self.plan.held(frozen)
        with phase_batches(self.data, programs, argument, self.config, self.directory) as batches:
            for index in range(start, phase.stop):
                moving, metrics = programs.step(moving, argument, self.key, np.int32(index), next(batches))
                self.settle()
                self.pending = (index + 1, phase, metrics)
                done = index + 1
                if self._evaluates_at(done):
                    self.settle()
                    self.record_evaluation(done, join(moving, frozen, kept))
                stop = self.asked_to_stop(done)
                if stop is not None or self._checkpoints_at(done):
                    self.save(done, moving, frozen, kept)
                if stop is not None:
                    raise Stopped(done, stop)
        return join(moving, frozen, kept)

    def settle(self) -> None:
        """Fetches the metrics of the last step, checks them, and records them when due."""
        if self.pending is None:
            return
        step, phase, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in metrics.items()}
        self.check_finite(step, values)
        now = time.perf_counter()
        self.step_seconds.append(now - self.clock)
        seconds, self.clock = now - self.clock, now
        if step % self.config.log_every == 0 or step == self.config.steps:
            share = count_parameters(self.plan.matrices, phase.mask) / count_parameters(self.plan.matrices)
            self.record(
                {
                    "step": step,
                    "phase": self.phases.index(phase),
                    "trainable_share": share,
                    "tokens_per_second": self.config.tokens_per_step / seconds,
                    **values,
                }
            )

    def record_evaluation(self, step: int, state: RunState) -> None:
        if self.evaluate is not None:
            figures = self.evaluate(state.averaged())
            self.check_finite(step, figures)
            self.record({"step": step, **figures})
        self.clock = time.perf_counter()

    def check_finite(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(step, name, value, self.checkpoints.latest())

    def record(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)

    def save(self, step: int, moving: StepState, frozen: PyTree, kept: dict[str, jax.Array]) -> None:
        # A checkpoint is only ever made of finite steps and weights: the last update has no loss yet.
        self.settle()
        self.check_finite(step, {"the norm of the weights": float(optax.tree.norm(moving.trainable))})
        self.checkpoints.save(step, join(moving, frozen, kept), self.data.get_state())
        self.clock = time.perf_counter()

    def asked_to_stop(self, step: int) -> int | None:
        """The signal that asked, once every process knows: with several they compare notes when metrics are logged."""
        if jax.process_count() > 1 and step % self.config.log_every:
            return None
        return processes.largest(self.stop.received or 0) or None

    def _evaluates_at(self, step: int) -> bool:
        every = self.config.eval_every
        return self.evaluate is not None and every > 0 and step % every == 0 and step < self.config.steps

    def _checkpoints_at(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return every > 0 and step % every == 0 and step < self.config.steps
