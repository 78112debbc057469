"""The whole state of a run between steps, and what becomes of it at a phase boundary."""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from freezejax.errors import UserError
from freezejax.models import Model
from freezejax.optimizer import freeze, migrate
from freezejax.partition import combine, partition
from freezejax.paths import PyTree, leaf_paths
from freezejax.schedules import Phase
from freezejax.training.config import TrainConfig
from freezejax.training.step import StepState


class RunState(NamedTuple):
    """What a checkpoint holds: whole parameters, optimizer state, EMA, and state kept for thawing.

    >>> RunState({}, (), None, {}).kept
    {}
    """

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
    """Inverse of `RunState.split`.

    >>> join(StepState({"a": 1, "b": None}, (), None), {"a": None, "b": 2}, {}).params
    {'a': 1, 'b': 2}
    """
    return RunState(combine(step.trainable, frozen), step.opt_state, step.ema, kept)


def initial_state(params: PyTree, phase: Phase, tx: optax.GradientTransformation, config: TrainConfig) -> RunState:
    """State at the first step of a run.

    >>> config = TrainConfig(steps=1, batch_size=1, seq_len=8)
    >>> initial_state({"w": jnp.ones(2)}, Phase(0, 1, {"w": True}), optax.sgd(0.1), config).ema is None
    True
    """
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

    >>> config = TrainConfig(steps=2, batch_size=1, seq_len=8)
    >>> first, second = Phase(0, 1, {"w": True}), Phase(1, 2, {"w": False})
    >>> state = initial_state({"w": jnp.ones(2)}, first, optax.adam(0.1), config)
    >>> next_phase(state, first, second, optax.adam(0.1), config).opt_state.inner_states["trainable"].inner_state[0].mu
    {'w': MaskedNode()}
    """
    half = partition(state.params, new.mask)[0]
    if config.restart_optimizer:
        opt_state, kept = freeze(tx, new.mask).init(half), dict[str, jax.Array]()
    else:
        opt_state, kept = migrate(
            state.opt_state,
            old.mask,
            new.mask,
            tx=tx,
            params=state.params,
            on_thaw=config.on_thaw,  # type: ignore[arg-type]
            kept=state.kept,
        )
    ema = None
    if state.ema is not None:
        known = dict(zip(leaf_paths(state.ema), jax.tree.leaves(state.ema), strict=True))
        fresh = jax.tree.map(jnp.copy, half)
        means = [known.get(p, leaf) for p, leaf in zip(leaf_paths(fresh), jax.tree.leaves(fresh), strict=True)]
        ema = jax.tree.unflatten(jax.tree.structure(fresh), means)
    return RunState(state.params, opt_state, ema, kept)


def abstract_params(model: Model, given: PyTree | None = None) -> PyTree:
    """Shapes of a model's parameters, in the dtypes of the given ones where there are any.

    Raises:
      UserError: given parameters that are not those of the model, naming the first leaf that differs.

    >>> from freezejax import models
    >>> model = models.build("geglu", num_layers=1, model_dim=16, num_heads=1, vocab_size=8)
    >>> abstract_params(model, {"ln_f": {"scale": jnp.ones(16)}})
    Traceback (most recent call last):
    ...
    freezejax.errors.UserError: params: leaf 'blocks/0/attn/out/kernel' of the model is missing
    """
    own = jax.eval_shape(model.init, jax.random.key(0))
    if given is None:
        return own
    found = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), given)
    wanted, there = (dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)) for tree in (own, found))
    for path in dict.fromkeys([*wanted, *there]):
        if path not in there:
            raise UserError(f"params: leaf {path!r} of the model is missing")
        if path not in wanted:
            raise UserError(f"params: the model has no leaf {path!r}")
        leaf, right = there[path], wanted[path]
        if leaf.shape != right.shape:
            raise UserError(f"params: leaf {path!r} has the shape {leaf.shape}, in the model {right.shape}")
        if leaf.dtype != right.dtype and not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (leaf, right)):
            raise UserError(f"params: leaf {path!r} is {leaf.dtype}, in the model {right.dtype}")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (own, found)]
    if structures[0] != structures[1]:
        raise UserError("params: the leaves are those of the model, but lie in other kinds of nodes")
    return found


def abstract_state(
    params: PyTree, phases: Sequence[Phase], tx: optax.GradientTransformation, config: TrainConfig
) -> RunState:
    """Shapes of the state during the last of `phases`, found by following every phase before it.

    >>> config = TrainConfig(steps=2, batch_size=1, seq_len=8)
    >>> abstract_state({"w": jnp.ones(2)}, [Phase(0, 2, {"w": True})], optax.sgd(0.1), config).params
    {'w': ShapeDtypeStruct(shape=(2,), dtype=float32)}
    """

    def follow(params: PyTree) -> RunState:
        state = initial_state(params, phases[0], tx, config)
        for old, new in itertools.pairwise(phases):
            state = next_phase(state, old, new, tx, config)
        return state

    return jax.eval_shape(follow, params)


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
