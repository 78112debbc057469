"""Optimizers and learning-rate schedules by name."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from freezejax import roles
from freezejax.paths import PyTree
from freezejax.roles import Role
from freezejax.schedules import Phase
from freezejax.training.config import OptimizerConfig, TrainConfig


def make_optimizer(config: OptimizerConfig, schedule: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """Clip, then AdamW or Muon, with the learning rate `peak * schedule(count)`.

    Muon (optax.contrib) takes the kernels; all else stays with AdamW, as in the Parameter Golf baseline, whose Adam has
    no Nesterov momentum; that of optax.contrib.muon has. Wrapped in `freeze`, all of it sees trainable leaves only.
    """

    def rate(peak: float) -> Callable[[Any], jax.Array]:
        return lambda count: jnp.float32(peak) * schedule(count)

    peak, decay = rate(config.learning_rate), config.weight_decay
    if config.name == "adamw":
        main = optax.adamw(peak, config.b1, config.b2, config.eps, weight_decay=decay)
    else:
        main = optax.contrib.muon(
            peak,
            beta=config.momentum,
            weight_decay=decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            adam_weight_decay=decay,
            adam_learning_rate=rate(config.adam_learning_rate),
            muon_weight_dimension_numbers=_kernels,
        )
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, main)


def _kernels(params: PyTree) -> PyTree:
    # Of a stack of matrices [E, in, out] each by itself.
    numbers = lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.value.ndim - 2, leaf.value.ndim - 1)  # noqa: E731
    return roles.map_leaves(lambda leaf: numbers(leaf) if leaf.role in (Role.KERNEL, Role.CODED) else None, params)


def lr_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], jax.Array]:
    """Learning rate as a share of its peak, over a run of `steps`: warmup, then the named decay to zero.

    >>> schedule = lr_schedule(OptimizerConfig(schedule="linear_warmdown", warmdown_steps=4), 10)
    >>> [float(schedule(step)) for step in (0, 6, 8, 10)]
    [1.0, 1.0, 0.5, 0.0]
    """
    warmup = min(config.warmup_steps, steps)

    def schedule(count: Any) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        if config.schedule == "cosine":
            progress = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            decay = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif config.schedule == "linear_warmdown":
            decay = jnp.clip((steps - step) / max(min(config.warmdown_steps, steps), 1), 0.0, 1.0)
        else:
            decay = jnp.ones([])
        ramp = jnp.clip((step + 1.0) / (warmup + 1), 0.0, 1.0)
        return jnp.where(step < warmup, ramp, decay).astype(jnp.float32)

    return schedule


def lr_schedule_of_run(config: TrainConfig, phases: Sequence[Phase]) -> Callable[[Any], jax.Array]:
    """Learning rate as a share of its peak at a global step; with `restart_schedule` each phase has a whole schedule.

    >>> config = TrainConfig(steps=8, batch_size=1, seq_len=8, restart_schedule=True)
    >>> rate = lr_schedule_of_run(config, [Phase(0, 4, None), Phase(4, 8, None)])
    >>> [round(float(rate(step)), 2) for step in (0, 2, 4, 6)]
    [1.0, 0.5, 1.0, 0.5]
    """
    if not config.restart_schedule:
        return lr_schedule(config.optimizer, config.steps)
    schedules = [lr_schedule(config.optimizer, phase.stop - phase.start) for phase in phases]
    return optax.join_schedules(schedules, [phase.start for phase in phases[1:]])
