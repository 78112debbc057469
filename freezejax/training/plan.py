"""Everything about a run that follows from shapes alone: phases, state, layout, and the program of each phase."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from freezejax.models import Model
from freezejax.optimizer import freeze
from freezejax.paths import PyTree
from freezejax.schedules import FreezeSchedule, Phase
from freezejax.sharding import Layout, make_mesh
from freezejax.training import processes
from freezejax.training.config import TrainConfig
from freezejax.training.crossing import Crossing
from freezejax.training.optimizers import make_optimizer, rate_of_run
from freezejax.training.phases import PhasePrograms
from freezejax.training.prefix import check_one_device, frozen_prefix, make_prefix
from freezejax.training.state import RunState, abstract_state, begin, cross
from freezejax.training.step import Loss, make_step
from freezejax.training.tracing import Program, traced
from freezejax.weights import as_matrices, draw_maps


class RunPlan:
    """What a run will do, before anything is allocated or compiled.

    Args:
      model: what trains.
      config: of the run.
      schedule: what trains from which step on; fractions are of `config.steps`.
      mesh: devices to lay it out over; those of a topology description will do. None = the default device.

    Raises:
      UserError: schedule, model, batch and mesh do not fit each other.

    >>> from freezejax import models
    >>> config = TrainConfig(steps=2, batch_size=2, seq_len=8)
    >>> plan = RunPlan(models.build("geglu", num_layers=1), config, FreezeSchedule([(0, [(".*", True)])]))
    >>> plan.lower(0).compile().memory_analysis().output_size_in_bytes > 3 * 4 * 192 * 256
    True
    """

    def __init__(self, model: Model, config: TrainConfig, schedule: FreezeSchedule, mesh: Mesh | None = None) -> None:
        """Checks that all fits; costs two traces of `model.init` and no device memory."""
        self.model, self.config, self.mesh = model, config, mesh
        self.abstract_params = jax.eval_shape(model.init, jax.random.key(0))
        self.matrices = as_matrices(self.abstract_params)
        self.phases = schedule.phases(self.abstract_params, config.steps)
        self.layout = None if mesh is None else Layout(mesh, self.abstract_params)
        processes.check_batch(config.batch_size // config.accumulation, mesh, "train.batch_size / train.accumulation")
        check_one_device(config, mesh)
        self.rate = rate_of_run(config, self.phases)

    def count_offset(self, phase: Phase) -> int:
        """What the optimizer's own count lacks to the run's step: a restarted optimizer counts from zero again."""
        return phase.start if self.config.restart_optimizer else 0

    def optimizer(self, phase: Phase) -> optax.GradientTransformation:
        """The optimizer of a phase, to be wrapped in `freeze`; its learning rate follows the run's step."""
        offset = self.count_offset(phase)
        return make_optimizer(self.config.optimizer, lambda count: self.rate(count + offset))

    def abstract_state(self, index: int) -> RunState:
        """Shapes, and on a mesh shardings, of the whole state during a phase."""
        tx = self.optimizer(self.phases[0])
        state = abstract_state(self.abstract_params, self.phases[: index + 1], tx, self.config)
        return state if self.layout is None else self.layout.abstract(state)

    def step(self, index: int) -> Callable[..., Any]:
        """The pure step of a phase, see `make_step`."""
        return make_step(
            mean_loss(self.model, self.config, self.blocks_apart(index)),
            freeze(self.optimizer(self.phases[index]), self.phases[index].mask),
            accumulation=self.config.accumulation,
            ema_decay=self.config.ema_decay,
            draw_once=self.config.draw_maps == "per_step",
            layout=self.layout,
            # Worked out beside the loop, it would wait for whatever is being compiled in the background.
            rate=lambda index: self.config.optimizer.learning_rate * self.rate(index),
        )

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Abstract arguments of that step: `(StepState, frozen half, root key, step index, batch)`."""
        state, frozen = self.abstract_state(index).split(self.phases[index].mask)
        key, scalar = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
        sequence = jax.ShapeDtypeStruct((self.config.batch_size, self.config.seq_len), jnp.int32)
        batch = {"inputs": sequence, "targets": sequence}
        if self.config.draw_maps == "once":
            frozen = jax.eval_shape(draw_maps, frozen)
        if self.blocks_apart(index):
            batch["hidden"] = jax.eval_shape(self.prefix(index), frozen, sequence)
        if self.layout is None:
            return state, frozen, key, scalar, batch
        replicated = self.layout.replicated
        key, scalar = (jax.ShapeDtypeStruct((), x.dtype, sharding=replicated) for x in (key, scalar))
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.batch) for name, x in batch.items()}
        return state, self.layout.abstract(frozen), key, scalar, batch

    def blocks_apart(self, index: int) -> int:
        """Blocks of a phase's frozen prefix that run apart from its step; 0 = all is in the step."""
        return frozen_prefix(self.model, self.config, self.phases[index].mask)

    def prefix(self, index: int) -> Callable[..., PyTree]:
        """That prefix: `(frozen half, inputs) -> batch["hidden"]` of the step."""
        return make_prefix(self.model, self.config, self.abstract_params, self.phases[index].mask)

    def crossing(self, index: int) -> Crossing:
        """Compiled `state -> state` from the last step of the phase before to the first of this one."""
        old, new = self.phases[index - 1 : index + 1]
        shardings = None if self.layout is None else self.layout.shardings

        def over(state: RunState) -> RunState:
            return cross(state, old, new, self.optimizer(new), self.config)

        return Crossing(over, self.abstract_state(index - 1), shardings)

    def lower(self, index: int) -> jax.stages.Lowered:
        """The program of a phase, ready to be compiled; it donates the state that it changes."""
        arguments = self.arguments(index)
        shardings = None
        if self.layout is not None:
            state = jax.tree.map(lambda leaf: leaf.sharding, arguments[0])
            shardings = (state, self.layout.replicated)
        step = traced(self.step(index), f"step of phase {index}")
        return jax.jit(step, donate_argnums=0, out_shardings=shardings).lower(*arguments)

    def compile(self, index: int) -> PhasePrograms:
        """The programs of a phase."""
        arguments = self.arguments(index)
        compiled = self.lower(index).compile()
        if index > 0 and self.layout is None and jax.default_backend() == "cpu":
            # XLA's CPU backend sets its matmuls up when a program first runs, which takes up to two steps: now, on
            # this thread, not at the boundary. (On an accelerator a second state might not fit.)
            compiled(*jax.tree.map(_zeros, arguments))
        step = Program(compiled, self.step(index), arguments, f"step of phase {index}")
        if not self.blocks_apart(index):
            return PhasePrograms(step, None, "")
        lowered, prefix_arguments = self.lower_prefix(index), (arguments[1], arguments[4]["inputs"])
        prefix = Program(lowered.compile(), self.prefix(index), prefix_arguments, f"prefix of phase {index}")
        return PhasePrograms(step, prefix, lowered.as_text())

    def lower_prefix(self, index: int) -> jax.stages.Lowered:
        """The program of a phase's prefix, ready to be compiled."""
        _, frozen, _, _, batch = self.arguments(index)
        return jax.jit(traced(self.prefix(index), f"prefix of phase {index}")).lower(frozen, batch["inputs"])

    def key(self) -> jax.Array:
        """Root key of the run, on every device."""
        make = lambda: jax.random.key(self.config.seed)  # noqa: E731
        if self.layout is None:
            return make()
        key: jax.Array = jax.jit(make, out_shardings=self.layout.replicated)()
        return key

    def begin(self) -> RunState:
        """State at the first step; bits do not depend on the mesh."""
        key, base_key = jax.random.key(self.config.seed), jax.random.key(self.config.base_seed)
        first = self.phases[0]
        state = begin(self.model.init(key, base_key), first, self.optimizer(first), self.config)
        return state if self.layout is None else processes.place(state, self.layout.shardings(state))

    def held(self, frozen: PyTree) -> PyTree:
        """The frozen half as the step takes it: with `train.draw_maps=once` its maps are drawn now."""
        if self.config.draw_maps != "once":
            return frozen
        if self.layout is None:
            return draw_maps(frozen)
        layout, shapes = self.layout, jax.eval_shape(draw_maps, frozen)

        def draw(tree: PyTree) -> PyTree:
            return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(draw_maps(layout.placed(tree))))

        drawn: PyTree = jax.jit(draw, out_shardings=layout.shardings(shapes))(frozen)
        return drawn


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)


def mesh_of(config: TrainConfig) -> Mesh | None:
    """The mesh of a run over all devices; None where there is only one.

    >>> mesh_of(TrainConfig(steps=1, batch_size=1, seq_len=8)) is None
    True
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    return mesh if mesh.size > 1 else None


def mean_loss(model: Model, config: TrainConfig, blocks: int = 0) -> Loss:
    """Mean cross entropy of a batch in nats per token, with dropout, in the run's compute dtype.

    With `blocks` the batch holds `hidden`, what the first blocks made of the inputs, and the rest runs on it.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=16, num_heads=1, vocab_size=8)
    >>> loss = mean_loss(model, TrainConfig(steps=1, batch_size=1, seq_len=4))
    >>> batch = {"inputs": jnp.zeros((1, 4), jnp.int32), "targets": jnp.ones((1, 4), jnp.int32)}
    >>> 2.0 < float(loss(model.init(jax.random.key(0)), batch, jax.random.key(1))) < 2.5  # log(8) = 2.08
    True
    """
    dtype = jnp.dtype(config.compute_dtype)

    def loss(params: PyTree, batch: dict[str, jax.Array], dropout_key: jax.Array) -> jax.Array:
        options: Any = {"dropout_key": dropout_key, "compute_dtype": dtype, "remat": config.remat}
        rest: Any = {"blocks": blocks, "hidden": batch["hidden"]} if blocks else {}
        return jnp.mean(model.apply(params, batch["inputs"], targets_BxT=batch["targets"], **options, **rest))

    return loss
