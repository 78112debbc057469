"""The training step of one phase: gradients of the trainable half, optax, next state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from freezejax.errors import UserError
from freezejax.partition import apply_updates, combine
from freezejax.paths import PyTree, named_key
from freezejax.sharding import Layout
from freezejax.training.objectives.base import Batch, Objective
from freezejax.weights import draw_maps

OWN_METRICS = {"loss", "grad_norm", "learning_rate"}


class StepState(NamedTuple):
    """What a step changes; frozen leaves are None throughout, so they are neither copied nor returned."""

    trainable: PyTree  # trainable half of the parameters
    opt_state: Any  # state of freeze(tx, mask)
    ema: PyTree | None  # exponential moving average of `trainable`, None when off


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    accumulation: int = 1,  # microbatches whose gradients are averaged into one update
    ema_decay: float = 0.0,  # of the average of the weights, see `averaged`; 0 keeps none
    ema_since: PyTree | None = None,  # step of each trainable leaf's first update of those that are averaged; None = 0
    draw_once: bool = False,  # draw random maps at the start of the step, not in every layer and pass
    layout: Layout | None = None,  # how parameters and batch lie on a mesh, if there is one
    rate: Callable[[jax.Array], jax.Array] | None = None,  # learning rate at a step's index, to be a metric
) -> Callable[..., tuple[StepState, dict[str, jax.Array]]]:
    """Pure step `(state, frozen, key, index, batch) -> (state, metrics)` of `tx`, a `freeze(tx, mask)`.

    The step takes the root key and the step's index, so a resumed run draws the dropout masks of the
    uninterrupted one. Metrics: `loss`, those of the objective, and `grad_norm` over trainable leaves, before the clip.

    Raises:
      UserError: when traced, if a metric of the objective has the name of one of the step's.

    >>> class Product(Objective):
    ...     def loss(self, params, batch, key):
    ...         return jnp.sum(params["w"] * batch["x"]), {}
    >>> step = make_step(Product(), optax.sgd(1.0))
    >>> state = StepState({"w": jnp.ones(2)}, optax.sgd(1.0).init({"w": jnp.ones(2)}), None)
    >>> state, metrics = step(state, {"w": None}, jax.random.key(0), 0, {"x": jnp.ones(2)})
    >>> state.trainable["w"], float(metrics["loss"])
    (Array([0., 0.], dtype=float32), 2.0)
    """

    def step(
        state: StepState, frozen: PyTree, key: jax.Array, index: jax.Array, batch: Batch
    ) -> tuple[StepState, dict[str, jax.Array]]:
        if layout is not None:
            frozen = layout.placed(frozen)
        if draw_once:
            frozen = draw_maps(frozen)

        def loss_of_half(half: PyTree, part: Batch, loss_key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            params = combine(half, frozen) if layout is None else layout.at_use(combine(layout.placed(half), frozen))
            return objective.loss(params, part, loss_key)

        def gradient(half: PyTree, part: Batch, loss_key: jax.Array) -> Any:
            values, grads = jax.value_and_grad(loss_of_half, has_aux=True)(half, part, loss_key)
            # A custom backward pass may give a bfloat16 weight a float32 gradient: moments keep the weight's dtype.
            return values, jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, half)

        loss_key = jax.random.fold_in(named_key(key, "dropout"), index)
        batch = objective.prepare(batch)
        (value, found), grads = _mean_over_parts(gradient, state.trainable, batch, loss_key, accumulation, layout)
        if taken := sorted(OWN_METRICS & found.keys()):
            raise UserError(f"{type(objective).__name__}: a metric is named {taken[0]!r}, as one of the step's own is")
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = apply_updates(state.trainable, updates)
        ema = state.ema
        if ema is not None:
            since = jax.tree.map(lambda _: 0, trainable) if ema_since is None else ema_since
            average = lambda mean, leaf, start: averaged(mean, leaf, index - start, ema_decay)  # noqa: E731
            ema = jax.tree.map(average, ema, trainable, since)
        metrics = {"loss": value, **found, "grad_norm": optax.tree.norm(grads)}
        if rate is not None:
            metrics["learning_rate"] = rate(index)
        return StepState(trainable, opt_state, ema), metrics

    return step


def averaged(mean: jax.Array, leaf: jax.Array, count: jax.Array, decay: float) -> jax.Array:
    """The exponential moving average after `count` earlier updates of a leaf: its decay rises to `decay`.

    It is `min(decay, count / (count + 9))`. So the weight before the first update, which is zero in many an adapter,
    has no part in the average (with a constant decay it cost 0.47 bits per byte: Parameter Golf, PR 1549), and while
    weights still grow the average is over the last tenth of the run.

    >>> [float(averaged(jnp.zeros(()), jnp.ones(()), jnp.int32(count), 0.99)) for count in (0, 9, 10_000)]
    [1.0, 0.5, 0.009999999776482582]
    """
    rate = jnp.maximum(1.0 - decay, 9 / (jnp.float32(count) + 9))
    return mean + rate.astype(leaf.dtype) * (leaf - mean)


def _mean_over_parts(
    gradient: Callable[..., Any], half: PyTree, batch: Batch, key: jax.Array, parts: int, layout: Layout | None
) -> Any:
    """`((loss, metrics), gradients)` of the batch: their means over its microbatches."""
    if parts == 1:
        return gradient(half, batch, key)
    split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)

    def add(total: Any, part: Any) -> tuple[Any, dict[str, jax.Array]]:
        index, micro = part
        if layout is not None:  # a part's rows lie on some of the devices: deal them out again
            micro = jax.lax.with_sharding_constraint(micro, layout.batch)
        (value, metrics), grads = gradient(half, micro, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (value, grads)), metrics

    zeros = (jnp.zeros([], jnp.float32), jax.tree.map(jnp.zeros_like, half))
    total, metrics = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
    value, grads = jax.tree.map(lambda x: x / parts, total)
    return (value, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)), grads
