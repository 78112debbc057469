"""The training loop: phases in order, one compiled step each, resumable at every step."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from freezejax.data import Tokens, train_iterator
from freezejax.masks import count_parameters
from freezejax.models import Model, cross_entropy
from freezejax.optimizer import freeze
from freezejax.paths import PyTree
from freezejax.random_maps import as_matrices, check_seeds_frozen, hold
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.training.checkpoints import Checkpoints
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped, StopSignal
from freezejax.training.metrics import Record, Sink
from freezejax.training.optimizers import make_optimizer, rate_of_run
from freezejax.training.phases import BackgroundCompiler
from freezejax.training.state import RunState, abstract_state, begin, cross, join
from freezejax.training.step import Loss, StepState, make_step

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
      directory: where checkpoints go.
      evaluate: parameters -> figures to record, every `config.eval_every` steps and at the end.
      sinks: where records go.
      stop: when it receives a signal the loop saves a checkpoint and raises.

    Raises:
      UserError: schedule, data or checkpoint do not fit.
      NonFinite: a loss, a norm or an evaluation is not finite; the last good checkpoint stays.
      Stopped: `stop` received a signal.
    """
    with Checkpoints(Path(directory) / "checkpoints") as checkpoints:
        run = _Run(model, tokens, config, schedule, checkpoints, evaluate, sinks, stop or StopSignal())
        keys = [(phase.mask, run.count_offset(phase)) for phase in run.phases]
        try:
            with BackgroundCompiler(run.compile, keys) as programs:
                return run.through_all_phases(programs)
        finally:
            for sink in sinks:
                sink.close()


class _Run:
    """The moving parts of one run; `train` is its only user."""

    def __init__(
        self,
        model: Model,
        tokens: Tokens,
        config: TrainConfig,
        schedule: FreezeSchedule,
        checkpoints: Checkpoints,
        evaluate: Evaluate | None,
        sinks: Sequence[Sink],
        stop: StopSignal,
    ) -> None:
        self.config, self.checkpoints, self.evaluate = config, checkpoints, evaluate
        self.sinks, self.stop = sinks, stop
        self.init, self.loss = model.init, mean_loss(model, config)
        self.key = jax.random.key(config.seed)
        self.root = jax.random.key(config.base_seed)
        self.abstract_params = jax.eval_shape(model.init, self.key)
        self.matrices = as_matrices(self.abstract_params)
        self.phases = schedule.phases(self.abstract_params, config.steps)
        for phase in self.phases:
            check_seeds_frozen(self.abstract_params, phase.mask)
        self.rate = rate_of_run(config, self.phases)
        self.data = train_iterator(tokens, batch_size=config.batch_size, seq_len=config.seq_len, seed=config.seed)
        self.pending: tuple[int, Phase, dict[str, jax.Array]] | None = None
        self.step_seconds: list[float] = []
        self.clock = 0.0

    def count_offset(self, phase: Phase) -> int:
        # A restarted optimizer counts from zero again; the learning rate follows the run, not the count.
        return phase.start if self.config.restart_optimizer else 0

    def optimizer(self, phase: Phase) -> optax.GradientTransformation:
        offset = self.count_offset(phase)
        return make_optimizer(self.config.optimizer, lambda count: self.rate(count + offset))

    def compile(self, index: int) -> Any:
        """Executable of one phase's step, from shapes alone."""
        phase, config = self.phases[index], self.config
        tx = freeze(self.optimizer(phase), phase.mask)
        step = make_step(
            self.loss,
            tx,
            accumulation=config.accumulation,
            ema_decay=config.ema_decay,
            hold_maps=config.maps == "step",
        )
        state, frozen = self.abstract_state(index).split(phase.mask)
        if config.maps == "stored":
            frozen = jax.eval_shape(hold, frozen)
        sequence = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), jnp.int32)
        batch = {"inputs": sequence, "targets": sequence}
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.jit(step, donate_argnums=0).lower(state, frozen, self.key, scalar, batch).compile()

    def abstract_state(self, index: int) -> RunState:
        tx = self.optimizer(self.phases[0])
        return abstract_state(self.abstract_params, self.phases[: index + 1], tx, self.config)

    def start(self) -> tuple[int, int, RunState]:
        """`(updates so far, phase of the last of them, state)`, from the newest checkpoint or afresh."""
        step = self.checkpoints.latest()
        if step is None:
            params = self.init(self.key, self.root)
            return 0, 0, begin(params, self.phases[0], self.optimizer(self.phases[0]), self.config)
        index = max(i for i, phase in enumerate(self.phases) if phase.start < max(step, 1))
        state, position = self.checkpoints.restore(step, self.abstract_state(index))
        self.data.set_state(position)
        return step, index, state

    def through_all_phases(self, programs: BackgroundCompiler) -> TrainResult:
        step, index, state = self.start()
        for sink in self.sinks:
            sink.begin(step)
        for now in range(index, len(self.phases)):
            if now > index:
                old, new = self.phases[now - 1], self.phases[now]
                state = cross(state, old, new, self.optimizer(new), self.config)
            program = programs.get(now)
            programs.prepare(now + 1)
            state = self.through_phase(program, state, self.phases[now], max(step, self.phases[now].start))
        self.record_evaluation(self.config.steps, state)
        seconds = sorted(self.step_seconds)
        median = 1e3 * seconds[len(seconds) // 2] if len(seconds) >= 3 else None
        return TrainResult(state.averaged(), self.config.steps, median)

    def through_phase(self, program: Any, state: RunState, phase: Phase, start: int) -> RunState:
        """Runs the steps of a phase. Metrics are fetched one step late, so the device never waits."""
        moving, frozen = state.split(phase.mask)
        kept = state.kept
        argument = hold(frozen) if self.config.maps == "stored" else frozen
        self.clock = time.perf_counter()
        for index in range(start, phase.stop):
            moving, metrics = program(moving, argument, self.key, np.int32(index), next(self.data))
            self.settle()
            self.pending = (index + 1, phase, metrics)
            done = index + 1
            if self._evaluates_at(done):
                self.settle()
                self.record_evaluation(done, join(moving, frozen, kept))
            if self.stop.received is not None or self._checkpoints_at(done):
                self.save(done, moving, frozen, kept)
            if self.stop.received is not None:
                raise Stopped(done, self.stop.received)
        self.settle()
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
            share = count_parameters(self.matrices, phase.mask) / count_parameters(self.matrices)
            self.record(
                {
                    "step": step,
                    "phase": self.phases.index(phase),
                    "trainable_share": share,
                    "learning_rate": float(self.rate(step - 1)) * self.config.optimizer.learning_rate,
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

    def _evaluates_at(self, step: int) -> bool:
        every = self.config.eval_every
        return self.evaluate is not None and every > 0 and step % every == 0 and step < self.config.steps

    def _checkpoints_at(self, step: int) -> bool:
        every = self.config.checkpoint_every
        return every > 0 and step % every == 0 and step < self.config.steps


def mean_loss(model: Model, config: TrainConfig) -> Loss:
    """Mean cross entropy of a batch in nats per token, with dropout, in the run's compute dtype.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=16, num_heads=1, vocab_size=8)
    >>> loss = mean_loss(model, TrainConfig(steps=1, batch_size=1, seq_len=4))
    >>> batch = {"inputs": jnp.zeros((1, 4), jnp.int32), "targets": jnp.ones((1, 4), jnp.int32)}
    >>> 2.0 < float(loss(model.init(jax.random.key(0)), batch, jax.random.key(1))) < 2.5  # log(8) = 2.08
    True
    """
    dtype = jnp.dtype(config.compute_dtype)

    def loss(params: PyTree, batch: dict[str, jax.Array], dropout_key: jax.Array) -> jax.Array:
        logits = model.apply(params, batch["inputs"], dropout_key=dropout_key, compute_dtype=dtype)
        return jnp.mean(cross_entropy(logits, batch["targets"]))

    return loss
