"""The whole state of a run between steps, and what becomes of it at a phase boundary."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from freezejax.optimizer import freeze, migrate
from freezejax.partition import combine, partition
from freezejax.paths import PyTree, leaf_paths, map_with_paths
from freezejax.schedules import Phase
from freezejax.training.config import TrainConfig
from freezejax.training.step import StepState


class RunState(NamedTuple):
    """What a checkpoint holds: whole parameters, optimizer state, EMA, and state kept for thawing."""

    params: PyTree
    opt_state: Any  # of freeze(tx, mask of the phase)
    ema: PyTree | None  # trainable half only: a frozen leaf is its own average
    kept: dict[str, jax.Array]  # optimizer state of frozen leaves, under on_thaw="keep"

    def split(self, mask: PyTree) -> tuple[StepState, PyTree]:
        """`(what a step changes, frozen half)`."""
        trainable, frozen = partition(self.params, mask)
        return StepState(trainable, self.opt_state, self.ema), frozen

    def averaged(self) -> PyTree:
        """Parameters to evaluate: the EMA where there is one."""
        if self.ema is None:
            return self.params
        return jax.tree.map(
            lambda mean, leaf: leaf if mean is None else mean, self.ema, self.params, is_leaf=lambda x: x is None
        )


def join(step: StepState, frozen: PyTree, kept: dict[str, jax.Array]) -> RunState:
    """Inverse of `RunState.split`."""
    return RunState(combine(step.trainable, frozen), step.opt_state, step.ema, kept)


def initial_state(params: PyTree, phase: Phase, tx: optax.GradientTransformation, config: TrainConfig) -> RunState:
    """State at the first step of a run."""
    half = partition(params, phase.mask)[0]
    # A copy: the step donates both trees, and no buffer can be donated twice.
    ema = jax.tree.map(jnp.copy, half) if config.ema_decay else None
    return RunState(params, freeze(tx, phase.mask).init(half), ema, {})


def next_phase(
    state: RunState, old: Phase, new: Phase, tx: optax.GradientTransformation, config: TrainConfig
) -> RunState:
    """State at the first step of phase `new`, from that after the last step of `old`.

    Survivors keep their moments and averages; frozen leaves release both; a thawed leaf's average
    starts at its weight. With `restart_optimizer` all optimizer state begins again.
    """
    half = partition(state.params, new.mask)[0]
    if config.restart_optimizer:
        opt_state, kept = freeze(tx, new.mask).init(half), dict[str, jax.Array]()
    else:
        opt_state, kept = migrate(
            state.opt_state, old.mask, new.mask, tx=tx, params=state.params, on_thaw=config.on_thaw, kept=state.kept
        )
    ema = None
    if state.ema is not None:
        known = dict(zip(leaf_paths(state.ema), jax.tree.leaves(state.ema), strict=True))
        ema = map_with_paths(lambda path, leaf: known[path] if path in known else jnp.copy(leaf), half)
    return RunState(state.params, opt_state, ema, kept)


def fingerprint(tree: PyTree) -> str:
    """SHA-256 over the paths, dtypes, shapes and bytes of a tree: equal only for equal bits.

    >>> fingerprint({"w": np.zeros(2)}) == fingerprint({"w": -np.zeros(2)})
    False
    """
    digest = hashlib.sha256()
    for path, leaf in zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        array = np.asarray(leaf)
        digest.update(f"{path}:{array.dtype}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
