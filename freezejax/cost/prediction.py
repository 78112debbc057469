"""What every phase of a run costs, and how long it takes, from its step's jaxpr: nothing is compiled or run."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from freezejax import artifact
from freezejax.artifact.tensors import CodecRules
from freezejax.chips import Chip
from freezejax.cost.flops import matmul_flops, other_flops
from freezejax.cost.memory import temporary_bytes
from freezejax.cost.placement import KINDS, Placement
from freezejax.cost.program import trace
from freezejax.cost.splitting import spec_of
from freezejax.errors import UserError
from freezejax.masks import count_parameters
from freezejax.models import Model
from freezejax.paths import PyTree, nearest
from freezejax.schedules import FreezeSchedule
from freezejax.sharding import AXES
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

EFFICIENCY = 0.4  # of the peak in matmuls, where nothing better is known


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """Cost of one step of a phase, per device unless it says otherwise.

    FLOPs are counted as XLA's cost analysis counts them: two for a multiplication and an addition, one for every other
    elementary operation. Bytes of activations are those of XLA's CPU compiler; see docs/cost.md.
    """

    start: int  # first step
    stop: int  # step after the last
    devices: int
    compute_dtype: str
    trainable_share: float  # of the weights, those of random maps included
    flops: int
    matmul_flops: int  # of these, in matmuls
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int  # with the average of the weights, if there is one
    activation_bytes: int  # temporaries at the fullest point, gradients among them
    argument_bytes: int  # what the step takes: parameters, optimizer state, batch
    collective_bytes: Mapping[str, int]  # sent in a ring, by kind: all-gather, reduce-scatter, all-reduce
    stored_bytes: int  # of the whole model in its file, before compression

    @property
    def total_flops(self) -> int:
        """FLOPs of all devices in one step."""
        return self.flops * self.devices

    @property
    def steps(self) -> int:
        """Steps of the phase."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The phases of a run, in order.

    >>> Prediction(()).flops
    0
    """

    phases: tuple[PhaseCost, ...]

    @property
    def flops(self) -> int:
        """FLOPs of the whole run, of all devices."""
        return sum(phase.total_flops * phase.steps for phase in self.phases)


def predict(
    model: Model,
    config: TrainConfig,
    schedule: FreezeSchedule,
    *,
    mesh: Mapping[str, int] | None = None,
    codec: CodecRules = "int6",
) -> Prediction:
    """What every phase of a run costs.

    Args:
      model: what trains; of any family.
      config: of the run.
      schedule: what trains from which step on.
      mesh: sizes of the axes data, fsdp, expert and tensor, 1 unless given; no such devices are needed.
      codec: what the finished model is stored with, see `artifact.predict_bytes`.

    Raises:
      UserError: an unknown axis or a size below 1, or a schedule, batch and mesh that do not fit each other.

    >>> from freezejax import models
    >>> config = TrainConfig(steps=10, batch_size=4, seq_len=64)
    >>> schedule = FreezeSchedule([(0, [(".*", True)]), (5, [("blocks/.*", False), (".*", True)])])
    >>> whole, half = predict(models.build("geglu", num_layers=2), config, schedule).phases
    >>> half.matmul_flops < whole.matmul_flops, half.parameter_bytes == whole.parameter_bytes
    (True, True)
    """
    sizes = _mesh_sizes(mesh or {})
    plan = _plan(model, config, schedule, sizes)
    stored = artifact.predict_bytes(model.abstract_params(), codec)
    costs: dict[tuple[bool, ...], PhaseCost] = {}  # phases that train the same leaves run the same program
    found = []
    for index, phase in enumerate(plan.phases):
        mask = tuple(jax.tree.leaves(phase.mask))
        costs[mask] = costs.get(mask) or _cost(plan, index, sizes, stored)
        found.append(dataclasses.replace(costs[mask], start=phase.start, stop=phase.stop))
    return Prediction(tuple(found))


def matmul_flops_per_token(model: Model, schedule: FreezeSchedule, seq_len: int) -> int:
    """FLOPs of the matmuls in the first phase's step, per token of a sequence; attention over the sequence among them.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=32, num_heads=2, vocab_size=8)
    >>> matmul_flops_per_token(model, FreezeSchedule([(0, [(".*", True)])]), seq_len=8)  # 6 a weight, 12 x 32 x 8
    66048
    """
    plan = _plan(model, TrainConfig(steps=1, batch_size=1, seq_len=seq_len), schedule, {})
    return matmul_flops(trace(plan.step(0), *plan.arguments(0))) // seq_len


def forward_flops(model: Model, config: TrainConfig) -> int:
    """FLOPs of one forward pass over a batch, on one device, to the logits: what a teacher adds to a student's step.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=32, num_heads=2, vocab_size=8)
    >>> config = TrainConfig(steps=1, batch_size=2, seq_len=8)
    >>> step = predict(model, config, FreezeSchedule([(0, [(".*", True)])])).phases[0].flops
    >>> 0.25 < forward_flops(model, config) / step < 0.4  # the backward pass takes twice as much
    True
    """
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.seq_len), jnp.int32)
    apply = functools.partial(model.apply, compute_dtype=jnp.dtype(config.compute_dtype))
    program = trace(apply, model.abstract_params(), tokens)
    return matmul_flops(program) + other_flops(program)


def estimate_seconds(phase: PhaseCost, hardware: Chip, efficiency: float = EFFICIENCY) -> float:
    """Seconds of one step: the longest of what matmuls, memory and links need, each working while the others do.

    Matmuls reach `efficiency` of the peak. Memory carries the arguments twice, read and written, and the temporaries
    twice. Links carry every collective at the rate inside a node or a pod slice; a slower network is not modelled.
    That they overlap is optimistic for small models, whose steps are bound by launches: measure those.

    Args:
      phase: its cost, per device.
      hardware: what runs it.
      efficiency: share of the peak FLOP/s in (0, 1].

    Raises:
      UserError: an efficiency outside (0, 1].

    >>> from freezejax import FreezeSchedule, cost, models
    >>> from freezejax.training.config import TrainConfig
    >>> config = TrainConfig(steps=1, batch_size=64, seq_len=512, compute_dtype="bfloat16")
    >>> phase = cost.predict(models.build("geglu"), config, FreezeSchedule([(0, [(".*", True)])])).phases[0]
    >>> 1e-4 < estimate_seconds(phase, cost.HARDWARE["h100"], 0.4) < 1e-1
    True
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"efficiency={efficiency}: expected a share of the peak in (0, 1]")
    compute = phase.matmul_flops / (efficiency * hardware.flops[phase.compute_dtype])
    memory = 2 * (phase.argument_bytes + phase.activation_bytes) / hardware.memory_rate
    links = sum(phase.collective_bytes.values()) / hardware.link_rate
    return max(compute, memory, links)


def _plan(model: Model, config: TrainConfig, schedule: FreezeSchedule, sizes: Mapping[str, int]) -> RunPlan:
    # A prefix that runs apart is counted with the step, as in the first epoch.
    config = dataclasses.replace(config, prefix_cache="off")
    mesh: Any = None
    if sizes:
        mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    return RunPlan(model, config, schedule, mesh)


def _cost(plan: RunPlan, index: int, sizes: Mapping[str, int], stored: int) -> PhaseCost:
    phase, arguments, placement = plan.phases[index], plan.arguments(index), Placement(sizes)
    program = trace(plan.step(index), *arguments)
    if sizes:
        leaves = jax.tree.leaves(arguments)
        program = placement.cut(program, [spec_of(leaf.sharding.spec, len(leaf.shape)) for leaf in leaves])
    state = plan.abstract_state(index)
    step_state, _ = state.split(phase.mask)
    matmuls = matmul_flops(program)
    return PhaseCost(
        start=phase.start,
        stop=phase.stop,
        devices=math.prod(sizes.values()),
        compute_dtype=plan.config.compute_dtype,
        trainable_share=count_parameters(plan.matrices, phase.mask) / count_parameters(plan.matrices),
        flops=matmuls + other_flops(program),
        matmul_flops=matmuls,
        parameter_bytes=_bytes(state.params),
        gradient_bytes=_bytes(step_state.trainable),
        optimizer_bytes=_bytes((step_state.opt_state, step_state.ema)),
        activation_bytes=temporary_bytes(program),
        argument_bytes=sum(array.nbytes for array in program.read),
        collective_bytes={kind: placement.sent[kind] for kind in KINDS},
        stored_bytes=stored,
    )


def _bytes(tree: PyTree) -> int:
    """Of the leaves of a tree on one device."""

    def shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        return leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape

    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _mesh_sizes(mesh: Mapping[str, int]) -> dict[str, int]:
    """Of all axes; none where there is one device."""
    for axis, size in mesh.items():
        if axis not in AXES:
            raise UserError(f"mesh: there is no axis {axis!r}; {nearest(axis, AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"mesh: {axis}={size!r}: expected an integer of at least 1")
    return {axis: mesh.get(axis, 1) for axis in AXES} if math.prod(mesh.values()) > 1 else {}
