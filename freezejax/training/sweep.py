"""Many freeze schedules of one model trained at once: the mask is an array, and the step is mapped over it.

One program serves every schedule, so a sweep of short runs pays for one compilation instead of one per run. It saves no
FLOPs: every gradient that any schedule needs is computed for all of them (what none trains is held once and costs
nothing), so long runs of few schedules are better trained one by one.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from freezejax.errors import UserError
from freezejax.models import Model
from freezejax.optimizer import scheduled_freeze
from freezejax.partition import combine, partition
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule, chosen
from freezejax.training.batches import BatchSource
from freezejax.training.config import TrainConfig
from freezejax.training.interrupts import NonFinite, Stopped, StopSignal
from freezejax.training.metrics import Record
from freezejax.training.objectives.base import Objective
from freezejax.training.plan import RunPlan
from freezejax.training.programs.compiler import compiler_options
from freezejax.training.programs.tracing import traced
from freezejax.training.step import StepState, make_step

AXIS = "variants"
_NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What one schedule of a sweep leaves."""

    index: int  # of the schedule
    params: PyTree
    records: list[Record]  # of the steps that are logged, and the evaluation of the last


def sweep(
    model: Model,
    objective: Objective,
    batches: BatchSource,
    config: TrainConfig,
    schedules: Sequence[FreezeSchedule],
    *,
    params: PyTree | None = None,
    width: int = 0,
    devices: Sequence[jax.Device] | None = None,
    stop: StopSignal | None = None,
) -> Iterator[SweepResult]:
    """Trains `model` once under each schedule, several at a time, and yields each as its group ends.

    Every schedule starts from the same weights, sees the same batches and draws the same dropout: what `train` does
    with each alone, to float tolerance (a leaf that is frozen throughout keeps its bits). Nothing is saved on the way.

    Args:
      model: what to train.
      objective: as of `train`; it evaluates each result.
      batches: where batches come from; read once per group, from where it stands.
      config: as of `train`; without an average of the weights, restarts at phases and a cached prefix.
      schedules: what trains from which step on.
      params: weights to start from; None = `model.init`.
      width: schedules at a time; 0 = as many as fit into memory on an accelerator, and one on a CPU, where more
        are no faster (`benchmarks.sweep`).
      devices: each trains an equal share of a group; None = all that this process sees.
      stop: when it receives a signal the sweep raises after the step.

    Raises:
      UserError: a schedule does not fit the model, or the config asks for what a sweep does not do.
      NonFinite: a loss or an evaluation is not finite.
      Stopped: `stop` received a signal; what was not yet yielded is lost.
    """
    for field in ("ema_decay", "restart_schedule", "restart_optimizer"):
        if getattr(config, field):
            raise UserError(f"train.{field}={getattr(config, field)!r}: a sweep has none; give 0 or false")
    if config.prefix_cache != "off":
        raise UserError(f"train.prefix_cache={config.prefix_cache!r}: a sweep has none; give 'off'")
    if not schedules:
        return
    group = _Group(model, objective, batches, config, schedules, params, list(devices or jax.local_devices()))
    position = batches.get_state()
    width = group.fitting(width)
    for first in range(0, len(schedules), width):
        batches.set_state(position)
        yield from group.train(range(first, min(first + width, len(schedules))), stop or StopSignal())


@dataclasses.dataclass(frozen=True)
class _OneOf:
    """One of several schedules, by a number that may be traced; to `scheduled_freeze` a schedule."""

    held: list[PyTree]  # the masks of all entries of all schedules, of the leaves that train in any
    starts_SxE: np.ndarray  # int32, of the entries of each
    first_S: np.ndarray  # int32, where the masks of each begin
    index: Any
    resolved = True

    def masks(self, params: PyTree) -> list[PyTree]:
        return self.held

    def select(self, masks: Sequence[PyTree], step: Any) -> PyTree:
        begun_E = jnp.int32(step) >= jnp.asarray(self.starts_SxE)[self.index]
        return chosen(masks, jnp.asarray(self.first_S)[self.index] + jnp.sum(begun_E, dtype=jnp.int32) - 1)


class _Group:
    """The program of some schedules at a time, and the runs with it."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        batches: BatchSource,
        config: TrainConfig,
        schedules: Sequence[FreezeSchedule],
        params: PyTree | None,
        devices: Sequence[jax.Device],
    ) -> None:
        self.objective, self.batches, self.config = objective, batches, config
        self.schedules = [schedule.resolve(config.steps) for schedule in schedules]
        self.plan = RunPlan(
            model, config, self.schedules[0], objective=objective, batch=batches.abstract, params=params
        )
        of_each = [[phase.mask for phase in s.phases(self.plan.abstract_params, config.steps)] for s in self.schedules]
        masks = [mask for of_one in of_each for mask in of_one]
        union = jax.tree.map(lambda *trains: any(trains), *masks)
        self.masks = [partition(mask, union)[0] for mask in masks]
        self.starts_SxE = np.full((len(schedules), max(map(len, of_each))), _NEVER, np.int32)
        for row, schedule in zip(self.starts_SxE, self.schedules, strict=True):
            row[: len(schedule.entries)] = [start for start, _ in schedule.entries]
        self.first_S = np.cumsum([0, *map(len, of_each[:-1])], dtype=np.int32)
        self.half, self.rest = partition(self.plan.begin(params).params, union)
        self.mesh = Mesh(np.asarray(devices), (AXIS,))
        self.by_variant = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        placed = jax.device_put((self.plan.held(self.rest), self.half, self.plan.key()), self.everywhere)
        self.frozen, self.half, self.key = placed
        # Weights are an argument: closed over, they would be constants of the program.
        self.begin = jax.jit(jax.vmap(self.first, in_axes=(0, None)), out_shardings=self.by_variant)
        self.program: Any = None
        self.width = 0

    def transformation(self, index: Any) -> Any:
        """The optimizer under the schedule of this number."""
        schedule: Any = _OneOf(self.masks, self.starts_SxE, self.first_S, index)
        return scheduled_freeze(self.plan.optimizer(self.plan.phases[0]), schedule, on_thaw=self.config.on_thaw)

    def step(self, index: Any, state: StepState, frozen: PyTree, key: Any, number: Any, batch: Any) -> Any:
        config = self.config
        draw = config.draw_maps == "per_step"
        own = make_step(self.objective, self.transformation(index), accumulation=config.accumulation, draw_once=draw)
        state, metrics = own(state, frozen, key, number, batch)
        # Of all leaves that any schedule trains: it would not be that of this one.
        return state, {name: value for name, value in metrics.items() if name != "grad_norm"}

    def first(self, index: Any, half: PyTree) -> StepState:
        return StepState(half, self.transformation(index).init(half), None)

    def fitting(self, width: int) -> int:
        """Compiles the program for as many schedules at a time as are asked for, or as fit."""
        shares = self.mesh.size
        device = self.mesh.devices.flat[0]
        wanted = min(width or (shares if _on_cpu(device) else len(self.schedules)), len(self.schedules))
        while True:
            self.width = shares * math.ceil(wanted / shares)
            self.program = self.compile(self.width)
            if width or self.width == shares or _bytes(self.program) <= _limit(device):
                return self.width
            wanted = math.ceil(self.width / 2)

    def compile(self, width: int) -> Any:
        def like(leaf: Any, sharding: NamedSharding, *leading: int) -> Any:
            return jax.ShapeDtypeStruct((*leading, *leaf.shape), leaf.dtype, sharding=sharding)

        index = jax.ShapeDtypeStruct((width,), jnp.int32, sharding=self.by_variant)
        one = jax.eval_shape(self.first, jax.ShapeDtypeStruct((), jnp.int32), self.half)
        state = jax.tree.map(lambda leaf: like(leaf, self.by_variant, width), one)
        shared = (self.frozen, self.key, jnp.int32(0), self.batches.abstract)
        others = jax.tree.map(lambda leaf: like(leaf, self.everywhere), shared)
        step = jax.vmap(traced(self.step, "sweep"), in_axes=(0, 0, None, None, None, None))
        shardings = (self.by_variant, self.by_variant)
        lowered = jax.jit(step, donate_argnums=1, out_shardings=shardings).lower(index, state, *others)
        return lowered.compile(compiler_options())

    def train(self, members: range, stop: StopSignal) -> Iterator[SweepResult]:
        """Runs a group; the last is filled up with copies of its last member."""
        numbers = np.minimum(np.arange(members.start, members.start + self.width), members[-1]).astype(np.int32)
        index = jax.device_put(numbers, self.by_variant)
        state = self.begin(index, self.half)
        logged: list[tuple[int, dict[str, Any]]] = []
        for number in range(self.config.steps):
            rows = next(self.batches)
            self.objective.check(rows)
            placed = jax.device_put(rows, self.everywhere)
            now = jax.device_put(np.int32(number), self.everywhere)
            state, metrics = self.program(index, state, self.frozen, self.key, now, placed)
            if (number + 1) % self.config.log_every == 0 or number + 1 == self.config.steps:
                logged.append((number + 1, metrics))
            if stop.received:
                raise Stopped(number + 1, stop.received)
        for place, member in enumerate(members):
            half = jax.device_put(
                jax.tree.map(lambda leaf, at=place: leaf[at], state.trainable), jax.local_devices()[0]
            )
            params = combine(half, self.rest)
            records = [{"step": at, **{name: float(v[place]) for name, v in each.items()}} for at, each in logged]
            figures = dict(self.objective.evaluate(params))
            for record in [*records, {"step": self.config.steps, **figures}]:
                for name, value in record.items():
                    if not math.isfinite(value):
                        raise NonFinite(int(record["step"]), f"schedule {member}: {name}", value, None)
            yield SweepResult(member, params, [*records, {"step": self.config.steps, **figures}])


def _on_cpu(device: jax.Device) -> bool:
    return device.platform == "cpu"


def _bytes(program: Any) -> int:
    found = program.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


def _limit(device: jax.Device) -> int:
    """Bytes that a program may take on a device: nine tenths of it, or half of the host's free memory."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(0.9 * stats["bytes_limit"])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
