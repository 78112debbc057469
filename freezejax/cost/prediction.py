"""What every phase of a run costs, from shapes and mask alone: nothing is traced but `init`, nothing is compiled."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from freezejax import artifact
from freezejax.artifact.tensors import CodecRules
from freezejax.cost import arguments, collectives, memory
from freezejax.cost.arguments import Leaf
from freezejax.cost.elementwise import Counts, count_elements
from freezejax.cost.layout import MeshShape
from freezejax.cost.matmuls import matmul_flops, newton_schulz
from freezejax.cost.sites import Live, Site, liveness, sites_of
from freezejax.errors import UserError
from freezejax.masks import count_parameters
from freezejax.models import Model
from freezejax.paths import PyTree, leaf_paths
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.training.config import TrainConfig
from freezejax.weights import as_matrices


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


@dataclasses.dataclass(frozen=True)
class Step:
    """One phase's step, taken apart: what `predict` adds up, and what a calibration fits."""

    config: TrainConfig
    mesh: MeshShape
    sites: tuple[tuple[Site, Live], ...]
    leaves: list[Leaf]

    @property
    def rows(self) -> int:
        """Sequences on one device, per microbatch."""
        return -(-self.config.batch_size // self.config.accumulation // self.mesh.batch_ways)

    @property
    def matmul_flops(self) -> int:
        """FLOPs of all matmuls on one device, those of the optimizer included."""
        per_part = sum(
            matmul_flops(site, live, self.rows, self.config.seq_len, self.mesh.tensor) for site, live in self.sites
        )
        return self.config.accumulation * per_part + sum(
            newton_schulz(leaf.shape) for leaf in self.leaves if leaf.trains and leaf.by_muon
        )

    @property
    def elements(self) -> Counts:
        """Elements that everything else computes, by kind."""
        return count_elements(self.sites, self.leaves, self.config, self.rows, self.mesh)

    @property
    def points(self) -> list[Counts]:
        """Elements that are live at each point of the step, by kind."""
        return list(memory.points(self.sites, self.leaves, self.config, self.rows, self.mesh))


def predict(
    model: Model,
    config: TrainConfig,
    schedule: FreezeSchedule,
    *,
    mesh: Mapping[str, int] | None = None,
    codec: CodecRules = "int6",
) -> Prediction:
    """The cost of every phase of a run, in milliseconds, on any machine.

    Args:
      model: of a known family, with random maps and adapters where it has them.
      config: of the run.
      schedule: what trains from which step on.
      mesh: sizes of the axes data, fsdp and tensor; an axis not named has size 1. None = one device.
      codec: of the stored bytes, as for `freezejax.artifact.save`.

    Raises:
      UserError: the schedule does not fit the model, or the batch or the mesh do not fit each other.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1)
    >>> config = TrainConfig(steps=10, batch_size=8, seq_len=64)
    >>> schedule = FreezeSchedule([(0, [(".*", True)]), (0.5, [("blocks/.*", False), (".*", True)])])
    >>> full, frozen = predict(model, config, schedule).phases
    >>> frozen.flops < 0.8 * full.flops, frozen.optimizer_bytes < 0.2 * full.optimizer_bytes
    (True, True)
    """
    shape = MeshShape.of(mesh)
    if config.batch_size % (config.accumulation * shape.batch_ways):
        raise UserError(
            f"train.batch_size={config.batch_size}: expected a multiple of accumulation x data x fsdp = "
            f"{config.accumulation * shape.batch_ways}"
        )
    params = abstract(model)
    stored = artifact.predict_bytes(params, codec)
    phases = schedule.phases(params, config.steps)
    return Prediction(tuple(_of_phase(model, config, phase, shape, stored) for phase in phases))


def take_apart(model: Model, config: TrainConfig, phase: Phase, mesh: MeshShape) -> Step:
    """The sites and parameters of one phase's step."""
    params = abstract(model)
    trains = dict(zip(leaf_paths(params), jax.tree.leaves(phase.mask), strict=True))
    sites = sites_of(model.config, params, mesh)
    pairs = tuple(zip(sites, liveness(sites, trains), strict=True))
    return Step(config, mesh, pairs, arguments.leaves_of(params, trains, config, mesh))


@functools.lru_cache(maxsize=64)
def abstract(model: Model) -> PyTree:
    """Parameters of a model, as shapes.

    >>> from freezejax import models
    >>> sorted(abstract(models.build("geglu", num_layers=1)))
    ['blocks', 'ln_f', 'tok_emb']
    """
    return jax.eval_shape(model.init, jax.random.key(0))


@functools.lru_cache(maxsize=64)
def _matrices(model: Model) -> PyTree:
    return as_matrices(abstract(model))


@functools.cache
def calibration() -> dict[str, dict[str, Any]]:
    """FLOPs per element, and arrays that are live per array of a site, by kind; fitted, see docs/cost.md.

    >>> sorted(calibration())
    ['flops', 'memory', 'versions']
    """
    found: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "calibration.json").read_text())
    return found


def _of_phase(model: Model, config: TrainConfig, phase: Phase, mesh: MeshShape, stored: int) -> PhaseCost:
    step, tables = take_apart(model, config, phase, mesh), calibration()
    matrices = _matrices(model)
    elementwise = sum(tables["flops"].get(kind, 0.0) * count for kind, count in step.elements.items())
    live = max(sum(tables["memory"].get(kind, 0.0) * count for kind, count in point.items()) for point in step.points)
    itemsize = 2 if config.compute_dtype == "bfloat16" else 4
    return PhaseCost(
        start=phase.start,
        stop=phase.stop,
        devices=mesh.devices,
        compute_dtype=config.compute_dtype,
        trainable_share=count_parameters(matrices, phase.mask) / count_parameters(matrices),
        flops=step.matmul_flops + round(elementwise),
        matmul_flops=step.matmul_flops,
        parameter_bytes=sum(leaf.bytes for leaf in step.leaves),
        gradient_bytes=sum(leaf.bytes for leaf in step.leaves if leaf.trains),
        optimizer_bytes=arguments.optimizer_bytes(step.leaves, config),
        activation_bytes=round(live),
        argument_bytes=arguments.argument_bytes(model.config, abstract(model), step.leaves, config, mesh),
        collective_bytes=collectives.collective_bytes(
            step.sites,
            step.leaves,
            mesh,
            tokens=step.rows * config.seq_len,
            itemsize=itemsize,
            accumulation=config.accumulation,
        ),
        stored_bytes=stored,
    )
