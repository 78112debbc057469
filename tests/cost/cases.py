"""Training steps that the prediction is compared with, as data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax

from freezejax import FreezeSchedule, models
from freezejax.cost import PhaseCost, predict, prediction
from freezejax.cost.program import FlatProgram, trace
from freezejax.sharding import make_mesh
from freezejax.training.config import TrainConfig
from freezejax.training.plan import RunPlan

Rules = Sequence[tuple[str, bool]]

ALL: Rules = [(".*", True)]
GATE_UP: Rules = [(r"blocks/\d+/mlp/(gate|up|fc)/kernel", False), *ALL]
ATTENTION: Rules = [(r"blocks/\d+/attn/.*", False), *ALL]
ADAPTERS: Rules = [(".*/kernel/(a|b)", True), (".*", False)]


class Case(NamedTuple):
    """One training step: a model, a run and what trains in it.

    >>> Case("a", {"family": "geglu", "num_layers": 1}, {}, ALL).predicted().devices
    1
    """

    name: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    rules: Rules
    mesh: Mapping[str, int] = {}

    def predicted(self) -> PhaseCost:
        """What `freezejax.cost` says of it."""
        return predict(*self._parts(), mesh=self.mesh).phases[0]

    def as_xla_counts(self) -> PhaseCost:
        """As `predicted`, with one round of every loop: XLA's cost analysis counts no more."""
        with mock.patch.object(prediction, "trace", lambda fn, *arguments: _rounds_once(trace(fn, *arguments))):
            return self.predicted()

    def lower(self) -> jax.stages.Lowered:
        """The program, on as many devices as the mesh has."""
        return RunPlan(*self._parts(), make_mesh(**self.mesh) if self.mesh else None).lower(0)

    def sizes(self, program: jax.stages.Compiled) -> dict[str, int]:
        """What XLA says of it: FLOPs, bytes of arguments and of temporaries, per device."""
        costs, sizes = program.cost_analysis(), program.memory_analysis()
        return {
            "flops": round(costs["flops"]),
            "argument_bytes": sizes.argument_size_in_bytes,
            "activation_bytes": sizes.temp_size_in_bytes,
        }

    def _parts(self) -> tuple[models.Model, TrainConfig, FreezeSchedule]:
        config = TrainConfig.from_mapping({"steps": 2, "batch_size": 4, "seq_len": 128, **self.train})
        return models.build(**self.model), config, FreezeSchedule([(0, self.rules)])


def _rounds_once(program: FlatProgram) -> FlatProgram:
    equations = (
        dataclasses.replace(equation, rounds=1, bodies=tuple(map(_rounds_once, equation.bodies)))
        for equation in program.equations
    )
    return dataclasses.replace(program, equations=tuple(equations))


def prefix(blocks: int) -> Rules:
    """The embedding and the first blocks are frozen."""
    names = "|".join(str(i) for i in range(blocks))
    return [("tok_emb/.*", False), (rf"blocks/({names})/.*", False), *ALL]
