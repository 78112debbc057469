"""Everything about a run that follows from shapes alone: phases, state, layout, and the program of each phase."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from freezejax.errors import UserError
from freezejax.masks import Rules
from freezejax.models import Model
from freezejax.optimizer import freeze
from freezejax.paths import PyTree, leaf_paths
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.sharding import Layout, make_mesh
from freezejax.training import processes
from freezejax.training.batches import token_batch
from freezejax.training.config import TrainConfig
from freezejax.training.objectives.base import Batch, Objective
from freezejax.training.objectives.language_modelling import LanguageModelling
from freezejax.training.optimizers import lr_schedule_of_run, make_optimizer
from freezejax.training.prefix_cache.prefix import PrefixOutput, check_prefix, make_prefix
from freezejax.training.programs.compiler import PhasePrograms, PhaseTransition, compiler_options
from freezejax.training.programs.tracing import Program, traced
from freezejax.training.state import RunState, initial_state, next_phase
from freezejax.training.step import make_step
from freezejax.weights import as_matrices, draw_maps


class RunPlan:
    """What a run will do, before anything is allocated or compiled.

    Arguments are those of `freezejax.training.loop.train`. The devices of a topology description will do for the mesh,
    and shapes for the weights. Without an objective it is language modelling, without a `batch` one of tokens.

    Raises:
      UserError: schedule, model, weights, batch and mesh do not fit each other.

    >>> from freezejax import models
    >>> config = TrainConfig(steps=2, batch_size=2, seq_len=8)
    >>> plan = RunPlan(models.build("geglu", num_layers=1), config, FreezeSchedule([(0, [(".*", True)])]))
    >>> plan.abstract_state(0).params["tok_emb"]["embedding"]
    ShapeDtypeStruct(shape=(256, 192), dtype=float32)
    """

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        schedule: FreezeSchedule,
        mesh: Mesh | None = None,
        *,
        objective: Objective | None = None,
        batch: Batch | None = None,
        params: PyTree | None = None,
    ) -> None:
        """Checks that all fits; costs two traces of `model.init` and no device memory."""
        self.model, self.config = model, config
        self.objective = objective or LanguageModelling(model, config.compute_dtype, remat=config.remat)
        self.batch = token_batch(config) if batch is None else batch
        self.abstract_params = model.abstract_params()
        if params is not None:  # in their own dtypes
            model.check(params)
            self.abstract_params = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), params)
        self.matrices = as_matrices(self.abstract_params)
        self.schedule = schedule.resolve(config.steps)
        self.phases = self.schedule.phases(self.abstract_params, config.steps)
        drawn = jax.eval_shape(draw_maps, self.abstract_params)
        self.layout = None if mesh is None else Layout(mesh, drawn, model.sharding)
        for path, leaf in zip(leaf_paths(self.batch), jax.tree.leaves(self.batch), strict=True):
            if leaf.shape[:1] != (config.batch_size,):
                wanted = f"train.batch_size={config.batch_size} rows first"
                raise UserError(f"batch: {path!r} has the shape {leaf.shape}: expected {wanted}")
        processes.check_batch(config.batch_size // config.accumulation, mesh, "train.batch_size / train.accumulation")
        check_prefix(config, mesh, self.batch)
        self.lr_schedule = lr_schedule_of_run(config, self.phases)

    def extend(self, start: int, rules: Rules) -> None:
        """Adds a phase at the end: from step `start` on these rules say what trains. Earlier phases keep their number.

        Not with `restart_schedule`, under which the rates of a phase follow from its length.
        """
        self.schedule = FreezeSchedule([*self.schedule.entries, (start, rules)])
        self.phases = self.schedule.phases(self.abstract_params, self.config.steps)

    def step_offset(self, phase: Phase) -> int:
        """Offset from the optimizer's own count to the global step: a restarted optimizer counts from zero again."""
        return phase.start if self.config.restart_optimizer else 0

    def optimizer(self, phase: Phase) -> optax.GradientTransformation:
        """The optimizer of a phase, to be wrapped in `freeze`; its learning rate follows the global step."""
        offset = self.step_offset(phase)
        return make_optimizer(self.config.optimizer, lambda count: self.lr_schedule(count + offset))

    def abstract_state(self, index: int) -> RunState:
        """Shapes, and on a mesh shardings, of the whole state during a phase."""

        def follow(params: PyTree) -> RunState:
            state = self._first_state(params)
            for old, new in itertools.pairwise(self.phases[: index + 1]):
                state = next_phase(state, old, new, self.optimizer(new), self.config)
            return state

        state = jax.eval_shape(follow, self.abstract_params)
        return state if self.layout is None else self.layout.abstract(state)

    def step(self, index: int) -> Callable[..., Any]:
        """The pure step of a phase, see `make_step`."""
        return make_step(
            self.objective,
            freeze(self.optimizer(self.phases[index]), self.phases[index].mask),
            accumulation=self.config.accumulation,
            ema_decay=self.config.ema_decay,
            ema_since=self.trained_since(index),
            draw_once=self.config.draw_maps == "per_step",
            layout=self.layout,
            # Worked out beside the loop, it would wait for whatever is being compiled in the background.
            rate=lambda index: self.config.optimizer.learning_rate * self.lr_schedule(index),
        )

    def trained_since(self, index: int) -> PyTree:
        """For each leaf that trains in a phase, the step from which on it has done so without a break."""

        def since(*trains: bool) -> int | None:  # in this phase and those before it, backwards
            unbroken = len(list(itertools.takewhile(bool, trains)))
            return self.phases[index + 1 - unbroken].start if unbroken else None

        return jax.tree.map(since, *(phase.mask for phase in self.phases[index::-1]))

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Abstract arguments of that step: `(StepState, frozen half, root key, step index, batch)`."""
        state, frozen = self.abstract_state(index).split(self.phases[index].mask)
        key, scalar = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
        batch = dict(self.batch)
        if self.config.draw_maps == "once":
            frozen = jax.eval_shape(draw_maps, frozen)
        if prefix := self.prefix(index):
            batch["prefix"] = jax.eval_shape(prefix, frozen, batch["inputs"])
        if self.layout is None:
            return state, frozen, key, scalar, batch
        rows = self.layout.batch
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), batch)
        return state, *self.layout.abstract((frozen, key, scalar)), batch

    def place(self, rows: Batch) -> Batch:
        """The global batch, from the rows that this process has read."""
        return rows if self.layout is None else processes.from_rows(rows, self.layout.batch, self.config.batch_size)

    def prefix(self, index: int) -> Callable[..., PrefixOutput] | None:
        """`(frozen half, inputs) -> batch["prefix"]` of the step; None where a phase has no prefix apart from it."""
        return make_prefix(self.model, self.config, self.abstract_params, self.phases[index].mask)

    def transition(self, index: int) -> PhaseTransition:
        """Compiled `state -> state` from the last step of the phase before to the first of this one."""
        old, new = self.phases[index - 1 : index + 1]
        return PhaseTransition(
            lambda state: next_phase(state, old, new, self.optimizer(new), self.config),
            self.abstract_state(index - 1),
            None if self.layout is None else self.layout.shardings,
        )

    def lower(self, index: int) -> jax.stages.Lowered:
        """The program of a phase, ready to be compiled; it donates the state that it changes."""
        arguments, shardings = self.arguments(index), None
        if self.layout is not None:
            shardings = (jax.tree.map(lambda leaf: leaf.sharding, arguments[0]), self.layout.replicated)
        step = traced(self.step(index), f"step of phase {index}")
        return jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(*arguments)

    def programs(self) -> list[Any]:
        """What tells the program of each phase from the others': phases for which it is equal share one."""
        since = self.trained_since if self.config.ema_decay else lambda index: None
        return [(phase.mask, self.step_offset(phase), since(index)) for index, phase in enumerate(self.phases)]

    def compile(self, index: int) -> PhasePrograms:
        """The programs of a phase."""
        arguments, compiled = self.arguments(index), self.lower(index).compile(compiler_options())
        if index > 0 and self.layout is None and jax.default_backend() == "cpu":
            # XLA's CPU backend sets its matmuls up when a program first runs, which takes up to two steps: now, on
            # this thread, not at the boundary. (On an accelerator a second state might not fit.)
            compiled(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), arguments))
        step = Program(compiled, self.step(index), arguments, f"step of phase {index}")
        if (prefix := self.prefix(index)) is None:
            return PhasePrograms(step, None, "")
        lowered, prefix_arguments = self.lower_prefix(index), (arguments[1], arguments[4]["inputs"])
        program = Program(lowered.compile(compiler_options()), prefix, prefix_arguments, f"prefix of phase {index}")
        return PhasePrograms(step, program, lowered.as_text())

    def lower_prefix(self, index: int) -> jax.stages.Lowered:
        """The program of a phase's prefix, ready to be compiled."""
        prefix, (_, frozen, _, _, batch) = self.prefix(index), self.arguments(index)
        assert prefix is not None
        return jax.jit(traced(prefix, f"prefix of phase {index}")).lower(frozen, batch["inputs"])

    def key(self) -> jax.Array:
        """Root key of the run, on every device."""
        if self.layout is None:
            return jax.random.key(self.config.seed)
        return jax.jit(jax.random.key, static_argnums=0, out_shardings=self.layout.replicated)(self.config.seed)

    def begin(self, params: PyTree | None = None) -> RunState:
        """State at the first step, from given weights or fresh ones; bits do not depend on the mesh.

        On a mesh every device makes its own shard of the weights and of the optimizer state, and of nothing else.
        """
        keys = jax.random.key(self.config.seed), jax.random.key(self.config.base_seed)
        if self.layout is None:  # given weights are copied: the step donates what it trains
            return self._first_state(self.model.init(*keys) if params is None else jax.tree.map(jnp.array, params))
        shardings = self.layout.shardings(self.abstract_params)
        if params is None:
            # Bits as arguments: constants would be folded, and an array of one device is none of several processes.
            make = jax.jit(lambda bits: self.model.init(*map(jax.random.wrap_key_data, bits)), out_shardings=shardings)
            placed = make([np.asarray(jax.random.key_data(key)) for key in keys])
        else:
            placed = processes.place(params, shardings)

        def rest(params: PyTree) -> RunState:  # without the weights, which the program would copy
            return self._first_state(params)._replace(params=())

        make = jax.jit(rest, out_shardings=self.layout.shardings(jax.eval_shape(rest, placed)))
        return make(placed)._replace(params=placed)

    def _first_state(self, params: PyTree) -> RunState:
        return initial_state(params, self.phases[0], self.optimizer(self.phases[0]), self.config)

    def held(self, frozen: PyTree) -> PyTree:
        """The frozen half as the step takes it: with `train.draw_maps=once` its maps are drawn now."""
        if self.config.draw_maps != "once":
            return frozen
        if self.layout is None:
            return draw_maps(frozen)
        layout, shapes = self.layout, jax.eval_shape(draw_maps, frozen)
        shardings, structure = jax.tree.flatten(layout.shardings(shapes))
        draw = jax.jit(lambda half: jax.tree.leaves(draw_maps(layout.placed(half))), out_shardings=shardings)
        return jax.tree.unflatten(structure, draw(frozen))


def mesh_of(config: TrainConfig) -> Mesh | None:
    """The mesh of a run over all devices; None where there is only one."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    return mesh if mesh.size > 1 else None
